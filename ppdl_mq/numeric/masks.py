"""Adding masks to words, and words to words, modulo 2**32 or 2**64, in bounded memory and on all cores.

Source: docs/PROTOCOL.md, masked-average. A mask is the stream of a seed (crypto/prg), read as little-endian words.

The words are cut into stretches, which the threads take one after another, and a stretch into blocks. All masks are
added to a block while it is in the processor's cache. The cipher and NumPy both let other threads run meanwhile; blocks
much smaller than these make the threads wait for the interpreter instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from ppdl_mq.crypto.prg import BLOCK_BYTES, MAX_STREAM_BYTES, SEED_BYTES, Stream
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.numeric.words import Words

if TYPE_CHECKING:
    from ppdl_mq.numeric.flatten import Buffer


_CHUNK_BYTES: Final = 1 << 18  # words and stream together stay in the second-level cache of one core
_STRETCH_BYTES: Final = 1 << 22  # small enough that no thread has much to wait for at the end
_ALIGNMENT_BYTES: Final = 64  # of a cache line: the cipher and the addition are a twentieth faster on it


@dataclass(frozen=True, slots=True)
class Mask:
    """One stream to add to the words, or to take away from them.

    Args:
        seed: 32 bytes.
        sign: 1 to add, -1 to take away.

    Raises:
        ValueError: another length or another sign.
    """

    seed: Secret
    sign: Literal[1, -1]

    def __post_init__(self) -> None:
        if len(self.seed) != SEED_BYTES:
            raise ValueError(f"The seed of a mask has {SEED_BYTES} bytes, not {len(self.seed)}.")
        if self.sign not in (1, -1):
            raise ValueError(f"The sign of a mask is 1 or -1, not {self.sign}.")


def add_masks(words: Words, masks: Sequence[Mask], *, first_word: int = 0, threads: int | None = None) -> None:
    """Add sign * stream of every mask to `words`, in place, modulo 2**32 or 2**64.

    Args:
        words: uint32 or uint64 (count), contiguous; may be empty.
        masks: in any order; the same seed may stand there twice.
        first_word: where in the streams `words` begins; its byte is a multiple of 64, as for the start of a shard.
        threads: how many add; None for one on every core that this process may use.

    Raises:
        ValueError: other words, or a place where the stream cannot be entered or ends. `words` is unchanged then.
    """
    _check_words(words)
    start = first_word * words.itemsize
    if start % BLOCK_BYTES:
        raise ValueError(f"Word {first_word} does not begin a block of {BLOCK_BYTES} bytes.")
    if first_word < 0 or start + words.nbytes > MAX_STREAM_BYTES:
        raise ValueError(f"Words {first_word} to {first_word + words.size} are not in a stream.")

    def add(first: int, stretch: npt.NDArray[Any]) -> None:
        offset = start + first * words.itemsize
        streams = [(Stream(mask.seed, offset=offset), np.add if mask.sign == 1 else np.subtract) for mask in masks]
        scratch = _aligned(min(_CHUNK_BYTES, stretch.nbytes))
        chunk_words = _CHUNK_BYTES // words.itemsize
        for at in range(0, stretch.size, chunk_words):
            chunk = stretch[at : at + chunk_words]
            taken = scratch[: chunk.nbytes]
            raw, addend = taken.data, taken.view(words.dtype.newbyteorder("<"))
            for stream, add_or_subtract in streams:
                stream.read_into(raw)
                add_or_subtract(chunk, addend, out=chunk)

    _for_all(words, add, threads)


def add_up(shards: Sequence[Buffer], out: Words, *, threads: int | None = None) -> None:
    """Add the words of several buffers to what `out` holds, in place, modulo 2**32 or 2**64.

    Args:
        shards: little-endian words, as many bytes each as `out`.
        out: uint32 or uint64 (count), contiguous; may be empty.
        threads: as above.

    Raises:
        ValueError: other words, or a shard of another size. `out` is unchanged then.
    """
    _check_words(out)
    for shard in shards:
        if memoryview(shard).nbytes != out.nbytes:
            raise ValueError(f"A shard has {memoryview(shard).nbytes} bytes, not {out.nbytes}.")
    if out.size == 0:
        return
    addends = [np.frombuffer(shard, dtype=out.dtype.newbyteorder("<")) for shard in shards]

    def add(first: int, stretch: npt.NDArray[Any]) -> None:
        chunk_words = _CHUNK_BYTES // out.itemsize
        for at in range(0, stretch.size, chunk_words):
            chunk = stretch[at : at + chunk_words]
            for addend in addends:
                np.add(chunk, addend[first + at : first + at + chunk.size], out=chunk)

    _for_all(out, add, threads)


def _check_words(words: Words) -> None:
    if words.dtype not in (np.dtype(np.uint32), np.dtype(np.uint64)) or words.ndim != 1:
        raise ValueError(f"Words are a vector of uint32 or uint64, not {words.ndim} dimensions of {words.dtype}.")
    if not (words.flags.c_contiguous and words.flags.writeable):
        raise ValueError("Words are added to in place: they must be contiguous and writable.")


def _for_all(words: Words, add: Callable[[int, npt.NDArray[Any]], None], threads: int | None) -> None:
    """Call `add(index of its first word, stretch)` for stretches that together are `words`; raise what it raises."""
    stretch_words = _STRETCH_BYTES // words.itemsize
    firsts = range(0, words.size, stretch_words)
    stretches = [words[first : first + stretch_words] for first in firsts]
    threads = min(len(stretches), _cores() if threads is None else threads)
    if threads <= 1:
        for first, stretch in zip(firsts, stretches, strict=True):
            add(first, stretch)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="masks") as pool:
        for _ in pool.map(add, firsts, stretches):
            pass


def _cores() -> int:
    """Count the cores that this process may use, which may be fewer than there are."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _aligned(size_bytes: int) -> npt.NDArray[np.uint8]:
    """Return memory that begins a cache line."""
    memory = np.empty(size_bytes + _ALIGNMENT_BYTES, dtype=np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT_BYTES
    return memory[start : start + size_bytes]
