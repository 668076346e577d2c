"""What a trial is compared with, measured in this process: every peer alone, and SGD over all rows in one heap.

Source: docs/TRAINING.md, "Comparisons".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from ppdl_mq.config.manifest import Manifest
from ppdl_mq.protocol.schedule import Schedule
from ppdl_mq.report.result import SAME_ORDER, SHUFFLED, Curve, TurnLength
from ppdl_mq.training import baselines
from ppdl_mq.training.baselines import AfterEpoch
from ppdl_mq.training.data.samples import Samples
from ppdl_mq.training.worker import Worker
from ppdl_mq.wire.trial_id import trial_id

_LONG_TURNS: Final = 4  # turn lengths of more than one pass that are tried


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What the same training comes to without a trial.

    Args:
        shuffled: accuracy of ordinary SGD over everybody's rows.
        same_order: accuracy of SGD over everybody's rows in the trial's order.
        alone: accuracy of each peer without the others.
        curves: the same after each epoch.
        weights: the final ones in the trial's order, flat.
        states: weights in the trial's order at the start and after each epoch, flat.
    """

    shuffled: float
    same_order: float
    alone: Mapping[str, float]
    curves: tuple[Curve, ...]
    weights: bytes = field(repr=False)
    states: tuple[bytes, ...] = field(repr=False)


class Comparer:
    """Trains the comparisons of one trial.

    Args:
        manifest: of the trial.
        workers: by peer, with its own samples.
        seeds: by peer, 32 bytes each.
        public: samples that nobody trains on, prepared as the workers' own.
    """

    def __init__(
        self, manifest: Manifest, workers: Mapping[str, Worker], seeds: Mapping[str, bytes], public: Samples
    ) -> None:
        self.manifest = manifest
        self.workers = workers
        self.seeds = seeds
        self.public = public
        self._judge = next(iter(workers.values()))

    def accuracy(self, weights: bytes | bytearray) -> float:
        """Return the share of public samples that weights get right, 0 to 1."""
        found = self._judge.evaluate(weights, self.public).accuracy
        assert found is not None, "the demonstrations classify, and have public samples"
        return found

    def compare(self, say: Callable[[str], None] = lambda _: None) -> Comparison:
        """Train every comparison.

        Args:
            say: is told what comes next.
        """
        schedule = _schedule(self.manifest)
        start = bytes(self._judge.initial())
        states = [start]
        say("SGD on the pooled data, in the same order")
        same, keep = self._curve(start, states)
        weights = bytes(baselines.pooled_same_order(schedule, self.workers, self.seeds, after_epoch=keep))
        say("SGD on the pooled data, shuffled")
        shuffled, keep = self._curve(start)
        splits = [worker.split for worker in self.workers.values()]
        seed = self.seeds[schedule.founder]
        baselines.pooled_shuffled(self.manifest, splits, seed, device=self._judge.device, after_epoch=keep)
        alone = []
        for peer, worker in self.workers.items():
            say(f"{peer} alone")
            curve, keep = self._curve(start)
            baselines.alone(schedule, peer, worker, self.seeds[peer], after_epoch=keep)
            alone.append(curve)
        return Comparison(
            shuffled=shuffled[-1][1],
            same_order=self.accuracy(weights),
            alone={peer: curve[-1][1] for peer, curve in zip(self.workers, alone, strict=True)},
            curves=(
                Curve(name=SAME_ORDER, points=tuple(same)),
                Curve(name=SHUFFLED, points=tuple(shuffled)),
                *(
                    Curve(name=f"{peer} alone", points=tuple(curve))
                    for peer, curve in zip(self.workers, alone, strict=True)
                ),
            ),
            weights=weights,
            states=tuple(states),
        )

    def turn_lengths(self) -> Iterator[TurnLength]:
        """Train as the trial does, with shorter and longer turns or rounds, over the rows as often as it does."""
        epochs = self.manifest.training.epochs
        own = self.manifest.training.turns_per_epoch
        for turns in sorted({own, 10, 2, 1}, reverse=True):
            yield self._turn_length(1 / turns, turns == own, turns_per_epoch=turns)
        for passes in _some(_divisors(epochs)):
            yield self._turn_length(
                float(passes), False, turns_per_epoch=1, turn_epochs=passes, epochs=epochs // passes
            )

    def _turn_length(self, passes: float, is_own: bool, **changes: Any) -> TurnLength:
        training = self.manifest.training.model_copy(update=changes)
        manifest = self.manifest.model_copy(update={"training": training})
        workers = {peer: Worker(manifest, worker.split, device=worker.device) for peer, worker in self.workers.items()}
        if manifest.averaging is not None:
            turns = training.epochs * training.turns_per_epoch
            weights = baselines.federated_averaging(manifest, workers, self.seeds)
        else:
            schedule = _schedule(manifest)
            turns, weights = schedule.turns, baselines.pooled_same_order(schedule, workers, self.seeds)
        return TurnLength(passes=passes, turns=turns, accuracy=self.accuracy(weights), is_own=is_own)

    def _curve(self, start: bytes, states: list[bytes] | None = None) -> tuple[list[tuple[float, float]], AfterEpoch]:
        """Return a curve that begins with `start`, and what makes it grow; `states` gets the weights too."""
        points = [(0.0, self.accuracy(start))]

        def keep(epoch: int, weights: bytearray) -> None:
            points.append((epoch + 1.0, self.accuracy(weights)))
            if states is not None:
                states.append(bytes(weights))

        return points, keep


def differing_bits(one: bytes | bytearray, other: bytes | bytearray) -> int:
    """Count the bits in which two states of one layout differ."""
    assert len(one) == len(other), "states of one layout"
    difference = np.frombuffer(one, dtype=np.uint8) ^ np.frombuffer(other, dtype=np.uint8)
    return int(np.unpackbits(difference).sum(dtype=np.int64))


def _schedule(manifest: Manifest) -> Schedule:
    return Schedule(
        trial_id=trial_id(manifest),
        peers=manifest.peer_names,
        epochs=manifest.training.epochs,
        turns_per_epoch=manifest.training.turns_per_epoch,
        order=manifest.order,
    )


def _some(numbers: Sequence[int]) -> list[int]:
    """Return the first and the last of ascending numbers, and a few between: each takes a whole training."""
    last = len(numbers) - 1
    return [numbers[at] for at in sorted({last * step // (_LONG_TURNS - 1) for step in range(_LONG_TURNS)}) if numbers]


def _divisors(number: int) -> Sequence[int]:
    """Return the divisors of a number but 1."""
    return [each for each in range(2, number + 1) if number % each == 0]
