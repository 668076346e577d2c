"""Whether plain data from outside is a map with its fields and no others, each of its type and size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeGuard, cast

from ppdl_mq.config import limits
from ppdl_mq.wire.meta import DIGEST_BYTES, NAME

_U32: Final = 2**32


def _is_digest(value: object) -> bool:
    return isinstance(value, bytes) and len(value) == DIGEST_BYTES


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
    "word": lambda value: type(value) is int and value in (32, 64),
    "name": _is_name,
    "names": lambda value: _are(value, _is_name),
    "bool": lambda value: isinstance(value, bool),
    "context": lambda value: isinstance(value, bytes) and len(value) <= limits.MAX_CONTEXT_BYTES,
    "manifest": lambda value: isinstance(value, bytes) and len(value) <= limits.MAX_MANIFEST_BYTES,
}


def fits(data: object, fields: Mapping[str, str]) -> TypeGuard[Mapping[str, Any]]:
    """Tell whether data is a map of exactly these fields.

    Args:
        data: plain, possibly hostile.
        fields: by name, of what sort each is.
    """
    return (
        isinstance(data, Mapping)
        and data.keys() == fields.keys()
        and all(_TESTS[sort](data[name]) for name, sort in fields.items())
    )
