"""The statements of all logs side by side.

Only digests are kept. A statement has a *place*: what its signer may say one thing about. Two values of one signer in
one place contradict each other. It may also have a *result*, that all signers of a place should come to. What follows
from statements of several sorts together is worked out by `commitments` and `results`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from ppdl_mq.audit.commitments import Commitments
from ppdl_mq.audit.database import Conflict, Database, Place
from ppdl_mq.audit.results import Results
from ppdl_mq.protocol.masked_average.context import Context
from ppdl_mq.wire import canonical
from ppdl_mq.wire.entries import Entry

_SCHEMA: Final = """
CREATE TABLE said (signer TEXT, says TEXT, place BLOB, value BLOB, result BLOB, log INTEGER, entry INTEGER,
    context BLOB, UNIQUE (signer, says, place, value));
CREATE TABLE result (log INTEGER, context BLOB, step INTEGER, digest BLOB, UNIQUE (log, context, step, digest));
CREATE TABLE logged (trial BLOB, owner TEXT, number INTEGER, digest BLOB, log INTEGER,
    PRIMARY KEY (trial, owner, number, digest)) WITHOUT ROWID
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
CREATE INDEX by_place ON said (says, place, signer, result);
CREATE INDEX by_step ON result (step, log)
"""
_CONTRADICTIONS: Final = """
SELECT signer, says, place FROM said GROUP BY signer, says, place HAVING count(*) > 1 ORDER BY min(rowid) LIMIT ?
"""
# Who came to two results contradicts itself, which is said elsewhere: it is left out here.
_DIFFERENCES: Final = """
SELECT says, place FROM (
    SELECT says, place, min(result) AS one, min(rowid) AS at FROM said WHERE result IS NOT NULL
    GROUP BY says, place, signer HAVING count(DISTINCT result) = 1)
GROUP BY says, place HAVING count(DISTINCT one) > 1 ORDER BY min(at) LIMIT ?
"""
_VIEWS: Final = """
SELECT log, entry, signer, min(result), context FROM said WHERE says = ? AND place = ? AND result IS NOT NULL
GROUP BY signer HAVING count(DISTINCT result) = 1 ORDER BY min(rowid)
"""
_FORKS: Final = """
SELECT trial, owner, min(number) FROM (
    SELECT trial, owner, number FROM logged GROUP BY trial, owner, number HAVING count(*) > 1)
