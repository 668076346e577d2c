from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from ppdl_mq.config.settings import OwnData
from ppdl_mq.errors import DataError
from ppdl_mq.training.data import Samples, Split
from ppdl_mq.training.data.prepare import load_split, prepare

from .trials import SEEDS, manifest, samples

SEED = SEEDS["ash"]
X = torch.arange(60.0).reshape(10, 6)
Y = torch.arange(10) % 3


def ready(rows: Samples | Split, holdout: float = 0.0, seed: bytes = SEED, **kind) -> Split:
    return prepare(rows, manifest(**kind), seed, holdout=holdout)


def test_the_holdout_is_private_whole_and_repeatable() -> None:
    first = ready(Samples(X, Y), 0.3)
    assert (len(first.train), len(first.holdout)) == (7, 3)
    assert sorted([*first.train.inputs[:, 0].tolist(), *first.holdout.inputs[:, 0].tolist()]) == X[:, 0].tolist()
    assert torch.equal(first.holdout.inputs, ready(Samples(X, Y), 0.3).holdout.inputs)
    assert not torch.equal(first.holdout.inputs, ready(Samples(X, Y), 0.3, SEEDS["birch"]).holdout.inputs)
    assert torch.equal(first.train.targets, (first.train.inputs[:, 0] / 6).long() % 3)  # rows stay together
    assert len(ready(Samples(X, Y)).holdout) == 0
    with pytest.raises(DataError):
        ready(Samples(X[:1], Y[:1]), 0.9)


def test_an_own_split_is_kept() -> None:
    found = ready(Split(Samples(X, Y), Samples(X[:2], Y[:2])), 0.9)
    assert (len(found.train), len(found.holdout)) == (10, 2)
    assert len(ready(Split(Samples(X, Y), Samples(X[:0], Y[:0])), 0.9).holdout) == 0


@pytest.mark.parametrize(
    ("loss", "dtype", "shape"),
    [
        ("cross-entropy", torch.int64, (10,)),
        ("binary-cross-entropy", torch.float32, (10, 1)),
        ("mse", torch.float32, (10, 1)),
    ],
)
@pytest.mark.parametrize("given", [torch.uint8, torch.int64, torch.float64, torch.bool])
def test_targets_come_as_the_loss_takes_them(loss, dtype, shape, given) -> None:
    for targets in ((Y % 2).to(given), (Y % 2).to(given).reshape(-1, 1)):
        found = ready(Samples(X.double(), targets), loss=loss, classes=None if loss == "mse" else 2).train
        assert (found.inputs.dtype, found.targets.dtype, found.targets.shape) == (torch.float32, dtype, shape)
        assert found.targets.flatten().tolist() == (Y % 2).tolist()


@pytest.mark.parametrize(
    ("given", "agreed"),
    [((6,), (6,)), ((2, 3), (6,)), ((2, 3), (1, 2, 3)), ((1, 2, 3), (2, 3)), ((6, 1), (6,))],
)
def test_shapes_that_cannot_be_confused(given, agreed) -> None:
    assert ready(Samples(X.reshape(10, *given), Y), shape=agreed).train.inputs.shape == (10, *agreed)


@pytest.mark.parametrize(
    ("given", "agreed"), [((6,), (5,)), ((6,), (2, 3)), ((3, 2), (2, 3)), ((2, 3), (3, 2)), ((6,), (7,))]
)
def test_shapes_that_differ(given, agreed) -> None:
    with pytest.raises(DataError):
        ready(Samples(X.reshape(10, *given), Y), shape=agreed)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_found(bad: float) -> None:
    inputs = X.clone()
    inputs[4, 2] = bad
    with pytest.raises(DataError, match="row 5, column 3"):
        ready(Samples(inputs, Y))
    targets = Y.double()
    targets[3] = bad
    for kind in ({}, {"loss": "mse", "classes": None}):
        with pytest.raises(DataError, match="row 4"):
            ready(Samples(X, targets), **kind)
    with pytest.raises(DataError, match="hold-out row 5"):
        ready(Split(Samples(X, Y), Samples(inputs, Y)))


