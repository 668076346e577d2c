"""Whether what peers agreed on follows from the sums, and whether they went on from what they agreed on.

Source: docs/PROTOCOL.md, sections 13, 13.1 and 13.2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Final, Literal

from ppdl_mq.audit.database import Conflict, Database, Place
from ppdl_mq.protocol.masked_average.context import Context
from ppdl_mq.wire import canonical
from ppdl_mq.wire.entries import Entry

Sums = Literal["same", "other", "unknown"]

# `my_sum`: what the log that is being read holds first for each shard. `summed`: digest of all that one log held.
_SCHEMA: Final = """
CREATE TABLE stands (signer TEXT, session BLOB, step INTEGER, base BLOB, log INTEGER, entry INTEGER,
    UNIQUE (session, step, signer, base));
CREATE TABLE my_sum (context BLOB, shard INTEGER, digest BLOB, entry INTEGER, PRIMARY KEY (context, shard))
    WITHOUT ROWID;
CREATE TABLE summed (context BLOB, owner TEXT, log INTEGER, entry INTEGER, shards INTEGER, first BLOB, digests BLOB,
    PRIMARY KEY (context, owner, log)) WITHOUT ROWID
"""
# In an evaluation, an even step, the vector is shorter than a block: there is one sum, and it is the result.
_NOT_THE_SUM: Final = """
SELECT claim.signer, claim.log, claim.entry, summed.log, summed.entry FROM claim
JOIN context ON context.digest = claim.context AND context.step % 2 = 0
JOIN summed ON summed.context = claim.context AND summed.owner = claim.signer AND summed.first != claim.digest
WHERE claim.says = 'agreement' GROUP BY claim.signer, claim.context ORDER BY min(claim.rowid) LIMIT ?
"""
# Step 2r - 1 stands on the result of step 2r - 3, and step 2r on that of step 2r - 1.
_NOT_THE_RESULT: Final = """
SELECT stands.signer, stands.log, stands.entry, claim.log, claim.entry FROM stands
JOIN context ON context.session = stands.session AND context.step = stands.step - 1 - stands.step % 2
JOIN claim ON claim.context = context.digest AND claim.signer = stands.signer AND claim.says = 'agreement'
GROUP BY stands.rowid HAVING sum(claim.digest = stands.base) = 0 ORDER BY stands.rowid LIMIT ?
"""


class Results:
    """Sums, results and the weights that steps stand on.

    Args:
        database: takes its tables, and has those of `Commitments`.
    """

    def __init__(self, database: Database) -> None:
        self._db = database
        self._db.script(_SCHEMA)

    def add_base(self, log: int, entry: Entry, context: Context) -> None:
        """Take what a commitment stands on."""
        row = (entry.by, context.session, context.step, context.base, log, entry.number)
        self._db.do("INSERT OR IGNORE INTO stands VALUES (?, ?, ?, ?, ?, ?)", row)

    def add_final(self, log: int, entry: Entry) -> None:
        """Take what a peer says that it finished with: as a step after it would stand on."""
        step = entry.about["turn"] + entry.about["turn"] % 2
        row = (entry.by, entry.about["session"], step, entry.about["digest"], log, entry.number)
        self._db.do("INSERT OR IGNORE INTO stands VALUES (?, ?, ?, ?, ?, ?)", row)

    def add_sum(self, entry: Entry) -> None:
        """Take a sum of the log that is being read."""
        about = entry.about
        row = (about["context"], about["shard"], about["digest"], entry.number)
        self._db.do("INSERT OR IGNORE INTO my_sum VALUES (?, ?, ?, ?)", row)

    def close_log(self, log: int, owner: str) -> None:
        """Note the sums of the log that was read, in short."""
        for (context,) in self._db.do("SELECT DISTINCT context FROM my_sum"):
            rows = self._db.do("SELECT shard, digest, entry FROM my_sum WHERE context = ?", (context,))
            digests = hashlib.sha256(canonical.encode([digest for _, digest, _ in rows])).digest()
            row = (context, owner, log, rows[0][2], len(rows), rows[0][1], digests)
            self._db.do("INSERT OR IGNORE INTO summed VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        self._db.do("DELETE FROM my_sum")

    def contradictions(self, most: int) -> Iterator[Conflict]:
        """Yield who signed another result than the sum in its own log, or went on from another than it signed."""
        self._db.do("CREATE INDEX IF NOT EXISTS by_session ON context (session, step)")
        for what, query in (("own sum", _NOT_THE_SUM), ("own result", _NOT_THE_RESULT)):
            for signer, log, entry, other_log, other_entry in self._db.do(query, (most,)):
                yield Conflict(signer, what, (Place(log, entry, signer), Place(other_log, other_entry, signer)))

    def sums_of(self, name: str, others: Sequence[str], context: bytes) -> Sums:
        """Tell whether a peer's own log holds the sums that the logs of the others do.

        Args:
            name: of the peer.
            others: names.
            context: digest of the context.

        Returns:
            `unknown` where its log, or theirs, is missing or ends too early.
        """
        rows = self._db.do("SELECT owner, shards, digests FROM summed WHERE context = ?", (context,))
        most = max((shards for _, shards, _ in rows), default=0)
        mine = {digests for owner, shards, digests in rows if owner == name and shards == most}
        theirs = {digests for owner, shards, digests in rows if owner in others and shards == most}
        if not mine or not theirs:
            return "unknown"
        return "same" if mine & theirs else "other"
