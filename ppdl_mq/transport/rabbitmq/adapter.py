"""The transport over RabbitMQ."""

# ruff: noqa: D102 (the base class says what each method does)

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

import pika
from pika import exceptions as amqp
from pika.channel import Channel

from ppdl_mq.config import limits
from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.config.hosts import Host
from ppdl_mq.errors import NotTaken, RelayError, RelayLost, RelayUnreachable, Unroutable
from ppdl_mq.transport.address import Names
from ppdl_mq.transport.base import Delivery, Transport, held_at_once
from ppdl_mq.transport.rabbitmq.errors import channel_error, none_lets_us_in
from ppdl_mq.transport.rabbitmq.inbox import Inbox
from ppdl_mq.transport.rabbitmq.lane import Lane
from ppdl_mq.transport.rabbitmq.link import Link, give
from ppdl_mq.transport.rabbitmq.parameters import connection_parameters
from ppdl_mq.transport.rabbitmq.publisher import Publisher
from ppdl_mq.transport.rabbitmq.topology import Topology


class _Session:
    """One connection and its four channels: topology, publishing, the inbox, and `get`."""

    def __init__(
        self,
        broker: BrokerAddress,
        names: Names,
        peer: str,
        look: Callable[[], None],
        *,
        where: str,
        message_bytes: int,
    ) -> None:
        (parameters,) = connection_parameters(broker, trial=names.trial, peer=peer)
        self.link = Link(parameters, broker, on_lost=self._on_lost, look=look, where=where, message_bytes=message_bytes)
        self.topology = Topology(self.link, names, declare=broker.declare, queue_type=broker.queue_type)
        self.publisher = Publisher(self.link, names.exchange)
        self.inbox = Inbox(self.link, max_held=held_at_once(message_bytes))
        self.getting = Lane(self.link, prepare=self._prepare_getting)
        self._empty: Callable[[], None] = lambda: None

    def get(self, queue: str) -> Delivery | None:
        """Take one message, or None; on the I/O thread an empty queue answers by another way than a full one."""

        def question(channel: Channel, answer: Future[Any]) -> None:
            self._empty = lambda: give(answer, None)
            channel.basic_get(
                queue,
                lambda _, method, __, body: give(answer, Delivery(body, (channel, method.delivery_tag))),
            )

        delivery: Delivery | None = self.getting.ask(question)
        return delivery

    def _prepare_getting(self, channel: Channel, ready: Callable[[], None]) -> None:
        channel.add_callback(lambda _: self._empty(), [pika.spec.Basic.GetEmpty], one_shot=False)
        ready()

    def _on_lost(self, error: RelayError) -> None:
        self.publisher.on_lost(error)
        self.inbox.on_lost(error)


class RabbitMQTransport(Transport):
    """One peer's connection to a RabbitMQ broker, 3.10 to 4.x: to any one of its hosts.

    Each process shuffles the hosts once and then goes round them, to the next one after every loss. So peers begin at
    different hosts, and those that a dead host leaves behind spread over all that are left, not over one neighbour.

    Args:
        broker: where the broker is.
        names: of the trial's exchange and queues.
        peer: our own name, shown to the broker's administrator.
        message_bytes: the trial's largest message.
    """

    def __init__(
        self, broker: BrokerAddress, names: Names, *, peer: str, message_bytes: int = limits.MAX_CHUNK_BYTES
    ) -> None:
        self.max_held = held_at_once(message_bytes)
        self._message_bytes = message_bytes
        self._broker = broker
        self._names = names
        self._peer = peer
        self._current: _Session | None = None
        self._hosts = random.sample(broker.hosts, len(broker.hosts))  # spreads load; not secret
        self._next = 0  # whose turn it is among them
        self._connected_to: Host | None = None

    @property
    def blocked_reason(self) -> str | None:
        session = self._current
        if session is None:
            return None
        return session.link.blocked_reason or session.link.unanswered_reason or session.publisher.withheld_reason

    @property
    def withheld(self) -> tuple[str, ...]:
        session = self._current
        return () if session is None else session.publisher.withheld

    @property
    def connected_to(self) -> str | None:
        return None if self._connected_to is None else str(self._connected_to)

    def connect(self) -> None:
        self.close()
        failures: list[RelayError] = []
        for _ in self._hosts:
            host = self._hosts[self._next]
            self._next = (self._next + 1) % len(self._hosts)
            where = str(host) if len(self._hosts) > 1 else ""
            try:
                session = _Session(
                    self._broker.at(host),
                    self._names,
                    self._peer,
                    self._waits,
                    where=where,
                    message_bytes=self._message_bytes,
                )
                session.link.open()
            except OSError as error:  # of this process: too many open files
                failures.append(RelayUnreachable(f"{where or self._broker} was not asked: {error.strerror}."))
            except RelayError as error:
                failures.append(error)
            else:
                self._current, self._connected_to = session, host
                return
        raise none_lets_us_in(failures, self._broker)

    def close(self) -> None:
        session, self._current, self._connected_to = self._current, None, None
        if session is not None:
            session.link.close()

    def declare(self, address: str) -> None:
        self._session.topology.declare(address)

    def subscribe(self, address: str) -> None:
        try:
            self._session.inbox.subscribe(self._names.queue(address))
        except amqp.AMQPError as error:
            raise channel_error(error, address) from error

    def publish(self, address: str, bodies: Iterable[bytes]) -> None:
        self._names.queue(address)  # refuses what is no address
        self._session.publisher.publish(address, self._looking_round(bodies))

    def publish_all(self, sets: Iterable[tuple[str, Iterable[bytes]]]) -> list[Unroutable | NotTaken | None]:
        # A queue's name is never empty: `queue` is asked because it refuses what is no address.
        checked = ((address, self._looking_round(bodies)) for address, bodies in sets if self._names.queue(address))
        return self._session.publisher.publish_all(checked)

    def receive(self, timeout_s: float) -> Delivery | None:
        return self._session.inbox.receive(timeout_s)

    def get(self, address: str) -> Delivery | None:
        try:
            return self._session.get(self._names.queue(address))
        except amqp.AMQPError as error:
            raise channel_error(error, address) from error

    def ack(self, deliveries: Iterable[Delivery]) -> None:
        self._settle(deliveries, lambda channel, tag: channel.basic_ack(tag))

    def requeue(self, deliveries: Iterable[Delivery]) -> None:
        self._settle(deliveries, lambda channel, tag: channel.basic_nack(tag, requeue=True))

    def depth(self, address: str) -> int:
        return self._session.topology.depth(address)

    def purge(self, address: str) -> int:
        return self._session.topology.purge(address)

    def delete(self, address: str) -> None:
        self._session.topology.delete(address)

    @property
    def _session(self) -> _Session:
        session = self._current
        if session is None:
            raise RelayLost("There is no connection to the relay.")
        return session

    def _settle(self, deliveries: Iterable[Delivery], settle: Callable[[Channel, int], None]) -> None:
        """Tell the broker about each delivery on the channel it came by; where that is gone, so is the delivery."""
        tags: list[Any] = [delivery.tag for delivery in deliveries]

        def work() -> None:
            for channel, number in tags:
                if channel.is_open:
                    settle(channel, number)

        self._session.link.submit(work)
