"""Whether the commitments that receipts and agreements are over are those that the logs hold.

A receipt and an agreement name K, the digest of all commitments of an attempt. A peer that follows the protocol signs
the K of those that it met first, and its log holds them before it signs. So a K that does not follow from the signer's
own log is a lie of the signer; one that follows from no log, where the signer's own is missing, is a question: it may
have been given a commitment that nobody else saw.

Source: docs/PROTOCOL.md, section 13.2.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final

from ppdl_mq.audit.database import Conflict, Database, Place
from ppdl_mq.crypto import labels
from ppdl_mq.crypto.hashing import sha256
from ppdl_mq.protocol.masked_average.context import Context
from ppdl_mq.protocol.statements import statement_bytes
from ppdl_mq.wire import canonical
from ppdl_mq.wire.entries import Entry

# One commitment of each member is the rule, and each further one names its signer as a liar. So a search that this
# limit ends leaves nobody unnamed; it only keeps liars from making the search long.
MAX_COMBINATIONS: Final = 1024

# `mine`: what the log that is being read holds first of each signer. `known_set`: K of what one log held.
_SCHEMA: Final = """
CREATE TABLE context (digest BLOB PRIMARY KEY, session BLOB, step INTEGER, attempt INTEGER, members BLOB)
    WITHOUT ROWID;
CREATE TABLE commitment (id INTEGER PRIMARY KEY, context BLOB, signer TEXT, said BLOB, statement BLOB,
    UNIQUE (context, signer, said));
CREATE TABLE mine (context BLOB, signer TEXT, commitment INTEGER, entry INTEGER, PRIMARY KEY (context, signer))
    WITHOUT ROWID;
CREATE TABLE known_set (context BLOB, ids BLOB, k BLOB, PRIMARY KEY (context, ids)) WITHOUT ROWID;
CREATE TABLE held (context BLOB, owner TEXT, log INTEGER, entry INTEGER, k BLOB, PRIMARY KEY (context, owner, log))
    WITHOUT ROWID;
CREATE TABLE claim (signer TEXT, says TEXT, context BLOB, k BLOB, digest BLOB, log INTEGER, entry INTEGER,
    UNIQUE (context, signer, says, k, digest))
