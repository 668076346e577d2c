"""The relay of a simulation: it loses, repeats, delays, alters, replays and breaks connections, until it is healed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ppdl_mq.errors import NotTaken, RelayLost, RelayUnreachable, Unroutable
from ppdl_mq.transport.base import MAX_HELD, Delivery
from ppdl_mq.transport.memory import MemoryRelay, MemoryTransport

if TYPE_CHECKING:
    from tests.simulation.node import Node
    from tests.simulation.trial import Simulation

_ON_THE_WAY_S = 0.01
_MAX_KEPT = 200  # messages that may be replayed


class Relay(MemoryRelay):
    """A relay whose messages take their time, and worse.

    Args:
        simulation: whose it is.
    """

    def __init__(self, simulation: Simulation) -> None:
        super().__init__(on_publish=self._arrive)
        self._simulation = simulation
        self._kept: list[tuple[str, bytes]] = []

    def _arrive(self, address: str, body: bytes) -> Iterable[tuple[str, bytes]]:
        """Put nothing now; what arrives is put later."""
        story, chance = self._simulation.story, self._simulation.chance
        copies = [(address, body)]
        if story.is_hostile(self._simulation):
            if len(self._kept) < _MAX_KEPT:
                self._kept.append((address, body))
            copies = self._disturbed(address, body)
        for to, content in copies:
            delay_s = _ON_THE_WAY_S
            if story.is_hostile(self._simulation):
                delay_s += chance.uniform(0.0, story.jitter_s)
                if chance.random() < story.late:
                    self._simulation.injected("late")
                    delay_s += chance.uniform(600.0, 4 * 3600.0)
            self._simulation.scheduler.at(delay_s, self._put, to, content)
        return ()

    def _disturbed(self, address: str, body: bytes) -> list[tuple[str, bytes]]:
        simulation, story, chance = self._simulation, self._simulation.story, self._simulation.chance
        copies = [(address, body)]
        if chance.random() < story.loss:
            simulation.injected("lost")
            copies = []
        if chance.random() < story.duplicates:
            simulation.injected("duplicated")
            copies.append((address, body))
        if chance.random() < story.tampering:
            simulation.injected("altered")
            copies.append(self._altered(address, body))
            if chance.random() < 0.5:
                chance.shuffle(copies)
        if chance.random() < story.replays:
            simulation.injected("replayed")
            copies.append(chance.choice(self._kept))
        return copies

    def _altered(self, address: str, body: bytes) -> tuple[str, bytes]:
        chance = self._simulation.chance
        way = chance.randrange(5)
        if way == 0:  # another reader
            return chance.choice(list(self.queues)), body
        if way == 1:  # cut short
            return address, body[: chance.randrange(len(body))]
        if way == 2:  # nothing of ours
            return address, chance.randbytes(chance.choice((0, 1, 100, 4096)))
        at = chance.randrange(len(body)) if way == 3 else chance.randrange(150)  # anywhere, or in the header
        return address, body[:at] + bytes([body[at] ^ 1 << chance.randrange(8)]) + body[at + 1 :]

    def _put(self, address: str, body: bytes) -> None:
        self.put(address, body)
        self._simulation.wake(address)

    def roll_back(self) -> None:
        """Put what rested at `weights` some time ago in the place of what rests there now."""
        queue = self.queues.get("weights")
        older = [body for to, body in self._kept if to == "weights"]
        if queue is None or not older:
            return
        chance = self._simulation.chance
        self._simulation.injected("weights rolled back")
        queue.messages = [message for message in queue.messages if message.holder is not None]
        for body in older[: chance.randrange(1, len(older) + 1)][-chance.randrange(1, 5) :]:
            self.put("weights", body)

    def purge_all(self, address: str) -> None:
        """Lose all that waits in a queue."""
        queue = self.queues.get(address)
        if queue is not None and queue.messages:
            self._simulation.injected("queue emptied")
            queue.messages = [message for message in queue.messages if message.holder is not None]


class Connection(MemoryTransport):
    """One peer's connection; each call is a moment at which the peer may die, or the connection break.

    Args:
        relay: of the simulation.
        node: whose it is.
    """

    def __init__(self, relay: Relay, node: Node) -> None:
        super().__init__(relay)
        self._node = node

    def connect(self) -> None:
        self._moment("before connect")
        if self._node.is_cut_off:
            raise RelayUnreachable("The relay does not answer.")
        super().connect()
        self._node.connection = self._connection

    def declare(self, address: str) -> None:
        self._moment("before declare")
        super().declare(address)
        self._moment("after declare")

    def subscribe(self, address: str) -> None:
        self._moment("before subscribe")
        super().subscribe(address)
        self._moment("after subscribe")

    def publish(self, address: str, bodies: Iterable[bytes]) -> None:
        node = self._node
        if node.simulation.happens("nack"):
            raise NotTaken("The relay has no room.")
        for body in bodies:
            self._moment("before publish")
            self._check()
            self._relay.queue(address)
            node.watch.published(body)
            self._relay.accept(address, body)
            self._moment("after publish")
        self._check()

    def publish_all(self, sets: Iterable[tuple[str, Iterable[bytes]]]) -> list[Unroutable | NotTaken | None]:
        watch = self._node.watch
        watch.begins_publishing()

        def told() -> Iterator[tuple[str, Iterable[bytes]]]:
            for each in sets:
                watch.begins_set()
                yield each

        results = super().publish_all(told())
        self._moment("before confirm")
        watch.confirmed(results)
        return results

    def receive(self, timeout_s: float) -> Delivery | None:
        self._check()
        assert self._inbox is not None, "receive before subscribe"
        return self._take(self._inbox) if self._held(self._inbox) < MAX_HELD else None

    def get(self, address: str) -> Delivery | None:
        self._moment("before get")
        return super().get(address)

    def ack(self, deliveries: Iterable[Delivery]) -> None:
        taken = list(deliveries)
        if not taken:
            return
        self._moment("before ack")
        self._node.watch.acknowledges(taken)
        super().ack(taken)
        self._moment("after ack")

    def requeue(self, deliveries: Iterable[Delivery]) -> None:
        taken = list(deliveries)
        if taken:
            self._moment("before requeue")
        super().requeue(taken)

    def purge(self, address: str) -> int:
        self._moment("before purge")
        count = super().purge(address)
        self._moment("after purge")
        return count

    def delete(self, address: str) -> None:
        self._moment("before delete")
        super().delete(address)
        self._moment("after delete")

    def _moment(self, what: str) -> None:
        node = self._node
        node.boundary(what)
        if node.simulation.happens("cut"):
            self._relay.leave(self._connection)
            raise RelayLost("The connection broke.")
