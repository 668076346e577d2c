"""What the messages say: one frozen class a kind, with one strict encoding. Source: docs/PROTOCOL.md, section 5."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

from ppdl_mq.config import limits
from ppdl_mq.errors import Malformed
from ppdl_mq.wire import canonical
from ppdl_mq.wire.kinds import Kind

DIGEST_BYTES = 32
SIGNATURE_BYTES = 64
MAX_SOFTWARE_BYTES = 200


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


Message = Hello | Confirm | TurnWeights | Notice | FinalWeights | Done | Resend


def encode_meta(message: Message) -> bytes:
    """Return the meta of a message, in the canonical encoding."""
    match message:
        case TurnWeights(lineage=lineage) | FinalWeights(lineage=lineage):
            chain = [[statement.digest, statement.signature] for statement in lineage.chain]
            return canonical.encode({"anchor": lineage.anchor, "chain": chain})
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


def _fits(size: int, exactly: int | None, at_most: int | None) -> bool:
    return (exactly is None or size == exactly) and (at_most is None or size <= at_most)
