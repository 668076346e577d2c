"""Files that outlive a power cut, and what a person is told when they cannot be read or written."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path
from typing import Final

from ppdl_mq.config.writing import is_for_want_of_room, sync_folder
from ppdl_mq.errors import DiskFull, InTheWay, JournalError

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
# system was mounted anew for reading only, no file can be opened any more, no memory is left, the disk does not answer.
# Not SQLITE_ERROR: it says that a statement does not fit the tables, and those are not what was made here then.
_IN_THE_WAY: Final = (
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
)
# But for these, which say that what was read is wrong. A read that got too little is not among them: it may be a file
# that was cut, and then the next start, which looks through all of it, says so.
_DAMAGE: Final = (sqlite3.SQLITE_IOERR_CORRUPTFS, sqlite3.SQLITE_IOERR_DATA)

_MADE_BY_OTHERS: Final = (errno.EACCES, errno.EPERM, errno.EINVAL)

# What the system says where a file is not there, or something else bears its name: no other try would find it.
_MISSING: Final = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EEXIST, errno.ENXIO)


def make_folder(folder: Path) -> None:
    """Return when a folder is there, for its owner alone; it and those above it that were made are on disk then.

    Raises:
        OSError: it cannot be made, or the system could not write it.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    # One after the other: a process that dies here leaves one name at most that is on no disk, the last that is there.
    try:
        sync_folder((missing[-1].parent if missing else folder).parent)
    except OSError as fault:  # what lies where this user may not look, or where nothing can be synced, others have made
        if fault.errno not in _MADE_BY_OTHERS:
            raise
    for each in reversed(missing):
        each.mkdir(exist_ok=True, mode=0o700 if each is folder else 0o777)
        sync_folder(each.parent)
    folder.mkdir(exist_ok=True, mode=0o700)  # where it is there, and no folder, this says so


def is_there(path: Path) -> bool:
    """Tell whether something in a state folder has this name.

    `Path.exists` would say no, from Python 3.14 on, where it cannot tell.

    Raises:
        JournalError: it cannot be told.
    """
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError as fault:
        raise read_error(f"The state folder {path.parent}", fault) from None
    return True


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


def write_error(what: str, fault: OSError, *, done: str = "written") -> JournalError:
    """Return the error for a person of a file that could not be written.

    Args:
        what: begins the sentence.
        fault: as the system reported it.
        done: what could not be done to it.
    """
    if is_for_want_of_room(fault):
        return DiskFull(what, _reason(fault))
    return _error(f"{what} cannot be {done}: {_reason(fault)}.", fault)


def read_error(what: str, fault: OSError) -> JournalError:
    """Return the error for a person of a file that could not be read. Arguments as of `write_error`."""
    return _error(f"{what} cannot be read: {_reason(fault)}.", fault)


def is_missing(fault: OSError) -> bool:
    """Tell whether a file is not there, or something else is in its place; all else may pass."""
    return fault.errno in _MISSING


def is_full(fault: Exception) -> bool:
    """Tell whether SQLite could not write, while what is written is whole."""
    return getattr(fault, "sqlite_errorcode", None) in _NO_ROOM


def is_held(fault: Exception) -> bool:
    """Tell whether another program keeps SQLite's lock of a database."""
    return _primary_code(fault) == sqlite3.SQLITE_BUSY


def is_in_the_way(fault: Exception) -> bool:
    """Tell whether SQLite could not work, for a reason that says nothing against what stands in the database."""
    return _primary_code(fault) in _IN_THE_WAY and getattr(fault, "sqlite_errorcode", None) not in _DAMAGE


def _error(message: str, fault: OSError) -> JournalError:
    if is_missing(fault):
        return JournalError(message, hint="See what lies there in its place.")
    return InTheWay(message)


def _reason(fault: OSError) -> str:
    return fault.strerror or type(fault).__name__


def _primary_code(fault: Exception) -> int | None:
    code: int | None = getattr(fault, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
