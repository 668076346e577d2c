"""Samples as tensors: what a data plug-in returns, and what the worker trains on."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ppdl_mq.errors import DataError


@dataclass(frozen=True, slots=True)
class Samples:
    """Rows of one organisation. They never leave it, and do not show in a repr.

    Args:
        inputs: (rows, ...) on the CPU.
        targets: (rows) or (rows, k) on the CPU.
    """

    inputs: torch.Tensor = field(repr=False)
    targets: torch.Tensor = field(repr=False)

    def __post_init__(self) -> None:
        if self.inputs.dim() < 1 or self.targets.dim() < 1 or len(self.inputs) != len(self.targets):
            raise DataError(
                f"There are {_rows(self.inputs)} rows of inputs but {_rows(self.targets)} targets.",
                hint="Correct the data plug-in or its files.",
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, rows: torch.Tensor) -> Samples:
        """Return some of the rows: int64 indices (k)."""
        return Samples(self.inputs[rows], self.targets[rows])


@dataclass(frozen=True, slots=True)
class Split:
    """Training rows, and rows kept for evaluation alone.

    Args:
        train: at least one row.
        holdout: may be empty.
    """

    train: Samples
    holdout: Samples


def concatenate(parts: list[Samples]) -> Samples:
    """Return all rows of several samples, in order. For comparisons only: this is what organisations may not do."""
    return Samples(torch.cat([part.inputs for part in parts]), torch.cat([part.targets for part in parts]))


def _rows(tensor: torch.Tensor) -> int:
    return len(tensor) if tensor.dim() else 0
