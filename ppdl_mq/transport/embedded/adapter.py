"""The transport over a SQLite file."""

# ruff: noqa: D102 (the base class says what each method does)

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, cast

from ppdl_mq.config import limits
from ppdl_mq.errors import InboxTaken, MessageTooLarge, RelayLost, Unroutable
from ppdl_mq.transport.address import Names
from ppdl_mq.transport.base import Delivery, Transport, held_at_once
from ppdl_mq.transport.embedded.holder import Holder, is_alive, remove, wake
from ppdl_mq.transport.embedded.store import folder_of, open_store, os_error, working_error

# A publisher wakes the reader through a pipe, within a fraction of a millisecond. This is for what wakes nobody:
# a holder that died.
_LOOK_AGAIN_S: Final = 0.05


class EmbeddedTransport(Transport):
    """One peer's connection to an embedded relay.

    Args:
        path: the SQLite file; several trials may share one.
        names: of the trial's queues.
        message_bytes: the trial's largest message.
    """

    def __init__(self, path: Path, names: Names, *, message_bytes: int = limits.MAX_CHUNK_BYTES) -> None:
        self.max_held = held_at_once(message_bytes)
        self._message_bytes = message_bytes
        self._path = path
        self._folder = folder_of(path)
        self._names = names
        self._lock = threading.Condition(threading.RLock())  # guards everything below; SQLite is used by one at a time
        self._database: sqlite3.Connection | None = None
        self._holder: Holder | None = None
        self._inbox: str | None = None  # name of the subscribed queue
        self._waiting = 0  # threads in `Holder.wait`
        self._durable: bool | None = None  # what `synchronous` was last set to

    def connect(self) -> None:
        self.close()
        with self._lock:
            self._database = open_store(self._path, self._waits)
            try:
                self._holder = Holder(self._folder)
            except OSError as error:
                self._drop()
                raise os_error(error, self._path) from error

    def close(self) -> None:
        with self._lock:
            if self._database is not None:
                try:
                    with self._transaction() as database:
                        self._free(database, self._name)
                except RelayLost:
                    pass  # our lock is given up all the same, and the next to look frees what we held
                self._drop()

    def declare(self, address: str) -> None:
        with self._transaction(durable=True) as database:
            database.execute("INSERT OR IGNORE INTO queues (name) VALUES (?)", (self._names.queue(address),))

    def subscribe(self, address: str) -> None:
        queue = self._names.queue(address)
        with self._transaction() as database:
            reader = self._reader(database, address)
            if reader is not None and reader != self._name and not is_alive(self._folder, reader):
                self._free(database, reader)
                reader = None
            if reader is not None:
                raise InboxTaken(
                    f"Another process reads the inbox {address!r} already.",
                    hint="This identity runs elsewhere, too. Stop one of them.",
                )
            database.execute("UPDATE queues SET reader = ? WHERE name = ?", (self._name, queue))
            self._inbox = queue

    def publish(self, address: str, bodies: Iterable[bytes]) -> None:
        # One message behind, because only the last one need wait for the disk: its commit takes the earlier along.
        last: bytes | None = None
        for body in self._looking_round(bodies):
            if len(body) > limits.MAX_CHUNK_BYTES:
                raise MessageTooLarge(
                    f"A message of {len(body)} bytes is over the relay's limit of {limits.MAX_CHUNK_BYTES}."
                )
            if last is not None:
                self._store(address, last, durable=False)
            last = body
        if last is not None:
            self._store(address, last, durable=True)

    def receive(self, timeout_s: float) -> Delivery | None:
        deadline = time.monotonic() + timeout_s
        while True:
            with self._lock:
                if self._database is not None and self._inbox is None:
                    raise RuntimeError("receive before subscribe")
                delivery = self._take(self._inbox or "", at_most=self.max_held)
                remaining_s = deadline - time.monotonic()
                if delivery is not None or remaining_s <= 0:
                    return delivery
                holder = self._holder
                assert holder is not None
                self._waiting += 1
            try:
                holder.wait(min(remaining_s, _LOOK_AGAIN_S))
            finally:
                with self._lock:
                    self._waiting -= 1
                    self._lock.notify_all()

    def get(self, address: str) -> Delivery | None:
        with self._lock:
            with self._transaction() as database:
                self._reader(database, address)
            return self._take(self._names.queue(address))

    def ack(self, deliveries: Iterable[Delivery]) -> None:
        with self._transaction() as database:
            for number in self._own(deliveries):
                if database.execute(
                    "DELETE FROM messages WHERE number = ? AND holder = ?", (number, self._name)
                ).rowcount:
                    database.execute("DELETE FROM bodies WHERE number = ?", (number,))

    def requeue(self, deliveries: Iterable[Delivery]) -> None:
        with self._transaction() as database:
            for number in self._own(deliveries):
                database.execute(
                    "UPDATE messages SET holder = NULL WHERE number = ? AND holder = ?", (number, self._name)
                )

    def depth(self, address: str) -> int:
        queue = self._names.queue(address)
        with self._transaction() as database:
            self._reader(database, address)
            self._free_the_dead(database, queue)
            query = "SELECT count(*) FROM messages WHERE queue = ? AND holder IS NULL"
            return int(database.execute(query, (queue,)).fetchone()[0])

    def purge(self, address: str) -> int:
        queue = self._names.queue(address)
        with self._transaction() as database:
            self._reader(database, address)
            self._free_the_dead(database, queue)
            ready = "SELECT number FROM messages WHERE queue = ? AND holder IS NULL"
            database.execute(f"DELETE FROM bodies WHERE number IN ({ready})", (queue,))  # noqa: S608 (a constant)
            return database.execute("DELETE FROM messages WHERE queue = ? AND holder IS NULL", (queue,)).rowcount

    def delete(self, address: str) -> None:
        queue = self._names.queue(address)
        with self._transaction() as database:
            all_of_it = "SELECT number FROM messages WHERE queue = ?"
            database.execute(f"DELETE FROM bodies WHERE number IN ({all_of_it})", (queue,))  # noqa: S608 (a constant)
            database.execute("DELETE FROM messages WHERE queue = ?", (queue,))
            database.execute("DELETE FROM queues WHERE name = ?", (queue,))

    @property
    def _name(self) -> str:
        assert self._holder is not None
        return self._holder.name

    @contextmanager
    def _transaction(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """Give the database for one write; an error of SQLite or of the system ends the connection."""
        with self._lock:
            database = self._database
            if database is None or self._holder is None:
                raise RelayLost("There is no connection to the relay.")
            try:
                if durable != self._durable:
                    database.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                    self._durable = durable
                database.execute("BEGIN IMMEDIATE")
                try:
                    yield database
                except BaseException:
                    if database.in_transaction:  # some errors of SQLite end it by themselves
                        database.execute("ROLLBACK")
                    raise
                database.execute("COMMIT")
            except (sqlite3.Error, OSError) as error:  # OSError: another connection's lock file cannot be looked at
                self._drop()
                raise working_error(error, self._path) from error

    def _drop(self) -> None:
        """Give up database and lock, once no thread waits on the pipe."""
        if self._database is not None:
            self._database.close()
        self._database = self._inbox = self._durable = None
        holder, self._holder = self._holder, None
        if holder is not None:
            while self._waiting:
                wake(self._folder, holder.name)
                self._lock.wait(0.01)  # the wake-up may be taken by another waiter, so it is repeated
            with suppress(OSError):  # files of ours that remain mislead nobody: without the lock we are not alive
                holder.close()

    def _store(self, address: str, body: bytes, *, durable: bool) -> None:
        with self._transaction(durable=durable) as database:
            reader = self._reader(database, address)
            queue = self._names.queue(address)
            number = database.execute("INSERT INTO messages (queue) VALUES (?)", (queue,)).lastrowid
            database.execute("INSERT INTO bodies (number, body) VALUES (?, ?)", (number, body))
        if reader is not None:
            wake(self._folder, reader)

    def _take(self, queue: str, at_most: int | None = None) -> Delivery | None:
        """Hand out the first ready message, unless `at_most` are held already."""
        with self._transaction() as database:
            self._free_the_dead(database, queue)
            if at_most is not None:
                query = "SELECT count(*) FROM messages WHERE queue = ? AND holder = ?"
                if database.execute(query, (queue, self._name)).fetchone()[0] >= at_most:
                    return None
            row = database.execute(
                "SELECT number, typeof(body) FROM messages JOIN bodies USING (number)"
                " WHERE queue = ? AND holder IS NULL ORDER BY number LIMIT 1",
                (queue,),
            ).fetchone()
            if row is None:
                return None
            database.execute("UPDATE messages SET holder = ? WHERE number = ?", (self._name, row[0]))
            if row[1] not in ("blob", "text"):  # nobody of ours has put it there: to be refused
                return Delivery(b"", (self._name, row[0]))
            with database.blobopen("bodies", "body", row[0], readonly=True) as body:
                return Delivery(body.read(self._message_bytes + 1), (self._name, row[0]))

    def _reader(self, database: sqlite3.Connection, address: str) -> str | None:
        """Return who reads `address`, making sure that it exists."""
        row = database.execute("SELECT reader FROM queues WHERE name = ?", (self._names.queue(address),)).fetchone()
        if row is None:
            raise Unroutable(address)
        reader: str | None = row[0]
        return reader

    def _free_the_dead(self, database: sqlite3.Connection, queue: str) -> None:
        """Make ready again what connections hold that are no more."""
        query = "SELECT DISTINCT holder FROM messages WHERE queue = ? AND holder > '' AND holder <> ?"
        for (holder,) in database.execute(query, (queue, self._name)).fetchall():
            if not is_alive(self._folder, holder):
                self._free(database, holder)

    def _free(self, database: sqlite3.Connection, holder: str) -> None:
        database.execute("UPDATE messages SET holder = NULL WHERE holder = ?", (holder,))
        database.execute("UPDATE queues SET reader = NULL WHERE reader = ?", (holder,))
        if holder != self._name:
            remove(self._folder, holder)

    def _own(self, deliveries: Iterable[Delivery]) -> Iterator[int]:
        """Yield the numbers of what this connection was handed; those of an earlier one are passed over."""
        for delivery in deliveries:
            holder, number = cast(tuple[str, int], delivery.tag)  # what `_take` put there
            if holder == self._name:
                yield number
