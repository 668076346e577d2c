"""A tap on an embedded relay: a trigger in its file copies every body."""

# ruff: noqa: D102, S608 (the base class says what each method does; names are checked words, and take no parameters)

from __future__ import annotations

import sqlite3
from pathlib import Path

from ppdl_mq.transport.address import Names
from ppdl_mq.transport.embedded.store import open_store, working_error
from ppdl_mq.transport.tap import Tap


class EmbeddedTap(Tap):
    """Copies what is put into the file of an embedded relay.

    Args:
        path: the relay's file.
        names: of the trial's queues.
    """

    def __init__(self, path: Path, names: Names) -> None:
        self._path = path
        self._table = f'"tap of {names.exchange}"'
        self._trigger = f'"trigger of {names.exchange}"'
        self._database: sqlite3.Connection | None = open_store(path)
        try:
            self._database.executescript(
                f"BEGIN IMMEDIATE; CREATE TABLE {self._table} (number INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB);"
                f"CREATE TRIGGER {self._trigger} AFTER INSERT ON bodies"
                f" WHEN (SELECT queue FROM messages WHERE number = NEW.number) GLOB '{names.exchange}.*'"
                f" BEGIN INSERT INTO {self._table} (body) VALUES (NEW.body); END; COMMIT;"
            )
        except sqlite3.Error as error:
            self._database.close()
            raise working_error(error, path) from error

    def read(self) -> list[bytes]:
        if self._database is None:
            return []
        try:
            rows = self._database.execute(f"SELECT number, body FROM {self._table} ORDER BY number").fetchall()
            if rows:
                self._database.execute(f"DELETE FROM {self._table} WHERE number <= ?", (rows[-1][0],))
        except sqlite3.Error as error:
            raise working_error(error, self._path) from error
        return [bytes(body) for _, body in rows]

    def close(self) -> None:
        database, self._database = self._database, None
        if database is None:
            return
        try:
            database.executescript(f"DROP TRIGGER {self._trigger}; DROP TABLE {self._table};")
        except sqlite3.Error as error:
            raise working_error(error, self._path) from error
        finally:
            database.close()
