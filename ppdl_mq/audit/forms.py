"""Which fields a statement in a transcript has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ppdl_mq.errors import Malformed
from ppdl_mq.wire.forms import fits

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


def check_form(says: str, about: Mapping[str, Any]) -> None:
    """Check that a statement has its fields and no others, each of its type and size.

    Raises:
        Malformed: it has not.
    """
    fields = _FIELDS.get(says)
    if fields is None or not fits(about, fields):
        raise Malformed("It has not the fields of what it says.")
