"""A peer's long-term identity: Ed25519 to sign, X25519 to seal, and the public line that others pin.

Source: docs/PROTOCOL.md, "Identity".
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from nacl import bindings
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from ppdl_mq.crypto import labels
from ppdl_mq.crypto.hashing import framed, sha256
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import IdentityError, Unauthentic

KEY_BYTES: Final = 32
SECRET_BYTES: Final = 64  # Ed25519 seed, then X25519 secret
SIGNATURE_BYTES: Final = 64
LINE_WORD: Final = "ppdl-mq-peer-1"
MAX_LINE_CHARACTERS: Final = 256

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)
_CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_X25519_PRIME: Final = 2**255 - 19
_ANY_SCALAR: Final = bytes([9]) * KEY_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicIdentity:
    """What others know of a peer.

    Args:
        name: as in the manifest.
        ed25519: 32 bytes; a canonical point of the prime-order group.
        x25519: 32 bytes; a canonical coordinate that is not of low order.

    Raises:
        IdentityError: the name or a key is not valid.
    """

    name: str
    ed25519: bytes
    x25519: bytes

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise IdentityError("A peer's name must be 1 to 32 of a-z, 0-9 and '-', beginning with a letter or digit.")
        if not (_is_ed25519(self.ed25519) and _is_x25519(self.x25519)):
            raise IdentityError(
                f"The keys of {self.name} are not valid public keys.", hint="Ask that peer for its public line again."
            )

    @classmethod
    def from_keys(cls, name: str, keys: str) -> PublicIdentity:
        """Return the identity that a manifest pins.

        Args:
            name: of the peer.
            keys: 86 characters of base64url.

        Raises:
            IdentityError: not two valid public keys in their one encoding.
        """
        raw = _from_base64url(keys, 2 * KEY_BYTES)
        if raw is None:
            raise IdentityError(f"The keys of {shown_name(name)} are not 86 characters of base64url.")
        return cls(name=name, ed25519=raw[:KEY_BYTES], x25519=raw[KEY_BYTES:])

    @classmethod
    def from_line(cls, line: str) -> PublicIdentity:
        """Parse a public line, which proves that its author holds the signing key.

        Args:
            line: `ppdl-mq-peer-1 NAME KEYS SIGNATURE`, single spaces, white space around it ignored.

        Raises:
            IdentityError: not such a line, or the signature does not hold.
        """
        words = line.strip().split(" ") if len(line) <= MAX_LINE_CHARACTERS else []
        if len(words) != 4 or words[0] != LINE_WORD:
            raise IdentityError(
                f"This is not a public line: it must read {LINE_WORD} NAME KEYS SIGNATURE.",
                hint="`ppdl-mq identity show` prints it; mind line breaks added in between.",
            )
        public = cls.from_keys(words[1], words[2])
        signature = _from_base64url(words[3], SIGNATURE_BYTES)
        try:
            verify(public, signature or b"", public.line_statement)
        except Unauthentic:
            raise IdentityError(
                f"The signature in the public line of {public.name} does not hold.",
                hint="Ask that peer for the output of `ppdl-mq identity show` again.",
            ) from None
        return public

    @property
    def raw_keys(self) -> bytes:
        """The 64 bytes of both keys: Ed25519, then X25519."""
        return self.ed25519 + self.x25519

    @property
    def keys(self) -> str:
        """Both keys as 86 characters of base64url, as in `Manifest.Peer.keys`."""
        return _to_base64url(self.raw_keys)

    @property
    def fingerprint(self) -> str:
        """100 bits of a hash of the keys, in four groups of five characters, to be read over the telephone."""
        bits = int.from_bytes(sha256(labels.FINGERPRINT, self.raw_keys), "big") >> (256 - 100)
        characters = "".join(_CROCKFORD[(bits >> shift) & 31] for shift in range(95, -1, -5))
        return "-".join(characters[at : at + 5] for at in range(0, 20, 5))

    @property
    def line_statement(self) -> bytes:
        """The bytes that the signature of the public line covers."""
        return framed(labels.PUBLIC_LINE, self.name.encode("ascii"), self.raw_keys)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A peer's own identity, with its secrets.

    Args:
        name: as in the manifest.
        secret: 64 bytes: Ed25519 seed, then X25519 secret. Both are independent and uniform.
    """

    name: str
    secret: Secret = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != SECRET_BYTES:
            raise IdentityError(f"An identity's secret must have {SECRET_BYTES} bytes, not {len(self.secret)}.")

    @cached_property
    def public(self) -> PublicIdentity:
        """What others may know."""
        return PublicIdentity(
            name=self.name,
            ed25519=bytes(self._signing_key.verify_key),
            x25519=bindings.crypto_scalarmult_base(self.x25519_secret.reveal()),
        )

    @property
    def x25519_secret(self) -> Secret:
        """32 bytes."""
        return Secret(self.secret.reveal()[KEY_BYTES:])

    @property
    def line(self) -> str:
        """The public line to send to the others, signed as proof that the key is held."""
        signature = self.sign(self.public.line_statement)
        return f"{LINE_WORD} {self.name} {self.public.keys} {_to_base64url(signature)}"

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte Ed25519 signature; `message` begins with a label of its own."""
        return self._signing_key.sign(message).signature

    @cached_property
    def _signing_key(self) -> SigningKey:
        return SigningKey(self.secret.reveal()[:KEY_BYTES])


def verify(public: PublicIdentity, signature: bytes, message: bytes) -> None:
    """Check an Ed25519 signature.

    Raises:
        Unauthentic: it does not hold.
    """
    try:
        VerifyKey(public.ed25519).verify(message, signature)
    except (BadSignatureError, ValueError):  # ValueError: wrong length
        raise Unauthentic(f"A signature of {public.name} does not hold.") from None


def shown_name(name: str) -> str:
    """Return a name fit to be printed, whoever chose it."""
    return name if _NAME.fullmatch(name) else "this peer"


def _is_ed25519(key: bytes) -> bool:
    return len(key) == KEY_BYTES and bool(bindings.crypto_core_ed25519_is_valid_point(key))


def _is_x25519(key: bytes) -> bool:
    if len(key) != KEY_BYTES or int.from_bytes(key, "little") >= _X25519_PRIME:
        return False
    try:
        bindings.crypto_scalarmult(_ANY_SCALAR, key)  # libsodium refuses an all-zero result: the low orders
    except RuntimeError:
        return False
    return True


def _to_base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _from_base64url(text: str, size_bytes: int) -> bytes | None:
    """Return the bytes of which `text` is the one unpadded encoding, or None."""
    try:
        raw = base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    except (UnicodeEncodeError, binascii.Error):
        return None
    return raw if len(raw) == size_bytes and _to_base64url(raw) == text else None
