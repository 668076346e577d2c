"""A peer's transcript: every signed statement that it met, hash-chained and signed by itself.

Entries stand in the journal, in the transaction of what they belong to. After the commit they are mirrored to
`transcript.log`, which the peer can hand to others: `ppdl-mq trial verify-log` compares the logs of several peers.

Of an entry the journal has `statement`, the digest of who says what, so that nothing is recorded twice; `digest`, what
the next entry names; `line`, and `stops_at`, where the line ends in the mirror, so that a crash in the middle of a
line is found without reading all.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
from collections.abc import Callable
from typing import BinaryIO

from ppdl_mq.errors import IllegalEvent, Malformed, TooLarge
from ppdl_mq.peer.durable import write_error
from ppdl_mq.peer.folders import JOURNAL_NAME, free_name
from ppdl_mq.peer.journal import Journal
from ppdl_mq.protocol.effects import Record
from ppdl_mq.protocol.statements import statement_bytes
from ppdl_mq.wire import canonical
from ppdl_mq.wire.entries import BEGINNING, LOG_NAME, MAX_LINE_BYTES, NOTHING_BEFORE, Entry, read_line

_logger = logging.getLogger(__name__)


class Transcript:
    """The transcript of one peer in one trial. Used by the journal's thread.

    Args:
        journal: where the entries stand.
        me: name of the log's owner.
        sign: with its identity, 64 bytes.
        trial_id: 32 bytes.
        manifest: its canonical bytes; entry 0 holds them, so that all public keys are in the log.

    Raises:
        JournalError: the journal or the mirror cannot be written, or the mirror is ahead of the journal.
    """

    def __init__(
        self, journal: Journal, *, me: str, sign: Callable[[bytes], bytes], trial_id: bytes, manifest: bytes
    ) -> None:
        self._journal = journal
        self._me = me
        self._sign = sign
        self.path = journal.folder / LOG_NAME
        with journal.transaction():
            self._append(by=me, says=BEGINNING, about={"trial": trial_id, "manifest": manifest}, signature=b"")
        self._next = 0  # the first entry that the mirror lacks
        self._size_bytes = 0  # of the mirror's whole lines
        self._guarded(self._reconcile)
        self.flush()

    def add(self, record: Record) -> None:
        """Append a statement, unless it is there already. To be called in the transaction of what it belongs to."""
        statement_bytes(record.says, record.about)  # a record of another form is a bug, to be met here
        self._append(by=record.by, says=record.says, about=dict(record.about), signature=record.signature)

    def flush(self) -> None:
        """Write to the mirror what has been committed since. To be called after the commit.

        Raises:
            JournalError: the mirror cannot be written; the entries are in the journal, and a later call writes them.
        """
        if self._journal.db.in_transaction:
            raise IllegalEvent("The transcript was mirrored before its entries were committed.")
        self._guarded(self._mirror)

    def _append(self, *, by: str, says: str, about: dict[str, object], signature: bytes) -> None:
        with self._journal.transaction() as db:
            said = hashlib.sha256(canonical.encode([by, says, about])).digest()
            if db.execute("SELECT 1 FROM transcript WHERE statement = ?", (said,)).fetchone():
                return
            last = db.execute("SELECT number, digest, stops_at FROM transcript ORDER BY number DESC LIMIT 1").fetchone()
            number, previous, starts_at = last or (-1, NOTHING_BEFORE, 0)
            entry = Entry(
                number=number + 1,
                previous=bytes(previous),
                by=by,
                says=says,
                about=about,
                signature=signature,
                logged_by=self._me,
            )
            line = entry.line(self._sign(entry.signed_bytes()))
            row = (entry.number, said, entry.digest(), line, starts_at + len(line))
            db.execute("INSERT INTO transcript VALUES (?, ?, ?, ?, ?)", row)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (sqlite3.Error, OverflowError) as fault:  # OverflowError: a number that is not one of ours
            raise self._journal.damaged(fault) from None
        except OSError as fault:
            raise write_error(f"The transcript {self.path}", fault) from None

    def _mirror(self) -> None:
        newest = self._journal.db.execute("SELECT max(number) FROM transcript").fetchone()[0]
        if newest < self._next:
            return
        with self._opened() as file:
            if os.fstat(file.fileno()).st_size < self._size_bytes:  # somebody removed or cut it meanwhile
                self._next = self._size_bytes = 0
            file.truncate(self._size_bytes)  # a line that an error left half written
            file.seek(self._size_bytes)
            rows = "SELECT number, line, stops_at FROM transcript WHERE number >= ? ORDER BY number"
            for number, line, stops_at in self._journal.db.execute(rows, (self._next,)):
                file.write(line)
                file.flush()  # a line is counted once the system has it; the journal is what survives a power cut
                self._next, self._size_bytes = number + 1, stops_at

    def _reconcile(self) -> None:
        """Find what the mirror lacks. A line that a crash left half written is written again by `flush`.

        The journal's commit is on disk before its line is written. So a mirror that goes on where the journal ends
        shows that the journal was put back: by people, or since SQLite passes over whatever follows the first damaged
        page in its write-ahead log, without a word. A mirror that holds something else than the journal is set aside.
        Only the last whole line is compared here; verify-log checks them all.

        Raises:
            JournalError: the journal was put back.
        """
        with self._opened() as file:
            size = os.fstat(file.fileno()).st_size
            columns = "number, line, stops_at, digest"
            last = f"SELECT {columns} FROM transcript WHERE stops_at <= ? ORDER BY number DESC LIMIT 1"  # noqa: S608
            number, line, stops_at, digest = self._journal.db.execute(last, (size,)).fetchone() or (-1, b"", 0, b"")
            after = self._journal.db.execute("SELECT line FROM transcript WHERE number = ?", (number + 1,)).fetchone()
            file.seek(stops_at - len(line))
            held = file.read(len(line) + (len(after[0]) if after else MAX_LINE_BYTES))
        whole, begun = held[: len(line)], held[len(line) :]
        if whole == line and (after[0] if after else b"").startswith(begun):
            self._next, self._size_bytes = number + 1, stops_at
            return
        if whole == line and after is None and _follows(begun, bytes(digest)):
            raise self._journal.lost(
                f"it ends before {LOG_NAME} does, so it was put back to an earlier state or has lost the end of "
                f"{JOURNAL_NAME}-wal"
            )
        aside = free_name(self.path.parent, f"{LOG_NAME}.")
        self.path.rename(aside)
        _logger.warning("%s does not hold what the journal does: kept as %s, and written anew.", LOG_NAME, aside.name)

    def _opened(self) -> BinaryIO:
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        return os.fdopen(handle, "r+b")


def _follows(held: bytes, digest: bytes) -> bool:
    """Tell whether bytes begin with the whole entry that comes after one of this digest."""
    try:
        return read_line(held[: held.find(b"\n") + 1])[0].previous == digest
    except (Malformed, TooLarge):
        return False
