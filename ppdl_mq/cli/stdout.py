"""The stdout of this process, which remembers why it could not be written: whoever prints need not know."""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from typing import TYPE_CHECKING, Literal, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Remembering(io.FileIO):
    """A file descriptor for writing that keeps the first error."""

    fault: OSError | None = None

    def write(self, data: ReadableBuffer, /) -> int:
        """Write as `FileIO` does, and keep what it raises."""
        try:
            return super().write(data)
        except OSError as fault:
            self.fault = self.fault or fault
            raise


def occupy_closed() -> None:
    """Put something in the place of each standard stream that was closed before the program began (`>&-`).

    Else the next file that is opened, such as a journal, would bear its number, and what prints would lose its answer
    without a fault. stdin is empty then, every write to stdout faults, and stderr takes everything. For the process's
    entrance, before anything else is opened: each open gets the lowest number that is free.
    """
    with contextlib.suppress(OSError):  # a system without that device
        if sys.stdin is None:
            sys.stdin = _null(os.O_RDONLY, "r")
        if sys.stdout is None:
            sys.stdout = _null(os.O_RDONLY, "w")
        if sys.stderr is None:
            sys.stderr = _null(os.O_WRONLY, "w")


def _null(flags: int, mode: Literal["r", "w"]) -> TextIO:
    handle = os.open(os.devnull, flags)
    os.set_inheritable(handle, True)  # else it would be closed again for a child process
    return open(handle, mode, encoding="utf-8", errors="backslashreplace", closefd=False)


def remember_faults() -> None:
    """Let `fault` tell from now on why stdout could not be written. For the process's own stdout, at its entrance."""
    before = sys.stdout
    if isinstance(before, io.TextIOWrapper):  # else it is somebody else's
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(_Remembering(before.fileno(), "w", closefd=False)),
            encoding=before.encoding,
            errors=before.errors,
            line_buffering=before.line_buffering or before.write_through,
        )


def fault() -> OSError | None:
    """Return why stdout could not be written, or None."""
    return getattr(getattr(getattr(sys.stdout, "buffer", None), "raw", None), "fault", None)


def reader_has_left() -> bool:
    """Tell whether what was written was not taken because nobody reads any more: stdout, or stderr as it is now."""
    if isinstance(fault(), BrokenPipeError):
        return True
    try:
        watched = select.poll()
        watched.register(sys.stderr.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in watched.poll(0))
    except (OSError, ValueError, AttributeError):  # it is closed, or no stream of the system
        return False


def finish() -> None:
    """Give up what stdout did not take. Python would try again at its end, complain, and end with a code of its own."""
    stream: TextIO | None = sys.stdout
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
