"""The exact bytes that peers sign, from what they say. Source: docs/PROTOCOL.md, sections 2, 8, 9 and 13.

A statement stands by itself: it names no recipient, so that whoever holds it can show it to others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ppdl_mq.crypto import labels
from ppdl_mq.crypto.hashing import framed, sha256

NO_TURN_BEFORE = bytes(32)


def session_key_bytes(trial_id: bytes, name: str, session_key: bytes) -> bytes:
    """Return what a peer signs to say that this is its key for the session."""
    return framed(labels.SESSION_KEY, trial_id, name.encode(), session_key)


def turn_statement(session_id: bytes, turn: int, before: bytes, digest: bytes) -> bytes:
    """Return what the peer of `turn` signs to say that its weights, `digest`, descend from those of `before`."""
    return framed(labels.TURN_STATEMENT, session_id, _u32(turn), before, digest)


def final_statement(session_id: bytes, last_turn: int, digest: bytes) -> bytes:
    """Return what every peer signs to say that the trial ended with these weights."""
    return framed(labels.FINAL_STATEMENT, session_id, _u32(last_turn), digest)


def context_digest(context: bytes) -> bytes:
    """Return the digest of a context's canonical bytes."""
    return sha256(labels.CONTEXT, context)


def commitment_statement(context: bytes, mask: bytes, shards: Sequence[bytes]) -> bytes:
    """Return what a member signs to say what it will send: digests of its shards and of its own mask's seed."""
    return framed(labels.COMMITMENT, context, mask, *shards)


def receipt_statement(context: bytes, commitments: bytes) -> bytes:
    """Return what a member signs to say that it holds these commitments, and the shards that it is to hold."""
    return framed(labels.RECEIPT, context, commitments)


def sum_statement(context: bytes, shard: int, digest: bytes) -> bytes:
    """Return what a member signs to say that a shard adds up to this."""
    return framed(labels.SUM, context, _u32(shard), digest)


def agreement_statement(context: bytes, digest: bytes, commitments: bytes) -> bytes:
    """Return what a member signs to say what the step came to."""
    return framed(labels.AGREEMENT, context, digest, commitments)


def abandon_statement(session_id: bytes, step: int, attempt: int, overflow: bool) -> bytes:
    """Return what a member signs to give an attempt up."""
    return framed(labels.ABANDON, session_id, _u32(step), _u32(attempt), bytes([overflow]))


def leave_statement(session_id: bytes, step: int) -> bytes:
    """Return what a peer signs to take no part from `step` on."""
    return framed(labels.LEAVE, session_id, _u32(step))


def drop_statement(session_id: bytes, step: int, name: str) -> bytes:
    """Return what a peer signs to go on without another one from `step` on."""
    return framed(labels.DROP, session_id, _u32(step), name.encode())


# By the name under which a transcript keeps it: from what is said to the bytes that were signed.
_BYTES: Final[Mapping[str, Callable[[Mapping[str, Any]], bytes]]] = {
    "session key": lambda a: session_key_bytes(a["trial"], a["name"], a["key"]),
    "turn": lambda a: turn_statement(a["session"], a["turn"], a["before"], a["digest"]),
    "final": lambda a: final_statement(a["session"], a["turn"], a["digest"]),
    "commitment": lambda a: commitment_statement(context_digest(a["context"]), a["mask"], a["shards"]),
    "receipt": lambda a: receipt_statement(a["context"], a["commitments"]),
    "sum": lambda a: sum_statement(a["context"], a["shard"], a["digest"]),
    "agreement": lambda a: agreement_statement(a["context"], a["digest"], a["commitments"]),
    "abandon": lambda a: abandon_statement(a["session"], a["step"], a["attempt"], a["overflow"]),
    "leave": lambda a: leave_statement(a["session"], a["step"]),
    "drop": lambda a: drop_statement(a["session"], a["step"], a["name"]),
}
SAYINGS: Final = tuple(_BYTES)


def statement_bytes(says: str, about: Mapping[str, Any]) -> bytes:
    """Return what was signed, from a transcript's entry.

    Args:
        says: one of `SAYINGS`.
        about: plain data; its keys are those that the functions above take.

    Raises:
        KeyError, TypeError, OverflowError, AttributeError: the entry is not of that form.
    """
    return _BYTES[says](about)


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "big")
