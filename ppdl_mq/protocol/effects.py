"""What a machine asks for. Each is harmless to carry out twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ppdl_mq.crypto.secret import Secret
from ppdl_mq.protocol.schedule import Turn
from ppdl_mq.protocol.slots import Cut, Slot
from ppdl_mq.wire.messages import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Seal a message, journal it, publish it.

    Args:
        recipient: name of a peer, or `weights`.
        reader: name of the peer that will read it; the recipient, unless that is `weights`.
        turn: for the header.
        message: what to say.
        attempt: for the header.
        blob: what goes with it, or None.
        ordinal: tells apart several of one kind, turn, attempt and recipient.
        held: journal it, and publish it only when PublishHeld asks for it.
    """

    recipient: str
    reader: str
    turn: int
    message: Message
    attempt: int = 0
    blob: Cut | None = None
    ordinal: int = 0
    held: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt:
    """Keep the blob of the message that was just received.

    Args:
        slot: under this name.
        are_weights: look for what no training can use first, and refuse the message then.
    """

    slot: Slot
    are_weights: bool = True


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
    """Build the initial weights, which are turn 0.

    Args:
        into: where they go.
    """

    into: Slot


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """Train one turn.

    Args:
        turn: which.
        base: the weights to begin with.
        into: where the result goes.
    """

    turn: Turn
    base: Slot
    into: Slot


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Acknowledge what was taken from `weights`: its successor is safe at the relay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget:
    """Drop sent messages (but for the session's) and slots of turns or steps before this one: others built on them.

    Args:
        before_turn: this one.
        keep_for: readers that may still ask for what is no longer of use to the others; it has no blob.
    """

    before_turn: int
    keep_for: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishAgain:
    """Publish again, as the same bytes, what was published for this reader and is kept."""

    reader: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishHeld:
    """Publish what is held for a reader, if anything is.

    Args:
        reader: name of a peer.
        turn: of this one.
        ordinals: with these ordinals.
    """

    reader: str
    turn: int
    ordinals: range


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdraw:
    """Do not publish again what is kept for this reader: it has left with everything it needs."""

    reader: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EmptyWeights:
    """Remove what is left in `weights`: the trial no longer needs it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepModel:
    """These weights are the trial's result.

    Args:
        slot: where they are.
        digest: SHA-256 of them.
    """

    slot: Slot
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Add a signed statement to the transcript.

    Args:
        by: name of its signer.
        says: one of `statements.SAYINGS`.
        about: what it says, as plain data.
        signature: 64 bytes.
    """

    by: str
    says: str
    about: Mapping[str, Any]
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """Measure the agreed weights on this peer's own hold-out.

    Args:
        step: of the evaluation.
        base: the weights.
    """

    step: int
    base: Slot


@dataclass(frozen=True, slots=True, kw_only=True)
class PairMask:
    """A mask that two members share.

    Args:
        seed: 32 bytes.
        sign: 1 or -1.
    """

    seed: Secret
    sign: Literal[1, -1]


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskVector:
    """Make this peer's vector, draw the seed of its own mask, and add all masks.

    Args:
        step: of the attempt.
        attempt: for which.
        word: bits of a ring word.
        members: of the attempt, sorted.
        masks: those shared with the other members.
        base: the weights from which the exponents follow; None in an evaluation.
        local: this peer's weights; None in an evaluation.
        figures: the words of an evaluation.
        into: where the masked vector goes.
    """

    step: int
    attempt: int
    word: int
    members: tuple[str, ...]
    masks: tuple[PairMask, ...]
    base: Slot | None
    local: Slot | None
    figures: tuple[int, ...]
    into: Slot


@dataclass(frozen=True, slots=True, kw_only=True)
class AddUp:
    """Add up a shard and take the members' own masks away.

    Args:
        step: of the attempt.
        attempt: in which.
        shard: its index.
        word: bits of a ring word.
        start: offset of the shard in the vector, in bytes.
        sources: the shard of every member.
        masks: seeds of the members' own masks.
        into: where the sum goes; None to compare only.
    """

    step: int
    attempt: int
    shard: int
    word: int
    start: int
    sources: tuple[Cut, ...]
    masks: tuple[Secret, ...]
    into: Slot | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """Decode the sum.

    Args:
        step: of the attempt.
        attempt: in which.
        word: bits of a ring word.
        members: of the attempt, sorted.
        sums: its shards, in order.
        auditable: indices of those that other members made.
        base: the weights from which the exponents follow; None in an evaluation.
        into: where the new weights go; None in an evaluation.
    """

    step: int
    attempt: int
    word: int
    members: tuple[str, ...]
    sums: tuple[Slot, ...]
    auditable: tuple[int, ...]
    base: Slot | None
    into: Slot | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Discard:
    """Drop masked vectors, shards and sums, and the messages that carry them.

    Args:
        step: of which.
        attempt: of this one only; None for all of that step and of those before it, and for the local weights.
    """

    step: int
    attempt: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscardLocal:
    """Drop what this peer trained in a step."""

    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteRound:
    """A step is agreed on.

    Args:
        step: which.
        members: who took part.
        attempts: how many it took.
        loss: over all hold-outs, after an evaluation.
        accuracy: over all hold-outs, after an evaluation.
    """

    step: int
    members: tuple[str, ...]
    attempts: int
    loss: float | None = None
    accuracy: float | None = None


Effect = (
    Send
    | Adopt
    | Fetch
    | BuildInitial
    | Train
    | Release
    | Forget
    | PublishAgain
    | PublishHeld
    | Withdraw
    | EmptyWeights
    | KeepModel
    | Record
    | Measure
    | MaskVector
    | AddUp
    | Average
    | Discard
    | DiscardLocal
    | NoteRound
)
