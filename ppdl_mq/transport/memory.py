"""A relay in memory, for tests; it may be told to be hostile."""

# ruff: noqa: D102 (the base class says what each method does)

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import cast

from ppdl_mq.config import limits
from ppdl_mq.errors import InboxTaken, MessageTooLarge, RelayLost, RelayUnreachable, Unroutable
from ppdl_mq.transport.address import check_address
from ppdl_mq.transport.base import Delivery, Transport, held_at_once

Tamper = Callable[[str, bytes], Iterable[tuple[str, bytes]]]


@dataclass(slots=True)
class StoredMessage:
    """One message at rest.

    Args:
        number: place in the order of arrival.
        body: the opaque bytes.
        holder: the connection that it was handed out to and that has not acknowledged it.
    """

    number: int
    body: bytes
    holder: object | None = None


@dataclass(slots=True)
class StoredQueue:
    """One queue: messages in order, and the connection that subscribed."""

    messages: list[StoredMessage] = field(default_factory=list)
    reader: object | None = None


class MemoryRelay:
    """What `MemoryTransport`s share. Honest unless told otherwise.

    A test's hostile relay sets `on_publish`, which is given each message as it is published and returns what arrives
    instead: nothing (dropped), the same twice (duplicated), an earlier one (replayed), another body or another address
    (tampered, misdirected). It may also change `queues` directly, holding `changed`, or call `put`.

    Args:
        on_publish: called with the address and the body, one message at a time, while `changed` is held.
        max_message_bytes: larger messages are refused.
    """

    def __init__(self, on_publish: Tamper | None = None, *, max_message_bytes: int = limits.MAX_CHUNK_BYTES) -> None:
        self.on_publish = on_publish
        self.max_message_bytes = max_message_bytes
        self.queues: dict[str, StoredQueue] = {}
        self.changed = threading.Condition(threading.RLock())  # re-entrant: `on_publish` may call our methods
        self.reachable = True
        self._numbers = itertools.count()
        self._connections: set[object] = set()

    def put(self, address: str, body: bytes) -> None:
        """Place a message at the tail of `address`, past `on_publish`; one without a queue is lost."""
        with self.changed:
            if address in self.queues:
                self.queues[address].messages.append(StoredMessage(next(self._numbers), body))
                self.changed.notify_all()

    def ready(self, address: str) -> list[bytes]:
        """Return the bodies that nobody holds, in order."""
        with self.changed:
            return [message.body for message in self.queue(address).messages if message.holder is None]

    def cut(self, *, reachable: bool = True) -> None:
        """Break every connection; with `reachable=False` nobody gets a new one until that is set again."""
        with self.changed:
            self.reachable = reachable
            for connection in list(self._connections):
                self.leave(connection)

    def queue(self, address: str) -> StoredQueue:
        """Return the queue of `address`.

        Raises:
            Unroutable: there is none.
        """
        check_address(address)
        try:
            return self.queues[address]
        except KeyError:
            raise Unroutable(address) from None

    def join(self) -> object:
        """Let a connection in and return what stands for it."""
        with self.changed:
            if not self.reachable:
                raise RelayUnreachable("The relay in memory does not answer.")
            connection = object()
            self._connections.add(connection)
            return connection

    def leave(self, connection: object) -> None:
        """Forget a connection and free what it held."""
        with self.changed:
            self._connections.discard(connection)
            for queue in self.queues.values():
                if queue.reader is connection:
                    queue.reader = None
                for message in queue.messages:
                    if message.holder is connection:
                        message.holder = None
            self.changed.notify_all()

    def knows(self, connection: object) -> bool:
        """Tell whether a connection still stands."""
        return connection in self._connections

    def accept(self, address: str, body: bytes) -> None:
        """Take one published message."""
        if len(body) > self.max_message_bytes:
            raise MessageTooLarge(f"A message of {len(body)} bytes is over the relay's limit.")
        with self.changed:
            self.queue(address)
            for arrived in [(address, body)] if self.on_publish is None else list(self.on_publish(address, body)):
                self.put(*arrived)


