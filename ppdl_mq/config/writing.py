"""Writing the files that people edit: a new one never over another, a changed one whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from ppdl_mq.errors import ConfigError


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
        handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(handle)
            shutil.copymode(path, unfinished)
            Path(unfinished).replace(path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                Path(unfinished).unlink()
            raise
    except OSError as fault:
        raise error(f"{path}: cannot be written: {fault.strerror}.") from None


def copy(source: Path, path: Path, *, error: type[ConfigError]) -> Path:
    """Copy a file, whole or not at all; `path` may be a folder. Return the path of the copy.

    Raises:
        ConfigError: as `error`; it cannot be written.
    """
    target = path / source.name if path.is_dir() else path
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as unfinished:
            shutil.copyfile(source, unfinished.name)
        Path(unfinished.name).replace(target)
    except OSError as fault:
        raise error(f"{target}: cannot be written: {fault.strerror}.") from None
    return target
