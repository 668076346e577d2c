"""What a relay can do for a peer: move opaque bytes and keep them until they are fetched.

An adapter knows addresses and bytes and nothing else; it can open none of them. All three adapters (memory,
embedded, rabbitmq) pass one contract suite, `tests/transport/test_contract.py`.
"""

from __future__ import annotations

import abc
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from ppdl_mq.config import limits
from ppdl_mq.errors import NotTaken, Unroutable

# Deliveries of the inbox that one connection may hold unacknowledged. `receive` hands out no more before an `ack`,
# so acknowledge as you go.
MAX_HELD: Final = 64

# What they may hold in bytes, where the largest messages are so large that fewer of them are handed out. Both bound
# what a flood costs in memory. Four under way reach full speed.
_HELD_BYTES: Final = 64 * 1024**2
_LEAST_HELD: Final = 4


def held_at_once(message_bytes: int) -> int:
    """Return how many deliveries of the inbox one connection may hold.

    Args:
        message_bytes: the largest message.
    """
    return max(_LEAST_HELD, min(MAX_HELD, _HELD_BYTES // message_bytes))


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message handed out by the relay and not yet acknowledged.

    Args:
        body: the opaque bytes.
        tag: what `ack` and `requeue` need; of no meaning to the caller and void once the connection is gone.
    """

    body: bytes = field(repr=False)
    tag: object = field(repr=False)


class Transport(abc.ABC):
    """One peer's connection to the relay. Every method may be called from any thread, and blocks.

    An address is a short name within the trial: the peer's own name for its inbox, or `weights`. The adapter
    turns it into a queue name. Any method but `connect` and `close` raises `RelayLost` once the connection is gone, or
    before there is one; `connect` may then be called again, and `subscribe` after it. Deliveries that were not
    acknowledged before are handed out again, ahead of newer ones.

    A message that is larger than any of the trial comes cut off, one byte longer than the largest: to be refused.
    """

    max_held: int = MAX_HELD

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def blocked_reason(self) -> str | None:
        """Why the relay takes no messages now, or that it confirms, or answers, nothing; None while all is well."""
        return None

    @property
    def withheld(self) -> tuple[str, ...]:
        """Addresses, sorted, of messages that the relay was sent and has not confirmed, while it confirms nothing.

        Empty until that has lasted so long that it is not a matter of speed. Also to be asked after a `RelayLost`, and
        before `close`: it tells what not to begin with again.
        """
        return ()

    @property
    def connected_to(self) -> str | None:
        """Which host of the relay is connected; None without a connection, and for a relay that has no hosts."""
        return None

    _look: Callable[[], None] | None = None
    _looked_at = -math.inf

    def look_round(self, look: Callable[[], None]) -> None:
        """Have `look` called several times a second by a thread that waits for the relay, in any method but `receive`.

        Also between the messages of a publication, which may take hours though the relay never makes it wait.

        What it raises ends the wait, and the connection is of no more use then: `close` it. So a peer whose relay takes
        nothing for now can still be stopped, and say why it waits.
        """
        self._look = look

    def _waits(self) -> None:
        if self._look is not None:
            self._look()

    def _looking_round(self, bodies: Iterable[bytes]) -> Iterator[bytes]:
        """Yield what is to be published, and look round in between, as often as while waiting."""
        for body in bodies:
            if time.monotonic() - self._looked_at >= limits.LOOK_S:
                self._looked_at = time.monotonic()
                self._waits()
            yield body

    @abc.abstractmethod
    def connect(self) -> None:
        """Connect, or leave and connect anew: to any host of the relay that lets us in, each tried once.

        Raises:
            RelayUnreachable: nobody answers.
            RelayRefused: wrong credentials, no such vhost, TLS failure.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Leave; harmless when already closed. Unacknowledged deliveries go back to their queues."""

    @abc.abstractmethod
    def declare(self, address: str) -> None:
        """Make sure that the durable queue of `address` exists: create it, or check it where there is no right to.

        Raises:
            RelayRefused: it does not exist and may not be created, or exists with arguments that lose messages.
        """

    @abc.abstractmethod
    def subscribe(self, address: str) -> None:
        """Begin to receive from `address`, as its only reader.

        Raises:
            InboxTaken: somebody reads it already. After a broken connection that may be ourselves, until the relay
                notices: try again for a while.
            Unroutable: there is no such queue.
        """

    @abc.abstractmethod
    def publish(self, address: str, bodies: Iterable[bytes]) -> None:
        """Hand durable messages to the relay in this order; return when it has confirmed every one.

        `bodies` is consumed lazily, so that a large set never stands in memory as a whole. Publishing a set again
        after an error may duplicate what was already taken.

        Raises:
            Unroutable: `address` has no queue.
            NotTaken: the relay refuses for now.
            MessageTooLarge: the relay refuses the size.
            RelayLost: the connection broke before everything was confirmed.
        """

    def publish_all(self, sets: Iterable[tuple[str, Iterable[bytes]]]) -> list[Unroutable | NotTaken | None]:
        """Publish several sets, each to an address of its own, and wait for all confirms once.

        Args:
            sets: address and bodies of each; all are consumed lazily, in order.

        Returns:
            For each set None, or why the relay did not take it. After one that was not taken, later ones to the same
            address are passed over with the same error, so that their order holds.

        Raises:
            MessageTooLarge, RelayLost: which sets the relay has is not known then.
        """
        results: list[Unroutable | NotTaken | None] = []
        refused: dict[str, Unroutable | NotTaken] = {}
        for address, bodies in sets:
            if address not in refused:
                try:
                    self.publish(address, bodies)
                except (Unroutable, NotTaken) as error:
                    refused[address] = error
            results.append(refused.get(address))
        return results

    @abc.abstractmethod
    def receive(self, timeout_s: float) -> Delivery | None:
        """Return the next delivery of the subscribed inbox, or None when there is none within `timeout_s`.

        There is none while `max_held` deliveries of the inbox are not acknowledged.
        """

    @abc.abstractmethod
    def get(self, address: str) -> Delivery | None:
        """Take one message from the head of `address` without waiting; None when it is empty.

        It stays unacknowledged until `ack`, for as long as the relay allows.

        Raises:
            Unroutable: there is no such queue.
        """

    @abc.abstractmethod
    def ack(self, deliveries: Iterable[Delivery]) -> None:
        """Tell the relay that these are done with. A delivery of an earlier connection is passed over."""

    @abc.abstractmethod
    def requeue(self, deliveries: Iterable[Delivery]) -> None:
        """Give these back to their queue, to be delivered again ahead of newer ones.

        A quorum queue of RabbitMQ may deliver them behind newer ones, unless it has a delivery limit.
        """

    @abc.abstractmethod
    def depth(self, address: str) -> int:
        """Count the messages that are ready in the queue of `address`; those handed out do not count.

        Raises:
            Unroutable: there is no such queue.
        """

    @abc.abstractmethod
    def purge(self, address: str) -> int:
        """Drop every ready message of `address` and return how many there were.

        Raises:
            Unroutable: there is no such queue.
        """

    @abc.abstractmethod
    def delete(self, address: str) -> None:
        """Remove the queue of `address`, or empty it where there is no right to remove it; harmless without one."""
