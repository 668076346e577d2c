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
        attempt: as its header says.
        blob_digest: SHA-256 of the blob that came with it.
        blob_bytes: size of the blob.
    """

    sender: str
    turn: int
    message: Message
    blob_digest: bytes
    attempt: int = 0
    blob_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The worker has finished a turn (turn 0: built the initial weights), and the result is on disk.

    Args:
        turn: which; in masked-average the round.
        digest: SHA-256 of the weights.
        exponents: in masked-average, the digest of the exponents of the round; they follow from the weights that it
            stands on, not from these.
    """

    turn: int
    digest: bytes
    exponents: bytes = bytes(32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """The relay has confirmed every part of a message of ours, or its recipient needs it no more.

    Args:
        kind: of the message.
        turn: as its header says.
        recipient: as its header says.
        message_id: 16 bytes.
        attempt: as its header says.
        is_gone: the recipient had an inbox and has none any more, so that nothing was sent.
    """

    kind: Kind
    turn: int
    recipient: str
    message_id: bytes
    attempt: int = 0
    is_gone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Overdue:
    """Nothing has come for long; those who are waited for may be asked again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The agreed weights are measured on this peer's own hold-out.

    Args:
        step: of the evaluation.
        figures: its words; see docs/PROTOCOL.md, section 15.
    """

    step: int
    figures: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Masked:
    """This peer's vector is masked, and the result is on disk.

    Args:
        step: of the attempt.
        attempt: for which.
        mask: seed of its own mask, freshly drawn.
        shards: SHA-256 of each shard, by index.
    """

    step: int
    attempt: int
    mask: Secret
    shards: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overflowed:
    """A value of this peer's vector does not fit the ring."""

    step: int
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedUp:
    """A shard of the sum is computed, and on disk.

    Args:
        step: of the attempt.
        attempt: in which.
        shard: its index.
        digest: SHA-256 of it.
    """

    step: int
    attempt: int
    shard: int
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Recomputed:
    """A shard of the sum that another signed was computed again from what was committed to; fields as above."""

    step: int
    attempt: int
    shard: int
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Averaged:
    """The sum is decoded, and the new weights, if it is of weights, are on disk.

    Args:
        step: of the attempt.
        attempt: in which.
        digest: SHA-256 of the new weights, or of the summed words of an evaluation.
        figures: the summed words of an evaluation, signed.
        audit: index of the sum shard to have recomputed, drawn at random; None for none.
    """

    step: int
    attempt: int
    digest: bytes
    figures: tuple[int, ...] = ()
    audit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """People at this organisation decided to go on without a peer.

    Args:
        name: of that peer.
    """

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rested:
    """This peer has rested long enough after an attempt that was given up.

    Args:
        step: of the attempt.
        attempt: the one that was given up.
    """

    step: int
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveAsked:
    """People at this organisation decided to leave the trial."""


Event = (
    Started
    | Received
    | Trained
    | Sent
    | Overdue
    | Measured
    | Masked
    | Overflowed
    | AddedUp
    | Recomputed
    | Averaged
    | Decided
    | Rested
    | LeaveAsked
)
