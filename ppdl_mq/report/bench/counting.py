"""A transport that keeps count of what passes it."""

# ruff: noqa: D102 (the base class says what each method does)

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ppdl_mq.transport.base import Delivery, Transport


@dataclass(frozen=True, slots=True)
class Counts:
    """What has passed so far.

    Args:
        up_bytes: published.
        down_bytes: received.
        sent: recipient and size in bytes of each published message, in order.
    """

    up_bytes: int
    down_bytes: int
    sent: tuple[tuple[str, int], ...]

    def since(self, earlier: Counts) -> Counts:
        """Return what has passed between two counts."""
        return Counts(
            self.up_bytes - earlier.up_bytes, self.down_bytes - earlier.down_bytes, self.sent[len(earlier.sent) :]
        )


class Counted(Transport):
    """Another transport, counted.

    Args:
        inner: does the work.
    """

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self._down_bytes = 0
        self._sent: list[tuple[str, int]] = []

    def counts(self) -> Counts:
        """Return what has passed so far."""
        with self._lock:
            return Counts(sum(size for _, size in self._sent), self._down_bytes, tuple(self._sent))

    @property
    def blocked_reason(self) -> str | None:
        return self._inner.blocked_reason

    def connect(self) -> None:
        self._inner.connect()

    def close(self) -> None:
        self._inner.close()

    def declare(self, address: str) -> None:
        self._inner.declare(address)

    def subscribe(self, address: str) -> None:
        self._inner.subscribe(address)

    def publish(self, address: str, bodies: Iterable[bytes]) -> None:
        self._inner.publish(address, self._counting(address, bodies))

    def receive(self, timeout_s: float) -> Delivery | None:
        delivery = self._inner.receive(timeout_s)
        if delivery is not None:
            with self._lock:
                self._down_bytes += len(delivery.body)
        return delivery

    def get(self, address: str) -> Delivery | None:
        return self._inner.get(address)

    def ack(self, deliveries: Iterable[Delivery]) -> None:
        self._inner.ack(deliveries)

    def requeue(self, deliveries: Iterable[Delivery]) -> None:
        self._inner.requeue(deliveries)

    def depth(self, address: str) -> int:
        return self._inner.depth(address)

    def purge(self, address: str) -> int:
        return self._inner.purge(address)

    def delete(self, address: str) -> None:
        self._inner.delete(address)

    def _counting(self, address: str, bodies: Iterable[bytes]) -> Iterator[bytes]:
        for body in bodies:
            with self._lock:
                self._sent.append((address, len(body)))
            yield body
