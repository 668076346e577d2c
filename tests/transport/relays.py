"""The relays on which the contract runs, behind one face."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from ppdl_mq.config import limits
from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.errors import InboxTaken
from ppdl_mq.transport.base import Delivery, Transport
from tests.rabbit import RabbitNode

T = TypeVar("T")
_trials = itertools.count()

RELAYS = ("memory", "embedded", "classic", "quorum")
SOON_S = 20.0  # a limit for what takes milliseconds


def new_trial() -> str:
    """Return a trial's name that this process has not used."""
    return f"trial{next(_trials)}"


@dataclass
class Relay:
    """One relay and the connections that a test opens to it.

    Args:
        kind: one of `RELAYS`.
        make: makes a transport for a peer, not yet connected; `message_bytes` may be given.
    """

    kind: str
    make: Callable[..., Transport]
    opened: list[Transport] = field(default_factory=list)

    def open(self, peer: str = "a", **changes: int) -> Transport:
        """Return a new connection, for messages of the usual size where none is given."""
        transport = self.make(peer, **{"message_bytes": limits.USUAL_CHUNK_BYTES, **changes})
        transport.connect()
        self.opened.append(transport)
        return transport

    def close(self) -> None:
        """Close every connection."""
        for transport in self.opened:
            transport.close()


def rabbit_address(node: RabbitNode, **changes: object) -> BrokerAddress:
    """Return the address of the tests' node."""
    return replace(BrokerAddress.parse(node.url()), **changes)  # type: ignore[arg-type]


def receive_all(transport: Transport, count: int) -> list[Delivery]:
    """Receive exactly `count` messages."""
    deliveries = []
    for _ in range(count):
        delivery = transport.receive(SOON_S)
        assert delivery is not None, f"{len(deliveries)} of {count} messages came"
        deliveries.append(delivery)
    return deliveries


def subscribe_soon(transport: Transport, address: str) -> None:
    """Subscribe once the relay has noticed that the reader before is gone, as a peer does after reconnecting."""
    deadline = time.monotonic() + SOON_S
    while True:
        try:
            return transport.subscribe(address)
        except InboxTaken:
            assert time.monotonic() < deadline, "the inbox stays taken"
            time.sleep(0.005)


def bodies(deliveries: list[Delivery]) -> list[bytes]:
    """Return the bodies only."""
    return [delivery.body for delivery in deliveries]


def eventually(look: Callable[[], T], expected: T) -> None:
    """Wait until `look` returns `expected`: acknowledgements and returns are one-way messages to a broker."""
    deadline = time.monotonic() + SOON_S
    while (seen := look()) != expected:
        assert time.monotonic() < deadline, f"it stays {seen!r}, not {expected!r}"
        time.sleep(0.005)
