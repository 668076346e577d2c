"""The temporary database in which logs are compared; it may grow larger than the memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ppdl_mq.errors import JournalError


@dataclass(frozen=True, slots=True)
class Place:
    """Where a statement stands.

    Args:
        log: index of the log.
        entry: its number.
        signer: who said it.
    """

    log: int
    entry: int
    signer: str


@dataclass(frozen=True, slots=True)
class Conflict:
    """Statements of one signer that cannot all be honest, or one that nothing in the logs explains.

    Args:
        signer: whose they are.
        what: short name of what is wrong.
        places: where they stand.
    """

    signer: str
    what: str
    places: tuple[Place, ...]


class Database:
    """A file that the system removes by itself.

    Raises:
        JournalError: everywhere, if there is no room for it.
    """

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)
        self.script("PRAGMA journal_mode = OFF;\nPRAGMA synchronous = OFF;\nBEGIN")  # nobody reads it after a crash

    def script(self, statements: str) -> None:
        """Carry out statements that stand each on lines of its own."""
        for statement in statements.split(";\n"):
            self.do(statement)

    def do(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """Carry out one statement and return its rows."""
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as fault:
            raise JournalError(
                f"The logs cannot be compared: {fault}.", hint="Free space in the folder of temporary files."
            ) from None

    def close(self) -> None:
        """Remove it."""
        self._db.close()
