"""What a peer must not forget: one SQLite file in its state folder, held by one process at a time.

Order of things: deliver, journal, acknowledge, work, journal, publish, mark. Whatever is done twice is harmless.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import stat
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from ppdl_mq.config import limits
from ppdl_mq.crypto import labels
from ppdl_mq.crypto.hashing import sha256
from ppdl_mq.crypto.identity import Identity
from ppdl_mq.crypto.seal import open_sealed, seal
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import AlreadyRunning, DiskFull, InTheWay, JournalError, Malformed, Unauthentic
from ppdl_mq.peer.durable import is_full, is_held, is_in_the_way, is_there, make_folder, write_error
from ppdl_mq.peer.folders import GIVEN_UP_NAME, JOURNAL_NAME, LOCK_NAME, has_live_secrets, has_spoken
from ppdl_mq.peer.rowsum import MARK_FACT, RowSum, columns_of
from ppdl_mq.wire import canonical
from ppdl_mq.wire.entries import LOG_NAME
from ppdl_mq.wire.header import Header, decode_header

_FORMAT: Final = 4
_LOCK_TRIES: Final = 20  # in a second: who only looks whether a peer runs holds the lock for a moment (peer/status.py)
_LOCK_PAUSE_S: Final = 0.05
_IN_WORDS: Final = {"format": "version of this program", "trial": "trial", "keys": "identity"}
_SCHEMA: Final = """
CREATE TABLE fact (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE blob (id INTEGER PRIMARY KEY AUTOINCREMENT, bytes INTEGER NOT NULL, inline BLOB);
CREATE TABLE incoming (
    id INTEGER PRIMARY KEY, sender TEXT NOT NULL, message_id BLOB NOT NULL, header BLOB NOT NULL,
    blob INTEGER NOT NULL REFERENCES blob, complete INTEGER NOT NULL DEFAULT 0, UNIQUE (sender, message_id));
CREATE TABLE incoming_part (
    incoming INTEGER NOT NULL REFERENCES incoming ON DELETE CASCADE, part INTEGER NOT NULL,
    PRIMARY KEY (incoming, part)) WITHOUT ROWID;
CREATE TABLE parked (id INTEGER PRIMARY KEY, sender TEXT NOT NULL, part BLOB NOT NULL, UNIQUE (sender, part));
CREATE TABLE seen (sender TEXT, message_id BLOB, turn INTEGER NOT NULL, PRIMARY KEY (sender, message_id)) WITHOUT ROWID;
CREATE TABLE slot (
    id INTEGER PRIMARY KEY, what TEXT NOT NULL, step INTEGER NOT NULL, attempt INTEGER NOT NULL, member TEXT NOT NULL,
    shard INTEGER NOT NULL, blob INTEGER NOT NULL REFERENCES blob, start INTEGER NOT NULL, bytes INTEGER NOT NULL,
    digest BLOB NOT NULL, UNIQUE (what, step, attempt, member, shard));
CREATE TABLE outgoing (
    id INTEGER PRIMARY KEY, kind INTEGER NOT NULL, turn INTEGER NOT NULL, attempt INTEGER NOT NULL,
    recipient TEXT NOT NULL, ordinal INTEGER NOT NULL, reader TEXT NOT NULL, header BLOB NOT NULL,
    sealed INTEGER REFERENCES blob, part_bytes INTEGER,
    slot INTEGER REFERENCES slot ON DELETE CASCADE, start INTEGER, bytes INTEGER, digest BLOB, meta BLOB, nonce BLOB,
    sent INTEGER NOT NULL DEFAULT 0, UNIQUE (kind, turn, attempt, recipient, ordinal));
CREATE INDEX outgoing_slot ON outgoing (slot);
CREATE TABLE refused (id INTEGER PRIMARY KEY, at REAL NOT NULL, reason TEXT NOT NULL, head BLOB NOT NULL);
CREATE TABLE refused_count (reason TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE transcript (number INTEGER PRIMARY KEY, statement BLOB NOT NULL UNIQUE, digest BLOB NOT NULL,
    line BLOB NOT NULL, stops_at INTEGER NOT NULL);
"""


class Journal:
    """The journal of one peer in one trial. Used by one thread.

    Args:
        folder: made if missing; its mode becomes 0700.
        trial_id: 32 bytes.
        identity: whose journal it is; it seals the secrets in it.

    Raises:
        AlreadyRunning: another process holds it.
        JournalError: damaged, or of another trial or identity.
    """

    def __init__(self, folder: Path, *, trial_id: bytes, identity: Identity) -> None:
        self.folder = folder
        self._key = Secret(sha256(labels.JOURNAL_KEY, identity.secret.reveal(), trial_id))
        self._lock = take_lock(folder)
        self._depth = 0
        self._unlink_after: list[Path] = []
        try:
            if is_there(folder / GIVEN_UP_NAME):
                raise JournalError(
                    "This organisation has given up its part in this trial, and the others know its earlier session.",
                    hint="Take part in a renewed trial: `ppdl-mq trial renew`, and send it round.",
                )
            self.db = self._open(trial_id, identity)
        except BaseException as fault:
            os.close(self._lock)  # whatever escapes: else this process would keep the next one out
            if isinstance(fault, sqlite3.Error | UnicodeDecodeError):  # the second: SQLite's own words quote a schema
                raise self.damaged(fault) from None
            if isinstance(fault, OSError):
                raise write_error(f"The journal in {folder}", fault) from None
            raise

    def close(self) -> None:
        """Leave the journal to the next process."""
        self.db.close()
        os.close(self._lock)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Everything in the block is on disk when it ends, or nothing of it. Blocks nest; the outermost decides."""
        if self._depth:
            yield self.db
            return
        self._depth += 1
        rows_before = self._rows.value
        try:
            self.db.execute("BEGIN IMMEDIATE")
            yield self.db
            if self._rows.value != rows_before:
                self._keep_mark()
            self.db.execute("COMMIT")
        except BaseException as fault:
            self._rows.value = rows_before
            self._unlink_after.clear()
            with contextlib.suppress(sqlite3.Error):  # the first error is the one to report
                if self.db.in_transaction:  # where the disk is full SQLite may have ended it
                    self.db.execute("ROLLBACK")
            if isinstance(fault, sqlite3.Error):
                raise self.damaged(fault) from None
            raise
        finally:
            self._depth -= 1
        for path in self._unlink_after:
            with contextlib.suppress(OSError):  # no row names it any more: the next start removes it
                path.unlink(missing_ok=True)
        self._unlink_after.clear()

    @contextmanager
    def savepoint(self) -> Iterator[sqlite3.Connection]:
        """As `transaction`; but within another one a block that fails is undone by itself, and the rest stays."""
        if not self._depth:
            with self.transaction() as db:
                yield db
            return
        unlink_before, rows_before = len(self._unlink_after), self._rows.value
        self.db.execute("SAVEPOINT inner_block")
        try:
            yield self.db
        except BaseException:
            del self._unlink_after[unlink_before:]
            self._rows.value = rows_before
            if self.db.in_transaction:  # where the disk is full SQLite may have ended all of it
                self.db.execute("ROLLBACK TO inner_block")
                self.db.execute("RELEASE inner_block")
            raise
        self.db.execute("RELEASE inner_block")

    def damaged(self, fault: sqlite3.Error | OverflowError | UnicodeDecodeError) -> JournalError:
        """Return the error for a person of a fault that SQLite reported: may it pass, or is what is read wrong?"""
        if is_full(fault):
            return DiskFull(f"The journal in {self.folder}", str(fault))
        if is_held(fault):  # SQLite has waited 5 s for it
            return AlreadyRunning(
                f"Another program, a backup perhaps, holds the journal in {self.folder}: {fault}.",
                hint="Nothing is lost: end that program, and run the peer again; it goes on where it was.",
            )
        if is_in_the_way(fault):
            return InTheWay(f"The journal in {self.folder} cannot be read or written: {fault}.")
        return _damaged(self.folder, str(fault))

    def lost(self, reason: str) -> JournalError:
        """Return the error for a person of a part that is not what it was."""
        return _damaged(self.folder, reason)

    def header(self, raw: bytes, names: Container[str]) -> Header:
        """Return a header that was kept.

        Args:
            raw: as it was kept.
            names: of everybody who may stand in it.

        Raises:
            JournalError: it does not decode any more, or names somebody else.
        """
        try:
            header = decode_header(raw)[0]
        except Malformed:
            raise _damaged(self.folder, "a header in it does not decode") from None
        if header.sender not in names or header.recipient not in names:
            raise _damaged(self.folder, "a header in it names somebody who has no part in the trial")
        return header

    def unlink_on_commit(self, path: Path) -> None:
        """Remove a file when the transaction has succeeded, so that no row ever names a missing one."""
        self._unlink_after.append(path)

    def fact(self, name: str) -> bytes | None:
        """Return a value that was kept under this name."""
        row = self.db.execute("SELECT value FROM fact WHERE name = ?", (name,)).fetchone()
        return None if row is None else bytes(row[0])

    def keep_fact(self, name: str, value: bytes) -> None:
        """Keep a value under this name, in place of an earlier one."""
        with self.transaction() as db:
            db.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", (name, value))

    def secret_fact(self, name: str) -> Any:
        """Return plain data that was kept sealed, or None.

        Raises:
            JournalError: it does not open.
        """
        sealed = self.fact(name)
        if sealed is None:
            return None
        try:
            return canonical.decode(self.opened(name, sealed), limit_bytes=limits.MAX_STATE_BYTES)
        except Malformed:
            raise self._does_not_open(name) from None

    def keep_secret_fact(self, name: str, data: Any) -> None:
        """Keep plain data sealed under a key that follows from the identity.

        Raises:
            JournalError: it is larger than what is read again; nothing is kept.
        """
        encoded = canonical.encode(data)
        if len(encoded) > limits.MAX_STATE_BYTES:
            raise JournalError(
                f"The entry {name!r} would have {len(encoded)} bytes, more than the journal in {self.folder} keeps.",
                hint="Nothing of it was written, and the peer stays where it was. Please report this.",
            )
        self.keep_fact(name, self.sealed(name, encoded))

    def sealed(self, name: str, content: bytes) -> bytes:
        """Return bytes for a row of the journal, sealed under a key that follows from the identity.

        What SQLite has deleted stays in its write-ahead log for a while, and in what a file system keeps of that.

        Args:
            name: of the kind of entry; to be given again to `opened`.
            content: any bytes.
        """
        return seal(self._key, content, name.encode())

    def opened(self, name: str, sealed: bytes) -> bytes:
        """Return what `sealed` was given.

        Raises:
            JournalError: it does not open.
        """
        try:
            return open_sealed(self._key, sealed, name.encode())
        except Unauthentic:
            raise self._does_not_open(name) from None

    def _does_not_open(self, name: str) -> JournalError:
        return _damaged(self.folder, f"the sealed entry {name!r} does not open")

    def _open(self, trial_id: bytes, identity: Identity) -> sqlite3.Connection:
        path = self.folder / JOURNAL_NAME
        is_new = not is_there(path)
        if not is_new:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):  # SQLite would only say that it cannot open it
                raise _damaged(self.folder, f"{JOURNAL_NAME} is no file")
            is_new = not found.st_size
        if is_new:
            self._refuse_if_lost()  # before SQLite throws away a write-ahead log whose journal is not there
        db = sqlite3.connect(path, isolation_level=None)
        path.chmod(0o600)
        try:
            self._prepare(db, trial_id, identity, is_new=is_new)
        except BaseException:
            db.close()  # the error's traceback would keep it, and its locks, open
            raise
        return db

    def _prepare(self, db: sqlite3.Connection, trial_id: bytes, identity: Identity, *, is_new: bool) -> None:
        # FULL: a message is acknowledged right after its commit, so the commit must survive a power cut.
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "secure_delete = ON"):
            db.execute(f"PRAGMA {pragma}")
        belongs = {"format": bytes([_FORMAT]), "trial": trial_id, "keys": identity.public.raw_keys}
        if is_new or not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            self._refuse_if_lost()
            db.executescript("BEGIN IMMEDIATE;" + _SCHEMA)
            db.executemany("INSERT INTO fact VALUES (?, ?)", belongs.items())
            self._rows = RowSum(db, self._rows_key())
            db.execute("INSERT INTO fact VALUES (?, ?)", (MARK_FACT, self._rows.mark()))
            db.execute("COMMIT")
            return
        if (wrong := _first_fault(db)) is not None:
            raise _damaged(self.folder, wrong)
        found = {name: bytes(value) for name, value in db.execute("SELECT name, value FROM fact")}
        for name, value in belongs.items():
            if found.get(name) != value:
                raise of_another(self.folder, name)
        self._rows = RowSum(db, self._rows_key())
        if found.get(MARK_FACT) != self._rows.mark():
            raise _damaged(self.folder, "what stands in it is not what was written")

    def _keep_mark(self) -> None:
        self.db.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", (MARK_FACT, self._rows.mark()))

    def _rows_key(self) -> Secret:
        return Secret(sha256(labels.JOURNAL_ROWS, self._key.reveal()))

    def _refuse_if_lost(self) -> None:
        """Do not begin anew where a journal was: its file is on disk before anything that is found beside it."""
        if is_there(self.folder / LOG_NAME) or has_live_secrets(self.folder) or has_spoken(self.folder):
            raise _damaged(self.folder, f"{JOURNAL_NAME} is missing or empty, while what belongs to it is there")


