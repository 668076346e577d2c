"""Sealing keys that two peers, or all of them, arrive at. Source: docs/PROTOCOL.md, section 2."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

from nacl import bindings
from nacl.utils import random as system_random

from ppdl_mq.crypto import labels
from ppdl_mq.crypto.hashing import framed, sha256
from ppdl_mq.crypto.seal import KEY_BYTES, Random
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import Unauthentic

_ANY_SECRET: Final = Secret(bytes([9]) * KEY_BYTES)


def new_secret(*, random: Random = system_random) -> Secret:
    """Draw 32 random bytes: a session's X25519 secret, or a contribution to the trial key."""
    return Secret(random(KEY_BYTES))


def public_half(secret: Secret) -> bytes:
    """Return the X25519 public key (32 bytes) of a secret."""
    return bindings.crypto_scalarmult_base(secret.reveal())


def check_public(public: bytes) -> None:
    """Hold another's X25519 key, 32 bytes, to what every agreement with it will need.

    Raises:
        Unauthentic: it is of small order: whoever agreed on a key with it would agree on one that anybody knows.
    """
    _shared(_ANY_SECRET, public)


def identity_pair_key(secret: Secret, public: bytes, *, trial_id: bytes, sender: str, recipient: str) -> Secret:
    """Derive the key under which `sender` seals to `recipient` before a session is agreed.

    Args:
        secret: one's own X25519 identity secret.
        public: the other's X25519 identity key, 32 bytes.
        trial_id: 32 bytes.
        sender: name of the one who seals.
        recipient: name of the one who opens.
    """
    return _pair_key(labels.IDENTITY_PAIR, secret, public, trial_id, sender, recipient)


def session_pair_key(secret: Secret, public: bytes, *, session_id: bytes, sender: str, recipient: str) -> Secret:
    """Derive the key under which `sender` seals to `recipient` within a session; arguments as above."""
    return _pair_key(labels.SESSION_PAIR, secret, public, session_id, sender, recipient)


def mask_root(secret: Secret, public: bytes, *, session_id: bytes, one: str, other: str) -> Secret:
    """Derive the mask key of round 1 between two peers; it is the same for both.

    Args:
        secret: one's own session secret.
        public: the other's session key, 32 bytes.
        session_id: 32 bytes.
        one: name of one of the two.
        other: name of the other.
    """
    first, second = sorted((one, other))
    return _pair_key(labels.MASK_ROOT, secret, public, session_id, first, second)


def ratcheted(mask_key: Secret) -> Secret:
    """Return the mask key of the next round. There is no way back from it."""
    return Secret(sha256(labels.MASK_RATCHET, mask_key.reveal()))


def pair_seed(mask_key: Secret, context: bytes) -> Secret:
    """Derive the seed of the mask that two peers share in one attempt.

    Args:
        mask_key: of the round.
        context: digest of the attempt's context, 32 bytes.
    """
    info = framed(labels.PAIR_MASK, context)
    return Secret(hashlib.blake2b(info, key=mask_key.reveal(), digest_size=KEY_BYTES).digest())


def mask_commitment(context: bytes, name: str, seed: Secret) -> bytes:
    """Return what commits a peer to the seed of its own mask, 32 bytes, and tells nothing about it."""
    return sha256(labels.MASK_COMMITMENT, context, name.encode(), seed.reveal())


def trial_key(session_id: bytes, contributions: Mapping[str, Secret]) -> Secret:
    """Derive the key that all peers of a server-aided trial share from 32 random bytes of each."""
    parts = [part for name in sorted(contributions) for part in (name.encode(), contributions[name].reveal())]
    return Secret(sha256(labels.TRIAL_KEY, session_id, *parts))


def _pair_key(label: bytes, secret: Secret, public: bytes, context: bytes, sender: str, recipient: str) -> Secret:
    info = framed(label, context, sender.encode(), recipient.encode())
    return Secret(hashlib.blake2b(info, key=_shared(secret, public), digest_size=KEY_BYTES).digest())


def _shared(secret: Secret, public: bytes) -> bytes:
    try:
        return bindings.crypto_scalarmult(secret.reveal(), public)
    except RuntimeError:  # libsodium refuses a point of small order: the result would be all zeros
        raise Unauthentic("A public key is of small order.") from None
