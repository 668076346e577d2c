from __future__ import annotations

import base64
import copy
import dataclasses
import hashlib
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppdl_mq.crypto import labels
from ppdl_mq.crypto.hashing import framed, sha256
from ppdl_mq.crypto.identity import Identity, PublicIdentity, verify
from ppdl_mq.crypto.passphrase import Cost, open_sealed, seal
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import IdentityError, PassphraseError, Unauthentic

SECRET = bytes(range(64))
MERCY = Identity(name="mercy", secret=Secret(SECRET))
CHEAP = Cost(ops=1, memory_bytes=8192)


def text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def test_a_known_identity() -> None:
    """The Ed25519 key of RFC 8032, section 7.1, test 1, and Alice's X25519 key of RFC 7748, section 6.1."""
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    x25519 = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    known = Identity(name="mercy", secret=Secret(seed + x25519)).public
    assert known.ed25519.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert known.x25519.hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"


def test_the_public_line_is_read_back() -> None:
    assert PublicIdentity.from_line(MERCY.line) == MERCY.public
    assert PublicIdentity.from_line(f"  {MERCY.line}\n") == MERCY.public
    assert PublicIdentity.from_keys("mercy", MERCY.public.keys) == MERCY.public
    assert re.fullmatch(r"ppdl-mq-peer-1 mercy [A-Za-z0-9_-]{86} [A-Za-z0-9_-]{86}", MERCY.line)


def test_the_fingerprint_is_100_bits_of_the_hash() -> None:
    assert re.fullmatch(r"([0-9A-HJKMNP-TV-Z]{5}-){3}[0-9A-HJKMNP-TV-Z]{5}", MERCY.public.fingerprint)
    digest = hashlib.sha256(labels.FINGERPRINT + (64).to_bytes(8, "big") + MERCY.public.raw_keys).digest()
    bits = "".join(f"{byte:08b}" for byte in digest)[:100]
    digits = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
    expected = "".join(digits[int(bits[at : at + 5], 2)] for at in range(0, 100, 5))
    assert MERCY.public.fingerprint.replace("-", "") == expected


def test_signatures() -> None:
    signature = MERCY.sign(b"message")
    verify(MERCY.public, signature, b"message")
    other = Identity(name="basel", secret=Secret(SECRET[::-1])).public
    for public, wrong, message in [
        (MERCY.public, signature, b"messagE"),
        (MERCY.public, bytes(64), b"message"),
        (MERCY.public, signature[:-1], b"message"),
        (MERCY.public, b"", b"message"),
        (other, signature, b"message"),
    ]:
        with pytest.raises(Unauthentic):
            verify(public, wrong, message)


LINE = MERCY.line.split(" ")
ORDER = 2**252 + 27742317777372353535851937790883648493  # of the Ed25519 group


def malleable(signature: str) -> str:
    """The same signature with S + L, which verifies where S is not checked to be below L."""
    raw = base64.urlsafe_b64decode(signature + "==")
    larger = int.from_bytes(raw[32:], "little") + ORDER
    return text(raw[:32] + larger.to_bytes(32, "little"))


@pytest.mark.parametrize(
    "line",
    [
        "",
        "x" * 10_000,
        " ".join(LINE[:3]),
        " ".join([*LINE, "more"]),
        "  ".join(LINE),
        "\t".join(LINE),
        MERCY.line.replace("peer-1", "peer-2"),
        MERCY.line.replace("mercy", "merci"),
        MERCY.line.replace("mercy", "Mercy"),
        " ".join([*LINE[:3], text(bytes(64))]),
        " ".join([*LINE[:3], LINE[3] + "=="]),
        " ".join([*LINE[:3], malleable(LINE[3])]),
        " ".join([*LINE[:2], LINE[2][:-1] + "é", LINE[3]]),
        MERCY.line.replace("-", "+"),
    ],
)
def test_other_lines_are_refused(line: str) -> None:
    with pytest.raises(IdentityError):
        PublicIdentity.from_line(line)


def test_keys_have_one_encoding() -> None:
    keys = MERCY.public.keys
    same_bytes = keys[:-1] + chr(ord(keys[-1]) + 1)  # the last character holds four bits that are cut off
    assert base64.urlsafe_b64decode(same_bytes + "==") == MERCY.public.raw_keys
    with pytest.raises(IdentityError):
        PublicIdentity.from_keys("mercy", same_bytes)


@given(st.text(max_size=200))
def test_no_line_raises_anything_else(line: str) -> None:
    with pytest.raises(IdentityError):
        PublicIdentity.from_line("ppdl-mq-peer-1 " + line)


