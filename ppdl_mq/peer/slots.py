"""The byte strings that a peer keeps for its machine: weights, masked vectors, shards."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from ppdl_mq.errors import JournalError
from ppdl_mq.peer.blobs import Blobs
from ppdl_mq.peer.journal import Journal
from ppdl_mq.protocol.slots import Slot

_PIECE_BYTES: Final = 16 * 1024 * 1024  # read between two pulses: a second where the disk is slow

_OF_STEP: Final = ("masked", "shard", "sum", "local")
_OF_ATTEMPT: Final = ("masked", "shard", "sum")
_NAMED: Final = "what = ? AND step = ? AND attempt = ? AND member = ? AND shard = ?"


class Slots:
    """Keeps byte strings in the journal. They are this organisation's to know; on disk they are not sealed.

    What a slot holds never changes. When it goes, the letters of the outbox whose blob is cut from it go as well (the
    journal's schema sees to it): a letter without its weights is no letter.

    Args:
        journal: where.
        blobs: its byte strings.
    """

    def __init__(self, journal: Journal, blobs: Blobs) -> None:
        self._journal = journal
        self._blobs = blobs

    def put(self, slot: Slot, content: bytes | bytearray | memoryview, *, digest: bytes | None = None) -> None:
        """Keep a byte string; a second time changes nothing.

        Args:
            slot: where.
            content: what.
            digest: its SHA-256, where it is known.
        """
        with self._journal.transaction():
            if not self.has(slot):
                digest = digest or hashlib.sha256(content).digest()
                self.adopt(slot, self._blobs.put(content), start=0, size_bytes=len(content), digest=digest)

    def adopt(self, slot: Slot, blob: int, *, start: int, size_bytes: int, digest: bytes) -> None:
        """Take over a byte string of the journal.

        Args:
            slot: where.
            blob: the number of the byte string.
            start: where in it the slot begins.
            size_bytes: of the slot.
            digest: SHA-256 of what the slot holds.
        """
        with self._journal.transaction() as db:
            db.execute(
                "INSERT INTO slot (what, step, attempt, member, shard, blob, start, bytes, digest)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*_key(slot), blob, start, size_bytes, digest),
            )

    def check(self, pulse: Callable[[], None] = lambda: None) -> None:
        """Hold every slot to its digest. Reads them all, so it is called once, before a peer resumes.

        Args:
            pulse: called now and then: the weights of a large model may take minutes to read.

        Raises:
            JournalError: one has changed on the disk, or is missing.
        """
        rows = self._journal.db.execute("SELECT id, what, step, digest FROM slot").fetchall()
        for number, what, step, digest in rows:
            with self.view_row(number) as content:
                if _digest(content, pulse) != digest:
                    raise self._journal.lost(f"the {what} of step {step} have changed on the disk")

    def has(self, slot: Slot) -> bool:
        """Tell whether a slot is filled."""
        return self._row(slot) is not None

    def row(self, slot: Slot) -> tuple[int, int]:
        """Return a slot's number in the journal, to which a letter refers, and its size in bytes.

        Raises:
            JournalError: it is empty.
        """
        number, _, _, size_bytes = self._filled(slot)
        return number, size_bytes

    @contextmanager
    def view(self, slot: Slot) -> Iterator[memoryview]:
        """Give read access to a slot, without a copy.

        Raises:
            JournalError: it is empty.
        """
        _, blob, start, size_bytes = self._filled(slot)
        with self._blobs.view(blob) as view, _cut(view, start, size_bytes) as content:
            yield content

    @contextmanager
    def view_row(self, number: int) -> Iterator[memoryview]:
        """Give read access to the slot of this number."""
        found = self._journal.db.execute("SELECT blob, start, bytes FROM slot WHERE id = ?", (number,)).fetchone()
        if found is None:  # the schema keeps no letter of a slot that has gone
            raise JournalError(f"The journal in {self._journal.folder} lacks the weights of a message.")
        blob, start, size_bytes = found
        with self._blobs.view(blob) as view, _cut(view, start, size_bytes) as content:
            yield content

    def forget(self, before_step: int) -> None:
        """Drop whatever is of turns or steps before this one."""
        self._drop("step < ?", before_step)

    def discard(self, step: int, attempt: int | None = None) -> None:
        """Drop what was only there to finish a step: masked vectors, shards and sums.

        Args:
            step: which.
            attempt: of this attempt; None for all of it and of the steps before, and for what this peer trained there.
        """
        if attempt is None:
            self._drop(f"what IN ({_marks(_OF_STEP)}) AND step <= ?", *_OF_STEP, step)
        else:
            self._drop(f"what IN ({_marks(_OF_ATTEMPT)}) AND step = ? AND attempt = ?", *_OF_ATTEMPT, step, attempt)

    def discard_local(self, step: int) -> None:
        """Drop what this peer trained in a step."""
        self._drop("what = 'local' AND step = ?", step)

    def _drop(self, condition: str, *values: str | int) -> None:
        with self._journal.transaction() as db:
            for number, blob in db.execute(f"SELECT id, blob FROM slot WHERE {condition}", values).fetchall():  # noqa: S608
                db.execute("DELETE FROM slot WHERE id = ?", (number,))
                self._blobs.delete(blob)

    def _filled(self, slot: Slot) -> tuple[int, int, int, int]:
        row = self._row(slot)
        if row is None:
            raise JournalError(f"The journal in {self._journal.folder} lacks the {slot.what} of step {slot.step}.")
        return row

    def _row(self, slot: Slot) -> tuple[int, int, int, int] | None:
        query = f"SELECT id, blob, start, bytes FROM slot WHERE {_NAMED}"  # noqa: S608
        row: tuple[int, int, int, int] | None = self._journal.db.execute(query, _key(slot)).fetchone()
        return row


def _digest(content: memoryview, pulse: Callable[[], None]) -> bytes:
    digest = hashlib.sha256()
    for start in range(0, len(content), _PIECE_BYTES):
        digest.update(content[start : start + _PIECE_BYTES])
        pulse()
    return digest.digest()


def _cut(view: memoryview, start: int, size_bytes: int) -> memoryview:
    if not 0 <= start <= start + size_bytes <= len(view):
        raise JournalError("A slot of the journal reaches beyond the bytes that it is cut from.")
    return view[start : start + size_bytes]


def _key(slot: Slot) -> tuple[str, int, int, str, int]:
    return slot.what, slot.step, slot.attempt, slot.member, slot.shard


def _marks(values: tuple[str, ...]) -> str:
    return ", ".join("?" * len(values))
