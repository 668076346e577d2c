"""A thread of its own for what takes long, so that training, masking and adding starve nothing else."""

from __future__ import annotations

import logging
import queue
import threading
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

from ppdl_mq.config import limits
from ppdl_mq.errors import Interrupted, PpdlError, TrainingError
from ppdl_mq.peer.inputs import Inputs, TrainingFailed, Worked

log = logging.getLogger("ppdl_mq.peer")

THREAD_NAME: Final = "trainer"
Job = Callable[[threading.Event], object]


def ending(stop: threading.Event) -> Callable[[], None]:
    """Return what raises Interrupted once `stop` is set, for work that calls it between its parts."""

    def check() -> None:
        if stop.is_set():
            raise Interrupted("Stopped in the middle of a measurement.", hint="Run the peer again.")

    return check


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
            self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Have the job end early and begin no other; results are not reported any more.

        A single step may take minutes, and nothing can end it. So it is waited for only `limits.STOP_S` seconds: then
        the thread is left behind, which does no more than end its step, and ends with the process at the latest.
        """
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            thread.join(limits.STOP_S)
            if thread.is_alive():
                log.info("A step of training that takes long is given up: it is done again from the last checkpoint.")

    def clear(self, pulse: Callable[[], None]) -> None:
        """Have the job end early and drop the others, and return when none runs: nobody wants their results any more.

        Args:
            pulse: called again and again while a step that takes long is waited for; what it raises ends the wait.
        """
        if self._thread is None:
            return
        self._stop.set()
        self._jobs.put(None)
        while self._thread.is_alive():
            pulse()
            self._thread.join(limits.LOOK_S)
        self._thread, self._stop = None, threading.Event()

    def _run(self) -> None:
        while (taken := self._jobs.get()) is not None:
            job, held = taken
            try:
                with held:
                    if not self._stop.is_set():
                        self._do(job)
            except BufferError:  # somebody reads on in what is given back: it lasts until that one lets go
                log.warning("What a job read could not be given back at once.")
            del taken, job, held  # what they hold on to may be as large as the model

    def _do(self, job: Job) -> None:
        try:
            self._inputs.put(Worked(job(self._stop)))
        except Interrupted as stopped:
            _let_go(stopped)
        except PpdlError as error:
            _let_go(error)
            self._inputs.put(TrainingFailed(error))
        except BaseException as error:  # what a model raises must reach the person, not a dead thread
            _let_go(error)
            # Not the exception's text: it may quote somebody's data.
            failed = TrainingError(f"Training failed with {type(error).__name__}.", hint="--debug shows where.")
            failed.__cause__ = error
            self._inputs.put(TrainingFailed(failed))


def _let_go(error: BaseException) -> None:
    """Clear the variables of the calls that failed: views of what the job read, which could not be given back else."""
    before: BaseException | None = error
    while before is not None:
        traceback.clear_frames(before.__traceback__)
        before = before.__context__
