"""The clear, authenticated header of a part, byte by byte. Source: docs/PROTOCOL.md, section 3."""

from __future__ import annotations

import dataclasses
import re
import struct
from dataclasses import dataclass
from typing import Final

from ppdl_mq.config import limits
from ppdl_mq.crypto.seal import OVERHEAD_BYTES
from ppdl_mq.errors import Malformed, TooLarge, UnknownVersion
from ppdl_mq.wire.kinds import FIXED_BODY_BYTES, Kind

MAGIC: Final = b"PPDL"
VERSION: Final = 1
NO_SESSION: Final = bytes(32)
MESSAGE_ID_BYTES: Final = 16

_FIXED = struct.Struct(">4sBBH32s32s16sIIQII")
_PART_OFFSET: Final = _FIXED.size - 4
_NAME = re.compile(rb"[a-z0-9][a-z0-9-]{0,31}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What everybody on the way may read, and nobody can change.

    Args:
        kind: of the message.
        trial_id: 32 bytes.
        session_id: 32 bytes; zeros before a session is agreed.
        message_id: 16 random bytes, the same in all parts.
        turn: of the weights; 0 where the kind has none.
        attempt: 0 in the sequential protocols.
        body_bytes: size of the whole plaintext body.
        stride: plaintext bytes of every part but the last.
        part: counted from 0.
        sender: name of a peer.
        recipient: name of a peer, or `weights`.
    """

    kind: Kind
    trial_id: bytes
    session_id: bytes
    message_id: bytes
    turn: int
    attempt: int = 0
    body_bytes: int
    stride: int
    part: int = 0
    sender: str
    recipient: str

    @property
    def parts(self) -> int:
        """The number of parts of the message."""
        return -(-self.body_bytes // self.stride)

    @property
    def part_bytes(self) -> int:
        """Plaintext bytes of this part."""
        return min(self.stride, self.body_bytes - self.part * self.stride)

    def of_part(self, part: int) -> Header:
        """Return the header of another part of the same message."""
        return dataclasses.replace(self, part=part)

    def encode(self) -> bytes:
        """Return the header's one encoding; it is the associated data of the part's seal."""
        fixed = _FIXED.pack(
            MAGIC,
            VERSION,
            self.kind,
            0,
            self.trial_id,
            self.session_id,
            self.message_id,
            self.turn,
            self.attempt,
            self.body_bytes,
            self.stride,
            self.part,
        )
        return fixed + self._names()

    def signed_bytes(self) -> bytes:
        """Return what the sender signs of the header: all of it but the part's number."""
        encoded = self.encode()
        return encoded[:_PART_OFFSET] + self._names()

    def _names(self) -> bytes:
        sender, recipient = self.sender.encode("ascii"), self.recipient.encode("ascii")
        return bytes([len(sender)]) + sender + bytes([len(recipient)]) + recipient


def header_bytes(sender: str, recipient: str) -> int:
    """Return the size of the encoded header between these two."""
    return _FIXED.size + 2 + len(sender) + len(recipient)


def stride_for(chunk_bytes: int, sender: str, recipient: str) -> int:
    """Return how many plaintext bytes fit into a part of `chunk_bytes`, header and seal included."""
    return chunk_bytes - header_bytes(sender, recipient) - OVERHEAD_BYTES


def split_part(part: bytes) -> tuple[Header, bytes, memoryview]:
    """Decode a part strictly, before any cryptography.

    Args:
        part: as it came from the relay.

    Returns:
        The header, its encoding (the associated data), and the sealed rest.

    Raises:
        UnknownVersion: of a version that this program does not speak.
        TooLarge: a count or length over its limit.
        Malformed: anything else that docs/PROTOCOL.md, section 3, rules 1 and 2, refuses.
    """
    header, offset = decode_header(part)
    if len(part) - offset != header.part_bytes + OVERHEAD_BYTES:
        raise Malformed("A part has another size than its header says.")
    return header, part[:offset], memoryview(part)[offset:]  # a view, since it is most of a megabyte


def decode_header(part: bytes) -> tuple[Header, int]:
    """Decode the header at the beginning of a part.

    Args:
        part: as it came from the relay, or a header that was kept.

    Returns:
        The header and its size in bytes.

    Raises:
        UnknownVersion, TooLarge, Malformed: as for `split_part`.
    """
    if len(part) < _FIXED.size or part[:4] != MAGIC:
        raise Malformed("Not a message of ppdl-mq.")
    if part[4] != VERSION:
        raise UnknownVersion(
            f"A message is of version {part[4]}; this program speaks version {VERSION}.",
            hint="All peers of a trial need the same version of ppdl-mq.",
        )
    (_, _, kind, zero, trial_id, session_id, message_id, turn, attempt, body_bytes, stride, number) = (
        _FIXED.unpack_from(part)
    )
    if zero != 0:
        raise Malformed("A reserved field of a header is not zero.")
    try:
        kind = Kind(kind)
    except ValueError:
        raise Malformed(f"A message is of unknown kind {kind}.") from None
    sender, offset = _read_name(part, _FIXED.size)
    recipient, offset = _read_name(part, offset)
    if body_bytes > limits.MAX_BODY_BYTES or stride > limits.MAX_CHUNK_BYTES:
        raise TooLarge("A message says that it is larger than any may be.")
    if stride == 0 or body_bytes <= FIXED_BODY_BYTES:
        raise Malformed("A message says that it is smaller than any can be.")
    header = Header(
        kind=kind,
        trial_id=trial_id,
        session_id=session_id,
        message_id=message_id,
        turn=turn,
        attempt=attempt,
        body_bytes=body_bytes,
        stride=stride,
        part=number,
        sender=sender,
        recipient=recipient,
    )
    if header.parts > limits.MAX_PARTS:
        raise TooLarge("A message says that it has more parts than any may have.")
    if number >= header.parts:
        raise Malformed("A part has a number that its message does not have.")
    return header, offset


def _read_name(part: bytes, offset: int) -> tuple[str, int]:
    end = offset + 1 + (part[offset] if offset < len(part) else 0)
    name = part[offset + 1 : end]
    if end > len(part) or not _NAME.fullmatch(name):
        raise Malformed("A header holds a name that no peer can have.")
    return name.decode("ascii"), end
