"""Real public data through the plug-ins; see the README of the data folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ppdl_mq.config.settings import OwnData
from ppdl_mq.numeric import flatten
from ppdl_mq.protocol.schedule import Schedule
from ppdl_mq.training import models
from ppdl_mq.training.data.prepare import load_split
from ppdl_mq.training.worker import Worker

from . import oracle
from .trials import CPU, SEEDS, ZOO, manifest

DATA = Path(__file__).parents[2].parent / "shared" / "data"
SEED = SEEDS["ash"]

HOSPITALS = {"cleveland": 303, "hungarian": 261, "switzerland": 46, "va": 130}
COLUMNS: dict[str, Any] = {  # slope, ca and thal are missing nearly everywhere but in Cleveland
    "label": 13,
    "header": False,
    "drop": [10, 11, 12],
    "drop_missing": True,
    "labels": {"0": 0, "1": 1, "2": 1, "3": 1, "4": 1},
}


CONSTANTS = {  # rough and round: shared by all, so that "old" means the same in every hospital
    "standardise": "manifest",
    "mean": (53.0, 0.75, 3.0, 130.0, 220.0, 0.15, 0.6, 140.0, 0.4, 0.9),
    "std": (9.0, 0.4, 1.0, 20.0, 90.0, 0.35, 0.8, 25.0, 0.5, 1.0),
}


def need(path: str) -> Path:
    found = DATA / path
    if not found.exists():
        pytest.skip(f"needs the data file {path}")
    return found


def own(name: str, holdout: float = 0.2, **arguments: Any) -> OwnData:
    return OwnData(callable=f"ppdl_mq.training.data:{name}", arguments=arguments, holdout=holdout)


def heart(**training: Any):
    arguments = {"inputs": 10, "outputs": 2}
    return manifest(
        ZOO + "logistic_regression",
        arguments,
        shape=(10,),
        classes=2,
        data=CONSTANTS,
        **{"turn_steps": 4, "turns_per_epoch": 5, "epochs": 4, "learning_rate": 0.03, **training},
    )


def test_four_hospitals_have_the_published_rows() -> None:
    folder = need("heart")
    found = {}
    for hospital in HOSPITALS:
        settings = own("csv", 0.0, path=f"processed.{hospital}.data", **COLUMNS)
        found[hospital] = load_split(settings, heart(), SEED, folder=folder).train
    assert {name: len(rows) for name, rows in found.items()} == HOSPITALS
    assert sum(HOSPITALS.values()) == 740
    together = found["cleveland"].targets
    assert int(together.sum()) == 139


def test_the_table_of_all_hospitals_gives_the_same_rows() -> None:
    folder = need("heart")
    settings = own("csv", 0.0, path="processed.va.data", **COLUMNS)
    alone = load_split(settings, heart(), SEED, folder=folder).train
    settings = own(
        "csv",
        0.0,
        path="heart_four_hospitals.csv",
        label="num",
        labels=COLUMNS["labels"],
        drop=["slope", "ca", "thal"],
        drop_missing=True,
        where={"hospital": "va"},
    )
    named = load_split(settings, heart(), SEED, folder=folder).train
    assert torch.equal(named.inputs, alone.inputs)
    assert torch.equal(named.targets, alone.targets)


def test_the_heart_trial_is_exact_and_learns() -> None:
    folder = need("heart")
    agreed = heart(order="shuffled", momentum=0.5)
    seeds = {name: bytes([number]) * 32 for number, name in enumerate(HOSPITALS)}
    workers = {}
    for hospital in HOSPITALS:
        settings = own("csv", path=f"processed.{hospital}.data", **COLUMNS)
        workers[hospital] = Worker(agreed, load_split(settings, agreed, seeds[hospital], folder=folder), device=CPU)
    plan = Schedule(trial_id=bytes(32), peers=tuple(sorted(HOSPITALS)), epochs=4, turns_per_epoch=5, order=agreed.order)
    weights = workers[plan.founder].initial()
    for number in range(1, plan.turns + 1):
        turn = plan.turn(number)
        weights = workers[turn.peer].train(turn, weights, seeds[turn.peer]).weights
    data = {name: (worker.split.train.inputs, worker.split.train.targets) for name, worker in workers.items()}
    turns = [plan.turn(number) for number in range(1, plan.turns + 1)]
    build = lambda: models.logistic_regression(10, 2)  # noqa: E731
    assert flatten.flatten(oracle.pooled_sgd(build, agreed.training, turns, data, seeds)) == weights
    found = [worker.evaluate(weights) for worker in workers.values()]
    right = sum(each.accuracy * each.samples for each in found)
    assert right / sum(each.samples for each in found) > 0.72


def test_mnist() -> None:
    folder = need("mnist")
    agreed = manifest(
        arguments={"inputs": 784, "hidden": [32], "outputs": 10},
        shape=(784,),
        classes=10,
        batch_size=64,
        turn_steps=300,
    )
    settings = own(
        "idx",
        images_path="train-images-idx3-ubyte.gz",
        labels_path="train-labels-idx1-ubyte.gz",
        holdout_images_path="t10k-images-idx3-ubyte.gz",
        holdout_labels_path="t10k-labels-idx1-ubyte.gz",
    )
    split = load_split(settings, agreed, SEED, folder=folder)
    assert (len(split.train), len(split.holdout)) == (60_000, 10_000)
    assert split.train.targets[:5].tolist() == [5, 0, 4, 1, 9]
    assert float(split.train.inputs.mean()) == pytest.approx(0.1307, abs=1e-4)
    worker = Worker(agreed, split, device=CPU)
    turn = Schedule(trial_id=bytes(32), peers=("ash",), epochs=1, turns_per_epoch=1, order="fixed").turn(1)
    assert worker.evaluate(worker.train(turn, worker.initial(), SEED).weights).accuracy > 0.85


def test_pneumonia() -> None:
    folder = need("medmnist")
    agreed = manifest(
        ZOO + "small_cnn",
        {"channels": 1, "size": 28, "outputs": 2},
        shape=(1, 28, 28),
        classes=2,
        batch_size=32,
        turn_steps=60,
        momentum=0.9,
        learning_rate=0.05,
        data={"standardise": "manifest", "mean": (0.5,), "std": (0.25,)},
    )
    names = {"inputs": "train_images", "targets": "train_labels"}
    kept = {"holdout_inputs": "val_images", "holdout_targets": "val_labels"}
    settings = own("npz", path="pneumoniamnist_rebuilt.npz", **names, **kept)
    split = load_split(settings, agreed, SEED, folder=folder)
    assert (len(split.train), len(split.holdout), int(split.train.targets.sum())) == (4708, 524, 3494)
    worker = Worker(agreed, split, device=CPU)
    turn = Schedule(trial_id=bytes(32), peers=("ash",), epochs=1, turns_per_epoch=1, order="fixed").turn(1)
    assert worker.evaluate(worker.train(turn, worker.initial(), SEED).weights).accuracy > 0.8


def test_adult_with_categories() -> None:
    folder = need("tables")
    settings = own(
        "csv",
        path="adult_train.csv",
        label="income",
        labels={"<=50K": 0, ">50K": 1},
        features=["age", "sex"],
        categories={"sex": ["Female", "Male"]},
        where={"education": "HS-grad"},
    )
    agreed = manifest(ZOO + "logistic_regression", {"inputs": 3, "outputs": 2}, shape=(3,), classes=2)
    split = load_split(settings, agreed, SEED, folder=folder)
    assert len(split.train) + len(split.holdout) == 10_501
    assert bool((split.train.inputs[:, 1:].sum(1) == 1).all())
