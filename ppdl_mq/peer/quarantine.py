"""What was refused: counted by reason, and the first of each reason set aside for a person to look at."""

from __future__ import annotations

import sqlite3
import time

from ppdl_mq.config import limits
from ppdl_mq.errors import RemoteError
from ppdl_mq.peer.journal import Journal


class Quarantine:
    """Refused messages of one journal, in bounded space.

    Args:
        journal: where.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def add(self, error: RemoteError, message: bytes) -> int:
        """Note a message that was refused, and why; its head is kept while its reason has not had its share.

        All reasons share what room there is: a flood of one sort must not hide what is refused for another.

        Returns:
            How many were refused for a reason of this class so far.
        """
        with self._journal.transaction() as db:
            reason = type(error).__name__
            db.execute(
                "INSERT INTO refused_count VALUES (?, 1) ON CONFLICT (reason) DO UPDATE SET count = count + 1",
                (reason,),
            )
            count = db.execute("SELECT count FROM refused_count WHERE reason = ?", (reason,)).fetchone()[0]
            if _has_room(db, count):
                head = message[: limits.MAX_REFUSED_HEAD_BYTES]
                db.execute(
                    "INSERT INTO refused (at, reason, head) VALUES (?, ?, ?)",
                    (time.time(), f"{reason}: {error.message}", head),
                )
        return int(count)

    def kept(self) -> dict[str, int]:
        """Return how many records are set aside, their bytes, and how many there is room for."""
        size = "coalesce(sum(length(head) + length(CAST(reason AS BLOB))), 0)"
        records, size_bytes = self._journal.db.execute(f"SELECT count(*), {size} FROM refused").fetchone()  # noqa: S608
        return {"records": records, "bytes": size_bytes, "limit": limits.MAX_QUARANTINE_RECORDS}

    def counts(self) -> dict[str, int]:
        """Return how many messages were refused, by the name of the error."""
        return dict(self._journal.db.execute("SELECT reason, count FROM refused_count ORDER BY reason").fetchall())


def _has_room(db: sqlite3.Connection, count: int) -> bool:
    """Tell whether one more record may be kept; the newest of the reason that has most makes room where it must.

    Args:
        db: of the journal.
        count: how many were refused for this reason, this one included: it has fewer records than that.
    """
    if db.execute("SELECT count(*) FROM refused").fetchone()[0] < limits.MAX_QUARANTINE_RECORDS:
        return True
    reasons = db.execute("SELECT count(*) FROM refused_count").fetchone()[0]
    if count > max(1, limits.MAX_QUARANTINE_RECORDS // reasons):
        return False
    name = "substr(reason, 1, instr(reason, ':'))"
    newest = f"SELECT max(id) FROM refused GROUP BY {name} ORDER BY count(*) DESC LIMIT 1"  # noqa: S608 (our own names)
    db.execute(f"DELETE FROM refused WHERE id = ({newest})")  # noqa: S608
    return True
