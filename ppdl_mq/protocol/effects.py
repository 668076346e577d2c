"""What a machine asks for. Each is harmless to carry out twice."""

from __future__ import annotations

from dataclasses import dataclass

from ppdl_mq.protocol.schedule import Turn
from ppdl_mq.wire.messages import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Seal a message, journal it, publish it.

    Args:
        recipient: name of a peer, or `weights`.
        reader: name of the peer that will read it; the recipient, unless that is `weights`.
        turn: for the header.
        message: what to say.
        weights_of: the turn whose weights go with it, or None.
        ordinal: tells apart several of one kind, turn and recipient.
    """

    recipient: str
    reader: str
    turn: int
    message: Message
    weights_of: int | None = None
    ordinal: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """Take the message from `weights`, without acknowledging it yet.

    Args:
        turn: whose weights.
        message_id: 16 bytes.
    """

    turn: int
    message_id: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildInitial:
    """Build the initial weights, which are turn 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """Train one turn, from the weights of the turn before."""

    turn: Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Acknowledge what was taken from `weights`: its successor is safe at the relay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget:
    """Drop sent messages and weights of turns before this one: others have built on them."""

    before_turn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishAgain:
    """Publish again, as the same bytes, what is kept for this reader."""

    reader: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdraw:
    """Do not publish again what is kept for this reader: it has left with everything it needs."""

    reader: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EmptyWeights:
    """Remove what is left in `weights`: the trial no longer needs it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepModel:
    """The weights of this turn are the trial's result."""

    turn: int


Effect = Send | Fetch | BuildInitial | Train | Release | Forget | PublishAgain | Withdraw | EmptyWeights | KeepModel
