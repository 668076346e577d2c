"""What the messages say: one frozen class a kind. Source: docs/PROTOCOL.md, section 5."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ppdl_mq.wire.kinds import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """A peer's first word: what it agreed on, and its key for the session.

    Args:
        manifest: the canonical manifest.
        session_key: X25519, 32 bytes.
        session_signature: 64 bytes, over trial id, name and session key.
        layout: 32 bytes, digest of the model's names, dtypes and shapes.
        software: for people.
    """

    kind: ClassVar[Kind] = Kind.HELLO
    manifest: bytes
    session_key: bytes
    session_signature: bytes
    layout: bytes
    software: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirm:
    """A peer has all HELLOs and arrives at the same session id.

    Args:
        contribution: 32 bytes to the trial key in server-aided, none in fully-connected. Secret.
    """

    kind: ClassVar[Kind] = Kind.CONFIRM
    contribution: bytes

    def __repr__(self) -> str:
        return "Confirm(contribution=<redacted>)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What the peer of a turn signed.

    Args:
        digest: SHA-256 of the turn's weights.
        signature: 64 bytes, over session id, turn, the digest before and this one.
    """

    digest: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """How the weights that come with it descend from those that the reader gave away.

    Args:
        anchor: digest of the reader's own last turn; zeros if it had none.
        chain: the statements of all turns since, the last one of the weights that come with it.
    """

    anchor: bytes
    chain: tuple[Statement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnWeights:
    """The weights that a turn ended with; they are the message's blob."""

    kind: ClassVar[Kind] = Kind.TURN
    lineage: Lineage


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalWeights:
    """The weights that the trial ended with; they are the message's blob."""

    kind: ClassVar[Kind] = Kind.FINAL
    lineage: Lineage


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """It is your turn: the weights rest at the relay.

    Args:
        message_id: 16 bytes, of the TURN message.
    """

    kind: ClassVar[Kind] = Kind.NOTICE
    message_id: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A peer has the final weights.

    Args:
        digest: SHA-256 of them.
        signature: 64 bytes, over session id, last turn and digest.
    """

    kind: ClassVar[Kind] = Kind.DONE
    digest: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Resend:
    """The sender is waiting: send again what you last had for it."""

    kind: ClassVar[Kind] = Kind.RESEND


@dataclass(frozen=True, slots=True, kw_only=True)
class InitialWeights:
    """The weights that masked-average begins with; they are the message's blob."""

    kind: ClassVar[Kind] = Kind.INITIAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What its sender will send in an attempt.

    Args:
        context: canonical bytes of the attempt's context.
        shards: SHA-256 of each shard of the masked vector, by index.
        mask: 32 bytes, commits to the seed of the sender's own mask.
        signature: 64 bytes, over all of it.
    """

    kind: ClassVar[Kind] = Kind.COMMIT
    context: bytes
    shards: tuple[bytes, ...]
    mask: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedShard:
    """A shard of the sender's masked vector; it is the message's blob.

    Args:
        context: digest of the attempt's context, 32 bytes.
        shard: its index.
    """

    kind: ClassVar[Kind] = Kind.MASKED
    context: bytes
    shard: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The sender holds all commitments, and the shards that it is to hold.

    Args:
        context: digest, 32 bytes.
        commitments: digest of all commitments, 32 bytes.
        signature: 64 bytes, over both.
    """

    kind: ClassVar[Kind] = Kind.RECEIPT
    context: bytes
    commitments: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """The seed of a member's own mask, with the receipts that make it right to give it away.

    Args:
        context: digest, 32 bytes.
        member: whose seed; the sender's own, or one that was lost.
        mask: the seed, 32 bytes.
        receipts: signatures of all members' receipts, by index.
    """

    kind: ClassVar[Kind] = Kind.RELEASE
    context: bytes
    member: str
    mask: bytes
    receipts: tuple[bytes, ...]

    def __repr__(self) -> str:
        return f"Release(member={self.member!r}, mask=<redacted>)"


@dataclass(frozen=True, slots=True, kw_only=True)
class SumShard:
    """A shard of the sum; it is the message's blob.

    Args:
        context: digest, 32 bytes.
        shard: its index.
        maker: who added it up; the sender, or one that was lost.
        signature: the maker's, 64 bytes, over context, shard and the blob's digest.
    """

    kind: ClassVar[Kind] = Kind.SUM
    context: bytes
    shard: int
    maker: str
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedSum:
    """Who signed what for a shard of the sum.

    Args:
        shard: its index.
        maker: name of the signer.
        digest: SHA-256 of the shard.
        signature: 64 bytes.
    """

    shard: int
    maker: str
    digest: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Agree:
    """What the step came to, as the sender computed it.

    Args:
        context: digest, 32 bytes.
        digest: SHA-256 of the new weights, or of the summed words of an evaluation.
        sums: what it was computed from, one for each shard that is not empty.
        signature: 64 bytes, over context, digest and the digest of all commitments.
    """

    kind: ClassVar[Kind] = Kind.AGREE
    context: bytes
    digest: bytes
    sums: tuple[SignedSum, ...]
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Abandon:
    """The sender gives an attempt up, and releases in it only if another did.

    Args:
        overflow: a value of the sender does not fit the ring.
        signature: 64 bytes.
    """

    kind: ClassVar[Kind] = Kind.ABANDON
    overflow: bool
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """People at an organisation decided to go on without a peer in one step; anybody may pass it on.

    Args:
        by: name of the peer that signed.
        name: of the peer to be dropped.
        signature: 64 bytes.
    """

    kind: ClassVar[Kind] = Kind.DROP
    by: str
    name: str
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """A farewell; anybody may pass it on.

    Args:
        name: of the peer that leaves, and signed.
        signature: 64 bytes.
    """

    kind: ClassVar[Kind] = Kind.LEAVE
    name: str
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Show me what you added up.

    Args:
        context: digest, 32 bytes.
        shard: index of the sum shard.
    """

    kind: ClassVar[Kind] = Kind.DEMAND
    context: bytes
    shard: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """One of the shards that were added up; it is the message's blob.

    Args:
        context: digest, 32 bytes.
        shard: its index.
        member: whose masked vector it is from.
    """

    kind: ClassVar[Kind] = Kind.PROOF
    context: bytes
    shard: int
    member: str


Message = (
    Hello
    | Confirm
    | TurnWeights
    | Notice
    | FinalWeights
    | Done
    | Resend
    | InitialWeights
    | Commit
    | MaskedShard
    | Receipt
    | Release
    | SumShard
    | Agree
    | Abandon
    | Drop
    | Leave
    | Demand
    | Proof
)
