"""What everything in one attempt depends on. Source: docs/PROTOCOL.md, section 13.1."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final, Self

from ppdl_mq.config import limits
from ppdl_mq.errors import Malformed, Misdirected
from ppdl_mq.protocol.statements import context_digest
from ppdl_mq.wire import canonical
from ppdl_mq.wire.forms import fits

_FIELDS: Final = {
    "session": "digest",
    "step": "u32",
    "attempt": "u32",
    "members": "names",
    "base": "digest",
    "word": "word",
    "exponents": "digest",
}


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

    @classmethod
    def decode(cls, raw: bytes) -> Self:
        """Return what another's context, possibly hostile bytes, says.

        Raises:
            RemoteError: it is not the one encoding of a context.
        """
        data: Any = canonical.decode(raw, limit_bytes=limits.MAX_CONTEXT_BYTES)
        if not fits(data, _FIELDS):
            raise Malformed("A context is not that of an attempt.")
        members = tuple(data["members"])
        if not members or list(members) != sorted(set(members)):
            raise Malformed("The members in a context are not sorted.")
        return cls(**{**data, "members": members})

    def check_commitment(self, by: str, shards: int, peers: Collection[str]) -> None:
        """Hold a commitment in this context to what every transcript with it is held to.

        Args:
            by: its signer.
            shards: how many it is to.
            peers: names of all peers of the trial.

        Raises:
            Misdirected: the members are not peers of the trial, or the signer is none of them.
            Malformed: there is not one shard a member.
        """
        if by not in self.members or not set(self.members) <= set(peers):
            raise Misdirected("The members in a context are not peers of the trial, or its signer is none of them.")
        if shards != len(self.members):
            raise Malformed(f"{by} committed itself to other shards than there are.")

    def encode(self) -> bytes:
        """Return the context's one encoding."""
        return canonical.encode({name: getattr(self, name) for name in self.__slots__})

    def digest(self) -> bytes:
        """Return what stands for the context everywhere else, 32 bytes."""
        return context_digest(self.encode())

    def differences(self, other: Self) -> frozenset[str]:
        """Return in which entries another context differs from this one."""
        return frozenset(name for name in self.__slots__ if getattr(self, name) != getattr(other, name))
