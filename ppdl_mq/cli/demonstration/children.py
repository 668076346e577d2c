"""The organisations' processes: started together, watched, and ended together whatever happens."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, Self

from ppdl_mq.cli import exit_codes
from ppdl_mq.cli.terminal import printable
from ppdl_mq.errors import IdentityError, InTheWay, JournalError, PpdlError, RelayError, RemoteError, TrainingError

_PATIENCE_S: Final = 5.0  # between asking a process to stop and ending it
_LAST_LINES: Final = 8

# What a peer's exit code says about the fault; any other is a matter of its training.
_KINDS: Final[Mapping[int, type[PpdlError]]] = {
    exit_codes.IDENTITY: IdentityError,
    exit_codes.RELAY: RelayError,
    exit_codes.REMOTE: RemoteError,
    exit_codes.STATE: JournalError,
    exit_codes.IN_THE_WAY: InTheWay,
}


class Children:
    """Runs `ppdl-mq peer run` once for each organisation, from `__enter__` to `__exit__`.

    Args:
        trial: the manifest.
        configs: by peer, its peer.toml.
        logs: by peer, the file that takes what it prints.
    """

    def __init__(self, trial: Path, configs: Mapping[str, Path], logs: Mapping[str, Path]) -> None:
        self._trial = trial
        self._configs = configs
        self._logs = logs
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            for peer, config in self._configs.items():
                command = [sys.executable, "-m", "ppdl_mq.cli.main", "peer", "run", str(self._trial), "--config"]
                with self._logs[peer].open("wb") as log:
                    self._processes[peer] = subprocess.Popen(  # noqa: S603 (this very program)
                        [*command, str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
                    )
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids."""
        return tuple(process.pid for process in self._processes.values())

    def are_done(self) -> bool:
        """Tell whether every process has ended well.

        Raises:
            PpdlError: one ended otherwise; its last lines are in the message.
        """
        codes = {peer: process.poll() for peer, process in self._processes.items()}
        for peer, code in codes.items():
            if code:
                raise self._failure(peer, code)
        return all(code == 0 for code in codes.values())

    def _failure(self, peer: str, code: int) -> PpdlError:
        log = self._logs[peer]
        with log.open(encoding="utf-8", errors="replace") as file:
            lines = [printable(line.rstrip()) for line in deque(file, maxlen=_LAST_LINES)]
        how = f"exit code {code}" if code > 0 else f"signal {-code}"
        said = "\n".join(f"  {line}" for line in lines) or "  (it said nothing)"
        return _KINDS.get(code, TrainingError)(
            f"The peer {peer} ended with {how}; its last lines:\n{said}", hint=f"All it said is in {log}."
        )

    def _end(self) -> None:
        """Ask every process to stop, and end those that do not."""
        running = [process for process in self._processes.values() if process.poll() is None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + _PATIENCE_S
        with ExitStack() as stack:
            for process in running:
                # Also where the wait is interrupted: no process outlives us.
                stack.callback(process.wait)
                stack.callback(process.kill)
            for process in running:
                try:
                    process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    break


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, so that no process is left behind."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
