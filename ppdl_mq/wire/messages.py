"""What the messages say: one frozen class a kind, with one strict encoding. Source: docs/PROTOCOL.md, section 5."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar, Final, cast

from ppdl_mq.config import limits
from ppdl_mq.errors import Malformed
from ppdl_mq.wire import canonical
from ppdl_mq.wire.kinds import Kind

DIGEST_BYTES = 32
SIGNATURE_BYTES = 64
MAX_SOFTWARE_BYTES = 200
NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


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
        signature: 64 bytes, over context, shard and the blob's digest.
    """

    kind: ClassVar[Kind] = Kind.SUM
    context: bytes
    shard: int
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


def encode_meta(message: Message) -> bytes:
    """Return the meta of a message, in the canonical encoding."""
    match message:
        case TurnWeights(lineage=lineage) | FinalWeights(lineage=lineage):
            chain = [[statement.digest, statement.signature] for statement in lineage.chain]
            return canonical.encode({"anchor": lineage.anchor, "chain": chain})
        case Agree(sums=sums):
            listed = [[each.shard, each.maker, each.digest, each.signature] for each in sums]
            return canonical.encode(
                {
                    "context": message.context,
                    "digest": message.digest,
                    "sums": listed,
                    "signature": message.signature,
                }
            )
        case _:
            return canonical.encode({name: getattr(message, name) for name in message.__slots__})


def decode_meta(kind: Kind, meta: bytes) -> Message:
    """Decode a meta strictly.

    Raises:
        Malformed: not canonical, a missing or additional key, a value of the wrong type or length.
    """
    data = canonical.decode(meta, limit_bytes=limits.MAX_META_BYTES)
    if not isinstance(data, dict):
        raise Malformed("The meta of a message is not a map.")
    fields = _Fields(kind, cast(dict[str, Any], data))
    match kind:
        case Kind.HELLO:
            message: Message = Hello(
                manifest=fields.binary("manifest", at_most=limits.MAX_MANIFEST_BYTES),
                session_key=fields.binary("session_key", exactly=32),
                session_signature=fields.binary("session_signature", exactly=SIGNATURE_BYTES),
                layout=fields.binary("layout", exactly=DIGEST_BYTES),
                software=fields.text("software", at_most=MAX_SOFTWARE_BYTES),
            )
        case Kind.CONFIRM:
            message = Confirm(contribution=fields.binary("contribution", at_most=32))
        case Kind.TURN:
            message = TurnWeights(lineage=fields.lineage())
        case Kind.NOTICE:
            message = Notice(message_id=fields.binary("message_id", exactly=16))
        case Kind.FINAL:
            message = FinalWeights(lineage=fields.lineage())
        case Kind.DONE:
            message = Done(
                digest=fields.binary("digest", exactly=DIGEST_BYTES),
                signature=fields.binary("signature", exactly=SIGNATURE_BYTES),
            )
        case Kind.RESEND:
            message = Resend()
        case Kind.INITIAL:
            message = InitialWeights()
        case Kind.COMMIT:
            message = Commit(
                context=fields.binary("context", at_most=limits.MAX_CONTEXT_BYTES),
                shards=fields.binaries("shards", exactly=DIGEST_BYTES),
                mask=fields.binary("mask", exactly=DIGEST_BYTES),
                signature=fields.signature(),
            )
        case Kind.MASKED:
            message = MaskedShard(context=fields.context(), shard=fields.index())
        case Kind.RECEIPT:
            message = Receipt(
                context=fields.context(),
                commitments=fields.binary("commitments", exactly=DIGEST_BYTES),
                signature=fields.signature(),
            )
        case Kind.RELEASE:
            message = Release(
                context=fields.context(),
                member=fields.name("member"),
                mask=fields.binary("mask", exactly=32),
                receipts=fields.binaries("receipts", exactly=SIGNATURE_BYTES),
            )
        case Kind.SUM:
            message = SumShard(context=fields.context(), shard=fields.index(), signature=fields.signature())
        case Kind.AGREE:
            message = Agree(
                context=fields.context(),
                digest=fields.binary("digest", exactly=DIGEST_BYTES),
                sums=fields.sums(),
                signature=fields.signature(),
            )
        case Kind.ABANDON:
            message = Abandon(overflow=fields.truth("overflow"), signature=fields.signature())
        case Kind.DROP:
            message = Drop(by=fields.name("by"), name=fields.name("name"), signature=fields.signature())
        case Kind.LEAVE:
            message = Leave(name=fields.name("name"), signature=fields.signature())
        case Kind.DEMAND:
            message = Demand(context=fields.context(), shard=fields.index())
        case Kind.PROOF:
            message = Proof(context=fields.context(), shard=fields.index(), member=fields.name("member"))
    fields.finish()
    return message


