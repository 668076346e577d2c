"""masked-average computes what federated averaging in plain PyTorch computes, within bounds that are stated."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ppdl_mq.config.manifest import Manifest
from ppdl_mq.numeric import flatten
from ppdl_mq.numeric.flatten import Layout
from ppdl_mq.protocol.schedule import Turn
from ppdl_mq.training import baselines
from ppdl_mq.training.worker import Worker
from tests.training import oracle
from tests.trial import TrialInProcess
from tests.trials.masked import (
    HALF_ULP,
    MODELS,
    ROWS,
    Averaged,
    MortalTrial,
    agreed,
    assert_round,
    encoding_of,
    plain_average,
    seeds_of,
    splits_of,
    trained_alone,
    watch_rounds,
    weights_of,
)

WEIGHTINGS = ("equal", "declared", "secret")
State = dict[str, torch.Tensor]


def run(manifest: Manifest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[TrialInProcess, list[Averaged]]:
    """Run a trial to its end; return it and the rounds of its first peer."""
    seen = watch_rounds(monkeypatch)
    trial = MortalTrial(manifest, folder, monkeypatch)
    trial.begin()
    trial.end(*manifest.peer_names)
    assert len(trial.models()) == 1
    return trial, sorted((each for each in seen if each.peer == "anna"), key=lambda each: each.round)


# --- the baseline ----------------------------------------------------------------------------------------------------


def from_the_text(manifest: Manifest) -> list[State]:
    """Return the average after each round, from docs/TRAINING.md and the word "mean" alone."""
    splits, shares = splits_of(manifest), weights_of(manifest) or dict.fromkeys(ROWS, 1.0)
    module, _, attribute = manifest.model.callable.partition(":")
    torch.manual_seed(manifest.training.seed)
    model = getattr(importlib.import_module(module), attribute)(**manifest.model.arguments)
    layout, averages = Layout.of(model), []
    base = bytes(flatten.flatten(model))
    for number in range(1, manifest.training.epochs * manifest.training.turns_per_epoch + 1):
        states = {name: trained_alone(manifest, splits[name], name, number, layout, base) for name in splits}
        mean = {}
        for key, first in states["anna"].items():
            columns = zip(*(state[key].double().flatten().tolist() for state in states.values()), strict=True)
            counts = [shares[name] for name in states]
            total = math.fsum(counts)
            exact = [math.fsum(n * x for n, x in zip(counts, xs, strict=True)) / total for xs in columns]
            numbers = exact if first.is_floating_point() else [round(each) for each in exact]
            mean[key] = torch.tensor(numbers, dtype=torch.float64).reshape(first.shape).to(first.dtype)
        averages.append(mean)
        model.load_state_dict(mean)
        base = bytes(flatten.flatten(model))
    return averages


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_baseline_is_federated_averaging(weighting: str) -> None:
    """Bit for bit: what the two round differently in float64 is lost when the mean becomes float32, but for ties."""
    manifest = agreed(model="batch-norm", weighting=weighting, training__momentum=0.9, training__turns_per_epoch=2)
    expected = from_the_text(manifest)
    workers = {name: Worker(manifest, split, device=torch.device("cpu")) for name, split in splits_of(manifest).items()}
    rounds: list[int] = []

    def compare(number: int, weights: bytearray) -> None:
        rounds.append(number)
        for key, tensor in workers["anna"].layout.tensors(weights):
            assert torch.equal(tensor, expected[number - 1][key]), (number, key)

    found = baselines.federated_averaging(
        manifest, workers, seeds_of(manifest), weights=weights_of(manifest), after_round=compare
    )
    assert rounds == [1, 2, 3, 4]
    assert found == plain_average(manifest, splits_of(manifest))


# --- one local step --------------------------------------------------------------------------------------------------


def step(manifest: Manifest, base: State, inputs: torch.Tensor, targets: torch.Tensor, dtype: torch.dtype) -> State:
    """Return the parameters after one step of plain SGD on one batch."""
    module, _, attribute = manifest.model.callable.partition(":")
    model = getattr(importlib.import_module(module), attribute)(**manifest.model.arguments).to(dtype)
    model.load_state_dict(base)
    optimizer = torch.optim.SGD(model.parameters(), lr=manifest.training.learning_rate)
    torch.nn.functional.cross_entropy(model(inputs.to(dtype)), targets).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return {key: tensor.detach().double() for key, tensor in model.state_dict().items()}


def largest_of(tensor: torch.Tensor) -> float:
    return float(tensor.abs().max())


def one_step(weighting: str, peers: int, model: str, seed: int, folder: Path, patch: pytest.MonkeyPatch) -> list[float]:
    """Compare one round of one step with large-batch SGD; return how much of the bound each tensor used.

    With weights w and learning rate l, the mean of w - l g_i, weighted by the sizes of the batches, is w - l g of the
    union of the batches. In floating point the two differ by no more than

        the bound of section 14.6 + one float32 rounding of the average (both in encoding_of and HALF_ULP below)
        + the mean of the roundings of the peers' steps + those of the large step,

    where the roundings of a step are its difference from the same step in float64.
    """
    # Equal weights need equal batches; the others a batch that is all a peer has.
    batch = min(ROWS.values()) if weighting == "equal" else max(ROWS.values())
    manifest = agreed(
        peers,
        model=model,
        weighting=weighting,
        training={"learning_rate": 0.5, "batch_size": batch, "epochs": 1, "turn_steps": 1, "seed": seed},
        averaging__evaluate_every=0,
    )
    trial, (seen,) = run(manifest, folder, patch)
    splits, seeds = splits_of(manifest), seeds_of(manifest)
    layout = trial.runners["anna"].worker.layout
    base, found = dict(layout.tensors(seen.base)), dict(layout.tensors(seen.result))
    turns = {name: Turn(number=1, epoch=0, cycle=0, ordinal=0, peer=name) for name in splits}
    batches: dict[str, list[int]] = {
        name: oracle.batches_of_turn(manifest.training, turns[name], seeds[name], ROWS[name])[0] for name in splits
    }
    own = {name: (splits[name].train.inputs[rows], splits[name].train.targets[rows]) for name, rows in batches.items()}
    union = (torch.cat([inputs for inputs, _ in own.values()]), torch.cat([targets for _, targets in own.values()]))
    shares = {name: len(rows) / len(union[1]) for name, rows in batches.items()}
    large, large_exact = (step(manifest, base, *union, dtype) for dtype in (torch.float32, torch.float64))
    local = {name: step(manifest, base, *data, torch.float32) for name, data in own.items()}
    local_exact = {name: step(manifest, base, *data, torch.float64) for name, data in own.items()}
    encoding, used = encoding_of(manifest, layout, seen), []
    for index, key in enumerate(found):
        largest = max(largest_of(state[key]) for state in local.values())
        roundings = largest_of(large[key] - large_exact[key]) + sum(
            shares[name] * largest_of(local[name][key] - local_exact[name][key]) for name in own
        )
        assert roundings < 64 * HALF_ULP * max(largest, 0.25), "a bound that says something"
        bound = encoding.error_bound(index, largest) + HALF_ULP * largest + roundings
        off = largest_of(found[key].double() - large[key])
        print(f"seed {seed}: {key} off by {off:.2e}, bound {bound:.2e}")
        assert largest_of(found[key] - base[key]) > 1000 * bound, "a step that is far larger than the bound"
        used.append(off / bound)
    return used


@pytest.mark.parametrize(
    ("peers", "model", "seed"), [(2, "linear", 1), (3, "tanh", 2), (3, "linear", 3), (5, "tanh", 4), (4, "tanh", 5)]
)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_one_local_step_is_large_batch_sgd(
    weighting: str, peers: int, model: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert max(one_step(weighting, peers, model, seed, tmp_path, monkeypatch)) <= 1


def test_one_step_with_the_wrong_weights_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppdl_mq.peer.vectors.Vectors._share", _all_alike)
    assert min(one_step("secret", 3, "tanh", 2, tmp_path, monkeypatch)) > 100


def _all_alike(*_: Any) -> Any:
    from ppdl_mq.numeric.fixed_point import Share

    return Share(1)


# --- whole trials ----------------------------------------------------------------------------------------------------

# By how much one round of local training may multiply a difference between two sets of weights (Euclidean norm).
# `linear`: 1, since steps of gradient descent on a convex loss, shorter than 2 / its curvature, bring no two points
# further apart, and averaging brings them nearer. (The curvature of softmax cross-entropy is at most half the mean
# |(x, 1)|^2 of the batch, here below 9; the learning rate is 0.1.) The others are measured, and then some.
GROWTH = {"linear": 1.0, "tanh": 1.2, "batch-norm": 1.5}
STEP_ROUNDINGS = 2  # half units in the last place by which one step in float32 is off, of numbers up to 1


def bound_of(manifest: Manifest, trial: TrialInProcess, seen: list[Averaged], model: str) -> float:
    """Return how far (Euclidean norm) a trial may be from federated averaging without rings.

    Every round adds, for each value, the bound of section 14.6, one float32 rounding on each side, and the roundings of
    the steps, which differ once the weights do; and it multiplies what was there before by GROWTH.
    """
    layout = trial.runners["anna"].worker.layout
    rows = max(ROWS[name] for name in manifest.peer_names)
    steps = -(-rows // manifest.training.batch_size)
    total = 0.0
    for each in seen:
        encoding, squares = encoding_of(manifest, layout, each), 0.0
        for index, (_, tensor) in enumerate(layout.tensors(each.result)):
            if tensor.is_floating_point():
                largest = max(largest_of(tensor), 1.0)
                one = encoding.error_bound(index, largest) + HALF_ULP * largest * (2 + STEP_ROUNDINGS * steps)
                squares += tensor.numel() * one**2
        total = GROWTH[model] * total + math.sqrt(squares)
    return total


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("model", MODELS)
def test_a_whole_trial_is_federated_averaging(
    model: str, weighting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each round alone within the bound of section 14.6, and all of them together within one that grows."""
    manifest = agreed(
        model=model,
        weighting=weighting,
        training={"learning_rate": 0.1, "batch_size": 8, "epochs": 3, "turns_per_epoch": 2, "schedule": "cosine"},
        averaging__evaluate_every=0,
        averaging__exponent_floor=1,
    )
    trial, seen = run(manifest, tmp_path, monkeypatch)
    assert [each.round for each in seen] == [1, 2, 3, 4, 5, 6]
    splits = splits_of(manifest)
    for each in seen:
        assert assert_round(manifest, splits, each) > 0, "the ring rounds: bit for bit the same would be a wonder"
    layout = trial.runners["anna"].worker.layout
    found, plain = (dict(layout.tensors(flat)) for flat in (trial.model("anna"), plain_average(manifest, splits)))
    off = math.sqrt(
        sum(float(((found[key].double() - plain[key].double()) ** 2).sum()) for key in found if "num" not in key)
    )
    bound = bound_of(manifest, trial, seen, model)
    print(f"{model}, {weighting}: off by {off:.2e}, bound {bound:.2e}")
    assert off <= bound < 2e-4
    for key in found:
        if not found[key].is_floating_point():  # in `declared` a mean near a half may go to the other side
            assert largest_of(found[key] - plain[key]) <= (len(seen) if weighting == "declared" else 0), key


@pytest.mark.parametrize("model", ["tanh", "batch-norm"])
def test_the_comparison_can_fail(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row of one peer, or one peer's weight, is seen."""
    manifest = agreed(2, model=model, training__momentum=0.9, averaging__evaluate_every=0, averaging__exponent_floor=1)
    _, seen = run(manifest, tmp_path, monkeypatch)
    splits = splits_of(manifest)
    assert_round(manifest, splits, seen[0])
    splits["bert"].train.inputs[0, 0] += 0.01
    with pytest.raises(AssertionError):
        assert_round(manifest, splits, seen[0])
