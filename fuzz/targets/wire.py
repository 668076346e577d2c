"""What comes from the relay: headers, bodies, metas, plain data, contexts."""

from __future__ import annotations

import hashlib

from fuzz.harness import Form, Target
from fuzz.people import ANNA
from ppdl_mq.config import limits
from ppdl_mq.crypto import labels
from ppdl_mq.crypto.hashing import framed
from ppdl_mq.protocol.masked_average.context import Context
from ppdl_mq.wire import canonical
from ppdl_mq.wire.envelope import BodyDigest, read_body
from ppdl_mq.wire.header import Header, split_part
from ppdl_mq.wire.kinds import FIXED_BODY_BYTES, Kind
from ppdl_mq.wire.meta import decode_meta, encode_meta

_BLOB = bytes(range(100))
CONTEXT = Context(
    session=b"\x01" * 32,
    step=3,
    attempt=1,
    members=("anna", "bert", "cleo"),
    base=b"\x02" * 32,
    word=32,
    exponents=b"\x03" * 32,
)


def run_header(data: bytes) -> None:
    """Split a part; what is accepted has one encoding."""
    header, associated, sealed = split_part(data)
    assert header.encode() == associated
    assert associated + bytes(sealed) == data
    assert header.part < header.parts <= limits.MAX_PARTS


def kind_of(number: int) -> Kind:
    """Return a kind for any byte."""
    return tuple(Kind)[number % len(Kind)]


def run_body(data: bytes) -> None:
    """Read a whole body. First byte: the kind; second: 0 for a signed body around this meta, 1 for this body itself."""
    if len(data) < 2:
        return
    kind, meta = kind_of(data[0]), data[2:]
    blob = _BLOB if kind.carries_blob else b""
    body_bytes = FIXED_BODY_BYTES + len(meta) + len(blob) if data[1] % 2 == 0 else len(meta)
    header = Header(
        kind=kind,
        trial_id=b"\x01" * 32,
        session_id=b"\x02" * 32,
        message_id=b"\x03" * 16,
        turn=7,
        body_bytes=body_bytes,
        stride=4_000,
        sender="anna",
        recipient="bert",
    )
    body = meta
    if data[1] % 2 == 0:
        digests = hashlib.sha256(meta).digest(), hashlib.sha256(blob).digest()
        signature = ANNA.sign(framed(labels.MESSAGE, header.signed_bytes(), *digests))
        body = len(meta).to_bytes(4, "big") + meta + blob + signature
    digest = BodyDigest(header)
    middle = max(4, len(body) // 2)
    digest.add(0, body[:middle])
    digest.add(middle, body[middle:])
    # Without the digest of the parts first: what it is taken over must not depend on how the parts came.
    opened = read_body(header, memoryview(body), ANNA.public)
    assert digest.value == opened.blob_digest
    assert body[opened.blob_offset : opened.blob_offset + opened.blob_bytes] == blob


def run_meta(data: bytes) -> None:
    """Decode a meta of the kind that the first byte names; what is accepted has one encoding."""
    if data:
        assert encode_meta(decode_meta(kind_of(data[0]), data[1:])) == data[1:]


def run_canonical(data: bytes) -> None:
    """Decode plain data."""
    assert canonical.encode(canonical.decode(data, limit_bytes=limits.MAX_META_BYTES)) == data


def run_context(data: bytes) -> None:
    """Decode another peer's context, and compare it; equal is what has equal bytes, and nothing else."""
    theirs = Context.decode(data)
    assert theirs.encode() == data
    assert bool(CONTEXT.differences(theirs)) == (data != CONTEXT.encode())


TARGETS = (
    Target(name="header", run=run_header, longest_bytes=1_024),
    Target(name="body", run=run_body, form=Form.CANONICAL, prefix_bytes=2),
    Target(name="meta", run=run_meta, form=Form.CANONICAL, prefix_bytes=1),
    Target(name="canonical", run=run_canonical, form=Form.CANONICAL),
    Target(name="context", run=run_context, form=Form.CANONICAL),
)
