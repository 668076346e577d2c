"""In which fields two manifests differ: what two organisations have to talk about before anything moves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ppdl_mq.config import limits
from ppdl_mq.config.plain import shown


def differences(mine: dict[str, Any], theirs: dict[str, Any]) -> tuple[str, ...]:
    """Return the sorted dotted names of the fields that differ, values never; empty when the manifests are equal.

    Peers are compared by name: `peers.mercy` has only one side, `peers.mercy.keys` is pinned differently.

    Args:
        mine: `Manifest.as_data()` of the own manifest.
        theirs: of the other peer's; it may be hostile, so at most `limits.MAX_DIFFERENCES` names are returned.
    """
    found: list[str] = []
    for name in _differing(_peers_by_name(mine), _peers_by_name(theirs), "", depth=0):
        if len(found) == limits.MAX_DIFFERENCES:
            break
        found.append(name)
    return tuple(sorted(set(found)))


def _peers_by_name(data: dict[str, Any]) -> dict[str, Any]:
    return data | {"peers": {peer["name"]: peer for peer in data["peers"]}}


def _differing(mine: Any, theirs: Any, field: str, *, depth: int) -> Iterator[str]:
    if isinstance(mine, dict) and isinstance(theirs, dict) and depth <= limits.MAX_DEPTH:
        for key in sorted(mine.keys() | theirs.keys()):
            inner = f"{field}.{shown(key)}" if field else shown(key)
            if key in mine and key in theirs:
                yield from _differing(mine[key], theirs[key], inner, depth=depth + 1)
            else:
                yield inner
    elif not _same(mine, theirs):
        yield field


def _same(mine: Any, theirs: Any) -> bool:
    """Tell whether both have one encoding: 1, 1.0 and True differ, and so do 0.0 and -0.0; a list equals a tuple."""
    if isinstance(mine, (list, tuple)) and isinstance(theirs, (list, tuple)):
        return len(mine) == len(theirs) and all(map(_same, mine, theirs))
    if isinstance(mine, dict) and isinstance(theirs, dict):
        return mine.keys() == theirs.keys() and all(_same(mine[key], theirs[key]) for key in mine)
    return type(mine) is type(theirs) and repr(mine) == repr(theirs)
