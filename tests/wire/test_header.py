from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppdl_mq.config import limits
from ppdl_mq.crypto.seal import OVERHEAD_BYTES
from ppdl_mq.errors import Malformed, RemoteError, TooLarge, UnknownVersion
from ppdl_mq.wire.header import Header, decode_header, header_bytes, split_part, stride_for
from ppdl_mq.wire.kinds import Kind
from tests.wire.samples import MESSAGES, blob_for, header_for, parts_of

names = st.from_regex(r"[a-z0-9][a-z0-9-]{0,31}", fullmatch=True)
ids = st.binary(min_size=32, max_size=32)


@st.composite
def headers(draw: Any) -> Header:
    stride = draw(st.integers(1, limits.MAX_CHUNK_BYTES))
    body = draw(st.integers(69, min(limits.MAX_BODY_BYTES, stride * limits.MAX_PARTS)))
    return Header(
        kind=draw(st.sampled_from(Kind)),
        trial_id=draw(ids),
        session_id=draw(ids),
        message_id=draw(st.binary(min_size=16, max_size=16)),
        turn=draw(st.integers(0, 2**32 - 1)),
        attempt=draw(st.integers(0, 2**32 - 1)),
        body_bytes=body,
        stride=stride,
        part=draw(st.integers(0, -(-body // stride) - 1)),
        sender=draw(names),
        recipient=draw(names),
    )


@given(headers())
def test_round_trip(header: Header) -> None:
    encoded = header.encode()
    assert decode_header(encoded) == (header, len(encoded))
    assert len(encoded) == header_bytes(header.sender, header.recipient)
    assert decode_header(encoded + b"sealed") == (header, len(encoded))


@given(headers())
def test_the_parts_add_up_to_the_body(header: Header) -> None:
    assert header.of_part(0).part_bytes == min(header.stride, header.body_bytes)
    last = header.of_part(header.parts - 1)
    assert 1 <= last.part_bytes <= header.stride
    assert (header.parts - 1) * header.stride + last.part_bytes == header.body_bytes


def test_every_offset_is_the_one_of_the_specification() -> None:
    header = header_for(MESSAGES[Kind.TURN], b"x" * 9_000, attempt=0x01020304, part=2, stride=4_000)
    raw = header.encode()
    assert raw[0:4] == bytes.fromhex("50 50 44 4c")
    assert (raw[4], raw[5], raw[6:8]) == (1, 3, b"\0\0")
    assert (raw[8:40], raw[40:72], raw[72:88]) == (header.trial_id, header.session_id, header.message_id)
    numbers = (header.turn, header.attempt, header.body_bytes, header.stride, header.part)
    assert struct.unpack(">IIQII", raw[88:112]) == numbers
    assert raw[112:] == b"\x04anna\x04bert"
    assert header.signed_bytes() == raw[:108] + raw[112:]


@given(headers(), st.integers(0, 1_000_000))
def test_all_but_the_part_number_is_signed(header: Header, part: int) -> None:
    other = header.of_part(part % header.parts)
    assert other.signed_bytes() == header.signed_bytes()


PART = parts_of(MESSAGES[Kind.TURN], blob_for(Kind.TURN))[0]
LONG = parts_of(MESSAGES[Kind.TURN], blob_for(Kind.TURN, 9_000))


def changed(at: int, value: bytes, part: bytes = PART) -> bytes:
    return part[:at] + value + part[at + len(value) :]


def u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def u64(value: int) -> bytes:
    return value.to_bytes(8, "big")


REFUSED: dict[str, tuple[bytes, type[RemoteError]]] = {
    "nothing": (b"", Malformed),
    "half a header": (PART[:60], Malformed),
    "names cut": (PART[:115], Malformed),
    "header alone": (PART[:122], Malformed),
    "one byte short": (PART[:-1], Malformed),
    "one byte over": (PART + b"\0", Malformed),
    "twice": (PART + PART, Malformed),
    "other magic": (changed(0, b"PPDM"), Malformed),
    "version 0": (changed(4, b"\0"), UnknownVersion),
    "version 2": (changed(4, b"\x02"), UnknownVersion),
    "kind 0": (changed(5, b"\0"), Malformed),
    "kind 20": (changed(5, b"\x14"), Malformed),
    "kind 255": (changed(5, b"\xff"), Malformed),
    "reserved byte 6": (changed(6, b"\1"), Malformed),
    "reserved byte 7": (changed(7, b"\1"), Malformed),
    "body of 68 bytes": (changed(96, u64(68)), Malformed),
    "body of none": (changed(96, u64(0)), Malformed),
    "body larger than any": (changed(96, u64(limits.MAX_BODY_BYTES + 1)), TooLarge),
    "body of 2**64 - 1": (changed(96, u64(2**64 - 1)), TooLarge),
    "body one more": (changed(96, u64(int.from_bytes(PART[96:104], "big") + 1)), Malformed),
    "stride 0": (changed(104, u32(0)), Malformed),
    "stride larger than any": (changed(104, u32(limits.MAX_CHUNK_BYTES + 1)), TooLarge),
    "too many parts": (changed(96, u64(limits.MAX_PARTS + 1) + u32(1)), TooLarge),
    "part 1 of 1": (changed(108, u32(1)), Malformed),
    "part 2**32 - 1": (changed(108, u32(2**32 - 1)), Malformed),
    "the last part where the first belongs": (changed(108, u32(0), LONG[-1]), Malformed),
    "the first part where the last belongs": (changed(108, u32(2), LONG[0]), Malformed),
    "sender of no letters": (changed(112, b"\0"), Malformed),
    "sender of 33 letters": (changed(112, bytes([33]) + b"a" * 33), Malformed),
    "sender in capitals": (changed(113, b"ANNA"), Malformed),
    "sender beginning with a dash": (changed(113, b"-nna"), Malformed),
    "sender with a line break": (changed(113, b"ann\n"), Malformed),
    "sender not ASCII": (changed(113, b"ann\xe9"), Malformed),
    "recipient of no letters": (changed(117, b"\0"), Malformed),
    "recipient with a slash": (changed(118, b"be/t"), Malformed),
    "recipient beyond the end": (PART[:117] + b"\xff", Malformed),
}


@pytest.mark.parametrize(("part", "error"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_before_any_cryptography(part: bytes, error: type[RemoteError]) -> None:
    with pytest.raises(error) as caught:
        split_part(part)
    assert type(caught.value) is error


def test_the_originals_are_taken() -> None:
    for part in (PART, *LONG):
        header, associated, sealed = split_part(part)
        assert associated + sealed == part
        assert associated == header.encode()
        assert len(sealed) == header.part_bytes + OVERHEAD_BYTES


@given(st.integers(0, len(PART) - 1), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_stands_in_the_associated_data(at: int, by: int) -> None:
    spoilt = changed(at, bytes([PART[at] ^ by]))
    try:
        header, associated, sealed = split_part(spoilt)
    except RemoteError:
        return
    assert associated + sealed == spoilt
    assert header.encode() == associated  # one encoding: whatever is read is what was authenticated


@given(st.binary(max_size=250))
def test_garbage_is_a_typed_error(raw: bytes) -> None:
    for garbage in (raw, PART[:8] + raw):
        with pytest.raises(RemoteError):
            split_part(garbage)


@pytest.mark.parametrize("chunk_bytes", [limits.MIN_CHUNK_BYTES, 900_000, limits.MAX_CHUNK_BYTES])
@pytest.mark.parametrize("name", ["a", "a" * 32])
def test_a_full_part_has_exactly_the_chunk_s_size(chunk_bytes: int, name: str) -> None:
    stride = stride_for(chunk_bytes, name, "bert")
    assert header_bytes(name, "bert") + stride + OVERHEAD_BYTES == chunk_bytes


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Kind.HELLO, 263_168),
        (Kind.CONFIRM, 1_024),
        (Kind.TURN, 524_356 + 1_000),
        (Kind.NOTICE, 1_024),
        (Kind.FINAL, 524_356 + 1_000),
        (Kind.DONE, 1_024),
        (Kind.RESEND, 1_024),
        (Kind.INITIAL, 524_356 + 1_000),
        (Kind.COMMIT, 65_536),
        (Kind.MASKED, 524_356 + 1_000),
        (Kind.RECEIPT, 1_024),
        (Kind.RELEASE, 65_536),
        (Kind.SUM, 524_356 + 1_000),
        (Kind.AGREE, 65_536),
        (Kind.ABANDON, 1_024),
        (Kind.DROP, 1_024),
        (Kind.LEAVE, 1_024),
        (Kind.DEMAND, 1_024),
        (Kind.PROOF, 524_356 + 1_000),
    ],
)
def test_body_sizes_of_the_specification(kind: Kind, expected: int) -> None:
    assert kind.max_body_bytes(1_000) == expected
