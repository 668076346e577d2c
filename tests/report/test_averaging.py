"""What masked-average is held to: a right trial passes, and every way to break the averaging is noticed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from ppdl_mq.cli.demonstration.trial import agreed_digests
from ppdl_mq.config.manifest import Manifest
from ppdl_mq.numeric.fixed_point import FixedPoint, Words
from ppdl_mq.report.averaging import Round, Tally, largest_difference, rounds_in_clear
from ppdl_mq.training.baselines import federated_averaging
from ppdl_mq.training.order import rehearsal_seed
from ppdl_mq.training.worker import Worker
from ppdl_mq.transport.memory import MemoryRelay, MemoryTransport
from ppdl_mq.wire.entries import LOG_NAME
from tests.trial import PEERS, TrialInProcess, manifest_for, split_for

SEEDS = {name: rehearsal_seed(7, name) for name in PEERS}  # as TrialInProcess has them
ROUNDS = 4
LARGE = 40.0  # times, of one peer's weights: more than 32 bits have room for


def manifest() -> Manifest:
    return manifest_for(protocol="masked-average", training__epochs=2, training__turns_per_epoch=2)


def workers_of(terms: Manifest) -> dict[str, Worker]:
    return {name: Worker(terms, split_for(name, terms), device=torch.device("cpu")) for name in PEERS}


@pytest.fixture(scope="module")
def rounds() -> list[Round]:
    return list(rounds_in_clear(manifest(), workers_of(manifest()), SEEDS))


def tally_of(rounds: list[Round], *, models: tuple[bytes, ...], agreed: frozenset[bytes]) -> Tally:
    tally = Tally(agreed=agreed, models=models, rounds=ROUNDS)
    for each in rounds:
        tally.add(each)
    return tally


def digests(rounds: list[Round]) -> frozenset[bytes]:
    return frozenset(hashlib.sha256(each.average).digest() for each in rounds)


def run_trial(folder: Path) -> tuple[tuple[bytes, ...], frozenset[bytes]]:
    """Run a whole trial; return the peers' models, and what the first of them signed as agreed."""
    relay = MemoryRelay()
    trial = TrialInProcess(manifest(), folder, lambda _: MemoryTransport(relay))
    trial.run(timeout_s=60)
    return tuple(trial.model(name) for name in PEERS), agreed_digests(folder / PEERS[0] / LOG_NAME)


def test_a_trial_does_what_its_repetition_does(tmp_path: Path, rounds: list[Round]) -> None:
    models, agreed = run_trial(tmp_path)
    assert set(models) == {rounds[-1].average}
    assert digests(rounds) <= agreed
    tally = tally_of(rounds, models=models, agreed=agreed)
    assert (tally.values, tally.values_off) == (ROUNDS * len(models[0]) // 4, 0)
    plain = federated_averaging(manifest(), workers_of(manifest()), SEEDS)
    # 32 bits and exponents of 2 to 3 here: 2**-24 * 2**3 a round; four short rounds do not amplify it tenfold.
    assert 0 <= largest_difference(models[0], plain) < 5e-6


def test_an_average_that_is_a_little_wrong_is_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: list[Round]
) -> None:
    right = FixedPoint.decode

    def wrong(self: FixedPoint, total: Words) -> bytearray:
        # By 32 units of the sum of more than 2**27: what a mask of a few low bits, left in, would do.
        return right(self, total + total.dtype.type(32))

    monkeypatch.setattr(FixedPoint, "decode", wrong)
    models, agreed = run_trial(tmp_path)
    tally = tally_of(rounds, models=models, agreed=agreed)  # the repetition was made with the right one
    assert tally.values_off > tally.values // 2
    again = list(rounds_in_clear(manifest(), workers_of(manifest()), SEEDS))  # and this one is as wrong as the trial
    assert digests(again) <= agreed
    tally = tally_of(again, models=models, agreed=agreed)
    assert tally.values_off > tally.values // 2


def test_one_value_a_little_beyond_the_bound_is_off_and_one_within_is_not(rounds: list[Round]) -> None:
    last = rounds[-1]
    index = int(np.abs(last.mean).argmin())  # where the steps of float32 are far below the bound
    for times, off in ((0.9, 0), (-0.9, 0), (1.1, 1), (-1.1, 1), (float("nan"), 1)):
        values = np.frombuffer(last.average, dtype="<f4").copy()
        values[index] = last.mean[index] + times * last.bound[index]
        model = values.tobytes()
        assert last.values_off(model) == off, times
        tally = tally_of(rounds, models=(last.average, model), agreed=digests(rounds))
        assert tally.values_off == off, times  # the worst of the models counts


def test_a_round_that_ended_elsewhere_is_off_as_a_whole(rounds: list[Round]) -> None:
    agreed = digests(rounds) - {hashlib.sha256(rounds[1].average).digest()}
    tally = tally_of(rounds, models=(rounds[-1].average,), agreed=agreed)
    assert tally.values_off == rounds[1].mean.size


def test_what_one_peer_trained_is_neither_the_average_nor_the_words(rounds: list[Round]) -> None:
    for each in rounds:
        assert len({each.average, *each.own.values(), *each.words.values()}) == 1 + 2 * len(PEERS)


def test_where_32_bits_overflow_the_repetition_takes_64_too(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = workers_of(manifest())
    train = Worker.train

    def grown(self: Worker, *arguments: object, **more: object) -> object:
        result = train(self, *arguments, **more)  # type: ignore[arg-type]
        if self is workers[PEERS[1]]:
            values = np.frombuffer(result.weights, dtype="<f4") * np.float32(LARGE)
            result.weights[:] = values.tobytes()
        return result

    monkeypatch.setattr(Worker, "train", grown)
    first = next(rounds_in_clear(manifest(), workers, SEEDS))
    assert {len(words) for words in first.words.values()} == {2 * len(first.average)}
    assert first.values_off(first.average) == 0
