"""A private turn by another program, written from docs/PRIVACY.md alone: plain PyTorch, row by row."""

from __future__ import annotations

import hashlib
import math
import struct

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from torch.nn import functional

from ppdl_mq.config.manifest import Manifest
from ppdl_mq.numeric import flatten
from ppdl_mq.training import plugin
from ppdl_mq.training.data import Samples
from ppdl_mq.training.private.gradient import Mechanism
from ppdl_mq.training.worker import Worker
from ppdl_mq.wire.trial_id import trial_id
from tests.training.trials import CPU, SEEDS, manifest, schedule, split

CLIP, NOISE = 0.75, 0.6


def framed_hash(label: bytes, *parts: bytes) -> bytes:
    framed = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    return hashlib.sha256(b"ppdl-mq/1 " + label + b"\0" + framed).digest()


class Words:
    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()

    def take(self, count: int) -> list[int]:
        raw = self._cipher.update(bytes(8 * count))
        return [int.from_bytes(raw[8 * place : 8 * place + 8], "little") for place in range(count)]


def normal(words: Words, size: int) -> list[float]:
    pairs = -(-size // 2)
    u, v = words.take(pairs), words.take(pairs)
    uniform = [(each + (other % 2**11 + 0.5) / 2**11) / 2**64 for each, other in zip(u, v, strict=True)]
    radius = [math.sqrt(-2 * math.log(each)) for each in uniform]
    angle = [2 * math.pi * (each // 2**11) / 2**53 for each in v]
    cosines = [r * math.cos(a) for r, a in zip(radius, angle, strict=True)]
    return [*cosines, *(r * math.sin(a) for r, a in zip(radius, angle, strict=True))][:size]


def turn_by_hand(agreed: Manifest, train: Samples, seed: bytes, steps: int) -> torch.nn.Module:
    model = plugin.build_model(agreed.model, agreed.training).train()
    n, b = len(train), min(agreed.training.batch_size, len(train))
    key = framed_hash(
        b"private turn",
        seed,
        trial_id(agreed),
        (1).to_bytes(8, "big"),
        hashlib.sha256(flatten.flatten(model)).digest(),
        hashlib.sha256(train.inputs.numpy().tobytes() + train.targets.numpy().tobytes()).digest(),
        struct.pack(">4d", CLIP, NOISE, n, b),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=agreed.training.learning_rate, momentum=agreed.training.momentum)
    for step in range(steps):
        t = step.to_bytes(8, "big")
        chosen = Words(framed_hash(b"private rows", key, t)).take(n)
        rows = [row for row in range(n) if b == n or chosen[row] < (b << 64) // n]
        sums = [torch.zeros_like(each, dtype=torch.float64) for each in model.parameters()]
        for row in rows:
            model.zero_grad()
            functional.cross_entropy(model(train.inputs[row : row + 1]), train.targets[row : row + 1]).backward()
            gradients = [each.grad.double() for each in model.parameters()]
            length = math.sqrt(sum(float(each.square().sum()) for each in gradients))
            for total, gradient in zip(sums, gradients, strict=True):
                total += torch.trunc(gradient * min(1.0, CLIP / length) / CLIP * 2**20)
        words = Words(framed_hash(b"private noise", key, t))
        noise = [round(number * NOISE * 2**20) for number in normal(words, sum(each.numel() for each in sums))]
        for each, total in zip(model.parameters(), sums, strict=True):
            of_this, noise = noise[: total.numel()], noise[total.numel() :]
            noisy = total + torch.tensor(of_this, dtype=torch.float64).reshape(total.shape)
            each.grad = (noisy * CLIP / 2**20 / b).float()
        optimizer.step()
    return model


@pytest.mark.parametrize("batch_size", [7, 40])
def test_a_turn_is_what_the_page_says(batch_size: int) -> None:
    agreed = manifest(turn_steps=6, momentum=0.5, batch_size=batch_size)
    rows = split(30)
    worker = Worker(agreed, rows, device=CPU, mechanism=Mechanism(clip=CLIP, noise=NOISE))
    weights = worker.train(schedule(agreed).turn(1), worker.initial(), SEEDS["birch"]).weights
    model = turn_by_hand(agreed, rows.train, SEEDS["birch"], 6)
    by_hand = np.frombuffer(flatten.flatten(model), dtype="<f4")
    moved = by_hand - np.frombuffer(worker.initial(), dtype="<f4")
    assert np.abs(moved).max() > 0.01
    np.testing.assert_allclose(np.frombuffer(weights, dtype="<f4"), by_hand, atol=2e-6)
