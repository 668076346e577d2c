"""The mask stream against RFC 8439 and against a block function written from it here."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppdl_mq.crypto.prg import BLOCK_BYTES, MAX_STREAM_BYTES, SEED_BYTES, Stream, fill
from ppdl_mq.crypto.secret import Secret

ZERO = Secret(bytes(SEED_BYTES))
COUNTING = Secret(bytes(range(SEED_BYTES)))
LAST = MAX_STREAM_BYTES - BLOCK_BYTES

# RFC 8439, appendix A.1: the vectors whose nonce is zero; seed, block, keystream.
RFC_BLOCKS = {
    "A.1 #1": (
        bytes(32),
        0,
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586",
    ),
    "A.1 #2": (
        bytes(32),
        1,
        "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
        "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f",
    ),
    "A.1 #3": (
        bytes(31) + b"\x01",
        1,
        "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a"
        "8eca00bbb4a73bdad192b5c42f73f2fd4e273644c8b36125a64addeb006c13a0",
    ),
    "A.1 #4": (
        b"\x00\xff" + bytes(30),
        2,
        "72d54dfbf12ec44b362692df94137f328fea8da73990265ec1bbbea1ae9af0ca"
        "13b25aa26cb4a648cb9b9d1be65b2c0924a66c54d545ec1b7374f4872e99f096",
    ),
}


def rotated(word: int, bits: int) -> int:
    return (word << bits | word >> (32 - bits)) & 0xFFFFFFFF


def chacha20_block(key: bytes, counter: int, nonce: bytes) -> bytes:
    """RFC 8439, section 2.3, as it reads."""
    start = [*struct.unpack("<4I", b"expand 32-byte k"), *struct.unpack("<8I", key), counter]
    start += struct.unpack("<3I", nonce)
    state = list(start)

    def quarter_round(a: int, b: int, c: int, d: int) -> None:
        for into, of, turned, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            state[into] = (state[into] + state[of]) & 0xFFFFFFFF
            state[turned] = rotated(state[turned] ^ state[into], bits)

    for _ in range(10):
        for column in range(4):
            quarter_round(column, 4 + column, 8 + column, 12 + column)
        for diagonal in range(4):
            quarter_round(diagonal, 4 + (diagonal + 1) % 4, 8 + (diagonal + 2) % 4, 12 + (diagonal + 3) % 4)
    return struct.pack("<16I", *((word + first) & 0xFFFFFFFF for word, first in zip(state, start, strict=True)))


def stream(seed: Secret, size: int, *, offset: int = 0) -> bytes:
    out = bytearray(b"\xaa" * size)
    fill(seed, out, offset=offset)
    return bytes(out)


@pytest.mark.parametrize(("seed", "block", "expected"), RFC_BLOCKS.values(), ids=RFC_BLOCKS.keys())
def test_the_vectors_of_the_rfc(seed: bytes, block: int, expected: str) -> None:
    assert stream(Secret(seed), 64, offset=block * BLOCK_BYTES).hex() == expected


def test_the_slow_block_function_is_the_rfcs() -> None:
    """Sections 2.3.2 and 2.4.2, whose nonces are not zero, and A.1 #5: they vouch for what the next test leans on."""
    key, nonce = bytes(range(32)), bytes.fromhex("000000090000004a00000000")
    assert chacha20_block(key, 1, nonce).hex() == (
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
        "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
    )
    text = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
    text += b"sunscreen would be it."
    nonce = bytes.fromhex("000000000000004a00000000")
    keystream = chacha20_block(key, 1, nonce) + chacha20_block(key, 2, nonce)
    assert bytes(a ^ b for a, b in zip(text, keystream, strict=False)).hex() == (
        "6e2e359a2568f98041ba0728dd0d6981e97e7aec1d4360c20a27afccfd9fae0b"
        "f91b65c5524733ab8f593dabcd62b3571639d624e65152ab8f530c359f0861d8"
        "07ca0dbf500d6a6156a38e088a22b65e52bc514d16ccf806818ce91ab7793736"
        "5af90bbf74a35be6b40b8eedf2785e42874d"
    )
    assert chacha20_block(bytes(32), 0, bytes(11) + b"\x02").hex() == (
        "c2c64d378cd536374ae204b9ef933fcd1a8b2288b3dfa49672ab765b54ee27c7"
        "8a970e0e955c14f3a88e741b97c286f75f8fc299e8148362fa198a39531bed6d"
    )


