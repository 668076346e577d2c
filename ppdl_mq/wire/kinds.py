"""The kinds of message and how large each may be. Source: docs/PROTOCOL.md, section 5."""

from __future__ import annotations

import enum
from typing import Final

from ppdl_mq.config import limits

FIXED_BODY_BYTES = 4 + 64  # length of meta, signature
SMALL_BODY_BYTES = 1_024
MEMBERS_BODY_BYTES = 64 * 1024  # with something of each member in it
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
    INITIAL = 8
    COMMIT = 9
    MASKED = 10
    RECEIPT = 11
    RELEASE = 12
    SUM = 13
    AGREE = 14
    ABANDON = 15
    DROP = 16
    LEAVE = 17
    DEMAND = 18
    PROOF = 19

    @property
    def carries_weights(self) -> bool:
        """Whether the blob is a model's whole state."""
        return self in (Kind.TURN, Kind.FINAL, Kind.INITIAL)

    @property
    def carries_shard(self) -> bool:
        """Whether the blob is a shard of ring words."""
        return self in (Kind.MASKED, Kind.SUM, Kind.PROOF)

    @property
    def carries_blob(self) -> bool:
        """Whether the body has a blob."""
        return self.carries_weights or self.carries_shard

    @property
    def before_session(self) -> bool:
        """Whether it is sealed with the identity keys, because no session need exist yet."""
        return self in (Kind.HELLO, Kind.RESEND)

    @property
    def in_attempt(self) -> bool:
        """Whether it belongs to one attempt of a step of masked-average."""
        return self in _IN_ATTEMPT

    def max_body_bytes(self, blob_bytes: int) -> int:
        """Return the largest plaintext body of this kind, where no blob has more than `blob_bytes` bytes."""
        if self.carries_blob:
            return FIXED_BODY_BYTES + limits.MAX_META_BYTES + blob_bytes
        if self in (Kind.COMMIT, Kind.RELEASE, Kind.AGREE):
            return MEMBERS_BODY_BYTES
        return HELLO_BODY_BYTES if self is Kind.HELLO else SMALL_BODY_BYTES


_SESSION: Final = frozenset((Kind.HELLO, Kind.CONFIRM, Kind.RESEND))
_TURNS: Final = frozenset((Kind.TURN, Kind.FINAL, Kind.DONE))
_IN_ATTEMPT: Final = frozenset(
    (
        Kind.COMMIT,
        Kind.MASKED,
        Kind.RECEIPT,
        Kind.RELEASE,
        Kind.SUM,
        Kind.AGREE,
        Kind.ABANDON,
        Kind.DEMAND,
        Kind.PROOF,
    )
)
_OF_PROTOCOL: Final = {
    "server-aided": _SESSION | _TURNS | {Kind.NOTICE},
    "fully-connected": _SESSION | _TURNS,
    "masked-average": _SESSION | _IN_ATTEMPT | {Kind.INITIAL, Kind.DROP, Kind.LEAVE, Kind.DONE},
}


def kinds_of(protocol: str) -> frozenset[Kind]:
    """Return the kinds of message that a protocol has."""
    return _OF_PROTOCOL[protocol]
