from __future__ import annotations

import queue
from typing import Any, cast

import pytest

from ppdl_mq.errors import TrainingError
from ppdl_mq.peer.inputs import Inputs, TrainingFailed
from ppdl_mq.peer.trainer import Trainer
from ppdl_mq.training.worker import Worker


class Broken:
    """A worker whose model raises."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def initial(self) -> bytes:
        raise self.error


@pytest.mark.parametrize(
    "error", [KeyError("a cell of somebody's data"), SystemExit(0)], ids=["KeyError", "SystemExit"]
)
def test_what_a_model_raises_arrives_without_its_text(error: BaseException) -> None:
    inputs: queue.SimpleQueue[Any] = queue.SimpleQueue()
    trainer = Trainer(cast("Worker", Broken(error)), bytes(32), cast("Inputs", inputs))
    trainer.build_initial()
    failed = inputs.get(timeout=10)
    trainer.stop()
    assert isinstance(failed, TrainingFailed)
    assert isinstance(failed.error, TrainingError)
    assert failed.error.__cause__ is error
    assert type(error).__name__ in failed.error.message
    assert "cell" not in f"{failed.error} {failed.error.hint}"
    assert "--debug" in failed.error.hint