@given(st.binary(min_size=32, max_size=32), st.integers(0, 2**32 - 3), st.integers(0, 2 * BLOCK_BYTES))
def test_any_block_of_any_seed(seed: bytes, block: int, size: int) -> None:
    expected = b"".join(chacha20_block(seed, block + at, bytes(12)) for at in range(2))
    assert stream(Secret(seed), size, offset=block * BLOCK_BYTES) == expected[:size]


WHOLE = stream(COUNTING, 600_000)  # more than twice what is filled by one call of the cipher


@given(st.integers(0, 600_000 // BLOCK_BYTES), st.integers(0, 300_000))
def test_entered_at_a_block_it_is_a_slice_of_the_whole(block: int, size: int) -> None:
    offset = block * BLOCK_BYTES
    size = min(size, len(WHOLE) - offset)
    assert stream(COUNTING, size, offset=offset) == WHOLE[offset : offset + size]


@given(st.lists(st.integers(0, 1_000), max_size=20), st.integers(0, 1_000))
def test_read_in_pieces_it_is_the_same_stream(sizes: list[int], block: int) -> None:
    pieces = [bytearray(size) for size in sizes]
    reader = Stream(COUNTING, offset=block * BLOCK_BYTES)
    for piece in pieces:
        reader.read_into(memoryview(piece))
    assert b"".join(pieces) == WHOLE[block * BLOCK_BYTES :][: sum(sizes)]


def test_only_what_was_asked_for_is_written() -> None:
    out = bytearray(b"\xaa" * 300)
    fill(COUNTING, memoryview(out)[100:200])
    assert out == b"\xaa" * 100 + WHOLE[:100] + b"\xaa" * 100


def test_the_last_block() -> None:
    assert stream(COUNTING, 64, offset=LAST) == chacha20_block(COUNTING.reveal(), 2**32 - 1, bytes(12))
    both = stream(COUNTING, 128, offset=LAST - BLOCK_BYTES)
    assert both[64:] == stream(COUNTING, 64, offset=LAST)


@pytest.mark.parametrize("offset", [1, 63, 65, 2**32 + 1, -1, -64, MAX_STREAM_BYTES, MAX_STREAM_BYTES + 64])
def test_where_a_stream_cannot_be_entered(offset: int) -> None:
    out = bytearray(b"\xaa" * 64)
    with pytest.raises(ValueError, match="stream"):
        fill(ZERO, out, offset=offset)
    assert out == b"\xaa" * 64


def test_no_stream_goes_beyond_its_end() -> None:
    out = bytearray(b"\xaa" * 129)
    with pytest.raises(ValueError, match="left"):
        fill(ZERO, out, offset=LAST - BLOCK_BYTES)
    assert out == b"\xaa" * 129
    reader = Stream(ZERO, offset=LAST)
    reader.read_into(memoryview(bytearray(64)))
    with pytest.raises(ValueError, match="left"):
        reader.read_into(memoryview(bytearray(1)))


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_seed_has_256_bits(size: int) -> None:
    with pytest.raises(ValueError, match="seed"):
        fill(Secret(bytes(size)), bytearray(64))


def test_what_cannot_be_filled() -> None:
    with pytest.raises((BufferError, ValueError, TypeError)):
        fill(ZERO, memoryview(bytes(64)))
    with pytest.raises(ValueError, match="flat"):  # sixteen words, of which sixteen bytes would be filled
        Stream(ZERO).read_into(memoryview(bytearray(64)).cast("I"))
    words = memoryview(bytearray(64)).cast("I")
    fill(COUNTING, words)
    assert words.tobytes() == WHOLE[:64]


def test_the_zeros_that_it_encrypts_stay_zeros() -> None:
    from ppdl_mq.crypto import prg

    assert prg._ZEROS.readonly
    assert not any(prg._ZEROS)
