"""The worker, turn by turn through bytes, equals an independent loop bit for bit."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from ppdl_mq.numeric import flatten
from ppdl_mq.training import baselines, models
from ppdl_mq.training.data import Split
from ppdl_mq.training.worker import Worker

from . import oracle
from .trials import CPU, NAMES, SEEDS, ZOO, manifest, samples, schedule

ROWS = dict(zip(NAMES, (37, 18, 5), strict=True))  # unequal; with batches of 8 the last ones are short
TURNS: dict[str, dict[str, Any]] = {
    "share": {"turns_per_epoch": 3},
    "epochs": {"turn_epochs": 2},
    "steps": {"turn_steps": 3, "turns_per_epoch": 2},
}
ACTIVATIONS = ("relu", "sigmoid", "tanh", "gelu", "silu", "softplus")


def compare(agreed, shape=(6,), classes: int | None = 3) -> None:
    splits = {}
    for number, name in enumerate(NAMES):
        rows = samples(ROWS[name], shape, classes, seed=number)
        if agreed.training.loss == "binary-cross-entropy":
            rows = type(rows)(rows.inputs, rows.targets.float().reshape(-1, 1))
        splits[name] = Split(rows, rows)
    workers = {name: Worker(agreed, split, device=CPU) for name, split in splits.items()}
    plan = schedule(agreed)

    weights = workers[plan.founder].initial()
    start = bytes(weights)
    for number in range(1, plan.turns + 1):
        turn = plan.turn(number)
        weights = workers[turn.peer].train(turn, memoryview(bytes(weights)), SEEDS[turn.peer]).weights
    assert bytes(weights) != start

    build = getattr(models, agreed.model.callable.partition(":")[2])
    turns = [plan.turn(number) for number in range(1, plan.turns + 1)]
    data = {name: (split.train.inputs, split.train.targets) for name, split in splits.items()}
    expected = oracle.pooled_sgd(lambda: build(**agreed.model.arguments), agreed.training, turns, data, SEEDS)

    trained = build(**agreed.model.arguments)
    flatten.load(trained, weights)
    left, right = trained.state_dict(), expected.state_dict()
    assert list(left) == list(right)
    for name in left:
        assert torch.equal(left[name], right[name]), name
    assert baselines.pooled_same_order(plan, workers, SEEDS) == weights


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", TURNS)
@pytest.mark.parametrize("order", ["fixed", "shuffled"])
def test_an_mlp_with_momentum_and_dropout(activation: str, kind: str, order: str) -> None:
    arguments = {"inputs": 6, "hidden": [9, 7], "outputs": 3, "activation": activation, "dropout": 0.3}
    compare(manifest(arguments=arguments, order=order, momentum=0.9, weight_decay=0.01, **TURNS[kind]))


@pytest.mark.parametrize("kind", TURNS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_cnn(kind: str, activation: str) -> None:
    arguments = {"channels": 1, "size": 9, "outputs": 3, "activation": activation}
    agreed = manifest(ZOO + "small_cnn", arguments, shape=(1, 9, 9), order="shuffled", momentum=0.9, **TURNS[kind])
    compare(agreed, shape=(1, 9, 9))


@pytest.mark.parametrize("kind", TURNS)
def test_batch_norm_whose_statistics_travel(kind: str) -> None:
    arguments = {"inputs": 6, "hidden": [9], "outputs": 3, "batch_norm": True}
    compare(manifest(arguments=arguments, order="shuffled", momentum=0.5, **TURNS[kind]))


def test_a_residual_network() -> None:
    arguments = {"channels": 1, "outputs": 3}
    agreed = manifest(ZOO + "resnet20", arguments, shape=(1, 8, 8), epochs=1, momentum=0.9, turn_steps=2)
    compare(agreed, shape=(1, 8, 8))


@pytest.mark.parametrize("rate", ["step", "cosine"])
def test_the_learning_rate_follows_the_trials_epoch(rate: str) -> None:
    compare(manifest(schedule=rate, schedule_every=2, schedule_factor=0.5, epochs=5, turns_per_epoch=2))


def test_one_logit() -> None:
    arguments = {"inputs": 6, "hidden": [4], "outputs": 1}
    compare(manifest(arguments=arguments, classes=2, loss="binary-cross-entropy"), classes=2)


def test_regression() -> None:
    arguments = {"inputs": 6, "hidden": [4], "outputs": 2}
    compare(manifest(arguments=arguments, classes=None, loss="mse"), classes=None)


def test_another_thread_trains_to_the_same_bits() -> None:
    agreed = manifest(arguments={"inputs": 6, "hidden": [64], "outputs": 3, "dropout": 0.5})
    worker = Worker(agreed, Split(samples(40), samples(0)), device=CPU)
    turn = schedule(agreed).turn(1)
    here = worker.train(turn, worker.initial(), SEEDS["ash"]).weights
    results = []
    torch.manual_seed(12345)  # what else happens in the process must not matter

    def work() -> None:
        results.append(worker.train(turn, worker.initial(), SEEDS["ash"]).weights)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [here]


def test_every_part_of_the_seed_matters() -> None:
    """The comparison above would pass if dropout or order were ignored on both sides; this one would not."""
    for changed in ({}, {"dropout": 0.5}):
        agreed = manifest(arguments={"inputs": 6, "hidden": [64], "outputs": 3, **changed})
        worker = Worker(agreed, Split(samples(40), samples(0)), device=CPU)
        plan = schedule(agreed)
        first = worker.train(plan.turn(1), worker.initial(), SEEDS["ash"]).weights
        assert first == worker.train(plan.turn(1), worker.initial(), SEEDS["ash"]).weights
        assert first != worker.train(plan.turn(1), worker.initial(), SEEDS["birch"]).weights
        # Turn 2 is another peer's, of the same epoch: the same order of samples, but another seed for dropout.
        second = worker.train(plan.turn(2), worker.initial(), SEEDS["ash"]).weights
        assert (first == second) == (not changed)
