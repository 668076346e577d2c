"""One clear sentence for the first thing that is wrong with a file, from what pydantic found."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from ppdl_mq.config.plain import shown


def first_fault(error: ValidationError, model: type[BaseModel], data: dict[str, Any]) -> tuple[str, str]:
    """Return a sentence and a hint for the most telling of the errors.

    Args:
        error: of validating `data` against `model`.
        model: the top table.
        data: what was validated; names the entry of an array of tables.
    """
    found = error.errors(include_url=False, include_context=True)
    # A misspelt key is both unknown and missing: the unknown one says more.
    first = min(found, key=lambda item: item["type"] != "extra_forbidden")
    at = tuple(first["loc"])
    if first["type"] == "extra_forbidden":
        return _unknown_key(at, model, data)
    if first["type"] == "missing":
        return f"{dotted(at, data)} is missing.", ""
    return f"{dotted(at, data)} {_demand(first, _field_at(model, at))}.", ""


def dotted(at: Sequence[int | str], data: dict[str, Any]) -> str:
    """Return the dotted name of a place in `data`; an entry with a name goes by it, else by its position from 0."""
    parts: list[str] = []
    here: Any = data
    for step in at:
        try:
            here = here[step]
        except (KeyError, IndexError, TypeError):
            here = None
        named = isinstance(step, int) and isinstance(here, dict) and isinstance(here.get("name"), str)
        parts.append(shown(here["name"]) if named else shown(step))
    return ".".join(parts)


def _demand(fault: ErrorDetails, field: FieldInfo | None) -> str:
    """Complete the sentence "FIELD ..."."""
    if fault["type"] == "string_pattern_mismatch" and field is not None and field.description:
        return f"must be {field.description}"
    context = fault.get("ctx", {})
    if fault["type"] == "too_long":
        return f"must have at most {context['max_length']} entries"
    if fault["type"] == "too_short":
        return f"must have at least {context['min_length']}"
    must = fault["msg"].replace("Input should be", "must be").replace("Input should", "should")
    must = must[0].lower() + must[1:]
    # Strings are not repeated: what is mistyped may be a password.
    given = fault["input"]
    return f"{must}, not {given}" if isinstance(given, (int, float)) and abs(given) < 1e12 else must


def _unknown_key(at: tuple[int | str, ...], model: type[BaseModel], data: dict[str, Any]) -> tuple[str, str]:
    table = _model_at(model, at[:-1])
    known = list(table.model_fields) if table is not None else []
    near = difflib.get_close_matches(str(at[-1])[:64], known, n=1, cutoff=0.5)
    prefix = dotted(at[:-1], data)
    hint = f"Did you mean {prefix + '.' if prefix else ''}{near[0]}?" if near else f"Known here: {', '.join(known)}."
    return f"{dotted(at, data)} is not a known key.", hint


def _field_at(model: type[BaseModel], at: tuple[int | str, ...]) -> FieldInfo | None:
    while at and isinstance(at[-1], int):  # an error in an array's entry is described by the array's field
        at = at[:-1]
    table = _model_at(model, at[:-1]) if at else None
    return table.model_fields.get(str(at[-1])) if table is not None else None


def _model_at(model: type[BaseModel], at: tuple[int | str, ...]) -> type[BaseModel] | None:
    """Follow the names of fields to the model of a nested table; None where there is none."""
    here: type[BaseModel] | None = model
    for step in at:
        if isinstance(step, int) or here is None:
            continue
        field = here.model_fields.get(step)
        here = _model_of(field.annotation) if field is not None else None
    return here


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = [found for found in map(_model_of, getattr(annotation, "__args__", ())) if found is not None]
    return inner[0] if inner else None
