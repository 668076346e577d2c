"""What Ctrl-C and SIGTERM do to a peer: the first stops it after journalling, the second ends it at once."""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

_FIRST_PROCESS: Final = 1


class Stoppable(Protocol):
    """What a signal can stop."""

    def stop(self) -> None:
        """Ask it to stop soon."""


def sigterm_interrupts() -> None:
    """Let SIGTERM do what Ctrl-C does, from the process's entrance on: imports alone may take many seconds.

    Left to the system, it would end the process without a word, and do nothing to the first process of a container.
    """
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # whoever started us may have wanted it to be ignored
        signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextmanager
def signals_end_it() -> Iterator[None]:
    """Let SIGTERM end what has not begun yet as Ctrl-C does; put both back as they were, whatever they did meanwhile.

    Left to the system, SIGTERM would do nothing to the first process of a container.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_on_signals(runner: Stoppable) -> None:
    """Let the first Ctrl-C or SIGTERM stop the peer after journalling, and the second of either end it at once."""
    asked: queue.SimpleQueue[None] = queue.SimpleQueue()

    def wait() -> None:
        asked.get()
        runner.stop()

    def stop(_signal_number: int, _frame: object) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            # The system ends any process but the first of a container, even one that is stuck in a step of training.
            signal.signal(each, _end if os.getpid() == _FIRST_PROCESS else signal.SIG_DFL)
        # Nothing more here: a handler runs in the midst of anything, and a lock that is held there would never be free.
        asked.put(None)

    threading.Thread(target=wait, name="stopper", daemon=True).start()
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)


def _end(signal_number: int, _frame: object) -> None:
    os._exit(128 + signal_number)  # as a shell reports whom a signal has ended
