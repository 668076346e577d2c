"""A private turn, whole: the same bits again, no noise twice, and an attacker who finds no more than was promised."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from ppdl_mq.errors import Interrupted, TrainingError
from ppdl_mq.numeric import flatten
from ppdl_mq.peer.checkpoints import Checkpoints
from ppdl_mq.protocol.schedule import Turn
from ppdl_mq.training.data import Split
from ppdl_mq.training.loop import Loss
from ppdl_mq.training.private.accountant import Steps, epsilon
from ppdl_mq.training.private.gradient import Mechanism
from ppdl_mq.training.worker import Worker
from tests.training.trials import CPU, SEEDS, ZOO, manifest, samples, schedule, split

SEED = SEEDS["ash"]
MECHANISM = Mechanism(clip=1.0, noise=1.0)


def worker_of(agreed, rows: int = 60, mechanism: Mechanism | None = MECHANISM, **more) -> Worker:
    return Worker(agreed, split(rows), device=CPU, mechanism=mechanism, **more)


def change(worker: Worker, turn: Turn, weights: bytes, seed: bytes = SEED) -> np.ndarray:
    after = worker.train(turn, weights, seed).weights
    return np.frombuffer(after, dtype="<f4") - np.frombuffer(weights, dtype="<f4")


def test_the_same_turn_comes_to_the_same_bits_in_another_worker() -> None:
    agreed = manifest(turn_steps=12, momentum=0.5, arguments={"inputs": 6, "hidden": [9], "outputs": 3, "dropout": 0.3})
    one, other = worker_of(agreed), worker_of(agreed)
    turn = schedule(agreed).turn(1)
    first = one.train(turn, one.initial(), SEED)
    assert other.train(turn, one.initial(), SEED).weights == first.weights
    assert first.steps == 12
    assert first.loss is not None
    assert 0 < first.loss < 2 * math.log(3)
    assert one.train(turn, one.initial(), SEEDS["birch"]).weights != first.weights
    assert worker_of(agreed, mechanism=None).train(turn, one.initial(), SEED).weights != first.weights


def test_the_number_of_steps_is_that_of_a_plain_turn() -> None:
    for kind in ({"turn_steps": 5}, {"turn_epochs": 2}, {"turns_per_epoch": 3}):
        agreed = manifest(**kind)
        turn = schedule(agreed).turn(1)
        plain, private = worker_of(agreed, mechanism=None), worker_of(agreed)
        weights = plain.initial()
        assert private.train(turn, weights, SEED).steps == plain.train(turn, weights, SEED).steps > 0


def test_no_noise_is_in_two_results() -> None:
    """Who makes a peer train twice, from other weights or in another turn, gets no difference without noise."""
    agreed = manifest(turn_steps=1, batch_size=60, learning_rate=1.0)
    worker, quiet = worker_of(agreed), worker_of(agreed, mechanism=Mechanism(clip=1.0, noise=0.0))
    turns, weights = schedule(agreed), worker.initial()
    nudged = bytearray(weights)
    nudged[0] ^= 1  # the last bit of one weight
    cases = [(turns.turn(1), weights), (turns.turn(4), weights), (turns.turn(1), bytes(nudged))]
    noise = [change(worker, turn, base) - change(quiet, turn, base) for turn, base in cases]
    for number, one in enumerate(noise):
        assert np.std(one) == pytest.approx(1 / 60, rel=0.2)
        for other in noise[number + 1 :]:
            assert np.std(one - other) == pytest.approx(math.sqrt(2) / 60, rel=0.2)


class StopsAfter(threading.Event):
    """Is set once it was asked so often."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._left = times

    def is_set(self) -> bool:
        self._left -= 1
        return self._left < 0


def test_a_turn_that_is_stopped_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    agreed = manifest(turn_steps=30, momentum=0.9)
    turn, weights = schedule(agreed).turn(1), worker_of(agreed).initial()
    whole = worker_of(agreed).train(turn, weights, SEED)

    def shelf() -> Checkpoints:
        return Checkpoints(tmp_path, every_s=1e9)

    with pytest.raises(Interrupted):
        worker_of(agreed, checkpoints=shelf()).train(turn, weights, SEED, stop=StopsAfter(17))
    kept = [path.read_bytes() for path in tmp_path.iterdir()]
    assert len(kept) == 1
    asked: list[int] = []
    again = worker_of(agreed, checkpoints=shelf())
    again.loss = _counting(again.loss, asked)
    assert again.train(turn, weights, SEED) == whole
    assert 0 < len(asked) < whole.samples
    louder = Mechanism(clip=1.0, noise=1.5)  # the checkpoint of other noise is passed over
    found = worker_of(agreed, mechanism=louder, checkpoints=shelf()).train(turn, weights, SEED)
    assert found == worker_of(agreed, mechanism=louder).train(turn, weights, SEED)


