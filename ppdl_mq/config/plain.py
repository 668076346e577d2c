"""TOML files as plain data: size, encoding, nesting and number range are checked before anything looks at a field."""

from __future__ import annotations

import math
import re
import tomllib
from pathlib import Path
from typing import Any, Final

from ppdl_mq.config import limits
from ppdl_mq.errors import ConfigError

# Strings of all four sorts (an open one to its end), comments, words, blanks, and what else there is.
_TOKENS: Final = re.compile(
    r'"""(?:\\.|[^\\])*?(?:"""|\Z)'
    r"|'''.*?(?:'''|\Z)"
    r'|"(?:\\.|[^"\\\n])*+"?'
    r"|'[^'\n]*+'?|#[^\n]*+|[\w-]++|[ \t]++|.",
    re.DOTALL,
)


def read_text(path: Path, *, limit_bytes: int, error: type[ConfigError]) -> str:
    """Return the text of a file that a person wrote.

    Args:
        path: the file.
        limit_bytes: larger files are refused without being read.
        error: what to raise.

    Raises:
        ConfigError: as `error`; missing, unreadable, too large, or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(limit_bytes + 1)
    except FileNotFoundError:
        raise error(f"{path}: there is no such file.") from None
    except OSError as fault:
        raise error(f"{path}: cannot be read: {fault.strerror}.") from None
    if len(raw) > limit_bytes:
        raise error(f"{path}: is larger than {limit_bytes} bytes.", hint="Is it the right file?")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as fault:
        raise error(f"{path}: byte {fault.start} is not UTF-8.", hint="Save it as UTF-8 text.") from None


def parse_toml(text: str, *, source: str, error: type[ConfigError]) -> dict[str, Any]:
    """Return the tables of a TOML text.

    Raises:
        ConfigError: as `error`; not TOML, or nested too deeply.
    """
    try:
        return toml_of(text)
    except tomllib.TOMLDecodeError as fault:
        raise error(f"{source}: is not TOML: {fault}.") from None
    except (RecursionError, ValueError):  # ValueError: an integer of thousands of digits
        raise error(f"{source}: is not TOML that this program can hold.") from None


def toml_of(text: str) -> dict[str, Any]:
    """Return the tables of a TOML text, as `tomllib.loads`; for a key of n words that one takes memory as n squared.

    Raises:
        ValueError: not TOML, or a dotted key has more than `limits.MAX_KEY_WORDS` words.
        RecursionError: nested too deeply.
    """
    words, follows = 0, False  # so many words of one key, and whether a dot came last
    for piece in _TOKENS.findall(text) if text.count(".") >= limits.MAX_KEY_WORDS else ():
        if piece == ".":
            follows = True
        elif piece[0] not in " \t":
            is_word = piece[0] in "\"'_-" or piece[0].isalnum()
            words, follows = (words * follows + 1) * is_word, False
            if words > limits.MAX_KEY_WORDS:
                raise ValueError("a dotted key of too many words")
    return tomllib.loads(text)


def fault_of_plain(value: object, *, field: str = "", depth: int = 0) -> str | None:
    """Say what in `value` cannot stand in a configuration, or return None.

    Allowed are strings, booleans, integers of 64 bits, finite floats, and lists and tables of these. None is
    allowed up to the fields of a section only, where it means "left out"; TOML cannot write it.
    """
    named = field or "the file"
    if value is None and depth > 2:
        return f"{named} has no value"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return f"{named} does not fit a 64-bit integer"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{named} must be a finite number"
    if isinstance(value, (dict, list, tuple)):
        if depth > limits.MAX_ARGUMENT_DEPTH:
            return f"{named} is nested more than {limits.MAX_ARGUMENT_DEPTH} deep"
        members = value.items() if isinstance(value, dict) else ((str(at), item) for at, item in enumerate(value))
        for key, member in members:
            fault = fault_of_plain(member, field=f"{field}.{shown(key)}" if field else shown(key), depth=depth + 1)
            if fault:
                return fault
    elif not isinstance(value, (str, int, float, bool, type(None))):
        return f"{named} must be a string, number, boolean, array or table"
    return None


def shown(key: object) -> str:
    """Return a key fit to be printed: short and plain, whoever wrote it."""
    text = str(key)
    return text if len(text) <= 40 and text.isprintable() and text.isascii() else "?"
