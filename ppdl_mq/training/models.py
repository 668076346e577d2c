"""The zoo: models that a manifest can name without anybody writing code.

None of them uses an operation that has no deterministic form on a GPU; hence strides instead of pooling.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ppdl_mq.errors import ModelError

# Activations that change the shape, or take more than one input.
_OTHER_SHAPES = {"glu", "multiheadattention", "softmax2d"}


def activations() -> dict[str, type[nn.Module]]:
    """Return every activation of torch.nn that keeps the shape, by its name in lower case."""
    names = (name for name in nn.modules.activation.__all__ if name.lower() not in _OTHER_SHAPES)
    return {name.lower(): getattr(nn, name) for name in names}


def activation_factory(name: str, arguments: Mapping[str, Any] | None = None) -> Callable[[], nn.Module]:
    """Return what makes a new activation module at each call.

    Args:
        name: a class of torch.nn in any spelling: `ReLU`, `leaky_relu`, `softplus`.
        arguments: its keyword arguments.

    Raises:
        ModelError: there is no such activation, or it does not take the arguments.
    """
    known = activations()
    found = known.get(name.lower().replace("_", "").replace("-", ""))
    if found is None:
        raise ModelError(f"There is no activation {name!r}.", hint=f"Use one of {', '.join(sorted(known))}.")
    given = dict(arguments or {})
    if "dim" in inspect.signature(found).parameters:  # the softmax family
        given.setdefault("dim", 1)

    def make() -> nn.Module:
        try:
            return found(**given)
        except TypeError as error:
            raise ModelError(
                f"The activation {name!r} does not take these arguments.",
                hint=f"Its arguments are {inspect.signature(found)}; set them as activation_arguments.",
            ) from error

    return make


def logistic_regression(inputs: int, outputs: int) -> nn.Module:
    """Return one linear layer: (rows, ...) with `inputs` values a row -> (rows, outputs) logits."""
    _positive(inputs=inputs, outputs=outputs)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, outputs))


def mlp(
    inputs: int,
    hidden: Sequence[int],
    outputs: int,
    activation: str = "relu",
    activation_arguments: Mapping[str, Any] | None = None,
    dropout: float = 0.0,
    batch_norm: bool = False,
) -> nn.Module:
    """Return a multilayer perceptron: (rows, ...) with `inputs` values a row -> (rows, outputs).

    Args:
        inputs: values of one sample, all axes together.
        hidden: widths of the hidden layers.
        outputs: logits or values.
        activation: any of torch.nn that keeps the shape.
        activation_arguments: its keyword arguments.
        dropout: probability, after each activation.
        batch_norm: whether each hidden layer is normalised before its activation.
    """
    _positive(inputs=inputs, outputs=outputs)
    if isinstance(hidden, int | str):
        raise ModelError("The argument hidden is not a list.", hint="Write hidden = [64] for one layer of width 64.")
    if not 0 <= dropout < 1:
        raise ModelError("The argument dropout is not a probability below 1.", hint="Use 0 for none.")
    make = activation_factory(activation, activation_arguments)
    layers: list[nn.Module] = [nn.Flatten()]
    width = inputs
    for following in hidden:
        _positive(hidden=following)
        layers.append(nn.Linear(width, following))
        if batch_norm:
            layers.append(nn.BatchNorm1d(following))
        layers.append(make())
        if dropout:
            layers.append(nn.Dropout(dropout))
        width = following
    layers.append(nn.Linear(width, outputs))
    return nn.Sequential(*layers)


def small_cnn(channels: int = 1, size: int = 28, outputs: int = 10, activation: str = "relu") -> nn.Module:
    """Return two strided convolutions and two linear layers: (rows, channels, size, size) -> (rows, outputs)."""
    _positive(channels=channels, size=size, outputs=outputs)
    make = activation_factory(activation)
    side = (size + 3) // 4  # halved twice, each time rounded up
    return nn.Sequential(
        nn.Conv2d(channels, 16, kernel_size=5, stride=2, padding=2),
        make(),
        nn.Conv2d(16, 32, kernel_size=3, stride=2, padding=1),
        make(),
        nn.Flatten(),
        nn.Linear(32 * side * side, 64),
        make(),
        nn.Linear(64, outputs),
    )


def resnet20(channels: int = 3, outputs: int = 10, activation: str = "relu") -> nn.Module:
    """Return the CIFAR ResNet with 20 layers: (rows, channels, height, width) -> (rows, outputs).

    Source: He et al. (arXiv 1512.03385), section 4.2, n = 3, shortcuts without parameters.
    """
    _positive(channels=channels, outputs=outputs)
    make = activation_factory(activation)
    layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), make()]
    width = 16
    for following in (16, 32, 64):
        for position in range(3):
            stride = 2 if position == 0 and following != width else 1
            layers.append(_Block(width, following, stride, make))
            width = following
    return nn.Sequential(*layers, _Mean(), nn.Linear(64, outputs))


class _Block(nn.Module):
    """Two convolutions and a shortcut that drops every other pixel and pads channels with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            make(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.last = make()
        self.stride = stride
        self.padding = (outputs - inputs) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, inputs, h, w) -> (rows, outputs, h / stride, w / stride)."""
        shortcut = x[:, :, :: self.stride, :: self.stride]
        shortcut = functional.pad(shortcut, (0, 0, 0, 0, self.padding, self.padding))
        out: torch.Tensor = self.last(self.body(x) + shortcut)
        return out


class _Mean(nn.Module):
    """Global average pooling; torch's adaptive pooling has no deterministic backward on a GPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, channels, h, w) -> (rows, channels)."""
        return x.mean(dim=(2, 3))


def _positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ModelError(f"The argument {name} is not a whole number above 0.", hint="Correct it in the manifest.")
