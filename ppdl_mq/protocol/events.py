"""What can happen to a machine."""

from __future__ import annotations

from dataclasses import dataclass

from ppdl_mq.crypto.secret import Secret
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.messages import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The peer runs this trial for the first time.

    Args:
        session_secret: X25519, freshly drawn.
        contribution: to the trial key, freshly drawn; of no use in fully-connected.
    """

    session_secret: Secret
    contribution: Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A message whose seal and signature hold.

    Args:
        sender: name of the peer that signed it.
        turn: as its header says.
        message: what it says.
        blob_digest: SHA-256 of the weights that came with it.
    """

    sender: str
    turn: int
    message: Message
    blob_digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The worker has finished a turn (turn 0: built the initial weights), and the result is on disk.

    Args:
        turn: which.
        digest: SHA-256 of the weights.
    """

    turn: int
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """The relay has confirmed every part of a message of ours.

    Args:
        kind: of the message.
        turn: as its header says.
        recipient: as its header says.
        message_id: 16 bytes.
    """

    kind: Kind
    turn: int
    recipient: str
    message_id: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Overdue:
    """Nothing has come for long; those who are waited for may be asked again."""


Event = Started | Received | Trained | Sent | Overdue
