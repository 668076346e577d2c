"""What a trial is compared with, in one process and without a relay. For demonstrations and tests only.

Source: docs/TRAINING.md, "Comparisons".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from ppdl_mq.config.manifest import Manifest
from ppdl_mq.numeric import flatten
from ppdl_mq.protocol.schedule import Schedule, Turn
from ppdl_mq.training import determinism, loop, order, plugin
from ppdl_mq.training.data.samples import Split, concatenate
from ppdl_mq.training.rate import learning_rate
from ppdl_mq.training.worker import Worker

AfterEpoch = Callable[[int, bytearray], None]  # the epoch, from 0, and the weights after it
AfterRound = Callable[[int, bytearray], None]  # the round, from 1, and the average after it
State = dict[str, torch.Tensor]


def alone(
    schedule: Schedule, peer: str, worker: Worker, sample_seed: bytes, *, after_epoch: AfterEpoch | None = None
) -> bytearray:
    """Return the weights that one peer reaches with its own turns and nobody else's."""
    weights = worker.initial()
    for turn in schedule.turns_of(peer):
        weights = worker.train(turn, weights, sample_seed).weights
        if after_epoch is not None and turn.cycle == schedule.turns_per_epoch - 1:
            after_epoch(turn.epoch, weights)
    return weights


def pooled_same_order(
    schedule: Schedule,
    workers: Mapping[str, Worker],
    sample_seeds: Mapping[str, bytes],
    *,
    after_epoch: AfterEpoch | None = None,
) -> bytearray:
    """Return the weights of one model trained through all turns in the trial's order, never leaving memory.

    Args:
        schedule: of the trial.
        workers: by peer; they lend their samples.
        sample_seeds: by peer, 32 bytes each.
        after_epoch: is told the weights after each epoch.
    """
    founder = workers[schedule.founder]
    training, device = founder.manifest.training, founder.device
    module = plugin.build_model(founder.manifest.model, training).to(device)
    for number in range(1, schedule.turns + 1):
        turn = schedule.turn(number)
        worker, seed = workers[turn.peer], sample_seeds[turn.peer]
        with determinism.seeded(order.turn_seed(seed, turn), device):
            loop.run(
                module,
                loop.sgd(module, training, turn.epoch),
                worker.loss,
                worker.train_samples,
                order.turn_batches(training, turn, seed, rows=worker.rows),
                device=device,
            )
        if after_epoch is not None and number % (len(schedule.peers) * schedule.turns_per_epoch) == 0:
            after_epoch(turn.epoch, flatten.flatten(module))
    return flatten.flatten(module)


def pooled_shuffled(
    manifest: Manifest,
    splits: Sequence[Split],
    seed: bytes,
    *,
    device: torch.device,
    after_epoch: AfterEpoch | None = None,
) -> bytearray:
    """Return the weights of ordinary SGD over everybody's rows in one heap, momentum kept throughout.

    It makes as many passes as the trial, or with `turn_steps` as many steps.

    Args:
        manifest: of the trial.
        splits: of all peers.
        seed: 32 bytes; orders the heap and seeds dropout.
        device: where to compute.
        after_epoch: is told the weights after each epoch.
    """
    training = manifest.training
    heap = concatenate([split.train for split in splits])
    module = plugin.build_model(manifest.model, training).to(device)
    optimizer = loop.sgd(module, training, 0)
    steps = order.batches_of_epoch(len(heap), training.batch_size) * (training.turn_epochs or 1)
    if training.turn_steps is not None:
        steps = training.turn_steps * training.turns_per_epoch * len(splits)
    with determinism.seeded(order.derive(seed, b"pooled"), device):
        for epoch in range(training.epochs):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(training, epoch)
            first = epoch * steps
            batches = order.batch_run(seed, first, first + steps, rows=len(heap), batch_size=training.batch_size)
            loop.run(module, optimizer, loop.LOSSES[training.loss], heap, batches, device=device)
            if after_epoch is not None:
                after_epoch(epoch, flatten.flatten(module))
    return flatten.flatten(module)


def federated_averaging(
    manifest: Manifest,
    workers: Mapping[str, Worker],
    sample_seeds: Mapping[str, bytes],
    *,
    weights: Mapping[str, float] | None = None,
    after_round: AfterRound | None = None,
) -> bytearray:
    """Return the weights of plain federated averaging: what masked-average computes, with nothing masked.

    In each round every peer trains from the last average, and their states are averaged in float64.

    Args:
        manifest: of the trial.
        workers: by peer; they lend their samples.
        sample_seeds: by peer, 32 bytes each.
        weights: what each peer counts for, positive; None for all alike.
        after_round: is told the average after each round.
    """
    training = manifest.training
    names = sorted(workers)
    shares = {name: 1.0 if weights is None else float(weights[name]) for name in names}
    device = workers[names[0]].device
    module = plugin.build_model(manifest.model, training).to(device)
    agreed = _copied(module.state_dict())
    for number in range(1, training.epochs * training.turns_per_epoch + 1):
        epoch, cycle = divmod(number - 1, training.turns_per_epoch)
        sums: State = {}
        for name in names:
            worker, seed = workers[name], sample_seeds[name]
            turn = Turn(number=number, epoch=epoch, cycle=cycle, ordinal=number - 1, peer=name)
            module.load_state_dict(agreed)
            with determinism.seeded(order.turn_seed(seed, turn), device):
                loop.run(
                    module,
                    loop.sgd(module, training, epoch),
                    worker.loss,
                    worker.train_samples,
                    order.turn_batches(training, turn, seed, rows=worker.rows),
                    device=device,
                )
            for key, tensor in module.state_dict().items():
                # On the CPU: not every accelerator has float64.
                wide = tensor.detach().cpu().to(torch.complex128 if tensor.is_complex() else torch.float64)
                sums[key] = sums[key] + shares[name] * wide if key in sums else shares[name] * wide
        total = sum(shares.values())
        agreed = {key: _rounded(each / total, agreed[key].dtype) for key, each in sums.items()}
        module.load_state_dict(agreed)
        if after_round is not None:
            after_round(number, flatten.flatten(module))
    return flatten.flatten(module)


def _copied(state: Mapping[str, torch.Tensor]) -> State:
    return {key: tensor.detach().cpu().clone() for key, tensor in state.items()}


def _rounded(mean: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a float64 or complex128 mean in the dtype of what was averaged; integers are the nearest, ties to even."""
    is_integer = not (dtype.is_floating_point or dtype.is_complex)
    return (torch.round(mean) if is_integer else mean).to(dtype)
