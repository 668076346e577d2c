"""Which fields a statement in a transcript has, and where two of them must not differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from ppdl_mq.config import limits
from ppdl_mq.errors import Malformed
from ppdl_mq.protocol.statements import context_digest
from ppdl_mq.wire import canonical
from ppdl_mq.wire.meta import NAME

_U32: Final = 2**32


def _is_digest(value: object) -> bool:
    return isinstance(value, bytes) and len(value) == 32


def _is_u32(value: object) -> bool:
    return type(value) is int and 0 <= value < _U32


def _is_name(value: object) -> bool:
    return isinstance(value, str) and NAME.fullmatch(value) is not None


def _are(value: object, test: Callable[[object], bool]) -> bool:
    return isinstance(value, list) and len(value) <= limits.MAX_PEERS and all(map(test, cast(list[object], value)))


_TESTS: Final[Mapping[str, Callable[[object], bool]]] = {
    "digest": _is_digest,
    "digests": lambda value: _are(value, _is_digest),
    "u32": _is_u32,
    "name": _is_name,
    "names": lambda value: _are(value, _is_name),
    "bool": lambda value: isinstance(value, bool),
    "context": lambda value: isinstance(value, bytes) and len(value) <= limits.MAX_CONTEXT_BYTES,
    "manifest": lambda value: isinstance(value, bytes) and len(value) <= limits.MAX_MANIFEST_BYTES,
}
_FIELDS: Final[Mapping[str, Mapping[str, str]]] = {
    "trial": {"trial": "digest", "manifest": "manifest"},
    "session key": {"trial": "digest", "name": "name", "key": "digest"},
    "turn": {"session": "digest", "turn": "u32", "before": "digest", "digest": "digest"},
    "final": {"session": "digest", "turn": "u32", "digest": "digest"},
    "commitment": {"context": "context", "mask": "digest", "shards": "digests"},
    "receipt": {"context": "digest", "commitments": "digest"},
    "sum": {"context": "digest", "shard": "u32", "digest": "digest"},
    "agreement": {"context": "digest", "digest": "digest", "commitments": "digest"},
    "abandon": {"session": "digest", "step": "u32", "attempt": "u32", "overflow": "bool"},
    "leave": {"session": "digest", "step": "u32"},
    "drop": {"session": "digest", "step": "u32", "name": "name"},
}
_CONTEXT: Final = {
    "session": "digest",
    "step": "u32",
    "attempt": "u32",
    "members": "names",
    "base": "digest",
    "word": "u32",
    "exponents": "digest",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """Which attempt a context is of, and who takes part.

    Args:
        session: session id, 32 bytes.
        step: from 1.
        attempt: from 0.
        members: sorted names.
        base: SHA-256 of the weights that the step stands on.
        exponents: their digest.
        digest: of the context, 32 bytes.
    """

    session: bytes
    step: int
    attempt: int
    members: tuple[str, ...]
    base: bytes
    exponents: bytes
    digest: bytes


def check_form(says: str, about: Mapping[str, Any]) -> None:
    """Check that a statement has its fields and no others, each of its type and size.

    Raises:
        Malformed: it has not.
    """
    fields = _FIELDS.get(says)
    if fields is None or not _fits(about, fields):
        raise Malformed("It has not the fields of what it says.")


def attempt_of(context: bytes) -> Attempt:
    """Return what a context says.

    Raises:
        Malformed: it is not the one encoding of a context.
    """
    data = canonical.decode(context, limit_bytes=limits.MAX_CONTEXT_BYTES)
    if not isinstance(data, dict) or not _fits(cast(dict[str, Any], data), _CONTEXT):
        raise Malformed("Its context is not that of an attempt.")
    held = cast(dict[str, Any], data)
    members = tuple(held["members"])
    if not members or list(members) != sorted(set(members)):
        raise Malformed("The members in its context are not sorted.")
    return Attempt(
        session=held["session"],
        step=held["step"],
        attempt=held["attempt"],
        members=members,
        base=held["base"],
        exponents=held["exponents"],
        digest=context_digest(context),
    )


def _fits(data: Mapping[str, Any], fields: Mapping[str, str]) -> bool:
    return data.keys() == fields.keys() and all(_TESTS[kind](data[name]) for name, kind in fields.items())
