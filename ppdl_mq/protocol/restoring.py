"""A machine's state from what the journal kept of it: the state that was kept, or an error, never something between."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from ppdl_mq.errors import JournalError
from ppdl_mq.protocol.machine import Machine
from ppdl_mq.protocol.session import SessionState
from ppdl_mq.wire import canonical

S = TypeVar("S", bound=SessionState)


def restored_state(machine: Machine[S], data: Any) -> S:
    """Return the state that its `as_data` described.

    Args:
        machine: of the protocol.
        data: plain data from the journal; another version of this program may have written it.

    Raises:
        JournalError: it is no state of this machine.
    """
    try:
        state = machine.restored(data)
        if _fits(state, type(state)) and canonical.encode(state.as_data()) == canonical.encode(data):
            return state
    except (KeyError, TypeError, ValueError, AttributeError):
        pass  # said below: the cause would carry secrets into a traceback
    raise JournalError(
        "The journal holds a state that this version cannot go on from.",
        hint="Run the version that wrote it; otherwise keep the folder for inspection and start a renewed trial.",
    )


def _fits(value: object, hint: Any) -> bool:
    """Tell whether a value, and all that is in it, is of the type that a dataclass names for it."""
    origin, inner = get_origin(hint), get_args(hint)
    match value:
        case _ if origin in (Union, types.UnionType):
            return any(_fits(value, each) for each in inner)
        case tuple() if origin is tuple and inner[-1] is not ...:
            return len(value) == len(inner) and all(map(_fits, value, inner))
        case tuple() | frozenset() if origin is type(value):
            return all(_fits(each, inner[0]) for each in value)
        case Mapping() if origin is Mapping:
            return all(_fits(key, inner[0]) and _fits(each, inner[1]) for key, each in value.items())
    if type(value) is not hint:
        return False
    hints = get_type_hints(hint) if is_dataclass(value) else {}
    return not hints or all(_fits(getattr(value, each.name), hints[each.name]) for each in fields(value))  # type: ignore[arg-type]
