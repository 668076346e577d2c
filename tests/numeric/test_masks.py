"""Masked words against whole numbers in plain Python."""

from __future__ import annotations

import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppdl_mq.crypto.prg import BLOCK_BYTES, MAX_STREAM_BYTES, Stream, fill
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.numeric import masks as module
from ppdl_mq.numeric.masks import Mask, Words, add_masks, add_up

SEEDS = [Secret(bytes([number]) * 32) for number in range(4)]
MIXED = [Mask(SEEDS[0], 1), Mask(SEEDS[1], -1), Mask(SEEDS[2], -1), Mask(SEEDS[3], 1)]
DTYPES: list[Any] = [np.uint32, np.uint64]
MEGABYTE = 1 << 20


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut words of a few kilobytes as finely as real ones are cut."""
    monkeypatch.setattr(module, "_CHUNK_BYTES", 256)
    monkeypatch.setattr(module, "_STRETCH_BYTES", 1024)


def counting(count: int, dtype: Any) -> Any:
    """Words of every magnitude, so that sums wrap around."""
    return (np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)).astype(dtype)


def naive(words: npt.NDArray[Any], masks: list[Mask], first_word: int = 0) -> list[int]:
    size = words.itemsize
    sums = [int(word) for word in words]
    for mask in masks:
        stream = bytearray((first_word + len(sums)) * size)
        fill(mask.seed, stream)
        for at in range(len(sums)):
            start = (first_word + at) * size
            sums[at] += mask.sign * int.from_bytes(stream[start : start + size], "little")
    return [each % (1 << 8 * size) for each in sums]


MASKS = st.lists(st.builds(Mask, st.sampled_from(SEEDS), st.sampled_from([1, -1])), max_size=5)


@given(st.sampled_from(DTYPES), st.integers(0, 100), MASKS, st.integers(0, 40), st.sampled_from([1, 2, None]))
def test_words_and_masks_are_added_as_whole_numbers(
    dtype: Any, count: int, masks: list[Mask], block: int, threads: int | None
) -> None:
    words = counting(count, dtype)
    first_word = block * BLOCK_BYTES // words.itemsize
    expected = naive(words, masks, first_word)
    add_masks(words, masks, first_word=first_word, threads=threads)
    assert words.tolist() == expected


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 31, 64, 65, 255, 256, 257, 1000, 2049])
@pytest.mark.parametrize("threads", [1, 4])
def test_over_many_pieces_too(dtype: Any, count: int, threads: int) -> None:
    words = counting(count, dtype)
    expected = naive(words, MIXED, first_word=48)
    add_masks(words, MIXED, first_word=48, threads=threads)
    assert words.tolist() == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_pieces_of_their_real_size(dtype: Any) -> None:
    words = counting(3 * MEGABYTE + 5, dtype)
    other = words.copy()
    mask = bytearray(words.nbytes)
    fill(SEEDS[1], mask)
    add_masks(words, [Mask(SEEDS[1], -1)], threads=1)
    assert np.array_equal(words, other - np.frombuffer(mask, dtype=dtype))
    add_masks(other, [Mask(SEEDS[1], -1)], threads=4)
    assert np.array_equal(words, other)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mask_taken_away_leaves_nothing(dtype: Any) -> None:
    words = counting(1000, dtype)
    before = words.copy()
    add_masks(words, [Mask(SEEDS[0], 1)])
    assert not np.array_equal(words, before)
    add_masks(words, [Mask(SEEDS[0], -1)])
    assert np.array_equal(words, before)
    add_masks(words, [Mask(SEEDS[0], 1), Mask(SEEDS[0], -1)])
    assert np.array_equal(words, before)


@given(st.sampled_from(DTYPES), st.integers(0, 3_000), st.lists(st.integers(1, 40), max_size=4))
def test_shards_expand_independently(dtype: Any, count: int, blocks: list[int]) -> None:
    whole = counting(count, dtype)
    cut = whole.copy()
    add_masks(whole, MIXED)
    per_block = BLOCK_BYTES // whole.itemsize
    edges = sorted({0, count, *(min(count, sum(blocks[:at]) * per_block) for at in range(len(blocks)))})
    for first, end in pairwise(edges):
        add_masks(cut[first:end], MIXED, first_word=first)
    assert np.array_equal(cut, whole)


def not_aligned(raw: bytes) -> memoryview:
    return memoryview(b"\0" + raw)[1:]


@pytest.mark.usefixtures("small_pieces")
@given(st.sampled_from(DTYPES), st.integers(0, 600), st.integers(0, 4), st.sampled_from([1, 3]), st.randoms())
def test_shards_are_added_as_whole_numbers(dtype: Any, count: int, shards: int, threads: int, random: Any) -> None:
    out = counting(count, dtype)
    size = out.itemsize
    raw = [random.randbytes(count * size) for _ in range(shards)]
    sums = [int(word) for word in out]
    for each in raw:
        for at in range(count):
            sums[at] += int.from_bytes(each[at * size : (at + 1) * size], "little")
    kinds: list[Callable[[bytes], Any]] = [bytes, bytearray, memoryview, not_aligned]
    add_up([kinds[at](each) for at, each in enumerate(raw)], out, threads=threads)
    assert out.tolist() == [each % (1 << 8 * size) for each in sums]


def test_nothing_to_add_to_and_nothing_to_add() -> None:
    for dtype in DTYPES:
        empty = np.empty(0, dtype=dtype)
        add_masks(empty, MIXED)
        add_masks(empty, MIXED, first_word=64, threads=4)
        add_up([b"", bytearray()], empty)
        words = counting(100, dtype)
        add_masks(words, [])
        add_up([], words)
        assert np.array_equal(words, counting(100, dtype))


@pytest.mark.parametrize(
    ("dtype", "first_word"),
    [
        (np.uint32, 1),
        (np.uint32, 8),
        (np.uint64, 4),
        (np.uint32, -16),
        (np.uint32, MAX_STREAM_BYTES // 4 - 16),  # twenty words do not fit before the end
        (np.uint64, MAX_STREAM_BYTES // 8),
    ],
)
def test_where_words_cannot_lie(dtype: Any, first_word: int) -> None:
    words = counting(20, dtype)
    with pytest.raises(ValueError, match=str(first_word)):
        add_masks(words, MIXED, first_word=first_word)
    assert np.array_equal(words, counting(20, dtype))


def test_the_last_words_of_a_stream() -> None:
    words = np.zeros(16, dtype=np.uint32)
    expected = bytearray(64)
    fill(SEEDS[0], expected, offset=MAX_STREAM_BYTES - 64)
    add_masks(words, [Mask(SEEDS[0], 1)], first_word=MAX_STREAM_BYTES // 4 - 16)
    assert words.tobytes() == expected


def read_only() -> Words:
    words = np.zeros(16, dtype=np.uint32)
    words.flags.writeable = False
    return words


@pytest.mark.parametrize(
    "words",
    [
        np.zeros(16, dtype=np.int32),
        np.zeros(16, dtype=np.uint16),
        np.zeros(16, dtype=np.float32),
        np.zeros(16, dtype=">u4"),
        np.zeros((4, 4), dtype=np.uint32),
        np.zeros(32, dtype=np.uint32)[::2],
        read_only(),
    ],
    ids=["int32", "uint16", "float32", "big-endian", "matrix", "every other word", "read-only"],
)
def test_what_are_no_words(words: Any) -> None:
    with pytest.raises(ValueError, match="Words"):
        add_masks(words, MIXED)
    with pytest.raises(ValueError, match="Words"):
        add_up([bytes(words.nbytes)], words)
    assert not words.any()


@pytest.mark.parametrize("size", [0, 60, 63, 65, 128])
def test_a_shard_of_another_size_is_refused(size: int) -> None:
    out = counting(16, np.uint32)
    with pytest.raises(ValueError, match="shard"):
        add_up([bytes(64), b"\1" * size], out)
    assert np.array_equal(out, counting(16, np.uint32))


def test_a_mask_is_checked_and_not_shown() -> None:
    with pytest.raises(ValueError, match="seed"):
        Mask(Secret(bytes(31)), 1)
    zero: Any = 0
    with pytest.raises(ValueError, match="sign"):
        Mask(SEEDS[0], zero)
    assert repr(Mask(SEEDS[3], -1)) == "Mask(seed=Secret(...), sign=-1)"


@pytest.mark.usefixtures("small_pieces")
def test_all_threads_take_part_and_their_errors_come_out(monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(3, timeout=60)

    def meeting(*args: Any, **options: Any) -> Any:
        together.wait()  # breaks unless three threads are here at once
        return Stream(*args, **options)

    words, expected = counting(3 * 256, np.uint32), counting(3 * 256, np.uint32)
    add_masks(expected, MIXED[:1], threads=1)
    monkeypatch.setattr(module, "Stream", meeting)
    add_masks(words, MIXED[:1], threads=3)
    assert np.array_equal(words, expected)

    def failing(*args: Any, **options: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(module, "Stream", failing)
    for threads in (1, 3):
        with pytest.raises(MemoryError):
            add_masks(words, MIXED, threads=threads)


@pytest.mark.parametrize("threads", [1, 4])
def test_memory_is_bounded(threads: Literal[1, 4]) -> None:
    words = np.zeros(16 * MEGABYTE, dtype=np.uint32)  # 64 MiB
    shard = words.copy().data.cast("B")
    tracemalloc.start()
    try:
        add_masks(words, MIXED, threads=threads)
        add_up([shard, shard], words, threads=threads)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < threads * MEGABYTE


_RESIDENT = """
import resource, sys
import numpy as np
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.numeric.masks import Mask, add_masks
words = np.ones(16 << 20, dtype=np.uint32)
add_masks(words[: 1 << 21], [Mask(Secret(bytes(32)), 1)], threads=2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
add_masks(words, [Mask(Secret(bytes([at]) * 32), 1) for at in range(4)], threads=2)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * (1 if sys.platform == "darwin" else 1024))
"""


def test_memory_that_python_does_not_count_is_bounded_too() -> None:
    done = subprocess.run([sys.executable, "-c", _RESIDENT], check=True, capture_output=True, text=True, timeout=120)
    assert int(done.stdout) < 8 * MEGABYTE
