"""Two fresh processes, one at each end of a transfer, started together and measured."""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Final

from ppdl_mq.errors import LocalError, PpdlError, RelayError, RelayLost
from ppdl_mq.report.bench.parties import RECEIVER, SENDER, Job
from ppdl_mq.report.bench.transfer import WAYS

_PATIENCE_S: Final = 120.0
_LEAVING_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One process in one transfer.

    Args:
        began: when it began, on the clock that the processes of a machine share, in seconds.
        ended: when it had finished.
        cpu_s: processor time in between.
        peak_bytes: most physical memory that the process ever held.
        program_bytes: what a process that has only imported the program holds.
    """

    began: float
    ended: float
    cpu_s: float
    peak_bytes: int
    program_bytes: int


def transfer(job: Job) -> dict[str, Measured]:
    """Carry out one transfer; return what was measured of the sender and the receiver.

    Raises:
        PpdlError: what one of the processes raised.
    """
    context = multiprocessing.get_context("spawn")  # nothing inherited: its memory is its own
    pipes: dict[str, Connection] = {}
    processes = []
    try:
        for name in (RECEIVER, SENDER):
            pipes[name], theirs = context.Pipe()
            process = context.Process(target=_process, args=(job, name, theirs), name=f"bench {name}", daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
        _answers(pipes)
        for pipe in pipes.values():
            pipe.send("go")
        measured = _answers(pipes)
        for process in processes:
            process.join(_LEAVING_S)
        return measured
    finally:
        for pipe in pipes.values():
            pipe.close()
        for process in processes:
            process.kill()  # where one failed, the other would wait for it
            process.join()
            process.close()


def _answers(pipes: dict[str, Connection]) -> dict[str, Measured]:
    """Return what each process says, taken as it comes: one that failed leaves the other waiting for ever."""
    answers: dict[str, Measured] = {}
    while len(answers) < len(pipes):
        ready = wait([pipe for name, pipe in pipes.items() if name not in answers], _PATIENCE_S)
        if not ready:
            raise RelayLost("A transfer has not finished in two minutes.", hint="Measure fewer --megabytes.")
        answers |= {name: _answer(pipe) for name, pipe in pipes.items() if pipe in ready}
    return answers


def _answer(pipe: Connection) -> Measured:
    try:
        answer = pipe.recv()
    except EOFError:
        raise RelayLost("A process of the benchmark ended in the middle of a transfer.") from None
    if isinstance(answer, PpdlError):
        raise answer
    assert isinstance(answer, Measured)
    return answer


def _process(job: Job, name: str, pipe: Connection) -> None:
    """Be one end: get ready, wait for the word, run, report."""
    with contextlib.suppress(EOFError, BrokenPipeError), pipe:  # whoever started us has left
        try:
            program_bytes = peak_bytes()
            end = WAYS[job.way][name](job)
            try:
                pipe.send(Measured(began=0, ended=0, cpu_s=0, peak_bytes=peak_bytes(), program_bytes=program_bytes))
                pipe.recv()
                began, cpu_began = time.monotonic(), time.process_time()
                end.run()
                ended, cpu_ended = time.monotonic(), time.process_time()
            finally:
                end.close()
            pipe.send(
                Measured(
                    began=began,
                    ended=ended,
                    cpu_s=cpu_ended - cpu_began,
                    peak_bytes=peak_bytes(),
                    program_bytes=program_bytes,
                )
            )
        except PpdlError as error:
            pipe.send(portable(error))


def portable(error: PpdlError) -> PpdlError:
    """Return an error that can be sent to another process, whatever its constructor takes."""
    kind = RelayError if isinstance(error, RelayError) else LocalError
    return kind(error.message, hint=error.hint)


def peak_bytes() -> int:
    """Return the most physical memory that this process has held."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's rusage also counts what the process was forked from, VmHWM does not
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