def _first_fault(db: sqlite3.Connection) -> str | None:
    """Return what SQLite finds wrong in its pages, or the first column with a value that was never put there."""
    (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        return " ".join(str(found).split())  # it may have several lines
    for table, columns in columns_of(db).items():
        for column, kind in columns.items():
            odd = f"SELECT count(*) FROM {table} WHERE typeof({column}) NOT IN (?, 'null')"  # noqa: S608 (our own names)
            if db.execute(odd, (kind.lower(),)).fetchone()[0]:
                return f"{table}.{column} holds what was never put there"
            # It reads as infinity; SQLite keeps what is no number as NULL.
            infinite = f"SELECT count(*) FROM {table} WHERE abs({column}) = 9e999"  # noqa: S608
            if kind == "REAL" and db.execute(infinite).fetchone()[0]:
                return f"{table}.{column} holds what is no number"
    return None


def take_lock(folder: Path) -> int:
    """Return the handle of a state folder's lock, which holds until it is closed; the folder is made if missing.

    Raises:
        AlreadyRunning: another process has it, and keeps it for a second.
        JournalError: the folder cannot be used.
    """
    try:
        make_folder(folder)
        folder.chmod(0o700)  # it may have been there already
        lock = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as fault:
        raise write_error(f"The state folder {folder}", fault) from None
    try:
        if not _is_taken(lock):
            raise AlreadyRunning(
                f"Another process already runs this trial in {folder}.",
                hint="See `ppdl-mq peer status`; stop that process first.",
            )
        with contextlib.suppress(OSError):  # it is only told to people, and a full disk is met by what matters
            os.truncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except BaseException as fault:
        os.close(lock)
        if isinstance(fault, OSError):
            raise write_error(f"The lock of the state folder {folder}", fault, done="taken") from None
        raise
    return lock


def _is_taken(lock: int) -> bool:
    """Take a lock, and tell whether that went well; one that another process has is waited for a second.

    Raises:
        OSError: the file system gives none.
    """
    for tried in range(_LOCK_TRIES):
        if tried:
            time.sleep(_LOCK_PAUSE_S)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False


def of_another(folder: Path, name: str) -> JournalError:
    """Return the error for a person of a journal whose fact of this name, one of `_IN_WORDS`, is another's."""
    return JournalError(
        f"The journal in {folder} is of another {_IN_WORDS[name]}.",
        hint="Use another state_dir for this trial and identity.",
    )


def _damaged(folder: Path, reason: str) -> JournalError:
    return JournalError(
        f"The journal in {folder} cannot be used: {reason}.",
        hint="What this peer said and received is not certain any more, so it does not go on. Keep the folder for "
        "inspection. The others go on without it after `ppdl-mq peer drop` where the protocol has it; else all start "
        "again after `ppdl-mq trial renew`.",
    )
