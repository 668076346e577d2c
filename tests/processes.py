"""`ppdl-mq` as real processes, each with its output in files, none left behind, and no wait without a limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SOON_S = 60.0  # far more than anything here takes, for a machine that is busy

# Linux ends the child with us, however we end.
_PROGRAM = (
    "import ctypes, sys\n"
    "if sys.platform == 'linux': ctypes.CDLL(None).prctl(1, 9)\n"
    "from ppdl_mq.cli.main import entry\n"
    "entry()"
)


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Args:
        code: its exit code; below 0, the signal that ended it.
        out: all it wrote on stdout.
        err: all it wrote on stderr.
    """

    code: int
    out: str
    err: str


class Process:
    """One run of `ppdl-mq`, from `Processes.start`."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path, err: Path) -> None:
        self._process = process
        self._out = out
        self._err = err

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code, as in `Ended`; None while it runs."""
        return self._process.poll()

    def wait(self, timeout_s: float = SOON_S) -> Ended:
        """Wait for its end."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout_s} s:\n{self.err}") from None
        return Ended(code, self._out.read_text(), self.err)

    def wait_for(self, text: str, timeout_s: float = SOON_S) -> None:
        """Wait until it has written `text` on stderr."""
        deadline = time.monotonic() + timeout_s
        while text not in self.err:
            assert self._process.poll() is None, f"it ended with {self._process.returncode}:\n{self.err}"
            assert time.monotonic() < deadline, f"no {text!r} in {timeout_s} s:\n{self.err}"
            time.sleep(0.005)  # between two looks at another process, which tells in no other way

    def interrupt(self) -> None:
        """Send what Ctrl-C sends."""
        self._process.send_signal(signal.SIGINT)

    def terminate(self) -> None:
        """Send what systemd and Kubernetes send first."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power cut would; harmless when it has ended."""
        self._process.kill()
        self._process.wait(SOON_S)

    @property
    def err(self) -> str:
        """What it has written on stderr so far."""
        return self._err.read_text()


class Processes:
    """Starts processes and remembers them; `processes` kills at its end what still runs.

    Args:
        folder: the working folder of all, and of their output.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[Process] = []

    def start(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Process:
        """Start `ppdl-mq ARGUMENTS`."""
        number = len(self._started)
        out, err = (self.folder / f"process-{number}.{stream}" for stream in ("out", "err"))
        with out.open("wb") as to_out, err.open("wb") as to_err:
            process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, *arguments],
                cwd=self.folder,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=to_out,
                stderr=to_err,
            )
        started = Process(process, out, err)
        self._started.append(started)
        return started

    def kill_all(self) -> None:
        """Kill by process id whatever still runs."""
        for process in self._started:
            process.kill()


@contextmanager
def processes(folder: Path) -> Iterator[Processes]:
    """Give a way to start processes, none of which outlives the block."""
    started = Processes(folder)
    try:
        yield started
    finally:
        started.kill_all()
