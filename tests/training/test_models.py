from __future__ import annotations

import pytest
import torch

from ppdl_mq.errors import ModelError
from ppdl_mq.training import models

NAMES = sorted(models.activations())


def test_torch_has_many_activations_and_all_are_known() -> None:
    assert {"relu", "sigmoid", "tanh", "gelu", "silu", "softplus", "leakyrelu", "mish", "prelu", "elu"} <= set(NAMES)
    assert len(NAMES) >= 25


@pytest.mark.parametrize("name", NAMES)
def test_any_activation_trains(name: str) -> None:
    given = {"threshold": 0.1, "value": 0.0} if name == "threshold" else {}
    model = models.mlp(4, [6, 6], 3, activation=name, activation_arguments=given)
    model(torch.randn(5, 4)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("spelling", ["LeakyReLU", "leaky_relu", "leaky-relu", "leakyrelu"])
def test_spellings(spelling: str) -> None:
    assert isinstance(models.activation_factory(spelling)(), torch.nn.LeakyReLU)


def test_activation_arguments_reach_it() -> None:
    assert models.activation_factory("leaky_relu", {"negative_slope": 0.5})()(torch.tensor(-2.0)) == -1


@pytest.mark.parametrize(
    "build",
    [
        lambda: models.mlp(4, [3], 2, activation="rely"),
        lambda: models.mlp(4, [3], 2, activation="glu"),
        lambda: models.mlp(4, [3], 2, activation="relu", activation_arguments={"slope": 1}),
        lambda: models.mlp(4, 3, 2),
        lambda: models.mlp(0, [3], 2),
        lambda: models.mlp(4, [0], 2),
        lambda: models.mlp(4, [3], 2.0),
        lambda: models.mlp(4, [3], 2, dropout=1.0),
        lambda: models.logistic_regression(4, True),
    ],
)
def test_nonsense_is_refused(build) -> None:
    with pytest.raises(ModelError):
        build()


def test_shapes() -> None:
    image = torch.randn(2, 3, 28, 28)
    assert models.logistic_regression(28 * 28 * 3, 10)(image).shape == (2, 10)
    assert models.resnet20()(image).shape == (2, 10)
    for size in (7, 8, 9, 28, 32):
        assert models.small_cnn(1, size, 5)(torch.randn(2, 1, size, size)).shape == (2, 5)


def test_resnet_has_twenty_layers_and_the_papers_size() -> None:
    model = models.resnet20()
    weights = [p for name, p in model.named_parameters() if p.dim() > 1]
    assert len(weights) == 20
    assert sum(p.numel() for p in model.parameters()) == 269_722  # "0.27M" in the paper's table 6
