"""Change an input a little, in what it says: valid input with one thing wrong gets further than random bytes."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from random import Random
from typing import Any

from fuzz.harness import Form, Target
from ppdl_mq.config.toml_text import toml_key, toml_value
from ppdl_mq.errors import PpdlError
from ppdl_mq.wire import canonical

_NUMBERS = (0, 1, -1, 2, 7, 31, 32, 64, 199, 200, 255, 256, 2**16, 2**31, 2**32 - 1, 2**32, 2**63 - 1, -(2**63))
_TEXTS = ("", "x", "anna", "bert", "weights", "trial", "turn", "~nobody/x", "a.b.c", "\x00", "ä", "a" * 33, "9" * 5_000)
_MARKS = (b"\x00", b"\xff", b"\n", b'"', b"'", b".", b"=", b"[", b"{", b"0x", b"\\u", b"hex:", b"\xdf\xff\xff\xff\xff")
_LIMIT_BYTES = 1 << 20


def mutated(target: Target, data: bytes, random: Random) -> bytes:
    """Return another input, from a valid or an invalid one."""
    prefix, rest = data[: target.prefix_bytes], data[target.prefix_bytes :]
    if prefix and random.random() < 0.2:
        prefix = _changed_bytes(prefix, random)[: target.prefix_bytes].ljust(target.prefix_bytes, b"\0")
    if target.form is not Form.BYTES and random.random() < 0.8:
        try:
            read, write = _FORMS[target.form]
            return prefix + write(_changed(read(rest), random))
        except (ValueError, TypeError, AttributeError, RecursionError, PpdlError):
            pass
    return prefix + _changed_bytes(rest, random)


def _changed(tree: Any, random: Random) -> Any:
    """Return plain data with a few of its values changed."""
    holder = {"": tree}
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        places = list(_places(holder))
        here, key = random.choice(places)
        match random.randrange(6):
            case 0 if here is not holder:
                del here[key]
            case 1:
                other, other_key = random.choice(places)
                here[key] = json_copy(other[other_key])
            case 2 if isinstance(here, list):
                here.insert(key, json_copy(here[key]))
            case 2:
                here[random.choice(_TEXTS)] = json_copy(here[key])
            case 3:
                here[key] = [here[key]] if random.random() < 0.5 else {"name": here[key]}
            case 4:
                here[key] = _other(here[key], random)
            case _:
                here[key] = _any(random)
    return holder[""]


def json_copy(tree: Any) -> Any:
    """Return plain data that shares nothing with `tree`."""
    if isinstance(tree, dict):
        return {key: json_copy(value) for key, value in tree.items()}
    return [json_copy(value) for value in tree] if isinstance(tree, list) else tree


def _places(tree: Any) -> Any:
    members = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(members):
        yield tree, key
        yield from _places(value)


def _other(value: Any, random: Random) -> Any:
    """Return a value of the same type."""
    match value:
        case bool():
            return not value
        case int():
            return random.choice((*_NUMBERS, value + 1, value - 1))
        case float():
            return random.choice((0.0, -0.0, 1.0, -1.0, 1e300, 5e-324, value * 2))
        case str():
            at = random.randrange(len(value) + 1)
            return random.choice((*_TEXTS, value[:at], value[:at] + "-" + value[at:]))
        case bytes():
            return _changed_bytes(value, random)
        case _:
            return _any(random)


def _any(random: Random) -> Any:
    others: tuple[Any, ...] = (
        None,
        True,
        False,
        1.5,
        b"",
        b"\0",
        bytes(31),
        bytes(32),
        bytes(64),
        [],
        {},
        [[]],
        {"x": {}},
    )
    return json_copy(random.choice((*others, *_NUMBERS[::3], *_TEXTS)))


def _changed_bytes(raw: bytes, random: Random) -> bytes:
    changed = bytearray(raw)
    for _ in range(random.choice((1, 1, 2, 4, 8))):
        at = random.randrange(len(changed) + 1)
        match random.randrange(7):
            case 0 | 1 if at < len(changed):
                changed[at] ^= 1 << random.randrange(8)
            case 2 if at < len(changed):
                changed[at] = random.randrange(256)
            case 3:
                del changed[at : at + random.choice((1, 2, 8, 64))]
            case 4:
                changed[at:at] = random.choice(_MARKS) * random.choice((1, 1, 1, 100))
            case 5:
                begin = random.randrange(len(changed) + 1)
                changed[at:at] = changed[begin : begin + random.choice((1, 4, 32, 200))]
            case _:
                changed[at : at + 4] = random.choice(_NUMBERS).to_bytes(8, "big", signed=True)[4:]
    return bytes(changed)


def _toml(tree: Any) -> bytes:
    return "\n".join(f"{toml_key(key)} = {toml_value(value)}" for key, value in tree.items()).encode()


def _without_bytes(tree: Any) -> Any:
    """Return JSON's part of plain data: bytes as a transcript shows them."""
    if isinstance(tree, dict):
        return {key: _without_bytes(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_without_bytes(value) for value in tree]
    return f"hex:{tree.hex()}" if isinstance(tree, bytes) else tree


_FORMS: dict[Form, tuple[Callable[[bytes], Any], Callable[[Any], bytes]]] = {
    Form.CANONICAL: (lambda raw: canonical.decode(raw, limit_bytes=_LIMIT_BYTES), canonical.encode),
    Form.JSON: (json.loads, lambda tree: json.dumps(_without_bytes(tree)).encode() + b"\n"),
    Form.TOML: (lambda raw: tomllib.loads(raw.decode()), lambda tree: _toml(tree)),
}
