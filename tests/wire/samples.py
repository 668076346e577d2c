"""One message of every kind, between two peers whose keys are known."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from nacl.utils import random as system_random

from ppdl_mq.crypto.identity import Identity
from ppdl_mq.crypto.seal import Random
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.wire.envelope import body_bytes, seal_parts
from ppdl_mq.wire.header import NO_SESSION, Header
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

ANNA = Identity(name="anna", secret=Secret(bytes(range(64))))
BERT = Identity(name="bert", secret=Secret(bytes(range(64, 128))))
KEY = Secret(bytes(range(200, 232)))
TRIAL_ID, SESSION_ID, MESSAGE_ID = b"\x01" * 32, b"\x02" * 32, b"\x03" * 16

LINEAGE = Lineage(
    anchor=b"\x10" * 32,
    chain=tuple(Statement(digest=bytes([at]) * 32, signature=bytes([at + 1]) * 64) for at in (0x20, 0x30)),
)
MESSAGES: dict[Kind, Message] = {
    Kind.HELLO: Hello(
        manifest=b"a manifest",
        session_key=b"\x11" * 32,
        session_signature=b"\x12" * 64,
        layout=b"\x13" * 32,
        software="v",
    ),
    Kind.CONFIRM: Confirm(contribution=b"\x14" * 32),
    Kind.TURN: TurnWeights(lineage=LINEAGE),
    Kind.NOTICE: Notice(message_id=b"\x15" * 16),
    Kind.FINAL: FinalWeights(lineage=LINEAGE),
    Kind.DONE: Done(digest=b"\x16" * 32, signature=b"\x17" * 64),
    Kind.RESEND: Resend(),
    Kind.INITIAL: InitialWeights(),
    Kind.COMMIT: Commit(
        context=b"a context", shards=(b"\x18" * 32, b"\x19" * 32), mask=b"\x1a" * 32, signature=b"\x1b" * 64
    ),
    Kind.MASKED: MaskedShard(context=b"\x1c" * 32, shard=1),
    Kind.RECEIPT: Receipt(context=b"\x1c" * 32, commitments=b"\x1d" * 32, signature=b"\x1e" * 64),
    Kind.RELEASE: Release(
        context=b"\x1c" * 32, member="anna", mask=b"\x1f" * 32, receipts=(b"\x40" * 64, b"\x41" * 64)
    ),
    Kind.SUM: SumShard(context=b"\x1c" * 32, shard=1, maker="bert", signature=b"\x42" * 64),
    Kind.AGREE: Agree(
        context=b"\x1c" * 32,
        digest=b"\x43" * 32,
        sums=tuple(
            SignedSum(shard=shard, maker=maker, digest=bytes([0x44 + shard]) * 32, signature=bytes([0x46 + shard]) * 64)
            for shard, maker in enumerate(("anna", "bert"))
        ),
        signature=b"\x48" * 64,
    ),
    Kind.ABANDON: Abandon(overflow=True, signature=b"\x49" * 64),
    Kind.DROP: Drop(by="bert", name="cleo", signature=b"\x4a" * 64),
    Kind.LEAVE: Leave(name="anna", signature=b"\x4b" * 64),
    Kind.DEMAND: Demand(context=b"\x1c" * 32, shard=1),
    Kind.PROOF: Proof(context=b"\x1c" * 32, shard=1, member="cleo"),
}


def blob_for(kind: Kind, size_bytes: int = 100) -> bytes:
    """A blob for the kinds that carry one."""
    return bytes(at % 251 for at in range(size_bytes)) if kind.carries_blob else b""


def header_for(message: Message, blob: bytes = b"", **changes: Any) -> Header:
    """The header of a message from Anna to Bert."""
    kind = message.kind
    fields: dict[str, Any] = {
        "kind": kind,
        "trial_id": TRIAL_ID,
        "session_id": NO_SESSION if kind.before_session else SESSION_ID,
        "message_id": MESSAGE_ID,
        "turn": 0 if kind in (Kind.HELLO, Kind.CONFIRM, Kind.RESEND, Kind.INITIAL) else 7,
        "attempt": 2 if kind.in_attempt else 0,
        "body_bytes": body_bytes(message, len(blob)),
        "stride": 4_000,
        "sender": "anna",
        "recipient": "bert",
    }
    return Header(**fields | changes)


def parts_of(
    message: Message,
    blob: bytes = b"",
    *,
    random: Random = system_random,
    sign: Callable[[bytes], bytes] = ANNA.sign,
    **changes: Any,
) -> list[bytes]:
    """The sealed parts of a message from Anna to Bert."""
    header = header_for(message, blob, **changes)
    return list(seal_parts(header, message, KEY, sign, blob=memoryview(blob), random=random))


def counted(seed: str) -> Random:
    """Entropy for vectors: SHA-256(seed || u64(counter)), cut to what is asked for. Never outside tests."""
    drawn = 0

    def draw(count: int) -> bytes:
        nonlocal drawn
        drawn += 1
        return hashlib.sha256(seed.encode() + drawn.to_bytes(8, "big")).digest()[:count]

    return draw
