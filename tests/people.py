"""Identities and manifests for tests; they follow from names, so that failures can be repeated."""

from __future__ import annotations

from typing import Any

import torch

from ppdl_mq.config.manifest import Manifest
from ppdl_mq.config.reading import manifest_from_data
from ppdl_mq.crypto.identity import Identity
from ppdl_mq.crypto.secret import Secret

PEERS = ("anna", "bert", "cleo")


def identity_of(name: str) -> Identity:
    """An identity that follows from the name, so that failures can be repeated."""
    seed = torch.Generator().manual_seed(int.from_bytes(name.encode()[:7], "big"))
    return Identity(name=name, secret=Secret(bytes(torch.randint(0, 256, (64,), generator=seed).tolist())))


def manifest_for(names: tuple[str, ...] = PEERS, **changes: Any) -> Manifest:
    """A small trial; `changes` replace top-level fields, dotted names (`training__epochs`) inner ones."""
    data: dict[str, Any] = {
        "version": 1,
        "name": "test",
        "nonce": "00" * 16,
        "protocol": "fully-connected",
        "model": {
            "callable": "ppdl_mq.training.models:mlp",
            "arguments": {"inputs": 6, "hidden": [8], "outputs": 3, "activation": "tanh"},
        },
        "training": {"learning_rate": 0.1, "batch_size": 4, "epochs": 2},
        "data": {"shape": [6], "classes": 3},
        "peers": [{"name": name, "keys": identity_of(name).public.keys} for name in names],
    }
    for field, value in changes.items():
        *tables, last = field.split("__")
        place = data
        for table in tables:
            place = place.setdefault(table, {})
        place[last] = value
    return manifest_from_data(data)
