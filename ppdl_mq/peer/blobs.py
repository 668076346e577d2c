"""Byte strings that rows of the journal point to: small ones in the row, large ones in a file of their own.

Those in a row are sealed, since a small message may be a secret of the session: a contribution to the trial key, a
mask. Files hold weights and shards, and are not.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ppdl_mq.config.writing import sync_folder
from ppdl_mq.peer.durable import is_missing, read_error, write_error
from ppdl_mq.peer.journal import Journal

INLINE_BYTES: Final = 1_048_576
_SEALED_AS: Final = "byte string"


class Blobs:
    """The byte strings of one journal.

    Args:
        journal: whose rows hold or name them.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._folder = journal.folder / "blobs"
        try:
            self._folder.mkdir(exist_ok=True, mode=0o700)
            self._sweep()
        except OSError as fault:
            raise write_error(f"The folder {self._folder} of the journal", fault) from None

    def put(self, content: bytes | bytearray | memoryview) -> int:
        """Keep a byte string and return its number. Call within a transaction."""
        if len(content) > INLINE_BYTES:
            with self.writer(len(content)) as writer:
                writer.write(0, content)
            return writer.blob
        return self._insert(len(content), self._journal.sealed(_SEALED_AS, bytes(content)))

    def reserve(self, size_bytes: int) -> int:
        """Return the number of a byte string that `reopen` will fill. Call within a transaction."""
        return self._insert(size_bytes, None)

    @contextmanager
    def writer(self, size_bytes: int) -> Iterator[BlobWriter]:
        """Make a file to be filled piece by piece; it is on disk when the block ends."""
        blob = self.reserve(size_bytes)
        writer = BlobWriter(self._path(blob), blob, size_bytes)
        try:
            yield writer
            writer.sync()
        finally:
            writer.close()

    def reopen(self, blob: int, size_bytes: int) -> BlobWriter:
        """Return a writer for a file that is still being filled."""
        return BlobWriter(self._path(blob), blob, size_bytes)

    @contextmanager
    def view(self, blob: int) -> Iterator[memoryview]:
        """Give read access: to the row's bytes, or without a copy to the file mapped into memory.

        Raises:
            JournalError: the file is missing or has another size, or the row does not open.
            InTheWay: it cannot be read for now.
        """
        row = self._journal.db.execute("SELECT bytes, inline FROM blob WHERE id = ?", (blob,)).fetchone()
        if row is None:
            raise self._journal.lost("it lacks an entry that it refers to")
        if row[1] is not None:
            yield memoryview(self._journal.opened(_SEALED_AS, row[1]))
            return
        try:
            with self._path(blob).open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as fault:  # ValueError: nothing is in it to be mapped
            if isinstance(fault, OSError) and not is_missing(fault):
                raise read_error(f"The file {self._path(blob)} of the journal", fault) from None
            raise self._journal.lost(f"its file {self._path(blob)} is missing or empty") from None
        with mapped, memoryview(mapped) as view:
            if len(view) != row[0]:
                raise self._journal.lost(f"its file {self._path(blob)} has the wrong size")
            yield view

    def delete(self, blob: int) -> None:
        """Drop a byte string. Call within a transaction, after the rows that refer to it."""
        self._journal.db.execute("DELETE FROM blob WHERE id = ?", (blob,))
        self._journal.unlink_on_commit(self._path(blob))

    def _insert(self, size_bytes: int, inline: bytes | None) -> int:
        with self._journal.transaction() as db:
            cursor = db.execute("INSERT INTO blob (bytes, inline) VALUES (?, ?)", (size_bytes, inline))
            assert cursor.lastrowid is not None
            return cursor.lastrowid

    def _path(self, blob: int) -> Path:
        return self._folder / str(blob)

    def _sweep(self) -> None:
        """Remove files without a row: those of a transaction that a crash cut short."""
        kept = {str(row[0]) for row in self._journal.db.execute("SELECT id FROM blob WHERE inline IS NULL")}
        for path in self._folder.iterdir():
            if path.name not in kept:
                path.unlink()


class BlobWriter:
    """Fills a file at any offset, in any order.

    Args:
        path: of the file; made if missing.
        blob: its number.
        size_bytes: what it will have in the end.
    """

    def __init__(self, path: Path, blob: int, size_bytes: int) -> None:
        self.blob = blob
        self._what = f"The file {path} of the journal"
        # Also where the file is there: a process that made it may have died before its name was on disk.
        self._new_in: Path | None = path.parent
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as fault:
            raise write_error(self._what, fault) from None
        try:
            if os.fstat(self._file).st_size != size_bytes:
                os.truncate(self._file, size_bytes)
        except OSError as fault:
            os.close(self._file)
            raise write_error(self._what, fault) from None

    def write(self, offset: int, content: bytes | bytearray | memoryview) -> None:
        """Write `content` at `offset`.

        Raises:
            JournalError: the disk is full or fails.
        """
        view = memoryview(content)
        try:
            while view:
                written = os.pwrite(self._file, view, offset)
                view, offset = view[written:], offset + written
        except OSError as fault:
            raise write_error(self._what, fault) from None

    def sync(self) -> None:
        """Return when everything written is on disk.

        Raises:
            JournalError: the disk is full or fails.
        """
        try:
            os.fdatasync(self._file)
            if self._new_in is not None:  # a new name is on disk only when its folder is
                sync_folder(self._new_in)
                self._new_in = None
        except OSError as fault:
            raise write_error(self._what, fault) from None

    def close(self) -> None:
        """Give the file back to the system."""
        os.close(self._file)
