"""A valid manifest to spoil."""

from __future__ import annotations

import base64
import copy
from typing import Any


def keys(number: int) -> str:
    """86 characters that stand for the keys of peer `number`; not points of any curve."""
    return base64.urlsafe_b64encode(bytes([number]) * 32 + bytes([100 + number]) * 32).rstrip(b"=").decode()


_VALID: dict[str, Any] = {
    "version": 1,
    "name": "heart",
    "nonce": "00112233445566778899aabbccddeeff",
    "protocol": "server-aided",
    "model": {"callable": "ppdl_mq.training.models:mlp", "arguments": {"inputs": 4, "hidden": [8], "outputs": 3}},
    "training": {"learning_rate": 0.1, "batch_size": 8, "epochs": 2},
    "data": {"shape": [4], "classes": 3},
    "peers": [{"name": "mercy", "keys": keys(1)}, {"name": "basel", "keys": keys(2)}],
}


def manifest_data(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """A valid manifest as plain data; `changes` maps dotted names to values, Ellipsis removes."""
    data = copy.deepcopy(_VALID)
    for dotted, value in (changes or {}).items():
        *tables, last = dotted.split(".")
        here: Any = data
        for step in tables:
            here = here[int(step)] if isinstance(here, list) else here.setdefault(step, {})
        if value is ...:
            del here[last]
        elif isinstance(here, list):
            here[int(last)] = value
        else:
            here[last] = value
    return data
