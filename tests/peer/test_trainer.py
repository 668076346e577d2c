from __future__ import annotations

import mmap
import queue
import threading
import traceback
from asyncio import CancelledError
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from ppdl_mq.errors import Interrupted, TrainingError
from ppdl_mq.peer.inputs import Inputs, TrainingFailed, Worked
from ppdl_mq.peer.trainer import Trainer


@pytest.mark.parametrize(
    "error",
    [KeyError("a cell of somebody's data"), SystemExit(0), CancelledError()],  # the last is no Exception of Python's
    ids=["KeyError", "SystemExit", "CancelledError"],
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
    assert "somebody" not in f"{failed.error} {failed.error.hint}"
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


def test_it_is_cleared_when_the_job_has_ended_and_takes_others_then() -> None:
    inputs: queue.SimpleQueue[Any] = queue.SimpleQueue()
    trainer = Trainer(cast("Inputs", inputs))
    left: list[str] = []
    has_begun, goes_on = threading.Event(), threading.Event()

    def long(stop: threading.Event) -> object:
        has_begun.set()
        assert stop.wait(10)
        assert goes_on.wait(10)
        raise Interrupted("stopped")

    trainer.clear(lambda: None)  # nothing was ever begun
    trainer.submit(long, held(left, "first"))
    trainer.submit(lambda _: "never", held(left, "second"))
    assert has_begun.wait(10)
    trainer.clear(goes_on.set)  # it looks round while it waits
    assert left == ["first", "second"]
    trainer.submit(lambda stop: stop.is_set())
    assert inputs.get(timeout=10) == Worked(False)
    trainer.stop()
    assert inputs.empty()


def mapped(path: Path) -> tuple[ExitStack, memoryview]:
    """Map a file as the journal's blobs are mapped for a job; with what gives it back."""
    path.write_bytes(bytes(100))
    stack = ExitStack()
    with path.open("rb") as file:
        mapping = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return stack, stack.enter_context(memoryview(mapping))


@pytest.mark.parametrize("kind", [TrainingError, ValueError, Interrupted])
def test_a_job_that_fails_while_it_reads_is_told_and_others_run(
    tmp_path: Path, kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    inputs: queue.SimpleQueue[Any] = queue.SimpleQueue()
    trainer = Trainer(cast("Inputs", inputs))
    stack, view = mapped(tmp_path / "weights")

    def fail(_: threading.Event) -> object:
        weights = np.frombuffer(view, dtype=np.uint8)
        try:
            raise KeyError(int(weights[0]))
        except KeyError:
            raise kind("while it reads")  # noqa: B904 (as a model may)

    trainer.submit(fail, stack)
    trainer.submit(lambda _: "next")
    results = [inputs.get(timeout=10) for _ in range(1 if kind is Interrupted else 2)]
    trainer.stop()
    assert results[-1] == Worked("next")
    if kind is not Interrupted:
        assert isinstance(results[0], TrainingFailed)
        assert "while it reads" in "".join(traceback.format_exception(results[0].error))  # for --debug
    assert caplog.messages == []
    with pytest.raises(ValueError, match="released"):
        bytes(view)


def test_what_reads_on_after_its_job_does_not_end_the_trainer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    inputs: queue.SimpleQueue[Any] = queue.SimpleQueue()
    trainer = Trainer(cast("Inputs", inputs))
    stack, view = mapped(tmp_path / "weights")
    trainer.submit(lambda _: np.frombuffer(view, dtype=np.uint8), stack)
    trainer.submit(lambda _: "next")
    first = inputs.get(timeout=10)
    assert inputs.get(timeout=10) == Worked("next")
    trainer.stop()
    assert caplog.messages == ["What a job read could not be given back at once."]
    assert not first.result.any()
