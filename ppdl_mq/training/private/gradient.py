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
from ppdl_mq.training import determinism
from ppdl_mq.training.loop import Loss, torch_errors
from ppdl_mq.training.private.randomness import Randomness

log = logging.getLogger("ppdl_mq.training")

GRID_BITS: Final = 20  # a clip is so many bits of the grid on which gradients are added up

_SLACK: Final = 1 + 2.0**-20  # a norm is measured in double precision, with an error far below this
# Words of what torch raises as a plain RuntimeError where there is too little memory.
_WANT_OF_MEMORY: Final = ("DefaultCPUAllocator", "ALLOC_FAILED", "out of memory")


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
        self._sizes = [each.numel() * (2 if each.is_complex() else 1) for each in self._parameters]
        self._rows = self._passed_over = 0

    def __call__(self, step: int, batch: torch.Tensor, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Set the gradients of one step; return the mean loss of its rows, (), 0 without any, which is not private.

        Args:
            step: of the turn, from 0.
            batch: the numbers of the rows, int64 (k).
            inputs: (k, *shape).
            targets: (k) or (k, m).
        """
        total = torch.zeros(sum(self._sizes), dtype=torch.int64)
        losses = []
        for row, one, target in zip(batch.tolist(), inputs, targets, strict=True):
            # Drawn for this row alone: what dropout does to the others must not depend on whether it is here.
            determinism.reseed(self._randomness.seed(step, row), one.device)
            self._rows += 1
            try:
                gradient, loss = gradient_of_row(self._module, self._loss, one, target)
            except Exception as fault:
                if _is_for_want_of_memory(fault):
                    raise
                self._passed_over += 1
                log.debug("A row on which the model fails (%s) counts as none.", type(fault).__name__)
                continue
            taken = clipped(gradient, self._mechanism.clip)
            if taken is None:
                self._passed_over += 1
            else:
                total += taken.cpu()
            losses += [loss] if math.isfinite(loss) else []
        deviation = self._mechanism.noise * 2.0**GRID_BITS
        total += torch.from_numpy(self._randomness.noise(step, len(total), deviation=deviation))
        self._put(total.to(torch.float64) * (self._mechanism.clip * 2.0**-GRID_BITS / self._expected_rows))
        mean = sum(losses) / len(losses) if losses else math.nan if len(batch) else 0.0
        return torch.tensor(mean, dtype=torch.float32 if inputs.device.type == "mps" else torch.float64)

    def _put(self, gradient: torch.Tensor) -> None:
        """Put a flat gradient into the parameters, in their shapes, dtypes and places."""
        for parameter, part in zip(self._parameters, torch.split(gradient, self._sizes), strict=True):
            if parameter.is_complex():
                part = torch.view_as_complex(part.reshape(*parameter.shape, 2))
            parameter.grad = part.reshape(parameter.shape).to(parameter.dtype).to(parameter.device)

    def say(self) -> None:
        """Log how many rows counted as none: only here, since what stops a peer is seen by all."""
        if self._passed_over:
            log.warning(
                "Of %d rows, %d had no finite gradient, or the model failed on them; they count as none%s.",
                *(self._rows, self._passed_over),
                ": nothing but noise was trained" if self._passed_over == self._rows else "",
            )


def trained(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Return the parameters that are trained, each once, in the order of `parameters()`."""
    return [each for each in module.parameters() if each.requires_grad]


def gradient_of_row(
    module: torch.nn.Module, loss: Loss, one: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """Return the gradient of one row, flat in double precision (a complex element is two), and its loss.

    All that the model sees are copies that are thrown away: a model may write into what it is given, into its buffers
    and its parameters (torch's Embedding with max_norm does), and what one row leaves there must not meet the next.

    Args:
        module: in training mode.
        loss: (outputs, targets) -> mean over the rows.
        one: (*shape).
        target: () or (m).
    """
    parameters = {
        name: torch.nn.Parameter(each.detach().clone(), requires_grad=each.requires_grad)
        for name, each in module.named_parameters()
    }
    buffers = {name: each.clone() for name, each in module.named_buffers()}
    outputs = functional_call(module, {**parameters, **buffers}, (one.clone()[None],))
    value = loss(outputs, target.clone()[None])
    derived = [each for each in parameters.values() if each.requires_grad]
    found = torch.autograd.grad(value, derived, allow_unused=True, materialize_grads=True)
    return torch.cat([_wide(each) for each in found]), float(value.detach())


def clipped(gradient: torch.Tensor, clip: float) -> torch.Tensor | None:
    """Return a gradient that is no longer than the clip, in units of clip / 2**GRID_BITS: int64 (n).

    Whatever the gradient is, the L2 norm of the result is at most 2**GRID_BITS: elements are rounded towards zero.
    Of one that is not finite nothing is taken: None.

    Args:
        gradient: double precision, (n).
        clip: the largest L2 norm.
    """
    norm = float(gradient.square().sum().sqrt())
    if not math.isfinite(norm):
        return None
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
    if not trained(module):
        raise TrainingError("The model has no parameter to train.", hint="Agree on another model.")
    with torch_errors("The model has no gradient of a single row"):
        gradient_of_row(module, loss, one, target)


def _is_for_want_of_memory(fault: Exception) -> bool:
    """Tell whether the machine has too little memory, which is no row's fault."""
    is_said = isinstance(fault, RuntimeError) and any(word in str(fault) for word in _WANT_OF_MEMORY)
    return is_said or isinstance(fault, MemoryError)


def _wide(gradient: torch.Tensor) -> torch.Tensor:
    """Return a gradient flat and in double precision, which MPS does not have."""
    on_device = gradient.cpu() if gradient.device.type == "mps" else gradient
    real = torch.view_as_real(on_device.resolve_conj()) if on_device.is_complex() else on_device
    return real.reshape(-1).to(torch.float64)
