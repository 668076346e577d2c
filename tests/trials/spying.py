"""What the trials of a test process really computed, to be searched for where nobody may find it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ppdl_mq.training.worker import Evaluation


def spy(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, note: Callable[..., object]) -> None:
    """Have `note` told of every call of a function: what it returned, and its positional arguments."""
    original = getattr(owner, name)

    def observed(*arguments: Any, **options: Any) -> Any:
        outcome = original(*arguments, **options)
        note(outcome, *arguments)
        return outcome

    monkeypatch.setattr(owner, name, observed)


def metrics_of(evaluation: Evaluation) -> list[float]:
    """Return the figures of an evaluation that are there."""
    return [metric for metric in (evaluation.loss, evaluation.accuracy) if metric is not None]
