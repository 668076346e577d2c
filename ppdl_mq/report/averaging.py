"""A trial of masked-average, repeated in this process without masks and relay, and held to what it promises.

Two questions, two yardsticks. Did the sums do what docs/PROTOCOL.md, section 14, states? Round by round, from the very
weights that the trial agreed on, each value may lie so far from the exact mean and no further. And where does all of
it end, compared with federated averaging in plain PyTorch, which knows nothing of rings and rounds on its own path?
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch

from ppdl_mq.config.manifest import Averaging, Manifest
from ppdl_mq.errors import Overflow
from ppdl_mq.numeric.exponents import exponents
from ppdl_mq.numeric.fixed_point import FixedPoint, Share
from ppdl_mq.numeric.flatten import Layout
from ppdl_mq.protocol.schedule import Turn
from ppdl_mq.training.worker import Worker

Doubles = npt.NDArray[np.float64]

_FLOAT64_ROUNDING: Final = 2.0**-53


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round, repeated in the clear.

    Args:
        number: counted from 1.
        own: by peer, the weights that it trained and nobody else may see, flat.
        words: by peer, the same as it would send them if nothing were masked.
        average: what the sum of the words comes to, flat: the weights that the peers agree on.
        mean: by PyTorch, in double precision: float64 (weights).
        bound: how far the average may lie from the mean: float64 (weights).
    """

    number: int
    own: Mapping[str, bytes] = field(repr=False)
    words: Mapping[str, bytes] = field(repr=False)
    average: bytes = field(repr=False)
    mean: Doubles = field(repr=False)
    bound: Doubles = field(repr=False)

    def values_off(self, weights: bytes | bytearray) -> int:
        """Count the values of flat weights that lie further from the mean than the bound allows."""
        distance = np.abs(np.frombuffer(weights, dtype="<f4") - self.mean)
        return int(np.count_nonzero(~(distance <= self.bound)))  # NaN is off, too


def rounds_in_clear(manifest: Manifest, workers: Mapping[str, Worker], seeds: Mapping[str, bytes]) -> Iterator[Round]:
    """Yield every round of a trial in which all peers stay to the end.

    Args:
        manifest: of masked-average, with equal weighting and a model of float32.
        workers: by peer, with its own samples.
        seeds: by peer, 32 bytes each.

    Raises:
        Overflow: a value does not fit 64 bits either.
    """
    rules = manifest.averaging
    assert rules is not None, "a manifest of masked-average has its rules"
    assert rules.weighting == "equal", "the demonstration counts each peer once"
    layout = next(iter(workers.values())).layout
    assert {entry.dtype for entry in layout.entries} == {"float32"}, "the demonstration's models have nothing else"
    agreed = bytes(workers[min(workers)].initial())
    turns = manifest.training.turns_per_epoch
    for ordinal in range(manifest.training.epochs * turns):
        epoch, cycle = divmod(ordinal, turns)
        own = {}
        for name, worker in workers.items():
            turn = Turn(number=ordinal + 1, epoch=epoch, cycle=cycle, ordinal=ordinal, peer=name)
            own[name] = bytes(worker.train(turn, agreed, seeds[name]).weights)
        yield (made := _averaged(ordinal + 1, agreed, own, layout, rules))
        agreed = made.average


class Tally:
    """Holds a trial's rounds to their bounds, one after the other.

    A round in which the trial agreed on other weights than its repetition has all of its values off. Of the last round,
    the models themselves are held to the mean; the worst one counts.

    Args:
        agreed: SHA-256 of the weights that the trial agreed on, in any order.
        models: what the peers ended with, flat.
        rounds: that the trial has.
    """

    def __init__(self, *, agreed: Collection[bytes], models: Collection[bytes], rounds: int) -> None:
        self._agreed = agreed
        self._models = models
        self._rounds = rounds
        self.values = 0
        self.values_off = 0

    def add(self, each: Round) -> None:
        """Count the values of one round, and those that are off."""
        self.values += each.mean.size
        if each.number == self._rounds:
            self.values_off += max(each.values_off(model) for model in self._models)
        elif hashlib.sha256(each.average).digest() in self._agreed:
            self.values_off += each.values_off(each.average)
        else:
            self.values_off += each.mean.size


def largest_difference(one: bytes | bytearray, other: bytes | bytearray) -> float:
    """Return the largest difference between two flat states of float32."""
    return float(np.abs(np.frombuffer(one, dtype="<f4").astype("f8") - np.frombuffer(other, dtype="<f4")).max())


def _averaged(number: int, base: bytes, own: Mapping[str, bytes], layout: Layout, rules: Averaging) -> Round:
    scale = exponents(base, layout, floor=rules.exponent_floor, head_room=rules.head_room)
    try:
        encoding, words = _encoded(own, layout, scale, rules.word)
    except Overflow:
        encoding, words = _encoded(own, layout, scale, 64)
    values = torch.stack([torch.from_numpy(np.frombuffer(each, dtype="<f4").copy()) for each in own.values()])
    average = bytes(encoding.decode(reduce(np.add, words.values())))
    return Round(
        number=number,
        own=own,
        words={name: each.tobytes() for name, each in words.items()},
        average=average,
        mean=values.double().mean(dim=0).numpy(),
        bound=_bound(encoding, values, average),
    )


def _encoded(
    own: Mapping[str, bytes], layout: Layout, scale: tuple[int, ...], word: Literal[32, 64]
) -> tuple[FixedPoint, dict[str, Any]]:
    encoding = FixedPoint(layout, scale, word, len(own), "equal")
    return encoding, {name: encoding.encode(each, Share()) for name, each in own.items()}


def _bound(encoding: FixedPoint, values: torch.Tensor, average: bytes) -> Doubles:
    """Return how far each value may lie from the mean: the stated bound, and two roundings.

    Args:
        encoding: of the attempt.
        values: float32 (peers, weights).
        average: flat float32.
    """
    largest = values.abs().amax(dim=0).double().numpy()  # (weights)
    stated: Doubles = np.empty_like(largest)
    for index, entry in enumerate(encoding.layout.entries):
        place = slice(entry.offset // 4, (entry.offset + entry.size_bytes) // 4)
        stated[place] = encoding.error_bound(index, float(largest[place].max(initial=0.0)))
    # The average is rounded to float32 in the end, and the mean it is held to has roundings of float64 of its own.
    half_a_step = np.spacing(np.abs(np.frombuffer(average, dtype="<f4"))).astype(np.float64) / 2
    stated += half_a_step + encoding.peers * _FLOAT64_ROUNDING * largest
    return stated
