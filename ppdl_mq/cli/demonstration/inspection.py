"""What a curious relay can make of the messages that passed it: nothing, or so it should turn out.

A message counts as readable when it does not consist of the clear header and one sealed rest, when zlib can shrink that
rest, or when eight bytes in a row of it are also those of a secret: weights, samples, labels or private keys. What is
sealed looks random, so eight bytes of it are those of one of a million windows once in 2**44 places. The number of the
part, the last four bytes of the nonce, does not: mostly zeros, as at the end of one in eight float32 that are written
as float64. Nothing is looked for across it.
"""

from __future__ import annotations

import base64
import logging
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ppdl_mq.crypto.seal import NONCE_BYTES
from ppdl_mq.errors import Malformed
from ppdl_mq.wire.envelope import NONCE_BASE_BYTES
from ppdl_mq.wire.header import split_part

log = logging.getLogger("ppdl_mq.demo")

_SHOWN_BYTES: Final = 160  # the clear header, and little more
_WINDOW_BYTES: Final = 8
_MIN_DISTINCT: Final = 4  # of a window's bytes: runs of zeros stand in many things, secret or not

Windows = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What was found.

    Args:
        messages: that passed.
        bytes: in them.
        unsealed: messages that are not a header and a sealed rest.
        shrinkable: messages whose rest zlib can shrink.
        known: messages that hold a piece of a secret.
        readable: messages that are any of these.
    """

    messages: int
    bytes: int
    unsealed: int
    shrinkable: int
    known: int
    readable: int


class Secrets:
    """What must not be seen by the relay, in the forms that a program would send it in."""

    def __init__(self) -> None:
        self._found: list[Windows] = []

    def add_floats(self, values: npt.NDArray[np.float32]) -> None:
        """Add weights or samples: as float32, float64 and float16, in both byte orders."""
        for dtype in ("<f4", ">f4", "<f8", ">f8", "<f2"):
            with np.errstate(over="ignore"):
                self.add(values.astype(dtype).tobytes())

    def add_weights(self, flat: bytes | bytearray) -> None:
        """Add a flat state of float32."""
        self.add_floats(np.frombuffer(flat, dtype="<f4"))

    def add_integers(self, values: npt.NDArray[np.int64]) -> None:
        """Add labels or pixels: as one byte each, in their own order and sorted, and as wider integers."""
        for dtype in ("u1", "<i4", "<i8", ">i8"):
            self.add(values.astype(dtype).tobytes())

    def add_key(self, key: bytes) -> None:
        """Add a private key: raw, hexadecimal and base64."""
        for form in (key, key.hex().encode(), base64.b64encode(key), base64.urlsafe_b64encode(key)):
            self.add(form)

    def add(self, content: bytes) -> None:
        """Add bytes as they are: every eighth window, so that any 15 of them in a row are found at any offset."""
        whole = len(content) // _WINDOW_BYTES
        cells = np.frombuffer(content, dtype=np.uint8, count=whole * _WINDOW_BYTES).reshape(whole, _WINDOW_BYTES)
        ordered = np.sort(cells, axis=1)
        distinct = 1 + (np.diff(ordered, axis=1) > 0).sum(axis=1)
        telling = np.ascontiguousarray(cells[distinct >= _MIN_DISTINCT])
        self._found.append(telling.view(np.uint64).reshape(-1))

    def windows(self) -> Windows:
        """Return all windows, sorted, each once: uint64 (k)."""
        return np.unique(np.concatenate([np.empty(0, dtype=np.uint64), *self._found]))


def inspect(messages: Iterable[bytes], secrets: Secrets) -> Inspection:
    """Look into every message.

    Args:
        messages: as they passed the relay.
        secrets: what to look for.
    """
    windows = secrets.windows()
    count = size = unsealed = shrinkable = known = readable = 0
    for message in messages:
        rest, is_unsealed = _rest_of(message)
        can_shrink = len(zlib.compress(rest, 9)) < len(rest)
        is_known = _holds(rest[:NONCE_BASE_BYTES], windows) or _holds(rest[NONCE_BYTES:], windows)
        count += 1
        size += len(message)
        unsealed += is_unsealed
        shrinkable += can_shrink
        known += is_known
        readable += is_unsealed or can_shrink or is_known
        if is_unsealed or can_shrink or is_known:  # so that whoever sees the count can look into it
            log.warning(
                "The relay can read a message of %d bytes: unsealed %s, shrinks %s, holds a secret %s. It begins %s.",
                len(message),
                is_unsealed,
                can_shrink,
                is_known,
                message[:_SHOWN_BYTES].hex(),
            )
    return Inspection(
        messages=count, bytes=size, unsealed=unsealed, shrinkable=shrinkable, known=known, readable=readable
    )


def _rest_of(message: bytes) -> tuple[bytes, bool]:
    """Return what should be sealed, and whether the message is of another form than it should be."""
    try:
        return bytes(split_part(message)[2]), False
    except Malformed:
        return message, True


def _holds(content: bytes, windows: Windows) -> bool:
    """Tell whether one of the windows stands in the content, at any offset."""
    for offset in range(min(_WINDOW_BYTES, max(0, len(content) - _WINDOW_BYTES + 1))):
        whole = (len(content) - offset) // _WINDOW_BYTES
        here = np.frombuffer(content, dtype=np.uint64, offset=offset, count=whole)
        places = np.searchsorted(windows, here)
        places[places == len(windows)] = 0
        if len(windows) and bool(np.any(windows[places] == here)):
            return True
    return False
