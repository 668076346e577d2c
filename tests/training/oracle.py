"""Pooled SGD in the trial's order, in plain PyTorch, written from docs/TRAINING.md alone.

It shares nothing with the worker but the models' callables: one model, never turned into bytes.
"""

from __future__ import annotations

import hashlib
import itertools
import math

import torch
from torch import nn

LABEL = b"ppdl-mq/1 sample seed\0"
LOSS = {
    "cross-entropy": nn.CrossEntropyLoss(),
    "binary-cross-entropy": nn.BCEWithLogitsLoss(),
    "mse": nn.MSELoss(),
}


def seed(s: bytes, x: bytes) -> int:
    return int.from_bytes(hashlib.sha256(LABEL + s + x).digest()[:8], "big") & (2**63 - 1)


def be64(x: int) -> bytes:
    return x.to_bytes(8, "big")


def epoch_of_batches(s: bytes, e: int, n: int, batch_size: int) -> list[list[int]]:
    rows = torch.randperm(n, generator=torch.Generator("cpu").manual_seed(seed(s, b"order" + be64(e)))).tolist()
    return [rows[i : i + batch_size] for i in range(0, n, batch_size)]


def batches_of_turn(training, turn, s: bytes, n: int) -> list[list[int]]:
    size = training.batch_size
    if k := training.turn_epochs:
        epochs = range(turn.ordinal * k, turn.ordinal * k + k)
        return [batch for e in epochs for batch in epoch_of_batches(s, e, n, size)]
    if k := training.turn_steps:
        endless = (batch for e in itertools.count() for batch in epoch_of_batches(s, e, n, size))
        return list(itertools.islice(endless, turn.ordinal * k, turn.ordinal * k + k))
    whole = epoch_of_batches(s, turn.epoch, n, size)
    at = [math.floor(len(whole) * c / training.turns_per_epoch) for c in (turn.cycle, turn.cycle + 1)]
    return whole[at[0] : at[1]]


def rate(training, epoch: int) -> float:
    if training.schedule == "step":
        return training.learning_rate * training.schedule_factor ** math.floor(epoch / training.schedule_every)
    if training.schedule == "cosine":
        return training.learning_rate * 0.5 * (1 + math.cos(math.pi * epoch / training.epochs))
    return training.learning_rate


def pooled_sgd(build, training, turns, data: dict[str, tuple[torch.Tensor, torch.Tensor]], seeds: dict[str, bytes]):
    """Train one model, built by `build()`, through all turns; data is {peer: (inputs, targets)}."""
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(training.threads)
    torch.manual_seed(training.seed)
    model = build()
    loss = LOSS[training.loss]
    for turn in turns:
        s, (inputs, targets) = seeds[turn.peer], data[turn.peer]
        torch.manual_seed(seed(s, b"turn" + be64(turn.number)))
        optimizer = torch.optim.SGD(
            model.parameters(), rate(training, turn.epoch), training.momentum, weight_decay=training.weight_decay
        )
        model.train()
        for batch in batches_of_turn(training, turn, s, len(inputs)):
            optimizer.zero_grad()
            loss(model(inputs[batch]), targets[batch]).backward()
            optimizer.step()
    return model
