"""An entry of a transcript: what it says, what its owner signs, and its line in a log file.

Signatures cover canonical bytes. The line is JSON so that people can glance at it; bytes stand in it as "hex:...". It
has one form: it is read strictly, written again and compared.

Source: docs/PROTOCOL.md, section 4.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from ppdl_mq.config import limits
from ppdl_mq.crypto import labels
from ppdl_mq.crypto.hashing import framed
from ppdl_mq.errors import Malformed, TooLarge
from ppdl_mq.wire import canonical

LOG_NAME: Final = "transcript.log"  # the file of a peer's log, in its state folder
BEGINNING: Final = "trial"  # what entry 0 says: the trial's id and manifest
NOTHING_BEFORE: Final = bytes(32)
MAX_LINE_BYTES: Final = 2 * limits.MAX_MANIFEST_BYTES + 8 * 1024  # hex takes two characters a byte
_HEX: Final = "hex:"
_DEEPEST: Final = 3  # an entry holds `about`, that may hold a list, that holds values


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry of one peer's log.

    Args:
        number: counted from 0, without gaps.
        previous: digest of the entry before; zeros in entry 0.
        by: name of the statement's signer.
        says: one of `statements.SAYINGS`, or `BEGINNING` in entry 0.
        about: what it says, as plain data.
        signature: of the statement, 64 bytes; empty in entry 0.
        logged_by: name of the log's owner.
    """

    number: int
    previous: bytes
    by: str
    says: str
    about: Mapping[str, Any]
    signature: bytes
    logged_by: str

    def signed_bytes(self) -> bytes:
        """Return what the log's owner signs."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return framed(labels.TRANSCRIPT, canonical.encode(fields | {"about": dict(self.about)}))

    def digest(self) -> bytes:
        """Return what the next entry names as `previous`, 32 bytes."""
        return digest_of(self.signed_bytes())

    def line(self, log_signature: bytes) -> bytes:
        """Return the entry as a line of a log.

        Args:
            log_signature: of the log's owner over `signed_bytes`.
        """
        fields = {name: getattr(self, name) for name in self.__slots__}
        shown = _shown(fields | {"about": dict(sorted(self.about.items())), "log_signature": log_signature})
        return json.dumps(shown).encode("ascii") + b"\n"


def digest_of(signed_bytes: bytes) -> bytes:
    """Return what stands for an entry in the next one, from what its owner signed."""
    return hashlib.sha256(signed_bytes).digest()


def read_line(line: bytes) -> tuple[Entry, bytes]:
    """Return an entry and its owner's signature from a line, possibly hostile.

    Raises:
        TooLarge: over `MAX_LINE_BYTES`.
        Malformed: not an entry, or not in its one form.
    """
    if len(line) > MAX_LINE_BYTES:
        raise TooLarge(f"It has more than {MAX_LINE_BYTES} bytes.")
    try:
        entry, log_signature = _from_json(json.loads(line.decode("ascii")))
        same = entry.line(log_signature) == line
        entry.signed_bytes()  # has an encoding
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise Malformed("It is not an entry of a transcript.") from None
    if not same:
        raise Malformed("It is not in the one form of an entry.")
    return entry, log_signature


def _from_json(shown: object) -> tuple[Entry, bytes]:
    data = cast(dict[str, Any], _plain(shown, depth=0))
    entry = Entry(**{name: data[name] for name in Entry.__slots__})
    kinds = {"number": int, "previous": bytes, "by": str, "says": str, "about": dict, "signature": bytes}
    for name, kind in (kinds | {"logged_by": str}).items():
        if type(getattr(entry, name)) is not kind:
            raise TypeError(name)
    if not isinstance(data["log_signature"], bytes) or len(data) != len(Entry.__slots__) + 1:
        raise TypeError("log_signature")
    return entry, data["log_signature"]


def _plain(shown: object, *, depth: int) -> object:
    if depth > _DEEPEST:
        raise ValueError("nested too deeply")
    match shown:
        case str() if shown.startswith(_HEX):
            return bytes.fromhex(shown.removeprefix(_HEX))
        case str() | bool() | int():
            return shown
        case list():
            return [_plain(each, depth=depth + 1) for each in cast(list[object], shown)]
        case dict():
            return {name: _plain(each, depth=depth + 1) for name, each in cast(dict[str, object], shown).items()}
        case _:
            raise TypeError(type(shown).__name__)


def _shown(value: object) -> object:
    match value:
        case bytes():
            return _HEX + value.hex()
        case list() | tuple():
            return [_shown(each) for each in cast(list[object], value)]
        case dict():
            return {name: _shown(each) for name, each in cast(dict[str, object], value).items()}
        case str() if value.startswith(_HEX):
            raise ValueError("a text that reads as bytes")  # no name and no saying does
        case _:
            return value