def _counting(loss: Loss, asked: list[int]) -> Loss:
    def counted(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        asked.append(len(asked))
        return loss(outputs, targets)

    return counted


def test_it_learns_where_rows_are_many() -> None:
    agreed = manifest(turn_steps=150, batch_size=64, learning_rate=0.5)
    worker = worker_of(agreed, rows=1_500, mechanism=Mechanism(clip=1.0, noise=1.0))
    before = worker.evaluate(worker.initial())
    after = worker.evaluate(worker.train(schedule(agreed).turn(1), worker.initial(), SEED).weights)
    assert after.loss is not None
    assert before.loss is not None
    assert after.loss < 0.8 * before.loss


def test_batchnorm_is_refused_before_anything_is_trained() -> None:
    agreed = manifest(arguments={"inputs": 6, "hidden": [9], "outputs": 3, "batch_norm": True})
    with pytest.raises(TrainingError, match="needs rows together"):
        worker_of(agreed)


def test_a_row_that_blows_up_stops_nothing() -> None:
    agreed = manifest(turn_steps=4, batch_size=9)
    train = samples(9)
    train.inputs[2] = 1e38
    worker = Worker(agreed, Split(train, samples(0)), device=CPU, mechanism=MECHANISM)
    result = worker.train(schedule(agreed).turn(1), worker.initial(), SEED)
    assert result.loss is not None
    assert math.isfinite(result.loss)
    flatten.check_finite(result.weights, worker.layout)


class FailsOnNine(torch.nn.Linear):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        assert not bool((inputs[:, 0] == 9).any())
        return super().forward(inputs)


def test_whether_a_peer_begins_does_not_depend_on_a_row() -> None:
    agreed = manifest(f"{__name__}:FailsOnNine", {"in_features": 6, "out_features": 3}, turn_steps=2, batch_size=9)
    train = samples(9)
    train.inputs[:, 0] = 9
    worker = Worker(agreed, Split(train, samples(0)), device=CPU, mechanism=MECHANISM)
    result = worker.train(schedule(agreed).turn(1), worker.initial(), SEED)
    assert (result.steps, result.loss) == (2, None)


def test_other_rows_have_other_noise() -> None:
    agreed = manifest(turn_steps=1, batch_size=60, learning_rate=1.0)
    turn, quiet = schedule(agreed).turn(1), Mechanism(clip=1.0, noise=0.0)
    found = []
    for first in (0.0, 0.5):
        given = split(60)
        given.train.inputs[0, 0] = first
        worker, calm = (Worker(agreed, given, device=CPU, mechanism=each) for each in (MECHANISM, quiet))
        found.append(change(worker, turn, worker.initial()) - change(calm, turn, worker.initial()))
    assert np.std(found[0] - found[1]) == pytest.approx(math.sqrt(2) / 60, rel=0.2)


# --- an attacker, after Jagielski, Ullman and Oprea (arXiv 2006.07709) ------------------------------------------------

_TRIES = 400
_CANARY = 7.0


def _guesses(mechanism: Mechanism) -> tuple[int, int]:
    """How often the attacker says "the canary was trained on", where it was and where it was not.

    It knows everything but the peer's secret: the other rows, the weights before and after, and the canary itself.
    """
    agreed = manifest(
        ZOO + "logistic_regression", {"inputs": 6, "outputs": 3}, turn_steps=1, batch_size=20, learning_rate=1.0
    )
    with_canary = samples(20)
    with_canary.inputs[0] = _CANARY
    without = with_canary.take(torch.arange(1, 20))
    said = []
    for rows in (with_canary, without):
        worker = Worker(agreed, Split(rows, samples(0)), device=CPU, mechanism=mechanism)
        quiet = Worker(agreed, Split(rows, samples(0)), device=CPU, mechanism=Mechanism(clip=1.0, noise=0.0))
        turn, weights = schedule(agreed).turn(1), worker.initial()
        clean = change(quiet, turn, weights) * len(rows)
        said.append((worker, turn, weights, clean))
    direction = said[0][3] - said[1][3]  # the canary's clipped gradient, of length 1 at most
    middle = (said[0][3] + said[1][3]) @ direction / 2
    counts = []
    for worker, turn, weights, _ in said:
        seeds = (number.to_bytes(32, "big") for number in range(_TRIES))
        counts.append(sum(change(worker, turn, weights, seed) * worker.rows @ direction > middle for seed in seeds))
    return int(counts[0]), int(counts[1])


def _proven_epsilon(hits: int, false_alarms: int, delta: float) -> float:
    """The least epsilon that is consistent with these guesses, at 99.9 % (Clopper and Pearson)."""
    hit_rate = stats.beta.ppf(0.0005, hits, _TRIES - hits + 1) if hits else 0.0
    alarm_rate = stats.beta.ppf(0.9995, false_alarms + 1, _TRIES - false_alarms)
    return math.log(max(hit_rate - delta, 1e-12) / alarm_rate)


@pytest.mark.parametrize("noise", [0.7, 1.5])
def test_an_attacker_who_knows_all_other_rows_learns_no_more_than_epsilon(noise: float) -> None:
    hits, false_alarms = _guesses(Mechanism(clip=1.0, noise=noise))
    claimed = epsilon([Steps(count=1, batch_size=1, rows=1, noise=noise)], 1e-5)
    assert _proven_epsilon(hits, false_alarms, 1e-5) < claimed
    # It guesses as the theory says it can: so it would notice noise that is smaller than claimed, or no clip.
    assert hits / _TRIES == pytest.approx(stats.norm.cdf(0.5 / noise), abs=0.09)
    assert false_alarms / _TRIES == pytest.approx(stats.norm.sf(0.5 / noise), abs=0.09)


def test_the_attacker_finds_what_has_too_little_noise() -> None:
    hits, false_alarms = _guesses(Mechanism(clip=1.0, noise=0.1))
    assert _proven_epsilon(hits, false_alarms, 1e-5) > epsilon([Steps(count=1, batch_size=1, rows=1, noise=1.5)], 1e-5)
