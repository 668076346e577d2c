"""Who is alive: one locked file for each connection, and one pipe to wake it.

The operating system drops a lock when its holder ends, however it ends: nothing needs a clock or a heartbeat.
`flock` belongs to the open file, so two connections of one process are two holders. Local file systems only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import select
from pathlib import Path


class Holder:
    """One connection's lock file and wake-up pipe, from `__init__` to `close`.

    Args:
        folder: where all connections to one relay keep these files.
    """

    def __init__(self, folder: Path) -> None:
        self.name = secrets.token_hex(16)  # never used again, so that a name seen dead stays dead
        self._folder = folder
        lock = os.open(_lock_file(folder, self.name), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.mkfifo(_wake_file(folder, self.name), 0o600)
            # Open for both: then no writer finds it without a reader, and we never see an end of file.
            self._pipe = os.open(_wake_file(folder, self.name), os.O_RDWR | os.O_NONBLOCK)
        except OSError:
            os.close(lock)
            remove(folder, self.name)
            raise
        self._lock = lock

    def wait(self, timeout_s: float) -> None:
        """Return once somebody wakes us, or after `timeout_s`."""
        if select.select([self._pipe], [], [], timeout_s)[0]:
            with contextlib.suppress(BlockingIOError):  # another thread took them
                os.read(self._pipe, 4096)  # several wake-ups are one

    def close(self) -> None:
        """Give up the lock. The caller sees to it that no thread is in `wait`."""
        try:
            remove(self._folder, self.name)
        finally:
            os.close(self._pipe)
            os.close(self._lock)


def wake(folder: Path, name: str) -> None:
    """Wake the connection called `name`; harmless when it is gone or awake already."""
    try:
        pipe = os.open(_wake_file(folder, name), os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return  # it died: ENOENT or ENXIO
    try:
        os.write(pipe, b"!")
    except OSError:
        pass  # full: it has wake-ups enough
    finally:
        os.close(pipe)


def is_alive(folder: Path, name: str) -> bool:
    """Tell whether the connection called `name` still holds its lock."""
    try:
        lock = os.open(_lock_file(folder, name), os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(lock)


def remove(folder: Path, name: str) -> None:
    """Remove the files of a connection that is gone."""
    _lock_file(folder, name).unlink(missing_ok=True)
    _wake_file(folder, name).unlink(missing_ok=True)


def _lock_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.lock"


def _wake_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.wake"