GROUP BY trial, owner LIMIT ?
"""


@dataclass(frozen=True, slots=True)
class View:
    """What one signer came to.

    Args:
        place: where it says so.
        result: opaque.
        context: digest of the context that it names; None where it names none.
    """

    place: Place
    result: bytes
    context: bytes | None


@dataclass(frozen=True, slots=True)
class Difference:
    """Signers that came to different results.

    Args:
        says: what they signed.
        step: of the attempt or evaluation; 0 where it is not known, or of no meaning.
        views: one a signer, in the order in which they were met.
    """

    says: str
    step: int
    views: tuple[View, ...]


class Ledger:
    """Filled log by log, then asked. A context manager: the database goes when it ends.

    Raises:
        JournalError: everywhere, if there is no room for the temporary database.
    """

    def __init__(self) -> None:
        self._db = Database()
        self._db.script(_SCHEMA)
        self.commitments = Commitments(self._db)
        self.results = Results(self._db)

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
        value = canonical.encode(dict(about))
        if entry.says == "session key":  # an honest peer signs it once, and the session id covers the signature
            value += entry.signature
        self._say(log, entry, entry.says, *_place_and_result(entry.says, about), value=value)
        match entry.says:
            case "commitment":
                self._add_commitment(log, entry, Context.decode(about["context"]))
            case "receipt":
                self.commitments.claim(log, entry)
            case "agreement":
                self.commitments.claim(log, entry)
                self._add_result(log, about["context"], 0, about["digest"])
            case "sum":
                self.results.add_sum(entry)
            case "final":
                self.results.add_final(log, entry)
            case "turn" if about["turn"]:
                self._add_result(log, b"", about["turn"], about["digest"])

    def _add_commitment(self, log: int, entry: Entry, context: Context) -> None:
        """Take a commitment, and what it says about the weights that the step stands on: the same in all attempts."""
        self.commitments.add(entry, context)
        self.results.add_base(log, entry, context)
        step = canonical.encode([context.session, context.step])
        self._say(log, entry, "base", step, context.base, value=context.base)
        self._say(log, entry, "exponents", step + context.base, context.exponents, value=context.exponents)

    def _say(self, log: int, entry: Entry, says: str, place: bytes, result: bytes | None, *, value: bytes) -> None:
        context = entry.about["context"] if says in ("receipt", "sum", "agreement") else None
        row = (entry.by, says, place, hashlib.sha256(value).digest(), result, log, entry.number, context)
        self._db.do("INSERT OR IGNORE INTO said VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def _add_result(self, log: int, context: bytes, step: int, digest: bytes) -> None:
        self._db.do("INSERT OR IGNORE INTO result VALUES (?, ?, ?, ?)", (log, context, step, digest))

    def add_logged(self, log: int, trial: bytes, entry: Entry, digest: bytes) -> None:
        """Take an entry as its owner signed it; an owner's logs of one trial may differ in length only."""
        row = (trial, entry.logged_by, entry.number, digest, log)
        self._db.do("INSERT OR IGNORE INTO logged VALUES (?, ?, ?, ?, ?)", row)

    def close_log(self, log: int, owner: str) -> None:
        """Note that a log ends here; to be called after each, before the next one begins."""
        self.commitments.close_log(log, owner)
        self.results.close_log(log, owner)

    def close_books(self) -> None:
        """Bring statements of the same attempt together; to be called once, after the last log."""
        self._db.script(_RESOLVE)

    def contradictions(self, most: int) -> Iterator[Conflict]:
        """Yield each place in which a signer said two things."""
        for signer, says, place in self._db.do(_CONTRADICTIONS, (most,)):
            query = (
                "SELECT log, entry, signer FROM said WHERE signer = ? AND says = ? AND place = ? ORDER BY rowid LIMIT 2"
            )
            one, other = self._db.do(query, (signer, says, place))
            yield Conflict(signer, says, (Place(*one), Place(*other)))
        yield from self.commitments.contradictions(most)
        yield from self.results.contradictions(most)

    def differences(self, most: int) -> Iterator[Difference]:
        """Yield where signers that each came to one result came to different ones."""
        for says, place in self._db.do(_DIFFERENCES, (most,)):
            views = tuple(
                View(Place(log, entry, signer), result, context)
                for log, entry, signer, result, context in self._db.do(_VIEWS, (says, place))
            )
            yield Difference(says, self._step_at(views[0].place), views)

    def _step_at(self, place: Place) -> int:
        """Return the step that a commitment is of; 0 for other statements."""
        query = "SELECT step FROM stands WHERE log = ? AND entry = ?"
        found = self._db.do(query, (place.log, place.entry))
        return int(found[0][0]) if found else 0

    def forks(self, most: int) -> Iterator[Conflict]:
        """Yield an owner whose logs differ, and the entry from which they do."""
        for trial, owner, number in self._db.do(_FORKS, (most,)):
            query = """SELECT log, number, owner FROM logged WHERE trial = ? AND owner = ? AND number = ?
                ORDER BY log LIMIT 2"""
            one, other = self._db.do(query, (trial, owner, number))
            yield Conflict(owner, "fork", (Place(*one), Place(*other)))

    def last_step(self, log: int) -> int:
        """Return the last turn or step whose result a log holds; 0 if none."""
        return int(self._db.do("SELECT coalesce(max(step), 0) FROM result WHERE log = ?", (log,))[0][0])

    def agreed_steps(self, logs: int) -> int:
        """Return of how many turns or steps all logs hold one and the same result.

        Args:
            logs: how many there are.
        """
        query = """SELECT count(*) FROM (SELECT step FROM result WHERE step > 0 GROUP BY step
            HAVING count(DISTINCT log) = ? AND count(DISTINCT digest) = 1)"""
        return int(self._db.do(query, (logs,))[0][0])


def _place_and_result(says: str, about: Mapping[str, Any]) -> tuple[bytes, bytes | None]:
    """Return about what a signer may say one thing, and what all signers of it should come to."""
    match says:
        case "session key":
            return about["trial"], None
        case "turn":
            return canonical.encode([about["session"], about["turn"]]), None  # one signer a turn
        case "final":
            # Of masked-average, a peer says it after each step in which somebody leaves, and at the end.
            return canonical.encode([about["session"], about["turn"]]), about["digest"]
        case "commitment":
            context = Context.decode(about["context"])
            return canonical.encode([context.session, context.step, context.attempt]), None
        case "receipt":
            return about["context"], about["commitments"]
        case "sum":
            return canonical.encode([about["context"], about["shard"]]), about["digest"]
        case "agreement":
            return about["context"], about["digest"] + about["commitments"]
        case "abandon":
            return canonical.encode([about["session"], about["step"], about["attempt"]]), None
        case "leave":
            return about["session"], None  # a farewell is for good
        case _:  # dropping counts for one step, and may be said again of another
            return canonical.encode(dict(about)), None