class MemoryTransport(Transport):
    """One peer's connection to a `MemoryRelay`.

    Args:
        relay: the relay; shared by all peers of one trial.
        message_bytes: the trial's largest message.
    """

    def __init__(self, relay: MemoryRelay, *, message_bytes: int = limits.MAX_CHUNK_BYTES) -> None:
        self.max_held = held_at_once(message_bytes)
        self._message_bytes = message_bytes
        self._relay = relay
        self._connection: object = None
        self._inbox: str | None = None

    def connect(self) -> None:
        self.close()
        self._connection = self._relay.join()

    def close(self) -> None:
        self._relay.leave(self._connection)
        self._inbox = None

    def declare(self, address: str) -> None:
        check_address(address)
        with self._relay.changed:
            self._check()
            self._relay.queues.setdefault(address, StoredQueue())

    def subscribe(self, address: str) -> None:
        with self._relay.changed:
            self._check()
            queue = self._relay.queue(address)
            if queue.reader is not None:
                raise InboxTaken(f"Somebody reads the inbox {address!r} already.")
            queue.reader = self._connection
            self._inbox = address

    def publish(self, address: str, bodies: Iterable[bytes]) -> None:
        for body in self._looking_round(bodies):
            self._check()
            self._relay.accept(address, body)
        self._check()

    def receive(self, timeout_s: float) -> Delivery | None:
        deadline = time.monotonic() + timeout_s
        with self._relay.changed:
            while True:
                self._check()
                if self._inbox is None:
                    raise RuntimeError("receive before subscribe")
                if self._held(self._inbox) < self.max_held and (delivery := self._take(self._inbox)) is not None:
                    return delivery
                if not self._relay.changed.wait(max(0.0, deadline - time.monotonic())):
                    return None

    def get(self, address: str) -> Delivery | None:
        with self._relay.changed:
            self._check()
            return self._take(address)

    def ack(self, deliveries: Iterable[Delivery]) -> None:
        with self._relay.changed:
            for queue, message in self._own(deliveries):
                queue.messages.remove(message)
            self._relay.changed.notify_all()

    def requeue(self, deliveries: Iterable[Delivery]) -> None:
        with self._relay.changed:
            for _, message in self._own(deliveries):
                message.holder = None
            self._relay.changed.notify_all()

    def depth(self, address: str) -> int:
        self._check()
        return len(self._relay.ready(address))

    def purge(self, address: str) -> int:
        with self._relay.changed:
            self._check()
            queue = self._relay.queue(address)
            before = len(queue.messages)
            queue.messages = [message for message in queue.messages if message.holder is not None]
            return before - len(queue.messages)

    def delete(self, address: str) -> None:
        check_address(address)
        with self._relay.changed:
            self._check()
            self._relay.queues.pop(address, None)

    def _check(self) -> None:
        if not self._relay.knows(self._connection):
            raise RelayLost("There is no connection to the relay.")

    def _held(self, address: str) -> int:
        return sum(message.holder is self._connection for message in self._relay.queue(address).messages)

    def _take(self, address: str) -> Delivery | None:
        for message in self._relay.queue(address).messages:
            if message.holder is None:
                message.holder = self._connection
                return Delivery(message.body[: self._message_bytes + 1], (self._connection, address, message.number))
        return None

    def _own(self, deliveries: Iterable[Delivery]) -> Iterator[tuple[StoredQueue, StoredMessage]]:
        """Yield the messages that this connection still holds; others are passed over."""
        self._check()
        for delivery in deliveries:
            connection, address, number = cast(tuple[object, str, int], delivery.tag)  # what `_take` put there
            queue = self._relay.queues.get(address)
            if connection is not self._connection or queue is None:
                continue
            for message in queue.messages:
                if message.number == number and message.holder is connection:
                    yield queue, message
                    break
