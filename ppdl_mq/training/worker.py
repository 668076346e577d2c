"""The worker: weights in, one turn of local SGD, weights out.

Source: docs/TRAINING.md.
"""

from __future__ import annotations

import copy
import hashlib
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from ppdl_mq.config.manifest import Manifest
from ppdl_mq.errors import NotFinite, TrainingError
from ppdl_mq.numeric import flatten
from ppdl_mq.numeric.flatten import Buffer, Layout
from ppdl_mq.protocol.schedule import Turn
from ppdl_mq.training import determinism, loop, order, plugin
from ppdl_mq.training.checkpoint import Keeper, Origin, Shelf
from ppdl_mq.training.data.samples import Samples, Split
from ppdl_mq.training.private.gradient import Mechanism, PrivateGradient, check_model
from ppdl_mq.training.private.randomness import Randomness, turn_key
from ppdl_mq.wire.trial_id import trial_id

_RESIDENT_BYTES = 2 * 1024**3  # data up to this size stays on the accelerator
_EVALUATION_ROWS = 512


@dataclass(frozen=True, slots=True)
class TurnResult:
    """What one turn came to.

    Args:
        weights: the flat state after it.
        steps: batches trained on.
        samples: rows in them.
        loss: mean training loss, or None for a turn without batches.
    """

    weights: bytearray = field(repr=False)
    steps: int
    samples: int
    loss: float | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How well weights do on the peer's own hold-out.

    Args:
        loss: mean over its rows; None without any.
        accuracy: share of right answers, 0 to 1; None for regression or without rows.
        samples: its rows.
    """

    loss: float | None
    accuracy: float | None
    samples: int


class Worker:
    """Trains the manifest's model on one organisation's samples. For one thread at a time.

    Args:
        manifest: model and training.
        split: the organisation's samples, prepared.
        device: where to compute.
        checkpoints: where those of a turn lie; without it a turn that ends in the middle begins anew.
        mechanism: of differential privacy; without it there is none.

    Raises:
        ModelError: the model cannot be built or flattened.
        TrainingError: the model does not fit the data, or BatchNorm would meet a batch of one row, or the model cannot
            be trained with differential privacy.
    """

    checkpoints: Shelf | None = None  # here too, for a stand-in that has no model and none of this

    def __init__(
        self,
        manifest: Manifest,
        split: Split,
        *,
        device: torch.device,
        checkpoints: Shelf | None = None,
        mechanism: Mechanism | None = None,
    ) -> None:
        determinism.apply(manifest.training.threads)
        self.checkpoints = checkpoints
        self.manifest = manifest
        self.split = split
        self.device = device
        self.mechanism = mechanism
        self.loss = loop.LOSSES[manifest.training.loss]
        module = plugin.build_model(manifest.model, manifest.training)
        self.layout = Layout.of(module)
        self.module = module.to(device)
        self.train_samples = _resident(split.train, device)
        self._trial_id, self._layout_digest = trial_id(manifest), self.layout.digest()
        self._check_fit()
        if mechanism is None:
            self._check_single_rows()
        else:
            self._check_private()
            self._rows_digest = _digest(split.train)

    @property
    def rows(self) -> int:
        """The number of training rows."""
        return len(self.split.train)

    def initial(self) -> bytearray:
        """Return the initial weights, built on the CPU from the manifest's seed."""
        return flatten.flatten(plugin.build_model(self.manifest.model, self.manifest.training))

    def train(
        self, turn: Turn, weights: Buffer, sample_seed: bytes, *, stop: threading.Event | None = None
    ) -> TurnResult:
        """Train one turn, or the rest of it where a checkpoint holds its beginning.

        Args:
            turn: of this peer.
            weights: the flat state before it.
            sample_seed: the peer's secret, 32 bytes.
            stop: set it from another thread to end early.

        Raises:
            NotFinite: the weights, before or after, or the loss hold NaN or infinity.
            Interrupted: `stop` was set; of the turn its checkpoint is kept.
            ModelError: the weights have the wrong size.
            TrainingError: torch refused.
        """
        self._load(weights)
        training = self.manifest.training
        batches, gradient = self._steps(turn, weights, sample_seed)
        with determinism.seeded(order.turn_seed(sample_seed, turn), self.device):
            optimizer = loop.sgd(self.module, training, turn.epoch)
            keeper = self._keeper(turn, weights, sample_seed, optimizer)
            tally = loop.run(
                self.module,
                optimizer,
                self.loss,
                self.train_samples,
                batches,
                device=self.device,
                stop=stop,
                start=keeper.resume() if keeper is not None else None,
                keep=keeper.keep if keeper is not None else None,
                gradient=gradient,
            )
            # Gradients are as large as the model; they are not needed while the result is made.
            self.module.zero_grad(set_to_none=True)
        result = flatten.flatten(self.module)
        try:
            flatten.check_finite(result, self.layout)
        except NotFinite as error:
            raise NotFinite(error.message, hint=_TOO_FAST) from None
        loss = tally.loss
        if loss is not None and not math.isfinite(loss):
            if gradient is None:
                raise NotFinite("The training loss became NaN or infinite.", hint=_TOO_FAST)
            loss = None  # it has no noise: a private turn must not end by it, which all would see
        if gradient is not None:
            gradient.say()
        return TurnResult(weights=result, steps=tally.steps, samples=tally.samples, loss=loss)

    def forget(self, number: int) -> None:
        """Remove the checkpoint of a turn whose result is safe; may be called from another thread.

        Args:
            number: of the turn.
        """
        if self.checkpoints is not None:
            self.checkpoints.discard(number)

    def evaluate(
        self, weights: Buffer, samples: Samples | None = None, *, between: Callable[[], None] | None = None
    ) -> Evaluation:
        """Measure weights.

        Args:
            weights: a flat state.
            samples: prepared as this worker's own; the worker's hold-out without them.
            between: called between two batches; what it raises ends the measuring.

        Raises:
            NotFinite: the weights hold NaN or infinity.
            ModelError: they have the wrong size.
            TrainingError: torch refused.
        """
        self._load(weights)
        samples = self.split.holdout if samples is None else samples
        rows = len(samples)
        if not rows:
            return Evaluation(loss=None, accuracy=None, samples=0)
        loss = 0.0
        right = 0
        self.module.eval()
        with torch.no_grad(), loop.torch_errors("Evaluation failed"):
            for start in range(0, rows, _EVALUATION_ROWS):
                if between is not None:
                    between()
                targets = samples.targets[start : start + _EVALUATION_ROWS].to(self.device)
                outputs = self.module(samples.inputs[start : start + _EVALUATION_ROWS].to(self.device, copy=True))
                loss += self.loss(outputs, targets).item() * len(targets)
                right += self._right(outputs, targets)
        accuracy = None if self.manifest.training.loss == "mse" else right / rows
        return Evaluation(loss=loss / rows, accuracy=accuracy, samples=rows)

    def _steps(
        self, turn: Turn, weights: Buffer, sample_seed: bytes
    ) -> tuple[Iterator[torch.Tensor], PrivateGradient | None]:
        """Return the batches of a turn, and what computes their gradients if that is not the plain way."""
        training, mechanism = self.manifest.training, self.mechanism
        if mechanism is None:
            return order.turn_batches(training, turn, sample_seed, rows=self.rows), None
        batch_size = min(training.batch_size, self.rows)
        key = turn_key(
            sample_seed,
            self._trial_id,
            turn.number.to_bytes(8, "big"),
            flatten.digest(weights),
            self._rows_digest,
            numbers=(mechanism.clip, mechanism.noise, self.rows, batch_size),
        )
        randomness = Randomness(key)
        first, last = order.turn_run(training, turn.ordinal, rows=self.rows)
        batches = (randomness.rows(step, rows=self.rows, batch_size=batch_size) for step in range(last - first))
        gradient = PrivateGradient(mechanism, self.module, self.loss, randomness, expected_rows=batch_size)
        return batches, gradient

    def _keeper(
        self, turn: Turn, weights: Buffer, sample_seed: bytes, optimizer: torch.optim.Optimizer
    ) -> Keeper | None:
        if self.checkpoints is None:
            return None
        origin = Origin(
            trial_id=self._trial_id,
            number=turn.number,
            base=weights,
            layout=self._layout_digest,
            seed_mark=order.derive(sample_seed, b"checkpoint"),
            rows=self.rows,
            device=self.device,
            private=() if self.mechanism is None else (self.mechanism.clip, self.mechanism.noise, self._rows_digest),
        )
        return Keeper(self.checkpoints, origin, self.module, optimizer)

    def _right(self, outputs: torch.Tensor, targets: torch.Tensor) -> int:
        """Count right answers."""
        if self.manifest.training.loss == "cross-entropy":
            return int((outputs.argmax(dim=1) == targets).sum())
        return int(((outputs > 0) == (targets > 0.5)).sum())

    def _load(self, weights: Buffer) -> None:
        determinism.apply(self.manifest.training.threads)  # again: this may be another thread than the last time
        flatten.check_finite(weights, self.layout)
        flatten.load(self.module, weights)

    def _check_fit(self) -> None:
        """Hold the model's outputs to the loss, before anybody waits for a turn."""
        train = self.split.train
        rows = min(2, len(train))
        module = copy.deepcopy(self.module).eval()
        tried = train.inputs[:rows].to(self.device, copy=True)  # a model may write into it
        if self.mechanism is not None:
            tried.zero_()  # whether a peer begins at all must not depend on a row
        with torch.no_grad(), loop.torch_errors("The model does not take the data"):
            outputs = module(tried)
        given = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else ()
        classes = self.manifest.data.classes
        needed = (
            (rows, classes) if self.manifest.training.loss == "cross-entropy" else tuple(train.targets[:rows].shape)
        )
        if given != needed:
            raise TrainingError(
                f"For {rows} rows the model gives the shape {list(given)}, but {self.manifest.training.loss} "
                f"needs {list(needed)}.",
                hint="Correct the model's outputs, or loss and classes, in the manifest.",
            )

    def _check_private(self) -> None:
        """Find out whether the model can be trained row by row."""
        module, train = copy.deepcopy(self.module).train(), self.split.train
        one, target = (torch.zeros_like(each[0], device=self.device) for each in (train.inputs, train.targets))
        with determinism.seeded(0, self.device):
            check_model(module, self.loss, one, target)

    def _check_single_rows(self) -> None:
        """Find out whether the model cannot train on the one row that is left over."""
        batch_size = self.manifest.training.batch_size
        if self.rows % batch_size != 1 and batch_size != 1:
            return
        module = copy.deepcopy(self.module).train()
        try:
            with torch.no_grad(), determinism.seeded(0, self.device):
                module(self.split.train.inputs[:1].to(self.device, copy=True))
        except ValueError as error:  # what torch's BatchNorm raises
            raise TrainingError(
                f"With batch_size {batch_size}, {self.rows} rows leave a batch of one row, on which the model's "
                "BatchNorm cannot train.",
                hint=f"Agree on a batch_size above 1 that does not divide {self.rows - 1}, or leave one row out."
                if self.rows > 1
                else "Bring more rows.",
            ) from error


_TOO_FAST = "Agree on a lower learning_rate, and check that inputs are standardised."


def _digest(samples: Samples) -> bytes:
    """Return the SHA-256 of samples as they are trained on."""
    digest = hashlib.sha256()
    for part in (samples.inputs, samples.targets):
        digest.update(flatten.raw_bytes(part.contiguous()).data)
    return digest.digest()


def _resident(samples: Samples, device: torch.device) -> Samples:
    """Keep small data on the accelerator, so that no batch has to be copied there."""
    size = samples.inputs.numel() * samples.inputs.element_size()
    if device.type == "cpu" or size > _RESIDENT_BYTES:
        return samples
    return Samples(samples.inputs.to(device), samples.targets.to(device))
