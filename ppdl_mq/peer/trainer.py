"""Runs the worker in a thread of its own, so that a long turn starves nothing else."""

from __future__ import annotations

import hashlib
import threading
import time
from contextlib import AbstractContextManager, ExitStack

from ppdl_mq.errors import Interrupted, PpdlError, TrainingError
from ppdl_mq.peer.inputs import Inputs, TrainingFailed, TurnTrained
from ppdl_mq.protocol.schedule import Turn
from ppdl_mq.training.worker import TurnResult, Worker


class Trainer:
    """Trains one turn at a time and reports into the queue.

    Args:
        worker: of this peer.
        sample_seed: the peer's secret, 32 bytes.
        inputs: where results go.
    """

    def __init__(self, worker: Worker, sample_seed: bytes, inputs: Inputs) -> None:
        self._worker = worker
        self._seed = sample_seed
        self._inputs = inputs
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def build_initial(self) -> None:
        """Build the weights of turn 0."""
        self._start(None, None, evaluate=False)

    def train(self, turn: Turn, weights: AbstractContextManager[memoryview], *, evaluate: bool) -> None:
        """Train a turn.

        Args:
            turn: which.
            weights: gives access to those of the turn before.
            evaluate: whether to measure the result on the hold-out.
        """
        self._start(turn, weights, evaluate=evaluate)

    def stop(self) -> None:
        """End at the next batch and wait for it; nothing of the turn is kept."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _start(self, turn: Turn | None, weights: AbstractContextManager[memoryview] | None, *, evaluate: bool) -> None:
        if self._thread is not None:
            self._thread.join()  # it has put its result into the queue, and is about to end
        held = ExitStack()  # entered here, since the journal is this thread's; left by the other when it is done
        before = None if weights is None else held.enter_context(weights)
        self._thread = threading.Thread(
            target=self._run, args=(turn, before, held, evaluate), name="trainer", daemon=True
        )
        self._thread.start()

    def _run(self, turn: Turn | None, before: memoryview | None, held: ExitStack, evaluate: bool) -> None:
        try:
            started = time.monotonic()
            with held:
                if turn is None or before is None:
                    result = TurnResult(weights=self._worker.initial(), steps=0, samples=0, loss=None)
                else:
                    result = self._worker.train(turn, before, self._seed, stop=self._stop)
            seconds = time.monotonic() - started
            self._inputs.put(
                TurnTrained(
                    turn=turn.number if turn else 0,
                    result=result,
                    digest=hashlib.sha256(result.weights).digest(),
                    evaluation=self._worker.evaluate(result.weights) if evaluate else None,
                    seconds=seconds,
                )
            )
        except Interrupted:
            return
        except PpdlError as error:
            self._inputs.put(TrainingFailed(error))
        except (Exception, SystemExit) as error:  # what a model raises must reach the person, not a dead thread
            # Not the exception's text: it may quote somebody's data.
            failed = TrainingError(f"Training failed with {type(error).__name__}.", hint="--debug shows where.")
            failed.__cause__ = error
            self._inputs.put(TrainingFailed(failed))