class _Fields:
    """Takes the fields of a decoded map one by one; whatever is left over is refused."""

    def __init__(self, kind: Kind, data: dict[str, Any]) -> None:
        self._kind = kind
        self._data = data

    def binary(self, name: str, *, exactly: int | None = None, at_most: int | None = None) -> bytes:
        value = self._take(name)
        if not isinstance(value, bytes) or not _fits(len(value), exactly, at_most):
            raise Malformed(f"{name!r} of a {self._kind.name} has the wrong type or length.")
        return value

    def text(self, name: str, *, at_most: int) -> str:
        value = self._take(name)
        if not isinstance(value, str) or len(value.encode()) > at_most or not value.isprintable():
            raise Malformed(f"{name!r} of a {self._kind.name} is not a short text.")
        return value

    def lineage(self) -> Lineage:
        anchor = self.binary("anchor", exactly=DIGEST_BYTES)
        chain = self._take("chain")
        if not isinstance(chain, list) or not 1 <= len(chain) <= 2 * limits.MAX_PEERS:
            raise Malformed(f"'chain' of a {self._kind.name} is not a list of statements.")
        return Lineage(anchor=anchor, chain=tuple(self._statement(item) for item in chain))

    def context(self) -> bytes:
        return self.binary("context", exactly=DIGEST_BYTES)

    def signature(self) -> bytes:
        return self.binary("signature", exactly=SIGNATURE_BYTES)

    def index(self) -> int:
        value = self._take("shard")
        if type(value) is not int or not 0 <= value < limits.MAX_PEERS:
            raise Malformed(f"'shard' of a {self._kind.name} is not the index of a shard.")
        return value

    def truth(self, name: str) -> bool:
        value = self._take(name)
        if not isinstance(value, bool):
            raise Malformed(f"{name!r} of a {self._kind.name} is not true or false.")
        return value

    def name(self, name: str) -> str:
        value = self._take(name)
        if not _is_name(value):
            raise Malformed(f"{name!r} of a {self._kind.name} is not the name of a peer.")
        return cast(str, value)

    def binaries(self, name: str, *, exactly: int) -> tuple[bytes, ...]:
        value = self._take(name)
        if not isinstance(value, list) or not 1 <= len(value) <= limits.MAX_PEERS:
            raise Malformed(f"{name!r} of a {self._kind.name} is not a list, one entry a member.")
        if not all(isinstance(item, bytes) and len(item) == exactly for item in value):
            raise Malformed(f"{name!r} of a {self._kind.name} has an entry of the wrong type or length.")
        return tuple(value)

    def sums(self) -> tuple[SignedSum, ...]:
        value = self._take("sums")
        if not isinstance(value, list) or not 1 <= len(value) <= limits.MAX_PEERS:
            raise Malformed(f"'sums' of a {self._kind.name} is not a list, one entry a shard.")
        return tuple(self._signed_sum(item) for item in value)

    def _signed_sum(self, item: object) -> SignedSum:
        match item:
            case [int(shard), str(maker), bytes(digest), bytes(signature)] if (
                type(shard) is int
                and 0 <= shard < limits.MAX_PEERS
                and _is_name(maker)
                and (len(digest), len(signature)) == (DIGEST_BYTES, SIGNATURE_BYTES)
            ):
                return SignedSum(shard=shard, maker=maker, digest=digest, signature=signature)
        raise Malformed(f"A sum in a {self._kind.name} has the wrong form.")

    def finish(self) -> None:
        if self._data:
            raise Malformed(f"A {self._kind.name} has {len(self._data)} field(s) too many.")

    def _statement(self, item: object) -> Statement:
        match item:
            case [bytes(digest), bytes(signature)] if (len(digest), len(signature)) == (DIGEST_BYTES, SIGNATURE_BYTES):
                return Statement(digest=digest, signature=signature)
        raise Malformed(f"A statement in a {self._kind.name} has the wrong form.")

    def _take(self, name: str) -> object:
        if name not in self._data:
            raise Malformed(f"A {self._kind.name} lacks {name!r}.")
        return self._data.pop(name)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and NAME.fullmatch(value) is not None


def _fits(size: int, exactly: int | None, at_most: int | None) -> bool:
    return (exactly is None or size == exactly) and (at_most is None or size <= at_most)
