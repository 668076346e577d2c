"""The learning rate: a function of the trial's epoch alone.

Source: docs/TRAINING.md, "One turn".
"""

from __future__ import annotations

import math

from ppdl_mq.config.manifest import Training


def learning_rate(training: Training, epoch: int) -> float:
    """Return the learning rate of an epoch, counted from 0."""
    if training.schedule == "step":
        return float(training.learning_rate * training.schedule_factor ** (epoch // training.schedule_every))
    if training.schedule == "cosine":
        return training.learning_rate * 0.5 * (1 + math.cos(math.pi * epoch / training.epochs))
    return training.learning_rate
