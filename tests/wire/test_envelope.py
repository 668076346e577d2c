from __future__ import annotations

import dataclasses
import hashlib
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import Malformed, RemoteError, Unauthentic
from ppdl_mq.wire.envelope import Opened, open_part, read_body, seal_parts
from ppdl_mq.wire.header import Header, split_part
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.messages import Confirm, Message, Resend
from ppdl_mq.wire.meta import encode_meta
from tests.wire.samples import ANNA, BERT, KEY, LINEAGE, MESSAGES, blob_for, header_for, parts_of


def opened(parts: list[bytes]) -> tuple[Header, bytes]:
    """What a receiver puts together: the header and the plaintext body."""
    header = split_part(parts[0])[0]
    assert [split_part(part)[0] for part in parts] == [header.of_part(number) for number in range(header.parts)]
    return header, b"".join(open_part(KEY, part) for part in parts)


def read(header: Header, body: bytes) -> Opened:
    return read_body(header, memoryview(body), ANNA.public)


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("stride", [1, 7, 68, 4_000])
def test_round_trip(kind: Kind, stride: int) -> None:
    message, blob = MESSAGES[kind], blob_for(kind)
    header, body = opened(parts_of(message, blob, stride=stride))
    result = read(header, body)
    assert (result.header, result.message) == (header, message)
    assert body[result.blob_offset :][: result.blob_bytes] == blob
    assert result.blob_digest == hashlib.sha256(blob).digest()


@given(st.integers(0, 200), st.integers(1, 400))
def test_any_size_in_any_stride(size_bytes: int, stride: int) -> None:
    blob = bytes(size_bytes)
    parts = parts_of(MESSAGES[Kind.TURN], blob, stride=stride)
    header, body = opened(parts)
    sizes = [split_part(part)[0].part_bytes for part in parts]
    assert sizes[:-1] == [stride] * (len(parts) - 1)
    assert 1 <= sizes[-1] <= stride
    assert sum(sizes) == header.body_bytes == len(body)
    assert read(header, body).blob_bytes == size_bytes


