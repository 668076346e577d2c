"""The meta of a message: its one strict encoding. Source: docs/PROTOCOL.md, section 5."""

from __future__ import annotations

import re
from typing import Any, Final, cast

from ppdl_mq.config import limits
from ppdl_mq.errors import Malformed
from ppdl_mq.wire import canonical
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.messages import (
    Abandon,
    Agree,
    Commit,
    Confirm,
    Demand,
    Done,
    Drop,
    FinalWeights,
    Hello,
    InitialWeights,
    Leave,
    Lineage,
    MaskedShard,
    Message,
    Notice,
    Proof,
    Receipt,
    Release,
    Resend,
    SignedSum,
    Statement,
    SumShard,
    TurnWeights,
)

DIGEST_BYTES = 32
SIGNATURE_BYTES = 64
MAX_SOFTWARE_BYTES = 200
NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


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
            message = SumShard(
                context=fields.context(),
                shard=fields.index(),
                maker=fields.name("maker"),
                signature=fields.signature(),
            )
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
