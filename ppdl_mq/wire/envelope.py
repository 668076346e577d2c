"""From a message to sealed parts and back, part by part, so that weights never stand in memory more often than needed.

Source: docs/PROTOCOL.md, section 3.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Final

from nacl.utils import random as system_random

from ppdl_mq.config import limits
from ppdl_mq.crypto import labels
from ppdl_mq.crypto.hashing import framed
from ppdl_mq.crypto.identity import PublicIdentity, verify
from ppdl_mq.crypto.seal import NONCE_BYTES, Random, open_sealed, seal
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import Malformed
from ppdl_mq.wire.header import Header, split_part
from ppdl_mq.wire.kinds import FIXED_BODY_BYTES
from ppdl_mq.wire.messages import Message
from ppdl_mq.wire.meta import SIGNATURE_BYTES, decode_meta, encode_meta

NONCE_BASE_BYTES: Final = 20
_LENGTH_BYTES: Final = 4
NO_BLOB: Final = memoryview(b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A message whose seal and signature hold.

    Args:
        header: of its first part.
        message: what it says.
        blob_offset: where the weights begin in the body.
        blob_bytes: how many there are; 0 in most kinds.
        blob_digest: SHA-256 of the weights.
        signature: 64 bytes, over all of it.
    """

    header: Header
    message: Message
    blob_offset: int
    blob_bytes: int
    blob_digest: bytes
    signature: bytes


def body_bytes(message: Message, blob_bytes: int) -> int:
    """Return the size of the plaintext body of a message."""
    return FIXED_BODY_BYTES + len(encode_meta(message)) + blob_bytes


def seal_parts(
    header: Header,
    message: Message,
    key: Secret,
    sign: Callable[[bytes], bytes],
    *,
    blob: memoryview = NO_BLOB,
    blob_digest: bytes | None = None,
    nonce_base: bytes | None = None,
    random: Random = system_random,
) -> Generator[bytes, None, None]:
    """Yield the parts of a message, each sealed and ready for the relay.

    With the same arguments, nonce base included, they are the same bytes: a message can be sealed anew wherever it has
    to be published again.

    Args:
        header: of any part; `body_bytes` as the function of that name says.
        message: what it says.
        key: of the sender towards the recipient.
        sign: signs with the sender's identity, 64 bytes.
        blob: the weights, read once and in order.
        blob_digest: their SHA-256, where it is known already.
        nonce_base: 20 bytes, drawn for this message alone; drawn here where there is none. The same base must never
            serve another message, or the same one with another byte in it.
        random: draws it.
    """
    base = random(NONCE_BASE_BYTES) if nonce_base is None else nonce_base
    assert len(base) == NONCE_BASE_BYTES, "a nonce is 20 bytes of the message and 4 of the part"
    meta = encode_meta(message)
    digest = blob_digest or hashlib.sha256(blob).digest()
    signature = sign(_signed_bytes(header, meta, digest))
    body = _Body(len(meta).to_bytes(_LENGTH_BYTES, "big") + meta, blob, signature)
    if len(body) != header.body_bytes:
        raise ValueError(f"the header says {header.body_bytes} bytes of body, there are {len(body)}")
    for part in range(header.parts):
        of_part = header.of_part(part)
        associated = of_part.encode()
        start = part * header.stride
        plaintext = body.slice(start, start + of_part.part_bytes)
        # Unique for each key: the base is random for each message, and no two parts of it have one number.
        yield associated + seal(key, plaintext, associated, random=_nonce_of(base, part))


def open_part(key: Secret, part: bytes) -> bytes:
    """Return the plaintext of one part.

    Raises:
        Malformed: it does not decode.
        Unauthentic: its seal does not open.
    """
    _, associated, sealed = split_part(part)
    return open_sealed(key, sealed, associated)


class BodyDigest:
    """SHA-256 of the weights in a body, taken as its parts come, so that nothing is left to hash after the last one.

    Args:
        header: of any part.
    """

    def __init__(self, header: Header) -> None:
        self._hash = hashlib.sha256()
        self._next = 0  # offset in the body that must come now
        self._start = 0  # of the weights, known with the first part
        self._end = header.body_bytes - SIGNATURE_BYTES
        self._body_bytes = header.body_bytes

    def add(self, offset: int, plaintext: bytes) -> None:
        """Take a part's plaintext, which begins at `offset` of the body; out of order it is passed over."""
        if offset != self._next or (offset == 0 and len(plaintext) < _LENGTH_BYTES):
            return
        if offset == 0:
            self._start = _LENGTH_BYTES + int.from_bytes(plaintext[:_LENGTH_BYTES], "big")
        self._next += len(plaintext)
        first, last = max(0, self._start - offset), max(0, self._end - offset)
        self._hash.update(memoryview(plaintext)[first:last])

    @property
    def value(self) -> bytes | None:
        """The digest, or None where parts came out of order: then `read_body` hashes."""
        return self._hash.digest() if self._next == self._body_bytes else None


def read_body(header: Header, body: memoryview, sender: PublicIdentity, *, blob_digest: bytes | None = None) -> Opened:
    """Check the signature over a whole plaintext body and decode it.

    Args:
        header: of any of its parts.
        body: all parts' plaintexts in order; only read.
        sender: whom the header names, with the pinned keys.
        blob_digest: SHA-256 of the weights in it, where a `BodyDigest` took it already.

    Raises:
        Malformed: lengths that do not fit, or a meta that docs/PROTOCOL.md refuses.
        Unauthentic: the signature does not hold.
    """
    meta_bytes = int.from_bytes(body[:_LENGTH_BYTES], "big")
    blob_offset = _LENGTH_BYTES + meta_bytes
    blob_bytes = len(body) - blob_offset - SIGNATURE_BYTES
    if meta_bytes > limits.MAX_META_BYTES or blob_bytes < 0 or len(body) != header.body_bytes:
        raise Malformed("The lengths in a message's body do not fit.")
    if blob_bytes and not header.kind.carries_blob:
        raise Malformed(f"A {header.kind.name} carries weights.")
    meta = bytes(body[_LENGTH_BYTES:blob_offset])
    blob_digest = blob_digest or hashlib.sha256(body[blob_offset : blob_offset + blob_bytes]).digest()
    signature = bytes(body[-SIGNATURE_BYTES:])
    verify(sender, signature, _signed_bytes(header, meta, blob_digest))
    return Opened(
        header=header,
        message=decode_meta(header.kind, meta),
        blob_offset=blob_offset,
        blob_bytes=blob_bytes,
        blob_digest=blob_digest,
        signature=signature,
    )


def _nonce_of(base: bytes, part: int) -> Random:
    return lambda _: base + part.to_bytes(NONCE_BYTES - NONCE_BASE_BYTES, "big")


def _signed_bytes(header: Header, meta: bytes, blob_digest: bytes) -> bytes:
    return framed(labels.MESSAGE, header.signed_bytes(), hashlib.sha256(meta).digest(), blob_digest)


class _Body:
    """Three buffers end to end, of which any range can be cut without joining them."""

    def __init__(self, prefix: bytes, blob: memoryview, suffix: bytes) -> None:
        self._segments = (memoryview(prefix), blob, memoryview(suffix))

    def __len__(self) -> int:
        return sum(len(segment) for segment in self._segments)

    def slice(self, start: int, end: int) -> bytes:
        pieces: list[memoryview] = []
        for segment in self._segments:
            if start < len(segment) and end > 0:
                pieces.append(segment[max(start, 0) : end])
            start, end = start - len(segment), end - len(segment)
        return b"".join(pieces)