FIELD = 2**255 - 19
BAD_X25519 = {
    "zero": bytes(32),
    "one": (1).to_bytes(32, "little"),
    "order 8": bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    "p - 1": (FIELD - 1).to_bytes(32, "little"),
    "p, which is zero": FIELD.to_bytes(32, "little"),
    "not reduced": (FIELD + 9).to_bytes(32, "little"),
    "high bit": MERCY.public.x25519[:31] + bytes([MERCY.public.x25519[31] | 0x80]),
    "short": bytes(31),
}
BAD_ED25519 = {
    "zero: order 4": bytes(32),
    "one: neutral": (1).to_bytes(32, "little"),
    "order 8": bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
    "not on the curve": (2).to_bytes(32, "little"),
    "not reduced": b"\xff" * 31 + b"\x7f",
    "long": bytes(33),
}


@pytest.mark.parametrize("key", BAD_X25519.values(), ids=BAD_X25519.keys())
def test_bad_x25519_keys_are_refused(key: bytes) -> None:
    with pytest.raises(IdentityError):
        dataclasses.replace(MERCY.public, x25519=key)


@pytest.mark.parametrize("key", BAD_ED25519.values(), ids=BAD_ED25519.keys())
def test_bad_ed25519_keys_are_refused(key: bytes) -> None:
    with pytest.raises(IdentityError):
        dataclasses.replace(MERCY.public, ed25519=key)


@pytest.mark.parametrize("name", ["", "Mercy", "m" * 33, "-m", "m\n", "é"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(IdentityError):
        dataclasses.replace(MERCY.public, name=name)


def test_a_secret_is_not_shown() -> None:
    for shown in (repr(MERCY), str(MERCY), f"{MERCY}", f"{MERCY.secret:>40}", str([MERCY.x25519_secret])):
        for secret in (SECRET, SECRET[:32], SECRET[32:]):
            assert repr(secret)[2:-1] not in shown
            assert secret.hex() not in shown
            assert text(secret) not in shown
    for leaking in (pickle.dumps, copy.copy, copy.deepcopy, hash):
        with pytest.raises(TypeError):
            leaking(MERCY.secret)  # type: ignore[operator]
    with pytest.raises(TypeError):
        pickle.dumps(MERCY)


def test_secrets_compare_by_value() -> None:
    assert Secret(b"a") == Secret(b"a")
    assert Secret(b"a") != Secret(b"b")
    assert Secret(b"a") != b"a"


@given(st.lists(st.binary(max_size=8), max_size=4), st.lists(st.binary(max_size=8), max_size=4))
def test_no_two_lists_of_parts_hash_alike(left: list[bytes], right: list[bytes]) -> None:
    assert (sha256(b"label\0", *left) == sha256(b"label\0", *right)) == (left == right)
    assert framed(b"l", b"ab") == b"l" + b"\0\0\0\0\0\0\0\2ab"


def test_no_label_is_the_beginning_of_another() -> None:
    every = [value for value in vars(labels).values() if isinstance(value, bytes) and value != labels.PREFIX]
    assert len(every) == len(set(every)) > 5
    assert all(label.startswith(labels.PREFIX) and label.index(b"\0") == len(label) - 1 for label in every)


def test_a_passphrase_seals() -> None:
    sealed = seal(MERCY.secret, Secret(b"open sesame"), salt=bytes(16), cost=CHEAP)
    assert len(sealed) == 80
    assert open_sealed(sealed, Secret(b"open sesame"), salt=bytes(16), cost=CHEAP) == MERCY.secret
    for wrong in (
        lambda: open_sealed(sealed, Secret(b"open sesamE"), salt=bytes(16), cost=CHEAP),
        lambda: open_sealed(sealed, Secret(b"open sesame"), salt=b"1" * 16, cost=CHEAP),
        lambda: open_sealed(sealed[:-1] + b"x", Secret(b"open sesame"), salt=bytes(16), cost=CHEAP),
        lambda: open_sealed(b"", Secret(b"open sesame"), salt=bytes(16), cost=CHEAP),
    ):
        with pytest.raises(PassphraseError):
            wrong()


@pytest.mark.parametrize(("ops", "memory_bytes"), [(0, 8192), (21, 8192), (1, 8191), (1, 2**31), (-1, 8192)])
def test_the_cost_of_a_passphrase_is_bounded(ops: int, memory_bytes: int) -> None:
    with pytest.raises(IdentityError):
        Cost(ops=ops, memory_bytes=memory_bytes)
