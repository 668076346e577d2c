"""A peer of masked-average that leaves while it trains."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ppdl_mq.errors import TrainingError
from ppdl_mq.peer.inputs import TrainingFailed
from ppdl_mq.peer.orders import Order, give_order
from ppdl_mq.peer.progress import final_entry
from ppdl_mq.peer.runner import Runner
from ppdl_mq.peer.trainer import Trainer
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.training.worker import Worker
from ppdl_mq.transport.memory import MemoryRelay, MemoryTransport
from tests.trial import WAIT_S, TrialInProcess, manifest_for

ROUND = 3  # in which Anna leaves


class LongStep:
    """Holds a step of Anna's training until it is to be cleared, or somebody measures with the same module."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fails: bool) -> None:
        self.begun, self.goes_on, self.is_over = (threading.Event() for _ in range(3))
        self.measured_within = False
        train, evaluate, clear = Worker.train, Worker.evaluate, Trainer.clear

        def held(loss: Callable[..., Any]) -> Callable[..., Any]:
            def held_loss(*tensors: Any) -> Any:
                self.begun.set()
                assert self.goes_on.wait(WAIT_S)
                if fails:
                    raise RuntimeError("no memory")
                return loss(*tensors)

            return held_loss

        def long_train(worker: Worker, turn: Any, *others: Any, **options: Any) -> Any:
            if turn.peer != "anna" or turn.number != ROUND:
                return train(worker, turn, *others, **options)
            loss = worker.loss
            monkeypatch.setattr(worker, "loss", held(loss))
            try:
                return train(worker, turn, *others, **options)
            finally:
                monkeypatch.setattr(worker, "loss", loss)
                self.is_over.set()

        def noted_evaluate(worker: Worker, *weights: Any, **options: Any) -> Any:
            if threading.current_thread().name == "anna" and not self.is_over.is_set():
                self.measured_within = True
                self.goes_on.set()
            return evaluate(worker, *weights, **options)

        def noted_clear(trainer: Trainer, pulse: Callable[[], None]) -> None:
            self.goes_on.set()
            clear(trainer, pulse)

        monkeypatch.setattr(Worker, "train", long_train)
        monkeypatch.setattr(Worker, "evaluate", noted_evaluate)
        monkeypatch.setattr(Trainer, "clear", noted_clear)


@pytest.mark.parametrize("fails", [False, True], ids=["goes on", "fails"])
def test_its_model_is_measured_when_the_training_is_over_and_whatever_that_comes_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    relay = MemoryRelay()
    step = LongStep(monkeypatch, fails=fails)
    manifest = manifest_for(protocol="masked-average", training__epochs=4)
    trial = TrialInProcess(manifest, tmp_path, lambda _: MemoryTransport(relay), patience_s=0.3)
    threads = trial.start()
    assert step.begun.wait(WAIT_S)
    give_order(tmp_path / "anna", Order())
    for thread in threads:
        thread.join(WAIT_S)
    assert not trial.errors
    assert trial.runners["anna"].state.phase is Phase.LEFT
    assert not step.measured_within
    final = final_entry(tmp_path / "anna")
    assert final is not None
    model = memoryview(bytearray(trial.model("anna")))
    assert final["holdout_loss"] == trial.runners["anna"].worker.evaluate(model).loss


@pytest.mark.parametrize("wants_results", [True, False])
def test_a_failure_that_waits_in_the_queue_ends_nobody_whose_part_is_over(wants_results: bool) -> None:
    runner = cast("Any", SimpleNamespace(hands=SimpleNamespace(wants_results=wants_results), link=None))
    failed = [TrainingFailed(TrainingError("Training failed."))]
    if not wants_results:
        Runner._take(runner, failed)  # type: ignore[arg-type]
        return
    with pytest.raises(TrainingError):
        Runner._take(runner, failed)  # type: ignore[arg-type]
