"""Small trials for the tests of this folder."""

from __future__ import annotations

import base64
from typing import Any

import nacl.signing
import torch

from ppdl_mq.config.manifest import Manifest, Peer
from ppdl_mq.protocol.schedule import Schedule
from ppdl_mq.training.data import Samples, Split

CPU = torch.device("cpu")
NAMES = ("ash", "birch", "cedar")
SEEDS = {name: bytes([number]) * 32 for number, name in enumerate(NAMES)}
ZOO = "ppdl_mq.training.models:"


def keys(name: str) -> str:
    signing = nacl.signing.SigningKey(name.encode().ljust(32, b"\0"))
    both = signing.verify_key.encode() + signing.to_curve25519_private_key().public_key.encode()
    return base64.urlsafe_b64encode(both).decode().rstrip("=")


def manifest(
    model: str = ZOO + "mlp",
    arguments: dict[str, Any] | None = None,
    *,
    shape: tuple[int, ...] = (6,),
    classes: int | None = 3,
    order: str = "fixed",
    data: dict[str, Any] | None = None,
    **training: Any,
) -> Manifest:
    settings = {"learning_rate": 0.1, "batch_size": 8, "epochs": 3, **training}
    return Manifest.model_validate(
        {
            "version": 1,
            "name": "test",
            "nonce": "00" * 16,
            "protocol": "server-aided",
            "order": order,
            "model": {"callable": model, "arguments": arguments or {"inputs": 6, "hidden": [9], "outputs": 3}},
            "training": settings,
            "data": {"shape": shape, "classes": classes, **(data or {})},
            "peers": tuple(Peer(name=name, keys=keys(name)) for name in NAMES),
        }
    )


def schedule(manifest: Manifest) -> Schedule:
    return Schedule(
        trial_id=b"\7" * 32,
        peers=manifest.peer_names,
        epochs=manifest.training.epochs,
        turns_per_epoch=manifest.training.turns_per_epoch,
        order=manifest.order,
    )


def samples(rows: int, shape: tuple[int, ...] = (6,), classes: int | None = 3, seed: int = 0) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, *shape, generator=generator)
    if classes is None:
        return Samples(inputs, inputs.flatten(1)[:, :2].sin())
    targets = torch.randint(0, classes, (rows,), generator=generator)
    inputs.flatten(1)[:, 0] += targets * 2.0
    return Samples(inputs, targets)


def split(rows: int, **kind: Any) -> Split:
    return Split(samples(rows, **kind), samples(20, **{**kind, "seed": 99}))
