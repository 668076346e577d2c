"""The one seal: XChaCha20-Poly1305 with a nonce of 192 bits, all random, or 160 of them where a message has parts.

The number of the part makes up the rest (`wire/envelope.py`).

Source: RFC 8439 and draft-irtf-cfrg-xchacha-03 (libsodium's `crypto_aead_xchacha20poly1305_ietf`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from nacl import bindings
from nacl.exceptions import CryptoError
from nacl.utils import random as system_random

from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import Unauthentic

Random = Callable[[int], bytes]

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 24
TAG_BYTES: Final = 16
OVERHEAD_BYTES: Final = NONCE_BYTES + TAG_BYTES


def seal(key: Secret, plaintext: bytes, associated: bytes, *, random: Random = system_random) -> bytes:
    """Seal `plaintext` and authenticate `associated` with it.

    Args:
        key: 32 bytes.
        plaintext: any length.
        associated: authenticated, not hidden.
        random: gives the nonce. The system's generator by default; who passes another one must never use a nonce twice.

    Returns:
        nonce (24 bytes) || ciphertext || tag (16 bytes).
    """
    nonce = random(NONCE_BYTES)
    return nonce + bindings.crypto_aead_xchacha20poly1305_ietf_encrypt(plaintext, associated, nonce, key.reveal())


def open_sealed(key: Secret, sealed: bytes | memoryview, associated: bytes) -> bytes:
    """Return the plaintext of what `seal` returned.

    Raises:
        Unauthentic: another key, or a byte of `sealed` or `associated` was changed.
    """
    if len(sealed) < OVERHEAD_BYTES:
        raise Unauthentic("A sealed part is shorter than its nonce and tag.")
    nonce, ciphertext = bytes(sealed[:NONCE_BYTES]), bytes(sealed[NONCE_BYTES:])
    try:
        return bindings.crypto_aead_xchacha20poly1305_ietf_decrypt(ciphertext, associated, nonce, key.reveal())
    except CryptoError:
        raise Unauthentic("A seal does not open: another key, or the message was altered.") from None
