"""Fixed point in the rings Z_2^32 and Z_2^64: a model's weights as words that can be added up and averaged.

Nothing is ever clipped: a value that does not fit raises Overflow. The sum of what peers encode never wraps.
Partial sums and masked words may wrap as they like.

Source: docs/PROTOCOL.md, "Numbers".
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import numpy as np

from ppdl_mq.errors import DataError, Malformed, NotFinite, Overflow
from ppdl_mq.numeric.components import BLOCK, Components, Numbers, components
from ppdl_mq.numeric.exponents import LARGEST, SMALLEST
from ppdl_mq.numeric.flatten import Buffer, Layout, check_finite
from ppdl_mq.numeric.words import Words

Weighting: TypeAlias = Literal["equal", "declared", "secret"]

MAX_PEERS: Final = 256
_REAL_BITS = {32: 31, 64: 39}  # fraction bits of a real with exponent 0, before there is a place for several peers
_SECRET_ROOM = 8  # in `secret`, reals up to 2**(e + 8) fit: there is no larger ring to fall back to
_SECRET_BITS = 32  # in `secret`, a real fills n * 2**32 at most, and an integer lies below 2**32
_DECLARED_INTEGER_BITS = 48  # in `declared` with 64-bit words, integers below 2**48 fit


@dataclass(frozen=True, slots=True)
class Share:
    """What one peer's weights count for in the average.

    Args:
        count: its number of samples; 1 in `equal`. Never shown: in `secret` nobody else learns it.
        total: of all peers' counts, in `declared`; unused else.
    """

    count: int = field(default=1, repr=False)
    total: int = 0


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """The encoding of one attempt; equal at all its peers.

    Args:
        layout: of the model's flat state.
        exponents: e for each tensor, from `exponents`.
        word_bits: of the ring Z_2^w: 32 or 64.
        peers: how many peers' words are added up, N: 2 to 256.
        weighting: `equal`, `declared` (counts in the manifest) or `secret` (counts inside the sum; 64 bits only).

    Raises:
        ModelError: the layout has a dtype that cannot be averaged.
    """

    layout: Layout
    exponents: tuple[int, ...]
    word_bits: Literal[32, 64]
    peers: int
    weighting: Weighting
    _tensors: tuple[Components, ...] = field(init=False, repr=False, compare=False)
    _starts: tuple[int, ...] = field(init=False, repr=False, compare=False)  # first word of each tensor, and the end

    def __post_init__(self) -> None:
        assert 2 <= self.peers <= MAX_PEERS
        assert self.word_bits == 64 or (self.word_bits == 32 and self.weighting != "secret")
        assert len(self.exponents) == len(self.layout.entries)
        assert all(SMALLEST <= exponent <= LARGEST for exponent in self.exponents)
        tensors = components(self.layout)
        object.__setattr__(self, "_tensors", tensors)
        object.__setattr__(self, "_starts", tuple(itertools.accumulate((t.count for t in tensors), initial=0)))

    @property
    def words(self) -> int:
        """How many ring words a peer's weights take: one for each component, in `secret` one more for its count."""
        return self._starts[-1] + (self.weighting == "secret")

    @property
    def max_count(self) -> int:
        """The largest number of samples that a peer may have in `secret`."""
        return 2**31 // self.peers

    def encode(
        self, weights: Buffer, share: Share, *, start: int = 0, stop: int | None = None, out: Words | None = None
    ) -> Words:
        """Return one peer's words, or a range of them: threads may take one range each.

        Args:
            weights: this peer's flat state.
            share: what it counts for.
            start: the first word wanted.
            stop: the word after the last one wanted; None for all the rest.
            out: where to write, uint32 or uint64 (stop - start); None for a new array.

        Raises:
            Overflow: a value does not fit. Nothing tells which one.
            NotFinite: a value is NaN or infinite.
            DataError: the share's count is out of range.
            ModelError: the buffer has the wrong size.
        """
        flat = self.layout.check_size(weights)
        self._check_share(share)
        stop = self.words if stop is None else stop
        assert 0 <= start <= stop <= self.words
        words: Words = np.empty(stop - start, dtype=f"uint{self.word_bits}") if out is None else out
        assert words.shape == (stop - start,)
        assert words.dtype == f"uint{self.word_bits}"
        signed: Numbers = words.view(f"int{self.word_bits}")  # two's complement
        scratch = np.empty(min(BLOCK, stop - start), dtype=np.float64)
        for index, first, count in self._pieces(start, stop):
            tensor = self._tensors[index]
            offset = self.layout.entries[index].offset + first * tensor.size_bytes
            values = tensor.read(flat[offset : offset + count * tensor.size_bytes])
            place = self._starts[index] + first - start
            limit = self._limit(index, share)
            if tensor.integer and self.weighting != "declared":
                _put_integers(values, limit, share.count, signed[place : place + count])
            else:
                _put_reals(values, limit, self._factor(index, share), signed[place : place + count], scratch[:count])
        if self.weighting == "secret" and start < stop == self.words:
            signed[-1] = share.count
        return words

    def decode(self, total: Words) -> bytearray:
        """Return the average as a flat state in the layout's dtypes.

        Args:
            total: the sum in the ring of all peers' words: uint32 or uint64 (words).

        Raises:
            Malformed: no weights of honest peers add up to this: counts, integers or floats are out of their range.
        """
        assert total.shape == (self.words,)
        assert total.dtype == f"uint{self.word_bits}"
        signed: Numbers = total.view(f"int{self.word_bits}")
        divisor = self._divisor(signed)
        result = bytearray(self.layout.total_bytes)
        flat = np.frombuffer(result, dtype=np.uint8)
        scratch = np.empty(min(BLOCK, self._starts[-1]), dtype=np.float64)
        for index, first, count in self._pieces(0, self._starts[-1]):
            tensor = self._tensors[index]
            offset = self.layout.entries[index].offset + first * tensor.size_bytes
            place = self._starts[index] + first
            sums = signed[place : place + count]
            if tensor.integer:
                # In `declared` integers have fraction bits, else they do not.
                values = _rounded_quotients(sums, divisor << self._fraction_bits(index))
                if values.min() < tensor.smallest or values.max() > tensor.largest:
                    raise Malformed("The sum holds an integer that is out of its type's range.")
            else:
                values = scratch[:count]
                np.copyto(values, sums)
                np.divide(values, divisor, out=values)
                np.multiply(values, 2.0 ** -self._fraction_bits(index), out=values)
            with np.errstate(over="ignore"):  # an infinity is found below
                tensor.write(flat[offset : offset + count * tensor.size_bytes], values)
        try:
            check_finite(result, self.layout)
        except NotFinite:
            raise Malformed("The sum holds a value that is out of its type's range.") from None
        return result

    def error_bound(self, index: int, largest: float | None = None) -> float:
        """Return how far the average of one tensor may lie from the exact one, before the last rounding to the dtype.

        Args:
            index: of the tensor in the layout.
            largest: max |x| over all peers, for values that are larger than 2**e; None for 2**e.
        """
        if self._tensors[index].integer and self.weighting != "declared":
            return 0.0
        halves = self.peers if self.weighting == "declared" else 1
        largest = 2.0 ** self._range_bits(index) if largest is None else largest
        words = halves * 2.0 ** -(self._fraction_bits(index) + 1)
        return words + (largest + words) * 2.0**-51

    def _range_bits(self, index: int) -> int:
        """Return e: the tensor's own, or what stands for it where integers are encoded like reals."""
        if not self._tensors[index].integer:
            return self.exponents[index]
        return _DECLARED_INTEGER_BITS if self.word_bits == 64 else 30 - self._peer_bits

    def _fraction_bits(self, index: int) -> int:
        """Return s: a value x is encoded near x * 2**s, times what its peer counts for."""
        if self._tensors[index].integer:
            return self.word_bits - 1 - self._range_bits(index) if self.weighting == "declared" else 0
        if self.weighting == "secret":
            return _SECRET_BITS - _SECRET_ROOM - self.exponents[index]
        bits = _REAL_BITS[self.word_bits] - self.exponents[index]
        return bits - self._peer_bits if self.weighting == "equal" else bits

    def _limit(self, index: int, share: Share) -> int:
        """Return the largest magnitude of a word. Over all peers these add up to less than 2**(w - 1)."""
        integer = self._tensors[index].integer
        top = (1 << (self.word_bits - 1)) - 1
        if self.weighting == "declared":
            # The 1 lets a tiny share round up; the peers' floors and ones together are at most top.
            return share.count * (top - self.peers) // share.total + 1
        if self.weighting == "secret":
            below = 1 << _SECRET_BITS
            return share.count * (below - 1) if integer else share.count * below - 1
        return top // self.peers if integer else top >> self._peer_bits

    def _factor(self, index: int, share: Share) -> float:
        """Return what a value is multiplied by, in float64."""
        scale = 2.0 ** self._fraction_bits(index)
        if self.weighting == "declared":
            return share.count / share.total * scale  # one rounding: Python's integer quotient is the nearest float64
        return share.count * scale

    def _divisor(self, signed: Numbers) -> int:
        if self.weighting == "declared":
            return 1
        if self.weighting == "equal":
            return self.peers
        count = int(signed[-1])
        if not self.peers <= count <= self.peers * self.max_count:
            raise Malformed("The sum of the peers' counts is out of range.")
        return count

    @property
    def _peer_bits(self) -> int:
        """The smallest b with N <= 2**b."""
        return (self.peers - 1).bit_length()

    def _check_share(self, share: Share) -> None:
        if self.weighting == "equal":
            assert share.count == 1
        elif self.weighting == "declared":
            assert 1 <= share.count <= share.total - (self.peers - 1)  # the others have one sample at least
        elif not 1 <= share.count <= self.max_count:
            raise DataError(
                f"With secret weighting, each of {self.peers} peers must have 1 to {self.max_count} samples.",
                hint="All peers may count in hundreds or thousands instead, if they agree on it.",
            )

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield tensor, first component and number of components (at most BLOCK) of a range of words."""
        stop = min(stop, self._starts[-1])
        index = bisect_right(self._starts, start) - 1
        while start < stop:
            count = min(BLOCK, stop - start, self._starts[index + 1] - start)
            if count > 0:
                yield index, start - self._starts[index], count
            start += count
            index += start == self._starts[index + 1]


def _put_reals(values: Numbers, limit: int, factor: float, out: Numbers, scratch: Numbers) -> None:
    """Write rint(value * factor).

    Args:
        values: any dtype (n).
        limit: largest magnitude of a word.
        out: int32 or int64 (n); written to.
        scratch: float64 (n); its contents are lost.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        np.multiply(values, factor, out=scratch, dtype=np.float64)
    np.rint(scratch, out=scratch)
    # Python compares a float with an int exactly, and NaN, which max and min pass on, is never within.
    if not (-limit <= float(scratch.min()) and float(scratch.max()) <= limit):
        if not np.isfinite(values).all():
            raise NotFinite("The weights became NaN or infinite.")
        raise _overflow()
    np.copyto(out, scratch, casting="unsafe")


def _put_integers(values: Numbers, limit: int, count: int, out: Numbers) -> None:
    """Write value * count exactly.

    Args:
        values: an integer dtype (n).
        limit: largest magnitude of a word.
        out: int32 or int64 (n); written to.
    """
    if int(values.min()) * count < -limit or int(values.max()) * count > limit:
        raise _overflow()
    np.copyto(out, values, casting="unsafe")
    np.multiply(out, count, out=out)


def _overflow() -> Overflow:
    return Overflow(
        "A weight does not fit the range that was agreed for this round.",
        hint="The round is tried again with larger words where there are any; else lower the learning rate.",
    )


def _rounded_quotients(sums: Numbers, divisor: int) -> Numbers:
    """Return sum / divisor, rounded to the nearest integer, ties to even, in integer arithmetic: int64 (n).

    Args:
        sums: int32 or int64 (n).
        divisor: 1 to 2**31.
    """
    wide = sums.astype(np.int64)
    quotients = wide // divisor  # towards minus infinity, so that the rest is never negative
    twice = 2 * (wide - quotients * divisor)
    quotients += (twice > divisor) | ((twice == divisor) & (quotients % 2 == 1))
    return quotients
