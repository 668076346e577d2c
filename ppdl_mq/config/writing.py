"""Writing the files that people edit: a new one never over another, a changed one whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ppdl_mq.errors import ConfigError, DiskFull

# What file systems say that cannot sync a folder, and folders into which one may only put something.
_NO_SYNC: Final = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EACCES)
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, the user's quota, the limit on a file's size


def is_for_want_of_room(fault: Exception) -> bool:
    """Tell whether a file could not be written because there is no room for it."""
    found = system_fault(fault)
    return found is not None and found.errno in _NO_ROOM


def system_fault(fault: BaseException | None) -> OSError | None:
    """Return what the system reported; None where it was not the system."""
    if fault is None or isinstance(fault, OSError):
        return fault
    # safetensors reports the system's error in words of its own, with the number in them.
    found = re.search(r"\(os error ([0-9]{1,5})\)", str(fault))
    return None if found is None else OSError(int(found[1]), os.strerror(int(found[1])))


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


def write_new(path: Path, text: str, *, error: type[ConfigError]) -> None:
    """Write a file that does not exist yet.

    Raises:
        ConfigError: as `error`; it exists, or cannot be written.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise error(f"{path}: exists already.", hint="Choose another name, or remove it first.") from None
    except OSError as fault:
        raise error(f"{path}: cannot be written: {fault.strerror}.") from None


def replace(path: Path, text: str, *, error: type[ConfigError]) -> None:
    """Replace what a file holds, keeping its mode; a crash leaves the old text or the new.

    Raises:
        ConfigError: as `error`; it cannot be written.
    """
    try:
        with _unfinished(path) as unfinished:
            with unfinished.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            shutil.copymode(path, unfinished)
    except OSError as fault:
        raise error(f"{path}: cannot be written: {fault.strerror}.") from None


def copy_target(name: str, path: Path, *, error: type[ConfigError]) -> Path:
    """Return the real path of a copy: within `path` where that is a folder, and where a symlink leads.

    Raises:
        ConfigError: as `error`; something that is no regular file stands there, such as a device, or it cannot be told.
    """
    target = path / name if path.is_dir() else path
    real = Path(os.path.realpath(target))  # unlike `resolve` it takes a circle of links for what it is
    try:
        mode = real.lstat().st_mode
    except FileNotFoundError:
        return real
    except OSError as fault:
        raise error(f"{target}: cannot be written: {fault.strerror}.") from None
    if not stat.S_ISREG(mode):
        raise error(f"{target}: stands there, and is no regular file.", hint="Choose another path, or remove it first.")
    return real


def copy(source: Path, path: Path, *, error: type[ConfigError]) -> Path:
    """Copy a file, whole or not at all; `path` may be a folder. Return the path of the copy, which is on disk then.

    Raises:
        ConfigError: as `error`; it cannot be written, or something that is no file stands there.
        DiskFull: there is no room for it.
    """
    real = copy_target(source.name, path, error=error)
    target = path / source.name if path.is_dir() else path
    try:
        with _unfinished(real) as unfinished:
            shutil.copyfile(source, unfinished)
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
    except OSError as fault:
        if is_for_want_of_room(fault):
            raise DiskFull(str(target), fault.strerror or "no room") from None
        raise error(f"{target}: cannot be written: {fault.strerror}.") from None
    return target


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """Give a new file of mode 0600 beside a path; it takes the path's place at the end, or goes if the block fails."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    unfinished = Path(name)
    try:
        yield unfinished
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    try:
        sync_folder(path.parent)
    except OSError as fault:
        if fault.errno not in _NO_SYNC:  # people may write to any disk: a share, a stick
            raise
