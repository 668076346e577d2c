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
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ppdl_mq.errors import ConfigError, DiskFull

# What file systems say that cannot sync a folder, and folders into which one may only put something.
_NO_SYNC: Final = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EACCES)
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, the user's quota, the limit on a file's size
# What the system says where no folder is: nothing, a file on the way, a circle of links.
_NO_FOLDER: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_NAMED_CHARACTERS: Final = 32  # of a file's name, in that of the unfinished one


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyTarget:
    """Where a copy goes.

    Args:
        path: as people know it.
        real: where a symlink leads.
    """

    path: Path
    real: Path


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


def is_folder(path: Path, *, error: type[ConfigError]) -> bool:
    """Tell whether a path that people gave is a folder; `Path.is_dir` fails, or says no, where it cannot be told.

    Raises:
        ConfigError: as `error`; it cannot be told: no rights, too long a name, a disk that does not answer.
    """
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError as fault:
        if fault.errno in _NO_FOLDER:
            return False
        raise error(f"{path}: cannot be looked at: {fault.strerror}.", hint="Choose another path.") from None


def copy_target(name: str, path: Path, *, error: type[ConfigError]) -> CopyTarget:
    """Return where a copy goes: within `path` where that is a folder.

    Raises:
        ConfigError: as `error`; something that is no regular file stands there, such as a device, or it cannot be told.
    """
    target = path / name if is_folder(path, error=error) else path
    try:
        real = Path(os.path.realpath(target))  # unlike `resolve` it takes a circle of links for what it is
        is_file = stat.S_ISREG(real.lstat().st_mode)
    except FileNotFoundError:
        is_file = True  # once it is written
    except OSError as fault:
        raise error(f"{target}: cannot be written: {fault.strerror}.") from None
    if not is_file:
        raise error(f"{target}: stands there, and is no regular file.", hint="Choose another path, or remove it first.")
    return CopyTarget(path=target, real=real)


def copy(source: Path, path: Path, *, error: type[ConfigError]) -> Path:
    """Copy a file, whole or not at all; `path` may be a folder. Return the path of the copy, which is on disk then.

    Raises:
        ConfigError: as `error`; it cannot be written, or something that is no file stands there.
        DiskFull: there is no room for it.
    """
    target = copy_target(source.name, path, error=error)
    try:
        with _unfinished(target.real) as unfinished:
            shutil.copyfile(source, unfinished)
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
    except OSError as fault:
        if is_for_want_of_room(fault):
            raise DiskFull(str(target.path), fault.strerror or "no room") from None
        raise error(f"{target.path}: cannot be written: {fault.strerror}.") from None
    return target.path


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """Give a new file of mode 0600 beside a path; it takes the path's place at the end, or goes if the block fails."""
    beginning = path.name[:_NAMED_CHARACTERS]  # the whole name may be as long as a name can be
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{beginning}.")
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
