"""The secret randomness of a private turn: which rows a step takes, and its noise.

All of it follows from a key of the turn, so that a turn that is begun anew comes to the same bits; and the key follows
from all that the result follows from, so that no noise is ever used for two different results, whose difference would
be free of it.

Source: docs/PRIVACY.md, "Randomness".
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from ppdl_mq.crypto import labels
from ppdl_mq.crypto.hashing import sha256
from ppdl_mq.crypto.prg import Stream
from ppdl_mq.crypto.secret import Secret

_PIECE_PAIRS: Final = 1 << 17
_WORD: Final = np.dtype("<u8")


def turn_key(sample_seed: bytes, *origin: bytes, numbers: tuple[float, ...]) -> Secret:
    """Return the key of a turn: 32 bytes that follow from the peer's secret and all that the result follows from.

    Args:
        sample_seed: the peer's secret, 32 bytes.
        origin: which turn it is, and the digest of the weights that it begins from.
        numbers: what the mechanism is.
    """
    packed = struct.pack(f">{len(numbers)}d", *numbers)
    return Secret(sha256(labels.PRIVATE_TURN, sample_seed, *origin, packed))


class Randomness:
    """Rows, seeds and noise of the steps of one turn.

    Args:
        key: of the turn, 32 bytes; used for nothing else.
    """

    def __init__(self, key: Secret) -> None:
        self._key = key

    def rows(self, step: int, *, rows: int, batch_size: int) -> torch.Tensor:
        """Return the rows of a step, each taken by itself with the probability batch_size / rows: int64 (k), sorted.

        Args:
            step: of the turn, from 0.
            rows: how many there are.
            batch_size: how many are taken on average, at most `rows`.
        """
        if batch_size >= rows:
            return torch.arange(rows)
        words = _words(self._stream(labels.PRIVATE_ROWS, step), rows)
        taken = words < np.uint64((batch_size << 64) // rows)
        return torch.from_numpy(np.flatnonzero(taken).astype(np.int64))

    def seed(self, step: int, row: int) -> int:
        """Return the seed of torch's generators (dropout) for one row, whichever others the step has: 0 to 2**63 - 1.

        Args:
            step: of the turn, from 0.
            row: its number.
        """
        first = self._hash(labels.PRIVATE_SEED, step.to_bytes(8, "big"), row.to_bytes(8, "big"))[:8]
        return int.from_bytes(first, "big") & (2**63 - 1)

    def noise(self, step: int, count: int, *, deviation: float) -> npt.NDArray[np.int64]:
        """Return the noise of a step: rounded draws of N(0, deviation**2).

        A rounded draw added to an integer is the rounded sum of that integer and the draw: the released number follows
        from an exact Gaussian mechanism and says nothing more, as a sum of floating-point numbers could.

        Args:
            step: of the turn, from 0.
            count: how many.
            deviation: standard deviation, far below 2**53.

        Returns:
            int64 (count).
        """
        stream = self._stream(labels.PRIVATE_NOISE, step)
        out = np.empty(count, dtype=np.int64)
        for start in range(0, count, 2 * _PIECE_PAIRS):
            piece = out[start : start + 2 * _PIECE_PAIRS]
            pairs = -(-len(piece) // 2)
            piece[:] = np.rint(gaussians(_words(stream, pairs), _words(stream, pairs))[: len(piece)] * deviation)
        return out

    def _stream(self, label: bytes, step: int) -> Stream:
        return Stream(Secret(self._hash(label, step.to_bytes(8, "big"))))

    def _hash(self, label: bytes, *parts: bytes) -> bytes:
        return sha256(label, self._key.reveal(), *parts)


def gaussians(first: npt.NDArray[np.uint64], second: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Return draws of N(0, 1), two from each pair of words, by the transform of Box and Muller (1958).

    The radius takes the first word and what the angle leaves of the second, 75 bits, and is computed from the end of
    the interval that is near: so that the values it can have lie close together, in the tails (9.5 deviations and more)
    as around 0. Else they would be coarser than what is added to, and say something about it.

    Args:
        first: (pairs).
        second: (pairs).

    Returns:
        float64 (2 * pairs): all cosines, then all sines.
    """
    below = (second & np.uint64(2047)).astype(np.float64) + 0.5  # of 2048
    low = (first.astype(np.float64) + below * 2.0**-11) * 2.0**-64
    high = ((~first).astype(np.float64) + 1.0 - below * 2.0**-11) * 2.0**-64  # 1 - low
    is_low = first < np.uint64(2**63)
    radius = np.sqrt(-2.0 * np.where(is_low, np.log(low), np.log1p(-np.where(is_low, 0.5, high))))
    angle = (second >> np.uint64(11)).astype(np.float64) * (2.0 * np.pi * 2.0**-53)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])


def _words(stream: Stream, count: int) -> npt.NDArray[np.uint64]:
    raw = bytearray(count * _WORD.itemsize)
    stream.read_into(memoryview(raw))
    return np.frombuffer(raw, dtype=_WORD)
