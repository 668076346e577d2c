"""A thread of its own for what takes long, so that training, masking and adding starve nothing else."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import ExitStack

from ppdl_mq.errors import Interrupted, PpdlError, TrainingError
from ppdl_mq.peer.inputs import Inputs, TrainingFailed, Worked

Job = Callable[[threading.Event], object]


class Trainer:
    """Runs jobs one after the other and reports what they return into the queue.

    Args:
        inputs: where results go.
    """

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._stop = threading.Event()
        self._jobs: queue.SimpleQueue[tuple[Job, ExitStack] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, job: Job, held: ExitStack | None = None) -> None:
        """Run a job after those submitted before; its result arrives as `Worked`, an error as `TrainingFailed`.

        Args:
            job: called in the thread, with an event that is set when it is to end early: then it raises Interrupted.
                It may not touch the journal.
            held: contexts of what the job reads, such as mapped weights. They are entered by the caller, since the
                journal is its thread's, and left here when the job is done.
        """
        self._jobs.put((job, held or ExitStack()))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="trainer", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Have the job end early, begin no other, and wait for that; results are not reported any more."""
        self._stop.set()
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (taken := self._jobs.get()) is not None:
            job, held = taken
            with held:
                if not self._stop.is_set():
                    self._do(job)
            del taken, job, held  # what they hold on to may be as large as the model

    def _do(self, job: Job) -> None:
        try:
            self._inputs.put(Worked(job(self._stop)))
        except Interrupted:
            return
        except PpdlError as error:
            self._inputs.put(TrainingFailed(error))
        except (Exception, SystemExit) as error:  # what a model raises must reach the person, not a dead thread
            # Not the exception's text: it may quote somebody's data.
            failed = TrainingError(f"Training failed with {type(error).__name__}.", hint="--debug shows where.")
            failed.__cause__ = error
            self._inputs.put(TrainingFailed(failed))
