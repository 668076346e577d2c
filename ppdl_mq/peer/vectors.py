"""The arithmetic of a masked round: weights become words, words are masked, shards are added up and decoded.

Pure functions of buffers, for the trainer's thread. Source: docs/PROTOCOL.md, sections 13.2, 14 and 15.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from nacl.utils import random as system_random

from ppdl_mq.config.manifest import Averaging, Manifest
from ppdl_mq.crypto.prg import SEED_BYTES
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.numeric.exponents import exponents, exponents_digest
from ppdl_mq.numeric.fixed_point import FixedPoint, Share
from ppdl_mq.numeric.flatten import Buffer, Layout
from ppdl_mq.numeric.masks import Mask, add_masks, add_up
from ppdl_mq.numeric.words import Words
from ppdl_mq.protocol.effects import AddUp, Average, MaskVector
from ppdl_mq.protocol.masked_average.shards import Shards

_LARGEST_INTEGER: Final = 2**63  # from here on a word of 64 bits stands for a negative number


@dataclass(frozen=True, slots=True)
class MaskedVector:
    """A vector that nobody can read before its seed is released.

    Args:
        words: y, as raw bytes.
        seed: of the peer's own mask, freshly drawn.
        digests: SHA-256 of each shard.
    """

    words: memoryview = field(repr=False)
    seed: Secret
    digests: tuple[bytes, ...]


class Vectors:
    """Does the arithmetic of one peer in one trial.

    Args:
        manifest: of masked-average.
        layout: of the model's flat state.
        me: this peer's name.
        rows: its number of training samples; used in `secret` weighting only.
    """

    def __init__(self, manifest: Manifest, layout: Layout, *, me: str, rows: int) -> None:
        assert manifest.averaging is not None, "a manifest of masked-average has its rules"
        self._rules = manifest.averaging
        self._layout = layout
        self._declared = {peer.name: peer.samples or 1 for peer in manifest.peers}
        self._me = me
        self._rows = rows

    def exponents_digest(self, base: Buffer) -> bytes:
        """Return the digest of the exponents that follow from the weights that a round stands on."""
        return exponents_digest(self._exponents(base))

    def mask(self, task: MaskVector, base: Buffer | None, local: Buffer | None) -> MaskedVector:
        """Encode this peer's vector, draw its own mask, and add all masks.

        Args:
            task: what the machine asks for.
            base: the weights that the round stands on; None in an evaluation.
            local: what this peer trained; None in an evaluation.

        Raises:
            Overflow: a value does not fit the ring.
            NotFinite, DataError, ModelError: the vector cannot be made.
        """
        words: Words
        if base is None or local is None:
            words = np.array([figure % 2**64 for figure in task.figures], dtype=np.uint64)
        else:
            words = self._encoding(base, task.word, task.members).encode(local, self._share(task.members))
        seed = Secret(system_random(SEED_BYTES))
        add_masks(words, [Mask(seed, 1), *(Mask(each.seed, each.sign) for each in task.masks)])
        raw = _raw(words)
        shards = Shards(len(raw), len(task.members))
        cuts = ((shards.start(shard), shards.start(shard + 1)) for shard in range(shards.count))
        return MaskedVector(raw, seed, tuple(hashlib.sha256(raw[start:end]).digest() for start, end in cuts))

    def add_up(self, task: AddUp, sources: Sequence[Buffer]) -> memoryview:
        """Return a shard of the sum: all members' shards, without their own masks."""
        words = _words(memoryview(sources[0]).nbytes, task.word)
        add_up(sources, words)
        masks = [Mask(seed, -1) for seed in task.masks]
        add_masks(words, masks, first_word=task.start * 8 // task.word)
        return _raw(words)

    def average(self, task: Average, sums: Sequence[Buffer], base: Buffer) -> bytearray:
        """Return the new weights.

        Args:
            task: what the machine asks for.
            sums: the shards of the sum, in order.
            base: the weights that the round stands on.

        Raises:
            Malformed: no weights of honest peers add up to this.
        """
        encoding = self._encoding(base, task.word, task.members)
        total = np.concatenate([np.frombuffer(each, dtype=f"<u{task.word // 8}") for each in sums])
        return encoding.decode(total)

    def _exponents(self, base: Buffer) -> tuple[int, ...]:
        return exponents(base, self._layout, floor=self._rules.exponent_floor, head_room=self._rules.head_room)

    def _encoding(self, base: Buffer, word: int, members: tuple[str, ...]) -> FixedPoint:
        width: Literal[32, 64] = 32 if word == 32 else 64
        return FixedPoint(self._layout, self._exponents(base), width, len(members), self._rules.weighting)

    def _share(self, members: tuple[str, ...]) -> Share:
        match self._rules.weighting:
            case "declared":
                return Share(self._declared[self._me], sum(self._declared[name] for name in members))
            case "secret":
                return Share(self._rows)
            case "equal":
                return Share()


def figures_in(sums: Sequence[Buffer]) -> tuple[int, ...]:
    """Return the summed words of an evaluation as signed integers."""
    words = np.concatenate([np.frombuffer(each, dtype="<u8") for each in sums]).tolist()
    return tuple(word - 2**64 if word >= _LARGEST_INTEGER else word for word in words)


def words_of(layout: Layout, rules: Averaging) -> int:
    """Return how many ring words a model's weights become."""
    nothing = (0,) * len(layout.entries)
    return FixedPoint(layout, nothing, 64, 2, rules.weighting).words


def _words(size_bytes: int, word: int) -> Words:
    words: Words = np.zeros(size_bytes * 8 // word, dtype=f"uint{word}")
    return words


def _raw(words: Words) -> memoryview:
    return memoryview(words.view(np.uint8))  # type: ignore[arg-type]  # NumPy's stubs do not say that arrays are buffers
