"""One seeded order of events, and a clock that jumps from one to the next.

Each peer runs the product's own loop in a thread of its own, but only one thread ever runs: a peer that waits hands
over to the scheduler, which picks what is next. So nothing depends on the machine, and no time is spent waiting.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable


class Task:
    """A thread that runs only when the scheduler lets it."""

    def __init__(self, scheduler: Scheduler, name: str, work: Callable[[], None]) -> None:
        self.name = name
        self._scheduler = scheduler
        self._work = work
        self._turn = threading.Lock()
        self._turn.acquire()
        self._waits = 0  # number of the wait it is in, so that what was meant to end an earlier one does not end it
        self.is_over = False
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        scheduler.at(0.0, self._resume, 0)

    def wait(self, seconds: float) -> None:
        """Let others run, until `wake` or for so long. To be called by the task itself."""
        self._scheduler.at(seconds, self._resume, self._waits + 1)
        self._waits += 1
        self._scheduler.running = None
        self._scheduler.lock.release()
        self._turn.acquire()

    @property
    def ident(self) -> int | None:
        """What `threading.get_ident` returns in it."""
        return self._thread.ident

    def wake(self) -> None:
        """End its wait, in the order of events."""
        self._scheduler.at(0.0, self._resume, self._waits)

    def resume_now(self) -> None:
        """End its wait past the order of events; to be called where there are no more of them."""
        self._resume(self._waits)

    def _resume(self, wait: int) -> None:
        if self.is_over or wait != self._waits:
            return
        self._waits += 1  # wakes that were meant for this wait are spent
        self._scheduler.running = self
        self._turn.release()
        self._scheduler.lock.acquire()

    def _run(self) -> None:
        self._turn.acquire()
        try:
            self._work()
        except BaseException as error:
            self.error = error
        self.is_over = True
        self._scheduler.running = None
        self._scheduler.lock.release()


class Scheduler:
    """The clock, in seconds, and what is to happen when."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.running: Task | None = None
        self.lock = threading.Lock()  # held but while a task gives back the turn
        self.lock.acquire()
        self.steps = 0
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []

    def task(self, name: str, work: Callable[[], None]) -> Task:
        """Return a new task, which begins in the order of events."""
        return Task(self, name, work)

    def at(self, delay_s: float, call: Callable[..., None], *given: object) -> None:
        """Have something happen after a delay; what is due at one moment happens in the order of these calls."""
        heapq.heappush(self._events, (self.now + delay_s, next(self._numbers), call, given))

    def step(self) -> bool:
        """Let the next thing happen; return whether there was one."""
        if not self._events:
            return False
        self.now, _, call, given = heapq.heappop(self._events)
        self.steps += 1
        call(*given)
        return True

    def monotonic(self) -> float:
        """Stand in for `time.monotonic`."""
        return self.now
