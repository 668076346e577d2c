"""The statements of all logs side by side, in a temporary database that may grow larger than the memory.

Only digests are kept. A statement has a *place*: what its signer may say one thing about. Two values of one signer in
one place contradict each other. It may also have a *result*, that all signers of a place should come to.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from ppdl_mq.audit.forms import Attempt, attempt_of
from ppdl_mq.errors import JournalError
from ppdl_mq.wire import canonical
from ppdl_mq.wire.entries import Entry

_SCHEMA: Final = """
CREATE TABLE said (signer TEXT, says TEXT, place BLOB, value BLOB, result BLOB, log INTEGER, entry INTEGER,
    context BLOB, UNIQUE (signer, says, place, value));
CREATE TABLE context (digest BLOB PRIMARY KEY, session BLOB, step INTEGER, attempt INTEGER) WITHOUT ROWID;
CREATE TABLE result (log INTEGER, context BLOB, step INTEGER, digest BLOB, UNIQUE (log, context, step, digest));
CREATE TABLE logged (trial BLOB, owner TEXT, number INTEGER, digest BLOB, log INTEGER,
    PRIMARY KEY (trial, owner, number, digest)) WITHOUT ROWID;
"""
# A receipt or agreement names its context by digest only. Where the context is known, its place is the attempt, or the
# step: a member signs one receipt in an attempt, and releases in one attempt of a step only.
_RESOLVE: Final = """
UPDATE said SET place =
    (SELECT hex(session) || '/' || step || CASE said.says WHEN 'receipt' THEN '/' || attempt ELSE '' END
    FROM context WHERE context.digest = said.context)
WHERE says IN ('receipt', 'agreement') AND context IN (SELECT digest FROM context);
UPDATE result SET step = (SELECT step FROM context WHERE context.digest = result.context)
WHERE step = 0 AND context IN (SELECT digest FROM context);
CREATE INDEX by_place ON said (says, place, result);
CREATE INDEX by_step ON result (step, log);
"""
_CONTRADICTIONS: Final = """
SELECT signer, says, place FROM said GROUP BY signer, says, place HAVING count(*) > 1 ORDER BY min(rowid) LIMIT ?
"""
_DIFFERENCES: Final = """
SELECT says, place FROM said WHERE result IS NOT NULL GROUP BY says, place
HAVING count(DISTINCT result) > 1 AND count(DISTINCT signer) > 1 ORDER BY min(rowid) LIMIT ?
"""
_FORKS: Final = """
SELECT trial, owner, min(number) FROM (
    SELECT trial, owner, number FROM logged GROUP BY trial, owner, number HAVING count(*) > 1)
