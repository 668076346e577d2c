"""The gradient of a private step: of each row by itself, none longer than the clip, and noise over their sum.

Source: docs/PRIVACY.md, "One step"; Abadi et al., "Deep Learning with Differential Privacy" (arXiv 1607.00133),
algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch.func import functional_call, grad_and_value, vmap

from ppdl_mq.errors import TrainingError
from ppdl_mq.training.loop import Loss, torch_errors
from ppdl_mq.training.private.randomness import Randomness

GRID_BITS: Final = 24  # a clip is so many bits of the grid on which gradients are added up

_SLACK: Final = 1 + 2.0**-20  # norms are measured in double precision, with an error far below this
_PIECE_BYTES: Final = 1 << 28  # of the gradients of single rows that are held at once

Tensors = Mapping[str, torch.Tensor]
PerRow = Callable[[Tensors, torch.Tensor, torch.Tensor], tuple[Tensors, torch.Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mechanism:
    """What decides how well rows are protected.

    Args:
        clip: the largest L2 norm of one row's gradient.
        noise: standard deviation of the noise over their sum, in units of `clip`.
    """

    clip: float
    noise: float


class PrivateGradient:
    """Puts the gradients of a turn's steps into a module's parameters. For one thread.

    Args:
        mechanism: clip and noise.
        module: in training mode and on its device while this is called.
        loss: (outputs, targets) -> mean over the rows.
        randomness: of the turn.
        expected_rows: how many rows a step has on average. What is divided by must not tell how many it has.
        by_rows: whether the model is to be asked for one row after the other: see `needs_single_rows`.
    """

    def __init__(
        self,
        mechanism: Mechanism,
        module: torch.nn.Module,
        loss: Loss,
        randomness: Randomness,
        *,
        expected_rows: int,
        by_rows: bool,
    ) -> None:
        self._mechanism = mechanism
        self._module = module
        self._randomness = randomness
        self._expected_rows = expected_rows
        self._parameters = trained(module)
        self._per_row = _one_by_one(module, loss) if by_rows else _together(module, loss)
        row_bytes = 24 * sum(map(_elements, self._parameters.values()))  # as they are, in double, as integers
        self._piece_rows = 1 if by_rows else max(1, _PIECE_BYTES // max(1, row_bytes))

    def __call__(self, step: int, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Set the gradients of one step; return the mean loss of its rows, (), 0 without any, which is not private.

        Args:
            step: of the turn, from 0.
            inputs: (k, *shape).
            targets: (k) or (k, m).
        """
        sums = {name: torch.zeros(_elements(each), dtype=torch.int64) for name, each in self._parameters.items()}
        total = torch.zeros((), device=inputs.device)
        at = {name: each.detach() for name, each in self._parameters.items()}  # nothing is to be derived twice
        for start in range(0, len(inputs), self._piece_rows):
            piece = slice(start, start + self._piece_rows)
            gradients, losses = self._per_row(at, inputs[piece], targets[piece])
            total = total + torch.nan_to_num(losses.detach(), nan=0.0, posinf=0.0, neginf=0.0).sum()
            for name, each in clipped_sums(gradients, self._mechanism.clip).items():
                sums[name] += each.cpu()
        noise = self._randomness.noise(step)
        deviation = self._mechanism.noise * 2.0**GRID_BITS
        unit = self._mechanism.clip * 2.0**-GRID_BITS / self._expected_rows
        for name, parameter in self._parameters.items():
            noisy = sums[name] + torch.from_numpy(noise.integers(len(sums[name]), deviation=deviation))
            parameter.grad = _like(noisy.to(torch.float64) * unit, parameter)
        return total / max(1, len(inputs))


