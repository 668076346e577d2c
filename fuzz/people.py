"""Who signs in the targets. They follow from their names; nothing here is a secret of anybody."""

from __future__ import annotations

import hashlib

from ppdl_mq.config.manifest import Manifest
from ppdl_mq.config.reading import manifest_from_data
from ppdl_mq.crypto.identity import Identity
from ppdl_mq.crypto.secret import Secret

NAMES = ("anna", "bert", "cleo")
PEOPLE = {name: Identity(name=name, secret=Secret(hashlib.sha512(name.encode()).digest())) for name in NAMES}
ANNA = PEOPLE["anna"]


def manifest_of(protocol: str) -> Manifest:
    """Return a small trial of these three."""
    return manifest_from_data(
        {
            "version": 1,
            "name": "fuzz",
            "nonce": "00" * 16,
            "protocol": protocol,
            "model": {"callable": "ppdl_mq.training.models:mlp", "arguments": {"inputs": 6, "hidden": [8]}},
            "training": {"learning_rate": 0.1, "batch_size": 4, "epochs": 2},
            "data": {"shape": [6], "classes": 3, "standardise": "manifest", "mean": [0.5], "std": [2.0]},
            "peers": [{"name": name, "keys": PEOPLE[name].public.keys} for name in NAMES],
        }
    )
