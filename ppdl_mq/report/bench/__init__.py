"""Figures of this machine and one relay, as ratios taken in one run. Source: docs/BENCHMARKS.md."""

from __future__ import annotations

from typing import Final

PARTS: Final = ("transfer", "training", "masked", "growth", "masks")
