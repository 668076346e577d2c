"""What a trial has to end with: the oracle's model, tensor by tensor."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ppdl_mq.config.manifest import Manifest
from ppdl_mq.protocol.schedule import Schedule
from ppdl_mq.training.data.samples import Split
from ppdl_mq.training.order import rehearsal_seed
from ppdl_mq.wire.trial_id import trial_id
from tests.training import oracle

SAMPLE_SEED = 7  # of every rehearsal in this folder; peers with the same number still differ


def schedule_of(manifest: Manifest) -> Schedule:
    """Return the schedule that every peer computes."""
    return Schedule(
        trial_id=trial_id(manifest),
        peers=manifest.peer_names,
        epochs=manifest.training.epochs,
        turns_per_epoch=manifest.training.turns_per_epoch,
        order=manifest.order,
    )


def expected_state(manifest: Manifest, splits: Mapping[str, Split]) -> dict[str, torch.Tensor]:
    """Return the `state_dict` of pooled SGD in the trial's order, by plain PyTorch."""
    module, _, attribute = manifest.model.callable.partition(":")
    build = getattr(importlib.import_module(module), attribute)
    plan = schedule_of(manifest)
    model = oracle.pooled_sgd(
        lambda: build(**manifest.model.arguments),
        manifest.training,
        [plan.turn(number) for number in range(1, plan.turns + 1)],
        {name: (split.train.inputs, split.train.targets) for name, split in splits.items()},
        {name: rehearsal_seed(SAMPLE_SEED, name) for name in splits},
    )
    state: dict[str, Any] = model.state_dict()
    return state


def assert_equal_bits(model: Path, expected: Mapping[str, torch.Tensor]) -> None:
    """Compare a written model with the expected one, by every bit of every tensor."""
    found = safetensors.torch.load_file(model)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name
