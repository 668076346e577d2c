"""The training loop itself: plain SGD over batches of indices.

Source: docs/TRAINING.md, "One turn".
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional

from ppdl_mq.config.manifest import Training
from ppdl_mq.errors import Interrupted, TrainingError
from ppdl_mq.training.data.samples import Samples
from ppdl_mq.training.rate import learning_rate

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

LOSSES: dict[str, Loss] = {
    "cross-entropy": functional.cross_entropy,
    "binary-cross-entropy": functional.binary_cross_entropy_with_logits,
    "mse": functional.mse_loss,
}


@dataclass(frozen=True, slots=True)
class Tally:
    """What a run of batches came to.

    Args:
        steps: batches trained on.
        samples: rows in them.
        loss: mean over these rows, each measured before its step; None without batches.
    """

    steps: int
    samples: int
    loss: float | None


@dataclass(slots=True)
class Standing:
    """How far a run of batches has come, beside what module, optimizer and generators hold.

    Args:
        steps: batches trained on.
        rows: samples in them.
        total: sum of their losses; double precision, (), on the device that computes.
    """

    steps: int
    rows: int
    total: torch.Tensor

    @classmethod
    def start(cls, device: torch.device) -> Standing:
        """Return where every run starts."""
        # The sum stays on the device, so that no step waits for it. (MPS has no double precision.)
        dtype = torch.float32 if device.type == "mps" else torch.float64
        return cls(steps=0, rows=0, total=torch.zeros((), dtype=dtype, device=device))


class Keep(Protocol):
    """Is called before each batch and after the last, and may write a checkpoint."""

    def __call__(self, standing: Standing, *, is_stopping: bool) -> None:
        """Note where the run stands; `is_stopping` says that it will not go on."""


class Gradient(Protocol):
    """Computes the gradient of one batch."""

    def __call__(self, step: int, batch: torch.Tensor, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Put the gradient of step `step` of the run, from 0, into the parameters; return the mean loss, ()."""


def sgd(module: torch.nn.Module, training: Training, epoch: int) -> torch.optim.SGD:
    """Return a new optimizer, its momentum at zero, with the rate of a trial's epoch."""
    return torch.optim.SGD(
        module.parameters(),
        lr=learning_rate(training, epoch),
        momentum=training.momentum,
        weight_decay=training.weight_decay,
    )


def run(
    module: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    samples: Samples,
    batches: Iterable[torch.Tensor],
    *,
    device: torch.device,
    stop: threading.Event | None = None,
    start: Standing | None = None,
    keep: Keep | None = None,
    gradient: Gradient | None = None,
) -> Tally:
    """Train a module in place.

    Args:
        module: on `device`.
        optimizer: of its parameters.
        loss: (outputs, targets) -> mean over the batch.
        samples: on any device.
        batches: int64 indices (k), on the CPU; all of the run, whatever `start` says.
        device: where to compute.
        stop: ends the run before the next batch.
        start: where an earlier process left the run, if it did; module, optimizer and generators must be there, too.
        keep: writes checkpoints.
        gradient: instead of the plain one of the mean loss.

    Raises:
        Interrupted: `stop` was set.
        TrainingError: torch refused, for instance for want of memory.
    """
    home = samples.inputs.device
    at = start or Standing.start(device)
    if gradient is None:
        gradient = _plain(module, loss)
    module.train()
    with torch_errors("Training failed"):
        for batch in itertools.islice(batches, at.steps, None):
            is_stopping = stop is not None and stop.is_set()
            if keep is not None:
                keep(at, is_stopping=is_stopping)
            if is_stopping:
                raise Interrupted("Training was stopped in the middle of a turn.", hint="Start the peer to finish it.")
            here = batch.to(home)  # (k)
            inputs = samples.inputs[here].to(device)  # (k, *shape)
            targets = samples.targets[here].to(device)  # (k) or (k, 1)
            optimizer.zero_grad()
            value = gradient(at.steps, batch, inputs, targets)  # ()
            optimizer.step()
            at.total += value * len(batch)
            at.steps += 1
            at.rows += len(batch)
        if keep is not None:  # who is stopping does not wait for this result: it would be trained again
            keep(at, is_stopping=stop is not None and stop.is_set())
        mean = at.total.item() / at.rows if at.rows else None
    return Tally(at.steps, at.rows, mean)


def _plain(module: torch.nn.Module, loss: Loss) -> Gradient:
    def gradient(step: int, batch: torch.Tensor, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
        value = loss(module(inputs), targets)
        value.backward()  # type: ignore[no-untyped-call]  # torch has no annotation here
        return value.detach()

    return gradient


@contextmanager
def torch_errors(doing: str) -> Iterator[None]:
    """Turn torch's own exceptions into one sentence.

    Args:
        doing: the sentence's beginning.

    Raises:
        TrainingError: instead of any exception that a model or torch raises.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"{doing}: the device has too little memory.", hint="Free the device, or agree on a smaller batch_size."
        ) from error
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError) as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "deterministic" in text:
            raise TrainingError(
                f"{doing}: the model uses an operation that has no deterministic form on this device.",
                hint="Set device to cpu, or agree on a model without it; --debug names it.",
            ) from error
        raise TrainingError(f"{doing}: {text.rstrip('.')}.", hint="Check the model against the data.") from error
