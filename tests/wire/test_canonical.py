from __future__ import annotations

import math
import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppdl_mq.config import limits
from ppdl_mq.errors import Malformed, RemoteError, TooLarge
from ppdl_mq.wire import canonical

LIMIT = 10_000

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=40)
    | st.binary(max_size=300)
)
plain = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=5), inner, max_size=20)
)


def same(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float):
        return type(right) is float and struct.pack(">d", left) == struct.pack(">d", right)
    return type(left) is type(right) and left == right


@given(plain)
def test_round_trip(data: Any) -> None:
    assert same(canonical.decode(canonical.encode(data), limit_bytes=10**7), data)


@given(st.binary(max_size=60))
def test_whatever_is_accepted_is_the_one_encoding_and_the_rest_is_a_typed_error(raw: bytes) -> None:
    try:
        data = canonical.decode(raw, limit_bytes=LIMIT)
    except RemoteError:
        return
    assert canonical.encode(data) == raw


@given(plain, st.data())
def test_a_changed_byte_is_refused_or_means_something_else(data: Any, draw: st.DataObject) -> None:
    raw = bytearray(canonical.encode(data))
    at = draw.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= draw.draw(st.integers(1, 255))
    try:
        decoded = canonical.decode(bytes(raw), limit_bytes=10**7)
    except RemoteError:
        return
    assert canonical.encode(decoded) == raw != canonical.encode(data)


def test_keys_are_sorted() -> None:
    assert canonical.encode({"b": 1, "a": 2, "é": 3}) == canonical.encode({"é": 3, "a": 2, "b": 1})
    assert canonical.encode({"b": 1, "a": 2}) == b"\x82\xa1a\x02\xa1b\x01"


REFUSED = {
    "empty": b"",
    "trailing byte": b"\x01\x00",
    "truncated integer": b"\xcd\x01",
    "truncated string": b"\xa3ab",
    "truncated map": b"\x81\xa1a",
    "count without members": b"\xdd\x7f\xff\xff\xff",
    "integer too long": b"\xcc\x01",
    "integer over 63 bits": b"\xcf" + b"\xff" * 8,
    "string length too long": b"\xd9\x01a",
    "array length too long": b"\xdc\x00\x01\x01",
    "map length too long": b"\xde\x00\x01\xa1a\x01",
    "keys not sorted": b"\x82\xa1b\x01\xa1a\x02",
    "key twice": b"\x82\xa1a\x01\xa1a\x01",
    "integer key": b"\x81\x01\x01",
    "binary key": b"\x81\xc4\x01a\x01",
    "map as key": b"\x81\x80\x01",
    "float32": b"\xca\x3f\x80\x00\x00",
    "NaN": b"\xcb" + struct.pack(">d", math.nan),
    "extension": b"\xd4\x05\x00",
    "timestamp": msgpack.packb(msgpack.Timestamp(1)),
    "never used": b"\xc1",
    "not UTF-8": b"\xa1\xff",
    "surrogate": b"\xa3\xed\xa0\x80",
}


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED.keys())
def test_other_encodings_are_refused(raw: bytes) -> None:
    with pytest.raises(Malformed):
        canonical.decode(raw, limit_bytes=LIMIT)


def test_limits_come_before_the_work() -> None:
    with pytest.raises(TooLarge):
        canonical.decode(b"\xc4\x03abc", limit_bytes=4)
    deepest = b"\x91" * (limits.MAX_DEPTH - 1) + b"\x90"
    assert canonical.encode(canonical.decode(deepest, limit_bytes=LIMIT)) == deepest
    with pytest.raises(TooLarge):
        canonical.decode(b"\x91" * (limits.MAX_DEPTH + 1) + b"\x01", limit_bytes=LIMIT)
    with pytest.raises(Malformed):  # a thousand false counts of 8,000 in each other
        canonical.decode(b"\xdc\x1f\x40" * 3000, limit_bytes=LIMIT)


@pytest.mark.parametrize("data", [math.nan, 2**63, -(2**63) - 1, {1: 2}, {b"a": 1}, object(), {1, 2}, "\ud800"])
def test_what_has_no_encoding(data: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (also UnicodeEncodeError)
        canonical.encode(data)
