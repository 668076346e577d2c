"""The weights of a trial to which nothing happens: in one process, without a relay, a journal or a mask."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ppdl_mq.config.manifest import Manifest
from ppdl_mq.errors import Overflow
from ppdl_mq.numeric.exponents import exponents
from ppdl_mq.numeric.fixed_point import FixedPoint, Share
from ppdl_mq.numeric.words import Words
from ppdl_mq.protocol.schedule import Turn
from ppdl_mq.training.data.samples import Split
from ppdl_mq.training.order import rehearsal_seed
from ppdl_mq.training.worker import Worker
from tests.trials.exact import SAMPLE_SEED, expected_state


def undisturbed_state(manifest: Manifest, splits: Mapping[str, Split]) -> dict[str, torch.Tensor]:
    """Return the tensors of the final model."""
    if manifest.protocol != "masked-average":
        return expected_state(manifest, splits)
    workers = {name: Worker(manifest, split, device=torch.device("cpu")) for name, split in splits.items()}
    layout = next(iter(workers.values())).layout
    weights = next(iter(workers.values())).initial()
    for number in range(1, manifest.training.epochs * manifest.training.turns_per_epoch + 1):
        weights = _averaged(manifest, workers, number, weights)
    return dict(layout.tensors(weights))


def _averaged(manifest: Manifest, workers: Mapping[str, Worker], number: int, base: bytearray) -> bytearray:
    """Return the average of one round of all peers, as fixed point gives it, equally weighted."""
    rules = manifest.averaging
    assert rules is not None
    assert rules.weighting == "equal"
    epoch, cycle = divmod(number - 1, manifest.training.turns_per_epoch)
    trained = []
    for name, worker in workers.items():
        turn = Turn(number=number, epoch=epoch, cycle=cycle, ordinal=number - 1, peer=name)
        trained.append(worker.train(turn, base, rehearsal_seed(SAMPLE_SEED, name)).weights)
        worker.forget(number)
    layout = next(iter(workers.values())).layout
    powers = exponents(base, layout, floor=rules.exponent_floor, head_room=rules.head_room)
    try:
        return _mean(FixedPoint(layout, powers, 32, len(workers), rules.weighting), trained)
    except Overflow:  # the trial then tries the round again in 64 bits
        return _mean(FixedPoint(layout, powers, 64, len(workers), rules.weighting), trained)


def _mean(encoding: FixedPoint, states: list[bytearray]) -> bytearray:
    total: Words = encoding.encode(states[0], Share())
    for state in states[1:]:
        total = np.add(total, encoding.encode(state, Share()))  # wraps, as the ring does
    return encoding.decode(total)
