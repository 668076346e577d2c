"""The exact bytes that peers sign within a session. Source: docs/PROTOCOL.md, sections 2, 8 and 9."""

from __future__ import annotations

from ppdl_mq.crypto import labels
from ppdl_mq.crypto.hashing import framed

NO_TURN_BEFORE = bytes(32)


def session_key_bytes(trial_id: bytes, name: str, session_key: bytes) -> bytes:
    """Return what a peer signs to say that this is its key for the session."""
    return framed(labels.SESSION_KEY, trial_id, name.encode(), session_key)


def turn_statement(session_id: bytes, turn: int, before: bytes, digest: bytes) -> bytes:
    """Return what the peer of `turn` signs to say that its weights, `digest`, descend from those of `before`."""
    return framed(labels.TURN_STATEMENT, session_id, turn.to_bytes(4, "big"), before, digest)


def final_statement(session_id: bytes, last_turn: int, digest: bytes) -> bytes:
    """Return what every peer signs to say that the trial ended with these weights."""
    return framed(labels.FINAL_STATEMENT, session_id, last_turn.to_bytes(4, "big"), digest)
