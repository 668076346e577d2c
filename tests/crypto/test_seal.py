from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppdl_mq.crypto.seal import NONCE_BYTES, OVERHEAD_BYTES, TAG_BYTES, open_sealed, seal
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import Unauthentic

KEY = Secret(bytes(range(32)))


def test_the_vector_of_the_draft() -> None:
    """draft-irtf-cfrg-xchacha-03, appendix A.3.1."""
    key = Secret(bytes(range(0x80, 0xA0)))
    nonce = bytes(range(0x40, 0x58))
    associated = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
    plaintext = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
        b"sunscreen would be it."
    )
    expected = bytes.fromhex(
        "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb"
        "731c7f1b0b4aa6440bf3a82f4eda7e39ae64c6708c54c216cb96b72e1213b452"
        "2f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff9"
        "21f9664c97637da9768812f615c68b13b52e"
        "c0875924c1c7987947deafd8780acf49"
    )
    assert seal(key, plaintext, associated, random=lambda _: nonce) == nonce + expected
    assert open_sealed(key, nonce + expected, associated) == plaintext


@given(st.binary(max_size=300), st.binary(max_size=200))
def test_round_trip(plaintext: bytes, associated: bytes) -> None:
    sealed = seal(KEY, plaintext, associated)
    assert len(sealed) == len(plaintext) + OVERHEAD_BYTES
    assert open_sealed(KEY, sealed, associated) == plaintext


def test_no_nonce_twice() -> None:
    sealed = [seal(KEY, b"the same", b"") for _ in range(500)]
    assert len({part[:NONCE_BYTES] for part in sealed}) == 500
    assert len({part[NONCE_BYTES:] for part in sealed}) == 500


def test_the_nonce_is_all_that_is_drawn() -> None:
    asked: list[int] = []
    seal(KEY, b"plaintext", b"", random=lambda count: asked.append(count) or bytes(count))
    assert asked == [NONCE_BYTES]


def test_every_changed_byte_is_refused() -> None:
    sealed, associated = seal(KEY, b"weights", b"header"), b"header"
    for at in range(len(sealed)):
        with pytest.raises(Unauthentic):
            open_sealed(KEY, sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :], associated)
    for other in (b"", b"headeR", b"header\0", b"\0header"):
        with pytest.raises(Unauthentic):
            open_sealed(KEY, sealed, other)
    with pytest.raises(Unauthentic):
        open_sealed(Secret(bytes(32)), sealed, associated)


@pytest.mark.parametrize("size", [0, NONCE_BYTES, OVERHEAD_BYTES - 1])
def test_shorter_than_nonce_and_tag(size: int) -> None:
    with pytest.raises(Unauthentic):
        open_sealed(KEY, bytes(size), b"")


@pytest.mark.parametrize("cut", [1, TAG_BYTES, TAG_BYTES + 3])
def test_a_cut_seal_does_not_open(cut: int) -> None:
    with pytest.raises(Unauthentic):
        open_sealed(KEY, seal(KEY, b"weights", b"")[:-cut], b"")
