"""The SQLite file: tables, how it is opened, and what its errors mean.

Durability: `publish` ends with a commit under synchronous=FULL, so that what was confirmed survives a power cut, as
with a broker. Everything else (handing out, acknowledging) commits under NORMAL, without waiting for the disk: losing
such a commit in a power cut only means that a message is delivered again. Either survives the death of any process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ppdl_mq.errors import RelayError, RelayLost, RelayRefused, RelayUnreachable

_APPLICATION_ID: Final = 0x7070646C  # "ppdl", in the file's header
_VERSION: Final = 1
_TURN_S: Final = 10.0  # for what takes milliseconds: whoever keeps it up so long is stopped, or his disk hangs
_TURN_PAUSE_S: Final = 0.05
_BUSY_S: Final = 30.0  # a writer waits for another writer at most so long; each writes one message at a time

# Bodies stand apart, so that marking a message as handed out does not rewrite a megabyte.
_SCHEMA: Final = f"""
BEGIN IMMEDIATE;
CREATE TABLE queues (name TEXT PRIMARY KEY, reader TEXT);
CREATE TABLE messages (number INTEGER PRIMARY KEY AUTOINCREMENT, queue TEXT NOT NULL, holder TEXT);
CREATE INDEX messages_in_order ON messages (queue, holder, number);
CREATE TABLE bodies (number INTEGER PRIMARY KEY, body BLOB NOT NULL);
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_VERSION};
COMMIT;
"""


def folder_of(path: Path) -> Path:
    """Return the folder beside the file in which its connections keep their locks."""
    return path.with_name(path.name + ".d")


def open_store(path: Path, look: Callable[[], None] = lambda: None) -> sqlite3.Connection:
    """Open the relay's file, making it where it is missing: the folder with mode 0700, the file with 0600.

    Args:
        path: of the file.
        look: called again and again while another process opens it; what it raises ends the wait.

    Raises:
        RelayUnreachable: it cannot be opened now, for instance because the disk is full.
        RelayRefused: no right to, or it is something else than a relay.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
        folder_of(path).mkdir(mode=0o700, exist_ok=True)
        # SQLite's own waiting does not cover the change to WAL, so the first steps are taken one process at a time.
        with (folder_of(path) / "open.lock").open("w") as turn:
            _wait_for(turn.fileno(), path, look)
            # Only a missing file is made here: to open and close one would drop every lock that SQLite holds on it for
            # an earlier connection of this process, as POSIX has it, and another process would delete its WAL.
            with contextlib.suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            database = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
            try:
                _prepare(database, path)
            except BaseException:
                database.close()
                raise
            return database
    except sqlite3.Error as error:
        raise opening_error(error, path) from error
    except OSError as error:
        raise os_error(error, path) from error


def _wait_for(turn: int, path: Path, look: Callable[[], None]) -> None:
    ends_at = time.monotonic() + _TURN_S
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        if time.monotonic() >= ends_at:
            raise RelayUnreachable(
                f"Another process has been opening the relay's file {path} for {_TURN_S:.0f} s.",
                hint="Is one of the peers here suspended?",
            )
        look()
        time.sleep(_TURN_PAUSE_S)


def _prepare(database: sqlite3.Connection, path: Path) -> None:
    found = (
        database.execute("PRAGMA application_id").fetchone()[0],
        database.execute("PRAGMA user_version").fetchone()[0],
    )
    if found == (0, 0) and not database.execute("SELECT 1 FROM sqlite_schema").fetchone():
        database.execute("PRAGMA page_size = 16384")  # bodies are large; only possible before the first table
        database.execute("PRAGMA journal_mode = WAL")
        database.executescript(_SCHEMA)
    elif found != (_APPLICATION_ID, _VERSION):
        raise RelayRefused(
            f"{path} is a database, but not a relay of this version.", hint="Name another file: embedded:PATH."
        )


def opening_error(error: sqlite3.Error, path: Path) -> RelayError:
    """Say what an error of SQLite means while opening."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code
    if code == sqlite3.SQLITE_NOTADB:
        return RelayRefused(f"{path} is not a relay's file.", hint="Name another file: embedded:PATH.")
    if code == sqlite3.SQLITE_CORRUPT:
        return RelayRefused(
            f"The relay's file {path} is damaged.", hint="Move it away; the peers send again what is open."
        )
    if code in (sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_AUTH):
        return RelayRefused(f"There is no right to write the relay's file {path}.", hint="Check its owner and mode.")
    return RelayUnreachable(f"The relay's file {path} cannot be opened: {error}.")


def working_error(error: sqlite3.Error | OSError, path: Path) -> RelayLost:
    """Say what an error of SQLite, or of the system, means in the middle of the work; the connection is given up."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
        return RelayLost(f"The disk of the relay's file {path} is full.", hint="Make room; it is tried again.")
    return RelayLost(f"The relay's file {path} fails: {getattr(error, 'strerror', None) or error}.")


def os_error(error: OSError, path: Path) -> RelayError:
    """Say what an error of the operating system means while opening."""
    reason = error.strerror or str(error)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        return RelayRefused(f"The relay's file {path} cannot be used: {reason}.", hint="Check the path and its rights.")
    return RelayUnreachable(f"The relay's file {path} cannot be opened: {reason}.")
