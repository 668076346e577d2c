"""Plain data as bytes, in one encoding: a strict subset of MessagePack.

Maps have string keys, sorted by code point, each once; integers take the shortest form; floats are float64 and
finite; there are no extension types. Whatever else MessagePack would allow is refused on decoding.

Source: docs/PROTOCOL.md, "Encoding"; the MessagePack specification, "Formats".
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgpack

from ppdl_mq.config import limits
from ppdl_mq.errors import Malformed, TooLarge


def encode(data: Any) -> bytes:
    """Return the one encoding of `data`.

    Args:
        data: None, bool, int (64 bits signed), float (finite), str, bytes, or a list, tuple or dict of these.

    Raises:
        ValueError: `data` has no encoding; a bug of the caller.
    """
    packed: bytes = msgpack.packb(_sorted(data, depth=0), use_bin_type=True)
    return packed


def decode(raw: bytes, *, limit_bytes: int) -> Any:
    """Return the data of which `raw` is the one encoding; arrays become lists.

    Args:
        raw: from outside, possibly hostile.
        limit_bytes: longer input is refused unread.

    Raises:
        TooLarge: over the limit, or nested more than `limits.MAX_DEPTH` deep.
        Malformed: not MessagePack, or not the one encoding.
    """
    if len(raw) > limit_bytes:
        raise TooLarge(f"A message's data has {len(raw)} bytes, over the limit of {limit_bytes}.")
    _check_structure(raw)
    try:
        data = msgpack.unpackb(raw, raw=False, strict_map_key=True)
        same = encode(data) == raw
    except (ValueError, TypeError, msgpack.UnpackException):
        # From None: a foreign exception would carry the bytes into a traceback.
        raise Malformed("A message's data does not decode.") from None
    if not same:
        raise Malformed("A message's data is not in its one encoding.")
    return data


def _sorted(value: Any, *, depth: int) -> Any:
    """Return `value` with sorted maps, having checked that it has an encoding."""
    if depth > limits.MAX_DEPTH:
        raise ValueError(f"nested more than {limits.MAX_DEPTH} deep")
    if value is None or isinstance(value, (bool, str, bytes)):
        return value
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise ValueError("integer of more than 64 bits")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a float that is not finite")
        return value
    if isinstance(value, (list, tuple)):
        return [_sorted(item, depth=depth + 1) for item in value]
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("a map's keys must be strings")
        return {key: _sorted(value[key], depth=depth + 1) for key in sorted(value)}
    raise ValueError(f"{type(value).__name__} has no encoding")


# First byte -> how many bytes of length or value follow. For `_SIZED` they hold a length in bytes, for
# `_COUNTED` a number of items (a map's item is two values). What stands in no table is refused.
_SCALARS: Final = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCB: 8} | {
    0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8,
}  # fmt: skip
_SIZED: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_COUNTED: Final = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}


def _check_structure(raw: bytes) -> None:
    """Walk over `raw` without building anything, so that a false count cannot make the decoder allocate."""
    at = 0
    open_counts = [1]  # values still to come, on each level
    while open_counts:
        if open_counts[-1] == 0:
            open_counts.pop()
            continue
        open_counts[-1] -= 1
        if at >= len(raw):
            raise Malformed("A message's data is truncated.")
        at, values = _next_value(raw, at)
        if values:
            open_counts.append(values)
            if len(open_counts) - 1 > limits.MAX_DEPTH:
                raise TooLarge(f"A message's data is nested more than {limits.MAX_DEPTH} deep.")
    if at != len(raw):
        raise Malformed("A message's data is truncated, or bytes follow it.")


def _next_value(raw: bytes, at: int) -> tuple[int, int]:
    """Return where the value at `at` ends, or its members begin, and how many values it has as members."""
    first = raw[at]
    at += 1
    if first <= 0x7F or first >= 0xE0:  # fixint
        return at, 0
    if first <= 0x8F:  # fixmap
        return at, 2 * (first & 0x0F)
    if first <= 0x9F:  # fixarray
        return at, first & 0x0F
    if first <= 0xBF:  # fixstr
        return at + (first & 0x1F), 0
    if first in _SCALARS:
        return at + _SCALARS[first], 0
    if first in _SIZED:
        width = _SIZED[first]
        return at + width + int.from_bytes(raw[at : at + width], "big"), 0
    if first in _COUNTED:
        width, values_each = _COUNTED[first]
        return at + width, int.from_bytes(raw[at : at + width], "big") * values_each
    raise Malformed("A message's data has a type that is not allowed.")
