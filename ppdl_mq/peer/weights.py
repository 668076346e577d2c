"""The weights of the turns that this peer got or made, by turn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ppdl_mq.errors import JournalError
from ppdl_mq.peer.blobs import Blobs
from ppdl_mq.peer.journal import Journal


class Weights:
    """Keeps flat weights in the journal. They are this organisation's to know; on disk they are not sealed.

    Args:
        journal: where.
        blobs: its byte strings.
    """

    def __init__(self, journal: Journal, blobs: Blobs) -> None:
        self._journal = journal
        self._blobs = blobs

    def put(self, turn: int, weights: bytes | bytearray | memoryview) -> None:
        """Keep what a turn ended with; a second time changes nothing."""
        with self._journal.transaction():
            if not self.has(turn):
                self.adopt(turn, self._blobs.put(weights), start=0, size_bytes=len(weights))

    def adopt(self, turn: int, blob: int, *, start: int, size_bytes: int) -> None:
        """Take over a byte string of the journal in which weights begin at `start`."""
        with self._journal.transaction() as db:
            db.execute("INSERT INTO weights VALUES (?, ?, ?, ?)", (turn, blob, start, size_bytes))

    def has(self, turn: int) -> bool:
        """Tell whether the weights of a turn are here."""
        return self._row(turn) is not None

    @contextmanager
    def view(self, turn: int) -> Iterator[memoryview]:
        """Give read access to the weights of a turn, without a copy.

        Raises:
            JournalError: they are not here.
        """
        row = self._row(turn)
        if row is None:
            raise JournalError(f"The journal in {self._journal.folder} lacks the weights of turn {turn}.")
        blob, start, size_bytes = row
        with self._blobs.view(blob) as view, view[start : start + size_bytes] as weights:
            yield weights

    def forget(self, before_turn: int) -> None:
        """Drop the weights of all turns before this one."""
        with self._journal.transaction() as db:
            for turn, blob in db.execute("SELECT turn, blob FROM weights WHERE turn < ?", (before_turn,)).fetchall():
                db.execute("DELETE FROM weights WHERE turn = ?", (turn,))
                self._blobs.delete(blob)

    def _row(self, turn: int) -> tuple[int, int, int] | None:
        row: tuple[int, int, int] | None = self._journal.db.execute(
            "SELECT blob, start, bytes FROM weights WHERE turn = ?", (turn,)
        ).fetchone()
        return row
