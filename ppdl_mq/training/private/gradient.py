"""The gradient of a private step: of each row by itself, none longer than the clip, and noise over their sum.

Source: docs/PRIVACY.md, "One step"; Abadi et al., "Deep Learning with Differential Privacy" (arXiv 1607.00133),
algorithm 1.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Final

import torch
from torch.func import functional_call

from ppdl_mq.errors import TrainingError
from ppdl_mq.training.loop import Loss, torch_errors
from ppdl_mq.training.private.randomness import Randomness

log = logging.getLogger("ppdl_mq.training")

GRID_BITS: Final = 20  # a clip is so many bits of the grid on which gradients are added up

_SLACK: Final = 1 + 2.0**-20  # a norm is measured in double precision, with an error far below this
_FAULTS: Final = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, ArithmeticError)


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

    Rows are computed one after the other. Together, one row would change the others' gradients in their last bits, and
    who chooses the weights can choose them such that such a bit turns a whole gradient round.

    Args:
        mechanism: clip and noise.
        module: in training mode and on its device while this is called.
        loss: (outputs, targets) -> mean over the rows.
        randomness: of the turn.
        expected_rows: how many rows a step has on average. What is divided by must not tell how many it has.
    """

    def __init__(
        self, mechanism: Mechanism, module: torch.nn.Module, loss: Loss, randomness: Randomness, *, expected_rows: int
    ) -> None:
        self._mechanism = mechanism
        self._module = module
        self._loss = loss
        self._randomness = randomness
        self._expected_rows = expected_rows
        self._parameters = trained(module)
        self._has_failed = False

    def __call__(self, step: int, batch: torch.Tensor, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Set the gradients of one step; return the mean loss of its rows, (), 0 without any, which is not private.

        Args:
            step: of the turn, from 0.
            batch: the numbers of the rows, int64 (k).
            inputs: (k, *shape).
            targets: (k) or (k, m).
        """
        total, losses = torch.zeros(sum(map(_elements, self._parameters)), dtype=torch.int64), 0.0
        for row, one, target in zip(batch.tolist(), inputs, targets, strict=True):
            # Drawn for this row alone: what dropout does to the others must not depend on whether it is here.
            torch.manual_seed(self._randomness.seed(step, row))
            try:
                gradient, loss = gradient_of_row(self._module, self._loss, self._parameters, one, target)
            except torch.OutOfMemoryError:
                raise  # no row's fault
            except _FAULTS as fault:
                self._say(fault)
                continue
            total += clipped(gradient, self._mechanism.clip).cpu()
            losses += loss if math.isfinite(loss) else 0.0
        deviation = self._mechanism.noise * 2.0**GRID_BITS
        total += torch.from_numpy(self._randomness.noise(step, len(total), deviation=deviation))
        self._put(total.to(torch.float64) * (self._mechanism.clip * 2.0**-GRID_BITS / self._expected_rows))
        return torch.tensor(losses / max(1, len(batch)), dtype=torch.float64)

    def _put(self, gradient: torch.Tensor) -> None:
        """Put a flat gradient into the parameters, in their shapes, dtypes and places."""
        sizes = [_elements(each) for each in self._parameters]
        for parameter, part in zip(self._parameters, torch.split(gradient, sizes), strict=True):
            if parameter.is_complex():
                part = torch.view_as_complex(part.reshape(*parameter.shape, 2))
            parameter.grad = part.reshape(parameter.shape).to(parameter.dtype).to(parameter.device)

    def _say(self, fault: Exception) -> None:
        """Log that a row cannot be trained on: only here, since what stops a peer is seen by all."""
        if not self._has_failed:
            self._has_failed = True
            log.warning("A row on which the model fails (%s) counts as none.", type(fault).__name__)


def trained(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Return the parameters that are trained, each once, in the order of `named_parameters()`."""
    return [each for each in module.parameters() if each.requires_grad]


def gradient_of_row(
    module: torch.nn.Module,
    loss: Loss,
    parameters: list[torch.nn.Parameter],
    one: torch.Tensor,
    target: torch.Tensor,
) -> tuple[torch.Tensor, float]:
    """Return the gradient of one row, flat in double precision (a complex element is two), and its loss.

    The buffers that the model sees are copies that are thrown away: what one row leaves in them does not meet the next.

    Args:
        module: in training mode.
        loss: (outputs, targets) -> mean over the rows.
        parameters: by which to derive.
        one: (*shape); it is copied, since a model may write into what it is given.
        target: () or (m).
    """
    buffers = {name: each.clone() for name, each in module.named_buffers()}
    value = loss(functional_call(module, buffers, (one.clone()[None],)), target.clone()[None])
    found = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([_wide(each) for each in found]), float(value.detach())


def clipped(gradient: torch.Tensor, clip: float) -> torch.Tensor:
    """Return a gradient that is no longer than the clip, in units of clip / 2**GRID_BITS: int64 (n).

    Whatever the gradient is, the L2 norm of the result is at most 2**GRID_BITS: elements are rounded towards zero. One
    that is not finite becomes 0.

    Args:
        gradient: double precision, (n).
        clip: the largest L2 norm.
    """
    norm = float(gradient.square().sum().sqrt())
    if not math.isfinite(norm):
        return torch.zeros_like(gradient, dtype=torch.int64)
    return (gradient * (2.0**GRID_BITS / max(norm * _SLACK, clip))).trunc().to(torch.int64)


def check_model(module: torch.nn.Module, loss: Loss, one: torch.Tensor, target: torch.Tensor) -> None:
    """Find out before anything begins whether a model can be trained row by row.

    Args:
        module: in training mode.
        loss: (outputs, targets) -> mean over the rows.
        one: any row, (*shape).
        target: its own, () or (m).

    Raises:
        TrainingError: it normalises over the rows of a batch, or has no gradient.
    """
    for part in module.modules():
        if isinstance(part, torch.nn.modules.batchnorm._NormBase) and part.track_running_stats:
            raise TrainingError(
                f"The model has {type(part).__name__}, which needs rows together: no single row could be protected.",
                hint="Agree on a model without it (batch_norm = false, or GroupNorm), or take [privacy] out.",
            )
    parameters = trained(module)
    if not parameters:
        raise TrainingError("The model has no parameter to train.", hint="Agree on another model.")
    with torch_errors("The model has no gradient of a single row"):
        gradient_of_row(module, loss, parameters, one, target)


def _elements(parameter: torch.Tensor) -> int:
    return parameter.numel() * (2 if parameter.is_complex() else 1)


def _wide(gradient: torch.Tensor) -> torch.Tensor:
    """Return a gradient flat and in double precision, which MPS does not have."""
    on_device = gradient.cpu() if gradient.device.type == "mps" else gradient
    real = torch.view_as_real(on_device.resolve_conj()) if on_device.is_complex() else on_device
    return real.reshape(-1).to(torch.float64)
