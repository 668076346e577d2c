"""The one checkpoint of a peer, in its state folder: of the turn that is being trained.

It is a convenience, not a duty: where it cannot be written the turn goes on without it.

Source: docs/TRAINING.md, "In the middle of a turn".
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ppdl_mq.config.writing import sync_folder
from ppdl_mq.numeric.flatten import Buffer
from ppdl_mq.peer.folders import CHECKPOINT_ENDING

log = logging.getLogger("ppdl_mq.peer")

_UNFINISHED: Final = CHECKPOINT_ENDING + ".unfinished"  # ends the name of a file that is being written
_NAME: Final = re.compile(r"turn-[0-9]+\.checkpoint(\.unfinished)?")
_READ_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Checkpoints:
    """Keeps checkpoints in files, one at a time; what is in them is the worker's matter.

    They hold this organisation's weights and momentum, unsealed as its blobs are, so the files are for their owner
    alone. The file's name has the turn's number, so that the loop can remove the checkpoint of a turn while the
    trainer already writes that of the next.

    Args:
        folder: the state folder.
        every_s: the shortest time between two of a turn, in seconds.
    """

    def __init__(self, folder: Path, *, every_s: float) -> None:
        self.every_s = every_s
        self._folder = folder
        self._has_failed = False
        self._has_left_old_ones = False

    @contextmanager
    def view(self, number: int) -> Iterator[memoryview | None]:
        """Give read access to the checkpoint of a turn, if there is one, and remove those of others.

        Args:
            number: of the turn.

        Yields:
            The file mapped into memory; an empty view where it is empty or cannot be read.
        """
        path = self._path(number)
        self._remove_all_but(path.name)
        try:
            handle = os.open(path, _READ_FLAGS)
        except FileNotFoundError:
            yield None
            return
        except OSError:
            yield memoryview(b"")
            return
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode) or not status.st_size:
                yield memoryview(b"")
                return
            try:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError):  # no memory; or it is empty by now
                yield memoryview(b"")
                return
            with mapped, memoryview(mapped) as view:
                yield view

    def save(self, number: int, pieces: Iterable[Buffer]) -> bool:
        """Put a checkpoint in the place of the one before, whole or not at all; tell whether that went well.

        Args:
            number: of the turn.
            pieces: its bytes.
        """
        path = self._path(number)
        draft = path.with_suffix(_UNFINISHED)
        try:
            draft.unlink(missing_ok=True)
            handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "wb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(handle)
            draft.replace(path)  # so that what bears a full name is whole
            sync_folder(self._folder)
        except OSError as fault:
            if not self._has_failed:
                log.warning("A checkpoint cannot be written, training goes on without: %s.", fault.strerror)
            self._has_failed = True
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
            return False
        self._has_failed = False
        return True

    def discard(self, number: int) -> None:
        """Remove the checkpoint of a turn whose result is journalled; nothing to remove is fine."""
        with contextlib.suppress(OSError):  # the next turn's beginning tries again, and so does the trial's end
            self._path(number).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove whatever there is, finished or not."""
        self._remove_all_but(None)

    def _path(self, number: int) -> Path:
        return self._folder / f"turn-{number}{CHECKPOINT_ENDING}"

    def _remove_all_but(self, kept: str | None) -> None:
        try:
            paths = list(self._folder.iterdir())
        except OSError as fault:
            if not self._has_left_old_ones:
                log.warning("Old checkpoints cannot be looked for, and stay for now: %s.", fault.strerror)
            self._has_left_old_ones = True
            return
        self._has_left_old_ones = False
        for path in paths:
            if _NAME.fullmatch(path.name) and path.name != kept:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
