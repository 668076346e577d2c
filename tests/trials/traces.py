"""Looks for secrets in what a relay saw: any run of eight bytes of them, in every form that bytes and numbers take.

Runs are compared as 64-bit words at all offsets, so that megabytes are compared with megabytes in seconds.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Iterator

import msgpack
import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

_FEWEST_DISTINCT = 4  # bytes in a run: zeros and counters stand in every clear header, too
_MIX = np.uint64(0x9E3779B97F4A7C15)


class Seen:
    """All that a relay saw, ready to be searched.

    Args:
        pieces: messages, files, whatever it could keep.
    """

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.content = b"\0\0\0\0\0\0\0\0".join(dict.fromkeys(pieces))
        short = _words(self.content)
        self._short = np.unique(short)
        self._long = np.unique(_long_words(self.content))

    def shows(self, secret: bytes) -> bool:
        """Tell whether a run of eight bytes of `secret` is here: as it is, in base64 or in hex."""
        if len(secret) < 8:
            raise ValueError("a run has eight bytes")
        in_base64 = (base64.b64encode(secret[start:]).rstrip(b"=")[:-1] for start in range(3))
        if any(_common(_words(form, varied=True), self._short) for form in (secret, *in_base64)):
            return True
        # Two characters a byte. Eight of them would be found by chance among the random names in a relay's files.
        return any(
            _common(_long_words(form), self._long) for form in (secret.hex().encode(), secret.hex().upper().encode())
        )

    def shows_text(self, text: str) -> bool:
        """Tell whether a run of 16 characters of `text`, or all of a shorter one, is here."""
        raw = text.encode()
        return _common(_long_words(raw), self._long) if len(raw) >= 16 else raw in self.content

    def shows_numbers(self, values: npt.NDArray[np.floating]) -> bool:
        """Tell whether numbers are here: as float32 or float64 in either byte order, in MessagePack, or written out."""
        double = values.astype(np.float64).tolist()
        arrays = [values.astype(kind).tobytes() for kind in ("<f4", ">f4", "<f8", ">f8")]
        packed = [msgpack.packb(double, use_single_float=is_single) for is_single in (True, False)]
        return any(self.shows(form) for form in (*arrays, *packed)) or self.shows_text(json.dumps(double))

    def shows_labels(self, labels: npt.NDArray[np.integer]) -> bool:
        """Tell whether eight labels in a row are here, as numbers of any usual width."""
        return any(form in self.content for form in _label_runs(labels))


def _label_runs(labels: npt.NDArray[np.integer]) -> Iterator[bytes]:
    for start in range(0, len(labels) - 7):
        run = labels[start : start + 8]
        if len(set(run.tolist())) < _FEWEST_DISTINCT:
            continue
        for kind in ("u1", "<i4", ">i4", "<i8", ">i8", "<f4", ">f4"):
            raw = run.astype(kind).tobytes()
            yield raw
            yield raw.hex().encode()
            yield base64.b64encode(raw)[:-4]
        yield json.dumps(run.tolist())[1:-1].encode()


def incompressible(sealed: bytes) -> float:
    """Return the size after zlib's best effort as a share of the size before."""
    return len(zlib.compress(sealed, 9)) / len(sealed)


def chi_square(sealed: bytes) -> float:
    """Return Pearson's statistic of the byte histogram against the uniform one: 255 +- 23 for random bytes."""
    counts = np.bincount(np.frombuffer(sealed, np.uint8), minlength=256)
    expected = len(sealed) / 256
    return float(((counts - expected) ** 2 / expected).sum())


def _words(data: bytes, *, varied: bool = False) -> Words:
    """Return every run of eight bytes as one word; with `varied`, without those that hold too few distinct bytes."""
    if len(data) < 8:
        return np.empty(0, np.uint64)
    runs = np.lib.stride_tricks.sliding_window_view(np.frombuffer(data, np.uint8), 8)  # (len - 7, 8)
    if varied:
        distinct = 1 + (np.diff(np.sort(runs, axis=1), axis=1) != 0).sum(axis=1)
        runs = runs[distinct >= _FEWEST_DISTINCT]
    words: Words = np.ascontiguousarray(runs).view(np.uint64).reshape(-1)
    return words


def _long_words(data: bytes) -> Words:
    """Return every run of sixteen bytes, mixed into one word."""
    words = _words(data)
    return words[:-8] * _MIX + words[8:] if len(words) > 8 else np.empty(0, np.uint64)


def _common(some: Words, sorted_others: Words) -> bool:
    if not len(sorted_others):
        return False
    places = np.searchsorted(sorted_others, some).clip(max=len(sorted_others) - 1)
    return bool((sorted_others[places] == some).any())