@pytest.mark.parametrize("bad", [3, -1, 0.5])
def test_an_unknown_label_is_found(bad: float) -> None:
    targets = Y.double()
    targets[7] = bad
    with pytest.raises(DataError, match="row 8") as caught:
        ready(Samples(X, targets))
    assert "0 to 2" in str(caught.value)


def test_no_rows_and_unequal_rows() -> None:
    with pytest.raises(DataError):
        ready(Samples(X[:0], Y[:0]))
    with pytest.raises(DataError):
        Samples(X, Y[:9])
    with pytest.raises(DataError):
        ready(Samples(X, torch.nn.functional.one_hot(Y)))


def test_own_constants_are_of_the_training_rows_and_scale_the_holdout_too() -> None:
    inputs = samples(50).inputs
    inputs[:, 5] = 3.0  # a constant column has no std
    given = Samples(inputs, torch.zeros(50))
    plain, scaled = ready(given, 0.2), ready(given, 0.2, data={"standardise": "own"})
    mean, std = plain.train.inputs.mean(0), plain.train.inputs.std(0, correction=0)
    std[5] = 1
    for before, after in ((plain.train, scaled.train), (plain.holdout, scaled.holdout)):
        assert torch.allclose(after.inputs, (before.inputs - mean) / std, atol=1e-5)
    assert torch.allclose(scaled.train.inputs.mean(0), torch.zeros(6), atol=1e-5)


def test_own_constants_of_images_are_one_for_each_channel() -> None:
    images = torch.rand(20, 3, 4, 4) * torch.tensor([1.0, 10, 100]).reshape(3, 1, 1)
    found = ready(Samples(images, torch.zeros(20)), shape=(3, 4, 4), data={"standardise": "own"}).train.inputs
    assert torch.allclose(found.mean((0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(found.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4)
    flat = ready(Samples(images[:, 0], torch.zeros(20)), shape=(4, 4), data={"standardise": "own"}).train.inputs
    assert abs(float(flat.mean())) < 1e-4
    assert float(flat[:, 0, 0].mean()) != 0


def test_the_manifests_constants() -> None:
    data = {"standardise": "manifest", "mean": (1.0, 2, 3, 4, 5, 6), "std": (1.0, 1, 1, 1, 1, 2)}
    found = ready(Samples(X, Y), data=data).train.inputs
    assert torch.equal(found, (X - torch.arange(1.0, 7)) / torch.tensor([1.0, 1, 1, 1, 1, 2]))
    data = {"standardise": "manifest", "mean": (0.5,), "std": (0.25,)}
    assert torch.equal(ready(Samples(X, Y), data=data).train.inputs, (X - 0.5) / 0.25)


def test_a_plug_in_is_called_with_paths_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b,c,d,e,f,y\n" + "1,2,3,4,5,6,2\n" * 10)
    own = OwnData(callable="ppdl_mq.training.data:csv", arguments={"path": "rows.csv", "label": "y"}, holdout=0.2)
    found = load_split(own, manifest(), SEED, folder=tmp_path)
    assert (len(found.train), len(found.holdout)) == (8, 2)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("ppdl_mq.training.data:csv", {"path": "gone.csv", "label": "y"}, "gone.csv"),
        ("ppdl_mq.training.data:csv", {"path": "gone.csv"}, "'label'"),
        ("ppdl_mq.training.data:csv", {"path": "gone.csv", "label": "y", "hedaer": True}, "Did you mean header"),
        ("ppdl_mq.training.data:idx", {"images_path": "gone", "labels_path": "gone"}, "gone"),
        ("ppdl_mq.training.data:npz", {"path": "gone.npz"}, "gone.npz"),
        ("ppdl_mq.training.data:parquet", {"path": "gone.parquet", "label": "y"}, "gone.parquet"),
        ("ppdl_mq.training.data:image_folder", {"path": "gone", "classes": ["a"], "size": [1, 1]}, "gone"),
        ("builtins:list", {}, "neither"),
    ],
)
def test_faults_of_the_settings(tmp_path: Path, name: str, arguments, said: str) -> None:
    own = OwnData(callable=name, arguments=arguments)
    with pytest.raises(DataError) as caught:
        load_split(own, manifest(), SEED, folder=tmp_path)
    assert said in str(caught.value)
