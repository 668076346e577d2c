"""The kinds of message and how large each may be. Source: docs/PROTOCOL.md, section 5."""

from __future__ import annotations

import enum

from ppdl_mq.config import limits

FIXED_BODY_BYTES = 4 + 64  # length of meta, signature
SMALL_BODY_BYTES = 1_024
HELLO_BODY_BYTES = limits.MAX_MANIFEST_BYTES + 1_024


class Kind(enum.IntEnum):
    """What a message is for; the value is the byte on the wire."""

    HELLO = 1
    CONFIRM = 2
    TURN = 3
    NOTICE = 4
    FINAL = 5
    DONE = 6
    RESEND = 7

    @property
    def carries_weights(self) -> bool:
        """Whether the body has a blob."""
        return self in (Kind.TURN, Kind.FINAL)

    @property
    def before_session(self) -> bool:
        """Whether it is sealed with the identity keys, because no session need exist yet."""
        return self in (Kind.HELLO, Kind.RESEND)

    def max_body_bytes(self, weights_bytes: int) -> int:
        """Return the largest plaintext body of this kind, for a model of `weights_bytes` bytes."""
        if self.carries_weights:
            return FIXED_BODY_BYTES + limits.MAX_META_BYTES + weights_bytes
        return HELLO_BODY_BYTES if self is Kind.HELLO else SMALL_BODY_BYTES
