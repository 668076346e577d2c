from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import pytest

from ppdl_mq.errors import Interrupted, TrainingError
from ppdl_mq.peer.inputs import Inputs, TrainingFailed, Worked
from ppdl_mq.peer.trainer import Trainer


@pytest.mark.parametrize(
    "error", [KeyError("a cell of somebody's data"), SystemExit(0)], ids=["KeyError", "SystemExit"]
)
def test_what_a_model_raises_arrives_without_its_text(error: BaseException) -> None:
    inputs: queue.SimpleQueue[Any] = queue.SimpleQueue()
    trainer = Trainer(cast("Inputs", inputs))

    def fail(_: threading.Event) -> object:
        raise error

    trainer.submit(fail)
    failed = inputs.get(timeout=10)
    trainer.stop()
    assert isinstance(failed, TrainingFailed)
    assert isinstance(failed.error, TrainingError)
    assert failed.error.__cause__ is error
    assert type(error).__name__ in failed.error.message
    assert "cell" not in f"{failed.error} {failed.error.hint}"
    assert "--debug" in failed.error.hint


def held(left: list[str], name: str) -> ExitStack:
    @contextmanager
    def context() -> Iterator[None]:
        yield
        left.append(name)

    stack = ExitStack()
    stack.enter_context(context())
    return stack


def test_jobs_run_in_order_and_leave_what_they_held() -> None:
    inputs: queue.SimpleQueue[Any] = queue.SimpleQueue()
    trainer = Trainer(cast("Inputs", inputs))
    left: list[str] = []
    for number in range(20):
        trainer.submit(lambda _, number=number: (number, len(left)), held(left, str(number)))  # type: ignore[misc]
    results = [inputs.get(timeout=10) for _ in range(20)]
    trainer.stop()
    assert results == [Worked((number, number)) for number in range(20)]
    assert left == [str(number) for number in range(20)]


def test_a_stop_ends_the_job_and_begins_no_other() -> None:
    inputs: queue.SimpleQueue[Any] = queue.SimpleQueue()
    trainer = Trainer(cast("Inputs", inputs))
    left: list[str] = []
    has_begun = threading.Event()

    def long(stop: threading.Event) -> object:
        has_begun.set()
        assert stop.wait(10)
        raise Interrupted("stopped")

    trainer.submit(long, held(left, "first"))
    trainer.submit(lambda _: "never", held(left, "second"))
    assert has_begun.wait(10)
    trainer.stop()
    assert inputs.empty()
    assert left == ["first", "second"]
