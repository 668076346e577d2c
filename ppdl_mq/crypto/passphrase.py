"""Sealing a secret under a passphrase: Argon2id, then XSalsa20-Poly1305.

Source: docs/PROTOCOL.md, "Identity file"; RFC 9106.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nacl.exceptions import CryptoError
from nacl.pwhash import argon2id
from nacl.secret import SecretBox

from ppdl_mq.config import limits
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import IdentityError, PassphraseError

SALT_BYTES: Final = argon2id.SALTBYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one guess at the passphrase costs; bounded, so that a file cannot make its reader work for hours.

    Args:
        ops: passes of Argon2id.
        memory_bytes: memory of Argon2id.
    """

    ops: int
    memory_bytes: int

    def __post_init__(self) -> None:
        if not (
            argon2id.OPSLIMIT_MIN <= self.ops <= limits.MAX_ARGON2_OPS
            and argon2id.MEMLIMIT_MIN <= self.memory_bytes <= limits.MAX_ARGON2_BYTES
        ):
            raise IdentityError(
                f"The identity's Argon2id parameters are out of bounds: {self.ops} passes, {self.memory_bytes} bytes."
            )


MODERATE: Final = Cost(ops=argon2id.OPSLIMIT_MODERATE, memory_bytes=argon2id.MEMLIMIT_MODERATE)

# The key comes from a salt that is drawn anew for every sealing, so it seals one plaintext only.
_NONCE: Final = bytes(SecretBox.NONCE_SIZE)


def seal(secret: Secret, passphrase: Secret, *, salt: bytes, cost: Cost) -> bytes:
    """Return the sealed secret, 16 bytes longer.

    Args:
        secret: what to protect.
        passphrase: UTF-8; not empty.
        salt: `SALT_BYTES` fresh random bytes, never used before.
        cost: of one guess.
    """
    return SecretBox(_key(passphrase, salt, cost)).encrypt(secret.reveal(), _NONCE).ciphertext


def open_sealed(sealed: bytes, passphrase: Secret, *, salt: bytes, cost: Cost) -> Secret:
    """Return the secret.

    Raises:
        PassphraseError: the passphrase is wrong, or the sealed bytes were changed.
    """
    try:
        return Secret(SecretBox(_key(passphrase, salt, cost)).decrypt(sealed, _NONCE))
    except (CryptoError, ValueError):
        raise PassphraseError("The passphrase is wrong.") from None


def _key(passphrase: Secret, salt: bytes, cost: Cost) -> bytes:
    return argon2id.kdf(SecretBox.KEY_SIZE, passphrase.reveal(), salt, opslimit=cost.ops, memlimit=cost.memory_bytes)