def trained(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Return the parameters that are trained, by name, each once."""
    return {name: each for name, each in module.named_parameters() if each.requires_grad}


def _elements(parameter: torch.Tensor) -> int:
    return parameter.numel() * (2 if parameter.is_complex() else 1)


def clipped_sums(gradients: Tensors, clip: float) -> dict[str, torch.Tensor]:
    """Return the sum of gradients that are each shortened to the clip, in units of clip / 2**GRID_BITS.

    Whatever the gradients are, one more row changes the result, as one vector of integers, by an L2 norm of at most
    2**GRID_BITS: elements are rounded towards zero, and sums of integers are exact. A row whose gradient is not finite
    counts as none.

    Args:
        gradients: of each parameter that of each row, (rows, *shape).
        clip: the largest L2 norm, over all parameters together.

    Returns:
        int64 (elements of the parameter), with two for a complex one, by parameter.
    """
    flat = {name: _wide(each) for name, each in gradients.items()}
    norms = torch.stack([each.square().sum(dim=1) for each in flat.values()]).sum(dim=0).sqrt()  # (rows)
    is_finite = torch.isfinite(norms)
    factors = 2.0**GRID_BITS / torch.clamp(norms * _SLACK, min=clip)
    return {
        name: torch.where(is_finite[:, None], each * factors[:, None], 0.0).trunc().to(torch.int64).sum(dim=0)
        for name, each in flat.items()
    }


def needs_single_rows(module: torch.nn.Module, loss: Loss, inputs: torch.Tensor, targets: torch.Tensor) -> bool:
    """Find out whether the gradients of single rows must be computed one after the other: torch.func cannot do all.

    Args:
        module: in training mode.
        loss: (outputs, targets) -> mean over the rows.
        inputs: (1, *shape); any.
        targets: (1) or (1, m).

    Raises:
        TrainingError: the model has BatchNorm, or has no gradient.
    """
    for part in module.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            raise TrainingError(
                "The model has BatchNorm, which mixes the rows of a batch: no single row could be protected.",
                hint="Agree on a model without it (batch_norm = false, or GroupNorm), or take [privacy] out.",
            )
    parameters = trained(module)
    try:
        _together(module, loss)(parameters, inputs, targets)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError):
        with torch_errors("The model has no gradient of a single row"):
            _one_by_one(module, loss)(parameters, inputs, targets)
        return True
    return False


def _of_one_row(module: torch.nn.Module, loss: Loss) -> Callable[..., tuple[Tensors, torch.Tensor]]:
    """Return a function of (parameters, input, target) that gives the gradient and the loss of one row.

    The buffers are copies that are thrown away: what one row leaves in them does not meet the next.
    """

    def row_loss(parameters: Tensors, one_input: torch.Tensor, one_target: torch.Tensor) -> torch.Tensor:
        buffers = {name: each.clone() for name, each in module.named_buffers()}
        outputs = functional_call(module, {**parameters, **buffers}, (one_input[None],))
        return loss(outputs, one_target[None])

    return grad_and_value(row_loss)


def _together(module: torch.nn.Module, loss: Loss) -> PerRow:
    return vmap(_of_one_row(module, loss), in_dims=(None, 0, 0), randomness="different")


def _one_by_one(module: torch.nn.Module, loss: Loss) -> PerRow:
    of_one = _of_one_row(module, loss)

    def per_row(parameters: Tensors, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        found = [of_one(parameters, one, target) for one, target in zip(inputs, targets, strict=True)]
        gradients = {name: torch.stack([gradient[name] for gradient, _ in found]) for name in parameters}
        return gradients, torch.stack([value for _, value in found])

    return per_row


def _wide(gradients: torch.Tensor) -> torch.Tensor:
    """Return gradients of rows as (rows, elements) in double precision; MPS has none."""
    wide = gradients.detach().cpu() if gradients.device.type == "mps" else gradients.detach()
    if wide.is_complex():
        wide = torch.view_as_real(wide.resolve_conj())
    return wide.reshape(len(wide), math.prod(wide.shape[1:])).to(torch.float64)


def _like(flat: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor:
    """Return elements in the shape, dtype and place of a parameter."""
    if parameter.is_complex():
        return torch.view_as_complex(flat.reshape(*parameter.shape, 2)).to(parameter.device, parameter.dtype)
    return flat.reshape(parameter.shape).to(parameter.dtype).to(parameter.device)