"""
_AGAINST_OWN_LOG: Final = """
SELECT claim.signer, claim.log, claim.entry, held.log, held.entry FROM claim
JOIN held ON held.context = claim.context AND held.owner = claim.signer AND held.k != claim.k
GROUP BY claim.signer, claim.context ORDER BY min(claim.rowid) LIMIT ?
"""
_TWO_SETS: Final = """
SELECT one.signer, one.log, one.entry, two.log, two.entry FROM claim AS one
JOIN claim AS two ON two.context = one.context AND two.signer = one.signer AND two.k != one.k
WHERE one.says = 'receipt' AND two.says = 'agreement' GROUP BY one.signer, one.context ORDER BY min(one.rowid) LIMIT ?
"""
_UNEXPLAINED: Final = """
SELECT signer, says, context, k, log, entry FROM claim
WHERE NOT EXISTS (SELECT 1 FROM held WHERE held.context = claim.context AND held.k = claim.k)
AND NOT EXISTS (SELECT 1 FROM held WHERE held.context = claim.context AND held.owner = claim.signer)
GROUP BY signer, context, k ORDER BY min(rowid)
"""


class Commitments:
    """The commitments of all logs, and what was signed over them.

    Args:
        database: takes its tables.
    """

    def __init__(self, database: Database) -> None:
        self._db = database
        self._db.script(_SCHEMA)

    def add(self, entry: Entry, context: Context) -> None:
        """Take a commitment of the log that is being read."""
        members, digest = canonical.encode(list(context.members)), context.digest()
        known = (digest, context.session, context.step, context.attempt, members)
        self._db.do("INSERT OR IGNORE INTO context VALUES (?, ?, ?, ?, ?)", known)
        statement = statement_bytes(entry.says, entry.about)
        row = (digest, entry.by, hashlib.sha256(statement).digest())
        self._db.do("INSERT OR IGNORE INTO commitment VALUES (NULL, ?, ?, ?, ?)", (*row, statement))
        self._db.do(
            """INSERT OR IGNORE INTO mine SELECT context, signer, id, ? FROM commitment
            WHERE context = ? AND signer = ? AND said = ?""",
            (entry.number, *row),
        )

    def claim(self, log: int, entry: Entry) -> None:
        """Take a receipt or an agreement."""
        about = entry.about
        row = (entry.by, entry.says, about["context"], about["commitments"], about.get("digest", b""))
        self._db.do("INSERT OR IGNORE INTO claim VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, log, entry.number))

    def close_log(self, log: int, owner: str) -> None:
        """Note what the log that was read gives, and forget the rest."""
        for (context,) in self._db.do("SELECT DISTINCT context FROM mine"):
            rows = self._db.do("SELECT signer, commitment, entry FROM mine WHERE context = ?", (context,))
            members = self._members(context)
            if [signer for signer, _, _ in rows] == members:  # sorted, as the table is
                k = self._k_of(context, [number for _, number, _ in rows])
                row = (context, owner, log, min(entry for _, _, entry in rows), k)
                self._db.do("INSERT OR IGNORE INTO held VALUES (?, ?, ?, ?, ?)", row)
        self._db.do("DELETE FROM mine")

    def contradictions(self, most: int) -> Iterator[Conflict]:
        """Yield who signed a K that its own log does not give, or two of them in one attempt."""
        for what, query in (("own commitments", _AGAINST_OWN_LOG), ("two sets", _TWO_SETS)):
            for signer, log, entry, other_log, other_entry in self._db.do(query, (most,)):
                yield Conflict(signer, what, (Place(log, entry, signer), Place(other_log, other_entry, signer)))

    def unexplained(self, most: int, but: Collection[str]) -> Iterator[Conflict]:
        """Yield what was signed over a K that no commitments in any log give, by peers whose own log is missing.

        A log counts as missing too if it ends before it holds a commitment of every member.

        Args:
            most: how many.
            but: signers to pass over.
        """
        for signer, says, context, k, log, entry in self._db.do(_UNEXPLAINED):
            if signer not in but and k not in self._combinations(context):
                yield Conflict(signer, says, (Place(log, entry, signer),))
                most -= 1
            if not most:
                return

    def _combinations(self, context: bytes) -> Iterable[bytes]:
        """Yield the K of every choice of one commitment a member, up to a limit."""
        query = "SELECT id FROM commitment WHERE context = ? AND signer = ? ORDER BY id LIMIT ?"
        by_member = [
            [number for (number,) in self._db.do(query, (context, name, MAX_COMBINATIONS))]
            for name in self._members(context)
        ]
        if not by_member:
            return
        for chosen in itertools.islice(itertools.product(*by_member), MAX_COMBINATIONS):
            yield self._k_of(context, chosen)

    def _members(self, context: bytes) -> list[str]:
        """Return the members of an attempt, sorted; none where no log holds a commitment in it."""
        found = self._db.do("SELECT members FROM context WHERE digest = ?", (context,))
        return list(canonical.decode(found[0][0], limit_bytes=len(found[0][0]))) if found else []

    def _k_of(self, context: bytes, chosen: Sequence[int]) -> bytes:
        """Return K of commitments, which is worked out once: nearly all logs hold the same ones."""
        ids = hashlib.sha256(canonical.encode(list(chosen))).digest()
        known = self._db.do("SELECT k FROM known_set WHERE context = ? AND ids = ?", (context, ids))
        if known:
            return bytes(known[0][0])
        query = "SELECT statement FROM commitment WHERE id = ?"
        k = sha256(labels.COMMITMENTS, *(self._db.do(query, (number,))[0][0] for number in chosen))
        self._db.do("INSERT INTO known_set VALUES (?, ?, ?)", (context, ids, k))
        return k
