"""Files that outlive a power cut, and what a person is told when they cannot be written."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Final

from ppdl_mq.config.writing import is_for_want_of_room
from ppdl_mq.errors import DiskFull, JournalError

# What SQLite says of a disk that takes no more. It calls only ENOSPC full: a quota or a limit on the size of files is
# a write that failed, and a disk that fails looks the same from here. All stop the peer, and it resumes after each.
_NO_ROOM: Final = (
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_FSYNC,
    sqlite3.SQLITE_IOERR_DIR_FSYNC,
    sqlite3.SQLITE_IOERR_TRUNCATE,
    sqlite3.SQLITE_IOERR_SHMSIZE,
)

# What is in the way of SQLite, and tells nothing of what stands in the database: somebody else holds it, the file
# system was mounted anew for reading only, no file can be opened any more, no memory is left.
_IN_THE_WAY: Final = (
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
)


def sync_folder(folder: Path) -> None:
    """Return when the names in a folder are on disk.

    Raises:
        OSError: it cannot be opened, or the system could not write it.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_note(path: Path, text: str = "") -> None:
    """Return when a file that says something by being there is on disk, with its name; it may be there already.

    Args:
        path: in a folder that is there.
        text: for a person who finds it.

    Raises:
        OSError: it cannot be written, or something else has its name.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(handle)
    sync_folder(path.parent)


def write_error(what: str, fault: OSError) -> JournalError:
    """Return the error for a person of a file that could not be written.

    Args:
        what: begins the sentence.
        fault: as the system reported it.
    """
    reason = fault.strerror or type(fault).__name__
    if is_for_want_of_room(fault):
        return DiskFull(what, reason)
    return JournalError(f"{what} cannot be written: {reason}.", hint="The peer's user must be able to write there.")


def is_full(fault: Exception) -> bool:
    """Tell whether SQLite could not write, while what is written is whole."""
    return getattr(fault, "sqlite_errorcode", None) in _NO_ROOM


def is_held(fault: Exception) -> bool:
    """Tell whether another program keeps SQLite's lock of a database."""
    return _primary_code(fault) == sqlite3.SQLITE_BUSY


def is_in_the_way(fault: Exception) -> bool:
    """Tell whether SQLite could not work, for a reason that says nothing against what stands in the database."""
    return _primary_code(fault) in _IN_THE_WAY


def _primary_code(fault: Exception) -> int | None:
    code: int | None = getattr(fault, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
