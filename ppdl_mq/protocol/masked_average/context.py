"""What everything in one attempt depends on. Source: docs/PROTOCOL.md, section 13.1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ppdl_mq.config import limits
from ppdl_mq.protocol.statements import context_digest
from ppdl_mq.wire import canonical


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The context of an attempt.

    Args:
        session: session id, 32 bytes.
        step: number of the step.
        attempt: of the step.
        members: names, sorted.
        base: SHA-256 of the weights that the step stands on.
        word: bits of a ring word.
        exponents: their digest, 32 bytes; zeros in an evaluation.
    """

    session: bytes
    step: int
    attempt: int
    members: tuple[str, ...]
    base: bytes
    word: int
    exponents: bytes

    def encode(self) -> bytes:
        """Return the context's one encoding."""
        return canonical.encode({name: getattr(self, name) for name in self.__slots__})

    def digest(self) -> bytes:
        """Return what stands for the context everywhere else, 32 bytes."""
        return context_digest(self.encode())

    def differences(self, other: bytes) -> tuple[str, ...]:
        """Return in which entries another's context, possibly hostile bytes, differs from this one.

        Raises:
            Malformed: it is no map in the canonical encoding.
        """
        theirs: Any = canonical.decode(other, limit_bytes=limits.MAX_CONTEXT_BYTES)
        own = canonical.decode(self.encode(), limit_bytes=limits.MAX_CONTEXT_BYTES)
        if not isinstance(theirs, dict):
            return tuple(sorted(own))
        return tuple(sorted(name for name in own.keys() | theirs.keys() if _one(own, name) != _one(theirs, name)))


def _one(data: dict[str, Any], name: str) -> bytes | None:
    """Return an entry as bytes: 1, 1.0 and True are equal in Python, and None is not what is missing."""
    return canonical.encode(data[name]) if name in data else None
