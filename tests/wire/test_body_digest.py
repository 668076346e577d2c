from __future__ import annotations

import hashlib
import random

import pytest

from ppdl_mq.wire.envelope import BodyDigest
from ppdl_mq.wire.header import NO_SESSION, Header
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.meta import SIGNATURE_BYTES

META = b"meta " * 9
WEIGHTS = random.Random(4).randbytes(1_000)
BODY = len(META).to_bytes(4, "big") + META + WEIGHTS + bytes(SIGNATURE_BYTES)


def parts_of(stride: int, body: bytes = BODY) -> tuple[BodyDigest, list[tuple[int, bytes]]]:
    header = Header(
        kind=Kind.TURN,
        trial_id=bytes(32),
        session_id=NO_SESSION,
        message_id=bytes(16),
        turn=1,
        body_bytes=len(body),
        stride=stride,
        sender="anna",
        recipient="bert",
    )
    return BodyDigest(header), [(start, body[start : start + stride]) for start in range(0, len(body), stride)]


@pytest.mark.parametrize("stride", [4, 5, 48, 49, 50, 51, 64, 333, len(BODY) - 1, len(BODY), 5_000])
def test_in_order_it_is_the_digest_of_the_weights(stride: int) -> None:
    digest, parts = parts_of(stride)
    for offset, plaintext in parts:
        assert digest.value is None
        digest.add(offset, plaintext)
    assert digest.value == hashlib.sha256(WEIGHTS).digest()


def test_a_part_twice_changes_nothing() -> None:
    digest, parts = parts_of(100)
    for offset, plaintext in parts:
        digest.add(offset, plaintext)
        digest.add(offset, plaintext)
    assert digest.value == hashlib.sha256(WEIGHTS).digest()


def test_out_of_order_it_says_nothing() -> None:
    digest, parts = parts_of(100)
    for offset, plaintext in [parts[1], parts[0], *parts[2:]]:
        digest.add(offset, plaintext)
    assert digest.value is None


@pytest.mark.parametrize("length", [0, 2**32 - 1, 1_100])
def test_a_length_that_lies_does_no_harm(length: int) -> None:
    digest, parts = parts_of(100, length.to_bytes(4, "big") + BODY[4:])
    for offset, plaintext in parts:
        digest.add(offset, plaintext)
    assert digest.value is not None  # `read_body` refuses such a body


def test_a_first_part_without_the_whole_length_is_passed_over() -> None:
    digest, parts = parts_of(3)
    for offset, plaintext in parts:
        digest.add(offset, plaintext)
    assert digest.value is None
