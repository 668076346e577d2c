"""Fresh processes that are started together, each of which answers once."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.synchronize import Barrier
from typing import Any, Final, Protocol

from ppdl_mq.errors import LocalError, PpdlError, RelayLost

_LEAVING_S: Final = 10.0


class Gate(Protocol):
    """Where all processes wait for each other."""

    def wait(self, timeout: float | None = None) -> int:
        """Return when all have come."""


def together(
    work: Callable[[Any, str, Gate], object], job: object, names: Sequence[str], *, patience_s: float
) -> dict[str, Any]:
    """Call `work(job, name, gate)` in a process for each name; return the answers by name.

    Args:
        work: a function of a module; what it takes and returns can be pickled (between our own processes alone).
        job: what to do.
        names: one for each process.
        patience_s: how long the next answer may take.

    Raises:
        PpdlError: what one of the processes raised.
    """
    context = multiprocessing.get_context("spawn")  # nothing inherited: its memory is its own
    gate = context.Barrier(len(names))
    pipes: dict[str, Connection] = {}
    processes = []
    answers: dict[str, Any] = {}
    try:
        for name in names:
            pipes[name], theirs = context.Pipe(duplex=False)
            process = context.Process(target=_process, args=(work, job, name, gate, theirs), name=name, daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
        while len(answers) < len(names):
            ready = wait([pipe for name, pipe in pipes.items() if name not in answers], patience_s)
            if not ready:
                raise RelayLost("Processes of the benchmark do not end.", hint="Look at the relay's log.")
            answers |= {name: _answer(pipe) for name, pipe in pipes.items() if pipe in ready}
        return answers
    finally:
        for process in processes:
            process.join(_LEAVING_S if len(answers) == len(names) else 0.0)  # where one failed, the others wait for it
            process.kill()
            process.join()
            process.close()
        for pipe in pipes.values():
            pipe.close()


def _answer(pipe: Connection) -> object:
    try:
        answer: object = pipe.recv()
    except EOFError:
        raise RelayLost("A process of the benchmark ended before it was done.") from None
    if isinstance(answer, PpdlError):
        raise answer
    return answer


def _process(work: Callable[[Any, str, Gate], object], job: object, name: str, gate: Barrier, pipe: Connection) -> None:
    with pipe:
        try:
            pipe.send(work(job, name, gate))
        except PpdlError as error:
            from ppdl_mq.report.bench.pair import portable  # it imports torch

            pipe.send(portable(error))
        except Exception as error:
            traceback.print_exc()
            pipe.send(LocalError(f"A process of the benchmark failed with {type(error).__name__}."))