def test_the_last_part_may_be_full_or_one_byte() -> None:
    message = MESSAGES[Kind.DONE]
    total = header_for(message).body_bytes
    for stride, last in ((total // 2, total % 2 or total // 2), (total, total), (total - 1, 1), (total + 1, total)):
        assert split_part(parts_of(message, stride=stride)[-1])[0].part_bytes == last


def test_parts_are_made_one_at_a_time() -> None:
    """A model of 400 MB never stands sealed in memory as a whole."""
    message, blob = MESSAGES[Kind.TURN], bytes(1_000_000)
    parts = seal_parts(header_for(message, blob, stride=10_000), message, KEY, ANNA.sign, blob=memoryview(blob))
    next(parts)
    tracemalloc.start()
    try:
        for _ in parts:
            pass
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_every_part_has_a_nonce_of_its_own() -> None:
    parts = parts_of(MESSAGES[Kind.TURN], blob_for(Kind.TURN, 4_000), stride=10)
    nonces = {split_part(part)[2][:24] for part in parts}
    assert len(nonces) == len(parts) > 100


def test_nonces_are_the_message_s_base_and_the_number_of_the_part() -> None:
    drawn: list[int] = []

    def random(count: int) -> bytes:
        drawn.append(count)
        return bytes([7]) * count

    message, blob = MESSAGES[Kind.TURN], blob_for(Kind.TURN, 900)
    parts = parts_of(message, blob, stride=100, random=random)
    assert drawn == [20]
    nonces = [bytes(split_part(part)[2][:24]) for part in parts]
    assert nonces == [b"\7" * 20 + number.to_bytes(4, "big") for number in range(len(parts))]
    again = seal_parts(
        header_for(message, blob, stride=100), message, KEY, ANNA.sign, blob=memoryview(blob), nonce_base=b"\7" * 20
    )
    assert list(again) == parts
    assert not {nonce[:20] for nonce in nonces} & {
        bytes(split_part(part)[2][:20]) for part in parts_of(message, blob, stride=100)
    }


def test_a_known_digest_is_used_and_must_be_right() -> None:
    message, blob = MESSAGES[Kind.TURN], blob_for(Kind.TURN)
    header = header_for(message, blob)

    def sealed(digest: bytes) -> bytes:
        view = memoryview(blob)
        return b"".join(
            open_part(KEY, part) for part in seal_parts(header, message, KEY, ANNA.sign, blob=view, blob_digest=digest)
        )

    assert read(header, sealed(hashlib.sha256(blob).digest())).blob_bytes == len(blob)
    with pytest.raises(Unauthentic):
        read(header, sealed(bytes(32)))


HEADER_CHANGES: dict[str, Any] = {
    "trial_id": bytes(32),
    "session_id": bytes(32),
    "message_id": bytes(16),
    "turn": 8,
    "attempt": 1,
    "stride": 4_001,
    "sender": "cleo",
    "recipient": "dora",
    "kind": Kind.FINAL,
}


@pytest.mark.parametrize("field", HEADER_CHANGES)
def test_the_signature_covers_every_field_of_the_header(field: str) -> None:
    header, body = opened(parts_of(MESSAGES[Kind.TURN], blob_for(Kind.TURN)))
    with pytest.raises(Unauthentic):
        read(dataclasses.replace(header, **{field: HEADER_CHANGES[field]}), body)


def test_all_fields_of_the_header_were_tried() -> None:
    assert {field.name for field in dataclasses.fields(Header)} == {*HEADER_CHANGES, "body_bytes", "part"}


@pytest.mark.parametrize("kind", Kind)
def test_the_signature_covers_every_byte_of_the_body(kind: Kind) -> None:
    header, body = opened(parts_of(MESSAGES[kind], blob_for(kind)))
    for at in range(len(body)):
        spoilt = body[:at] + bytes([body[at] ^ 0x80]) + body[at + 1 :]
        with pytest.raises((Unauthentic, Malformed)):
            read(header, spoilt)


def test_meta_and_blob_cannot_trade_bytes() -> None:
    """Moving the border between the two keeps the bytes and must not keep the signature."""
    header, body = opened(parts_of(MESSAGES[Kind.TURN], blob_for(Kind.TURN)))
    meta_bytes = int.from_bytes(body[:4], "big")
    for moved in (-1, 1, 5):
        with pytest.raises(Unauthentic):
            read(header, (meta_bytes + moved).to_bytes(4, "big") + body[4:])


def test_a_signature_of_somebody_else() -> None:
    header, body = opened(parts_of(MESSAGES[Kind.DONE]))
    with pytest.raises(Unauthentic):
        read_body(header, memoryview(body), BERT.public)


@pytest.mark.parametrize("meta_bytes", [0xFFFFFFFF, 600_000, 200, 103])
def test_lengths_that_do_not_fit(meta_bytes: int) -> None:
    header, body = opened(parts_of(MESSAGES[Kind.NOTICE]))
    with pytest.raises(Malformed):
        read(header, meta_bytes.to_bytes(4, "big") + body[4:])


def test_a_body_of_another_size_than_the_header_says() -> None:
    header, body = opened(parts_of(MESSAGES[Kind.NOTICE]))
    for other in (body[:-1], body + b"\0"):
        with pytest.raises(Malformed):
            read(header, other)


@pytest.mark.parametrize("kind", [kind for kind in Kind if not kind.carries_blob])
def test_weights_where_none_belong(kind: Kind) -> None:
    header, body = opened(parts_of(MESSAGES[kind], b"weights"))
    with pytest.raises(Malformed):
        read(header, body)


def test_a_signed_meta_that_is_not_canonical() -> None:
    """The sender itself may be the one who lies."""
    meta = b"\xde\x00\x00"  # an empty map in a longer form
    digest = hashlib.sha256(b"").digest()
    header = header_for(Resend(), body_bytes=4 + len(meta) + 64)
    framed = b"ppdl-mq/1 message\0" + b"".join(
        len(part).to_bytes(8, "big") + part for part in (header.signed_bytes(), hashlib.sha256(meta).digest(), digest)
    )
    body = len(meta).to_bytes(4, "big") + meta + ANNA.sign(framed)
    with pytest.raises(Malformed):
        read(header, body)


def test_a_header_of_another_size_is_our_own_bug() -> None:
    message = MESSAGES[Kind.NOTICE]
    with pytest.raises(ValueError, match="body"):
        list(seal_parts(header_for(message, body_bytes=500), message, KEY, ANNA.sign))


@pytest.mark.parametrize("kind", Kind)
def test_one_flipped_byte_of_a_part(kind: Kind) -> None:
    part = parts_of(MESSAGES[kind], blob_for(kind))[0]
    for at in range(len(part)):
        with pytest.raises(RemoteError):
            open_part(KEY, part[:at] + bytes([part[at] ^ 1]) + part[at + 1 :])


def test_a_part_under_another_number_does_not_open() -> None:
    parts = parts_of(MESSAGES[Kind.TURN], blob_for(Kind.TURN, 900), stride=100)
    for number in range(1, len(parts) - 1):
        moved = parts[0][:108] + number.to_bytes(4, "big") + parts[0][112:]
        with pytest.raises(Unauthentic):
            open_part(KEY, moved)


def test_another_key() -> None:
    with pytest.raises(Unauthentic):
        open_part(Secret(bytes(32)), parts_of(MESSAGES[Kind.NOTICE])[0])


@pytest.mark.parametrize("message", [Confirm(contribution=b"\x14" * 32), MESSAGES[Kind.TURN]])
def test_nothing_of_the_body_can_be_read_in_a_part(message: Message) -> None:
    part = b"".join(parts_of(message, blob_for(message.kind)))
    for secret in (encode_meta(message)[:24], b"\x14" * 8, LINEAGE.anchor[:8], blob_for(Kind.TURN)[:8]):
        assert secret not in part
