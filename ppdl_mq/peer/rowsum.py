"""A sum over every row of a journal, so that a changed, a missing or an added one is noticed when it is opened.

SQLite checks the structure of its pages, not what stands in them: a number that is wrong but could be right, or a
message that has gone, it hands out as if nothing were. So each row counts as a keyed hash of its values, the sum of
all hashes is kept up to date by triggers, and a mark over it is written in every transaction. Rows come and go in any
order and cost one hash each; only opening reads them all.

The key follows from the identity. This finds damage and careless edits; whoever can put the whole folder back to an
earlier state finds the live secrets in his way (`peer/live.py`).
"""

from __future__ import annotations

import sqlite3
from hashlib import blake2b
from typing import Any, Final

from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import IllegalEvent
from ppdl_mq.wire import canonical

MARK_FACT: Final = "rows"  # the entry that holds the mark is the one row that does not count
_SUM_BYTES: Final = 32
_MODULUS: Final = 2 ** (8 * _SUM_BYTES)


def columns_of(db: sqlite3.Connection) -> dict[str, dict[str, str]]:
    """Return the tables of a database, and of each the columns in their order, with their types.

    Raises:
        sqlite3.Error: it cannot be read.
    """
    tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    names = [name for (name,) in db.execute(tables).fetchall()]
    return {name: {row[1]: row[2] for row in db.execute(f"PRAGMA table_info({name})")} for name in names}


class RowSum:
    """Keeps the sum of one database. Used by the thread that uses the database.

    Args:
        db: with its tables; triggers are made in it that live as long as the connection.
        key: 32 bytes.

    Raises:
        sqlite3.Error: a row cannot be read.
    """

    def __init__(self, db: sqlite3.Connection, key: Secret) -> None:
        self._db = db
        self._key = key.reveal()
        self._columns = {table: list(columns) for table, columns in columns_of(db).items()}
        self.value = 0
        db.create_function("row_counts", -1, self._count)
        db.execute("PRAGMA recursive_triggers = ON")  # else INSERT OR REPLACE removes a row without a word
        for table, columns in self._columns.items():
            self._watch(table, columns)
        self._recount()

    def mark(self) -> bytes:
        """Return what is to be kept beside the rows as they are now."""
        return blake2b(self.value.to_bytes(_SUM_BYTES, "big"), key=self._key, digest_size=32, person=b"mark").digest()

    def _watch(self, table: str, columns: list[str]) -> None:
        def counts(sign: int, row: str) -> str:
            values = ", ".join(f"{row}.{column}" for column in columns)
            return f"SELECT row_counts({sign}, '{table}', {values});"

        gone, come = counts(-1, "OLD"), counts(1, "NEW")
        for event, body in {"INSERT": come, "DELETE": gone, "UPDATE": gone + come}.items():
            name = f"{table}_{event.lower()}"
            self._db.execute(f"CREATE TEMP TRIGGER {name} AFTER {event} ON main.{table} BEGIN {body} END")

    def _recount(self) -> None:
        for table, columns in self._columns.items():
            for row in self._db.execute(f"SELECT {', '.join(columns)} FROM {table}"):  # noqa: S608 (of our own schema)
                self._add(1, table, row)

    def _count(self, sign: int, table: str, *row: Any) -> None:
        if not self._db.in_transaction:
            raise IllegalEvent("The journal was changed outside of its transactions.")
        self._add(sign, table, row)

    def _add(self, sign: int, table: str, row: tuple[Any, ...]) -> None:
        if table == "fact" and row[0] == MARK_FACT:
            return
        content = canonical.encode([table, *row])
        digest = blake2b(content, key=self._key, digest_size=_SUM_BYTES, person=b"row").digest()
        self.value = (self.value + sign * int.from_bytes(digest, "big")) % _MODULUS
