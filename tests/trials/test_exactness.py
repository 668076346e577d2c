"""Both protocols end, over every relay, with the very bits of plain pooled SGD in the same order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ppdl_mq.config.manifest import Manifest
from ppdl_mq.training.data.samples import Split
from tests.transport.relays import new_trial
from tests.trial import TrialInProcess, manifest_for, split_for
from tests.trials.exact import assert_equal_bits, expected_state
from tests.trials.relays import marked, opener

ZOO = "ppdl_mq.training.models:"
PROTOCOLS = ("server-aided", "fully-connected")
ACTIVATIONS = ("relu", "sigmoid", "tanh", "gelu", "silu", "softplus")
SMALLEST_CHUNK = 4096  # weights then take many parts
NAMES = ("anna", "bert", "cleo", "dora", "emil")
ROWS = {"anna": 62, "bert": 3, "cleo": 14, "dora": 30, "emil": 10}  # the last batch of each is short, of two or three

MODELS: dict[str, dict[str, Any]] = {
    activation: {
        "model__callable": f"{ZOO}mlp",
        "model__arguments": {"inputs": 20, "hidden": [48, 24], "outputs": 3, "activation": activation, "dropout": 0.2},
        "data__shape": [20],
    }
    for activation in ACTIVATIONS
} | {
    "cnn": {
        "model__callable": f"{ZOO}small_cnn",
        "model__arguments": {"channels": 1, "size": 9, "outputs": 3, "activation": "gelu"},
        "data__shape": [1, 9, 9],
    },
    "batch-norm": {
        "model__callable": f"{ZOO}mlp",
        "model__arguments": {"inputs": 20, "hidden": [48, 24], "outputs": 3, "batch_norm": True},
        "data__shape": [20],
    },
}
TURNS: dict[str, dict[str, Any]] = {
    "share": {"turns_per_epoch": 2},
    "turn_steps": {"turn_steps": 3, "turns_per_epoch": 2},
    "turn_epochs": {"turn_epochs": 2},
}


def agreed(protocol: str, model: str, *, peers: int = 3, order: str = "shuffled", turns: str = "share") -> Manifest:
    training = {"momentum": 0.9, "weight_decay": 0.01, "schedule": "cosine", **TURNS[turns]}
    return manifest_for(
        NAMES[:peers],
        name=new_trial(),
        protocol=protocol,
        order=order,
        relay={"chunk_bytes": SMALLEST_CHUNK},
        **MODELS[model],
        **{f"training__{field}": value for field, value in training.items()},
    )


def splits_of(manifest: Manifest) -> dict[str, Split]:
    return {name: split_for(name, manifest, rows=ROWS[name]) for name in manifest.peer_names}


def compare(manifest: Manifest, kind: str, folder: Path, request: pytest.FixtureRequest) -> TrialInProcess:
    splits = splits_of(manifest)
    trial = TrialInProcess(manifest, folder, opener(kind, manifest, folder, request), splits=splits)
    trial.run()
    expected = expected_state(manifest, splits)
    for runner in trial.runners.values():
        assert_equal_bits(runner.model_path, expected)
    return trial


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", [marked("memory"), marked("embedded"), marked("classic")])
def test_every_model_over_every_relay(
    kind: str, protocol: str, model: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    trial = compare(agreed(protocol, model), kind, tmp_path, request)
    bert = trial.runners["bert"]
    assert bert.outbox.published_messages > bert.terms.schedule.turns, "the weights should take many parts"


@pytest.mark.rabbitmq
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_quorum_queues(protocol: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    compare(agreed(protocol, "batch-norm"), "quorum", tmp_path, request)


@pytest.mark.parametrize("turns", TURNS)
@pytest.mark.parametrize("order", ["fixed", "shuffled"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("peers", [2, 3, 5])
def test_any_number_of_peers_in_any_order_with_turns_of_any_kind(
    peers: int, protocol: str, order: str, turns: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    compare(agreed(protocol, "tanh", peers=peers, order=order, turns=turns), "memory", tmp_path, request)


def test_the_comparison_can_fail(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    manifest = agreed("fully-connected", "relu", peers=2)
    trial = compare(manifest, "memory", tmp_path, request)
    splits = splits_of(manifest)
    inputs = splits["bert"].train.inputs
    inputs[0, 0] = torch.nextafter(inputs[0, 0], torch.tensor(10.0))  # one bit of one sample
    with pytest.raises(AssertionError):
        assert_equal_bits(trial.runners["anna"].model_path, expected_state(manifest, splits))