GROUP BY trial, owner LIMIT ?
"""


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


class Ledger:
    """Filled log by log, then asked. A context manager: the database goes when it ends.

    Raises:
        JournalError: everywhere, if there is no room for the temporary database.
    """

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None)
        # Nobody reads it after a crash.
        for statement in ("PRAGMA journal_mode = OFF", "PRAGMA synchronous = OFF", *_SCHEMA.split(";\n"), "BEGIN"):
            self._do(statement, ())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._db.close()

    def add(self, log: int, entry: Entry) -> None:
        """Take a statement whose form and signature hold.

        Args:
            log: index of the log.
            entry: which; not number 0.
        """
        about = entry.about
        context = about["context"] if entry.says in ("receipt", "sum", "agreement") else None
        value = canonical.encode(dict(about))
        if entry.says == "session key":  # an honest peer signs it once, and the session id covers the signature
            value += entry.signature
        place, result = _place_and_result(entry.says, about)
        if entry.says == "commitment":
            attempt = attempt_of(about["context"])
            known = (attempt.digest, attempt.session, attempt.step, attempt.attempt)
            self._do("INSERT OR IGNORE INTO context VALUES (?, ?, ?, ?)", known)
        digest = hashlib.sha256(value).digest()
        row = (entry.by, entry.says, place, digest, result, log, entry.number, context)
        self._do("INSERT OR IGNORE INTO said VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        if entry.says == "turn" and about["turn"]:
            self._do("INSERT OR IGNORE INTO result VALUES (?, x'', ?, ?)", (log, about["turn"], about["digest"]))
        if entry.says == "agreement":
            self._do("INSERT OR IGNORE INTO result VALUES (?, ?, 0, ?)", (log, about["context"], about["digest"]))

    def add_logged(self, log: int, trial: bytes, entry: Entry, digest: bytes) -> None:
        """Take an entry as its owner signed it; an owner's logs of one trial may differ in length only."""
        row = (trial, entry.logged_by, entry.number, digest, log)
        self._do("INSERT OR IGNORE INTO logged VALUES (?, ?, ?, ?, ?)", row)

    def close_books(self) -> None:
        """Bring statements of the same attempt together; to be called once, after the last log."""
        for statement in _RESOLVE.split(";\n"):
            self._do(statement, ())

    def contradictions(self, most: int) -> Iterator[tuple[str, str, tuple[Place, Place]]]:
        """Yield signer, what it says, and the first two places of each contradiction."""
        for signer, says, place in self._do(_CONTRADICTIONS, (most,)):
            query = (
                "SELECT log, entry, signer FROM said WHERE signer = ? AND says = ? AND place = ? ORDER BY rowid LIMIT 2"
            )
            one, other = self._do(query, (signer, says, place))
            yield signer, says, (Place(*one), Place(*other))

    def differences(self, most: int) -> Iterator[tuple[str, tuple[Place, Place]]]:
        """Yield what is said, and two places, where different signers came to different results."""
        for says, place in self._do(_DIFFERENCES, (most,)):
            query = "SELECT log, entry, signer, result FROM said WHERE says = ? AND place = ? ORDER BY rowid"
            first, *others = self._do(query, (says, place))
            found = [row for row in others if row[3] != first[3] and row[2] != first[2]]
            if found:  # otherwise one signer contradicts itself, which is said elsewhere
                yield says, (Place(*first[:3]), Place(*found[0][:3]))

    def forks(self, most: int) -> Iterator[tuple[str, tuple[Place, Place]]]:
        """Yield an owner whose logs differ, and the entry from which they do."""
        for trial, owner, number in self._do(_FORKS, (most,)):
            query = """SELECT log, number, owner FROM logged WHERE trial = ? AND owner = ? AND number = ?
                ORDER BY log LIMIT 2"""
            one, other = self._do(query, (trial, owner, number))
            yield owner, (Place(*one), Place(*other))

    def last_step(self, log: int) -> int:
        """Return the last turn or step whose result a log holds; 0 if none."""
        return int(self._do("SELECT coalesce(max(step), 0) FROM result WHERE log = ?", (log,))[0][0])

    def agreed_steps(self, logs: int) -> int:
        """Return of how many turns or steps all logs hold one and the same result.

        Args:
            logs: how many there are.
        """
        query = """SELECT count(*) FROM (SELECT step FROM result WHERE step > 0 GROUP BY step
            HAVING count(DISTINCT log) = ? AND count(DISTINCT digest) = 1)"""
        return int(self._do(query, (logs,))[0][0])

    def _do(self, query: str, values: tuple[Any, ...]) -> list[Any]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as fault:
            raise JournalError(
                f"The logs cannot be compared: {fault}.", hint="Free space in the folder of temporary files."
            ) from None


def _place_and_result(says: str, about: Mapping[str, Any]) -> tuple[bytes, bytes | None]:
    """Return about what a signer may say one thing, and what all signers of it should come to."""
    match says:
        case "session key":
            return about["trial"], None
        case "turn":
            return canonical.encode([about["session"], about["turn"]]), None  # one signer a turn
        case "final":
            return about["session"], canonical.encode([about["turn"], about["digest"]])
        case "commitment":
            attempt: Attempt = attempt_of(about["context"])
            return canonical.encode([attempt.session, attempt.step, attempt.attempt]), None
        case "receipt":
            return about["context"], about["commitments"]
        case "sum":
            return canonical.encode([about["context"], about["shard"]]), about["digest"]
        case "agreement":
            return about["context"], about["digest"] + about["commitments"]
        case "abandon":
            return canonical.encode([about["session"], about["step"], about["attempt"]]), None
        case _:  # leaving or dropping may be said again of another step
            return canonical.encode(dict(about)), None
