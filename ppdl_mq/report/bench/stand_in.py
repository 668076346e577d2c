"""A worker that does not train: it adds small, known numbers to the weights, so that the true average is known."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from ppdl_mq.numeric.flatten import Buffer, Entry, Layout
from ppdl_mq.protocol.schedule import Turn
from ppdl_mq.report.bench.counting import Counted, Counts
from ppdl_mq.report.bench.together import Gate
from ppdl_mq.training.data.samples import Samples
from ppdl_mq.training.worker import Evaluation, TurnResult, Worker

Floats = npt.NDArray[np.float32]

_BLOCK: Final = 1 << 20  # numbers at once, so that drawing them costs no memory to speak of
_STEP: Final = np.float32(0.01)
_FOREVER_S: Final = 600.0


class StandIn(Worker):
    """Takes the place of a real worker.

    All peers end a turn together: they wait for each other at the gate, so that a round begins at one moment.

    Args:
        index: of this peer.
        params: float32 numbers in the one tensor.
        gate: of all peers.
        transport: whose counts are noted when a turn begins.
        last_round: in which ...
        keep_base: ... the weights that the turn begins with are written here, for the error; None for not at all.
    """

    def __init__(
        self, index: int, params: int, gate: Gate, transport: Counted, *, last_round: int, keep_base: Path | None
    ) -> None:  # not the real one's: there is no model
        self.layout = layout_of(params)
        self.entered: list[float] = []  # by round, in seconds since 1970
        self.released: list[float] = []
        self.cpu_entered: list[float] = []  # seconds of processor time of this process
        self.cpu_released: list[float] = []
        self.counts: list[Counts] = []
        self._index = index
        self._gate = gate
        self._transport = transport
        self._last_round = last_round
        self._keep_base = keep_base

    @property
    def rows(self) -> int:
        """One: all count alike."""
        return 1

    def initial(self) -> bytearray:
        """Return standard normal numbers."""
        return bytearray(_drawn(0, (self.layout.total_bytes // 4,), 0).data.cast("B"))

    def train(
        self,
        turn: Turn,
        weights: Buffer,
        sample_seed: bytes,  # noqa: ARG002 (what the real one takes)
        *,
        stop: threading.Event | None = None,  # noqa: ARG002
    ) -> TurnResult:
        """Add this peer's numbers of this round to the weights, and wait for the others."""
        self.entered.append(time.time())
        self.cpu_entered.append(time.process_time())
        self.counts.append(self._transport.counts())
        base = np.frombuffer(weights, dtype="<f4")
        trained = bytearray(self.layout.total_bytes)
        out = np.frombuffer(trained, dtype="<f4")
        for start in range(0, base.size, _BLOCK):
            out[start : start + _BLOCK] = local(base[start : start + _BLOCK], self._index, turn.number, start)
        if self._keep_base is not None and turn.number == self._last_round:
            with self._keep_base.open("wb") as file:
                file.write(weights)
                file.flush()
                os.fsync(file.fileno())  # now, and not in the middle of the round
        self._gate.wait(_FOREVER_S)
        self.released.append(time.time())
        self.cpu_released.append(time.process_time())
        return TurnResult(weights=trained, steps=1, samples=1, loss=None)

    def evaluate(
        self,
        weights: Buffer,  # noqa: ARG002
        samples: Samples | None = None,  # noqa: ARG002
        *,
        between: Callable[[], None] | None = None,  # noqa: ARG002
    ) -> Evaluation:
        """Return nothing: there is no hold-out."""
        return Evaluation(loss=None, accuracy=None, samples=0)


def layout_of(params: int) -> Layout:
    """Return the layout of one float32 tensor."""
    size_bytes = 4 * params
    entry = Entry(name="weight", dtype="float32", shape=(params,), offset=0, size_bytes=size_bytes)
    return Layout(entries=(entry,), total_bytes=size_bytes)


def local(base: Floats, index: int, number: int, start: int) -> Floats:
    """Return what a peer makes of a block of weights.

    Args:
        base: float32 (at most a block), beginning at number `start` of the weights.
        index: of the peer.
        number: of the round.
        start: a multiple of a block.
    """
    result: Floats = base + _STEP * _drawn(1 + index, base.shape, start + number)
    return result


def largest_error(base_path: Path, result: Buffer, *, peers: int, number: int) -> float:
    """Return how far a round's result is from the mean in float64, at its worst.

    Args:
        base_path: the weights that the round stood on.
        result: the weights that it came to.
        peers: how many.
        number: of the round.
    """
    base = np.memmap(base_path, dtype="<f4", mode="r")
    came = np.frombuffer(result, dtype="<f4")
    worst = 0.0
    for start in range(0, base.size, _BLOCK):
        block = np.asarray(base[start : start + _BLOCK])
        mean = sum(local(block, index, number, start).astype(np.float64) for index in range(peers)) / peers
        worst = max(worst, float(np.abs(came[start : start + _BLOCK] - mean).max()))
    return worst


def _drawn(stream: int, shape: tuple[int, ...], number: int) -> Floats:
    drawn: Floats = np.random.default_rng((stream, number)).standard_normal(shape, dtype=np.float32)
    return drawn
