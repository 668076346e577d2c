"""Receiving from the subscribed queue: the broker pushes, bounded, and threads wait here."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from typing import Any, Final

import pika
from pika.channel import Channel

from ppdl_mq.errors import InboxTaken, RelayError, RelayLost
from ppdl_mq.transport.base import Delivery
from ppdl_mq.transport.rabbitmq.check_message import says_nothing
from ppdl_mq.transport.rabbitmq.errors import channel_error
from ppdl_mq.transport.rabbitmq.lane import Lane
from ppdl_mq.transport.rabbitmq.link import Link, give

# How many a connection drops by itself: answers to more than that could fill the memory, where the relay reads none.
_MAX_CHECKS: Final = 1_000


class Inbox:
    """The consuming channel of one connection.

    Args:
        link: the connection.
        max_held: deliveries that may be under way at once.
    """

    def __init__(self, link: Link, *, max_held: int) -> None:
        self._max_held = max_held
        self._lane = Lane(link, on_close=self._on_channel_closed)
        self._checks = 0  # messages of checks that were dropped; of the I/O thread
        self._changed = threading.Condition()
        self._arrived: deque[Delivery] = deque()
        self._error: RelayError | None = None
        self._subscribed = False

    def subscribe(self, queue: str) -> None:
        """Begin to consume `queue` as its only reader.

        A classic queue refuses a second reader when the first asked for that. A quorum queue takes both and deals the
        messages out between them, so the readers are counted before we join, and again after, for two who join at once.
        """
        if self._subscribed:
            raise InboxTaken("This connection reads an inbox already.")

        def count(channel: Channel, answer: Future[Any]) -> None:
            def counted(frame: Any) -> None:
                give(answer, frame.method.consumer_count)

            channel.queue_declare(queue, passive=True, callback=counted)

        def join(channel: Channel, answer: Future[Any]) -> None:
            def consume(_: object) -> None:
                channel.basic_consume(queue, self._on_message, exclusive=True, callback=lambda _: give(answer, channel))

            channel.add_on_cancel_callback(lambda _: self.on_lost(RelayLost("The relay took the inbox away.")))
            channel.basic_qos(prefetch_count=self._max_held, callback=consume)

        def leave(channel: Channel, answer: Future[Any]) -> None:
            channel.add_on_close_callback(lambda *_: give(answer, None))
            channel.close()

        taken = InboxTaken(
            f"Another process reads the queue {queue!r} already.",
            hint="This identity runs elsewhere, too. Stop one of them.",
        )
        if self._lane.ask(count) > 0:
            raise taken
        self._lane.ask(join)
        if self._lane.ask(count) > 1:
            self._lane.ask(leave)
            with self._changed:
                self._arrived.clear()  # they went back with the channel
            raise taken
        self._subscribed = True

    def receive(self, timeout_s: float) -> Delivery | None:
        """Return the next delivery, or None after `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self._arrived or self._error, timeout_s)
            if self._error is not None:  # what has arrived before is void with the channel
                raise RelayLost(self._error.message, hint=self._error.hint)
            if not self._subscribed:
                raise RuntimeError("receive before subscribe")
            return self._arrived.popleft() if self._arrived else None

    def on_lost(self, error: RelayError) -> None:
        """Wake all who wait: nothing more will arrive."""
        with self._changed:
            self._error = self._error or error
            self._arrived.clear()
            self._changed.notify_all()

    def _on_message(self, channel: Channel, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        if says_nothing(properties, body) and self._checks < _MAX_CHECKS:
            self._checks += 1  # left by a check that was cut short; no message of the trial
            channel.basic_ack(method.delivery_tag)
            return
        with self._changed:
            if len(self._arrived) < self._max_held:
                self._arrived.append(Delivery(body, (channel, method.delivery_tag)))
                self._changed.notify()
                return
        # The bound is the broker's to keep; one that does not would fill our memory.
        self.on_lost(RelayLost("The relay hands out more messages than it was asked for."))

    def _on_channel_closed(self, reason: BaseException) -> None:
        if self._subscribed:  # otherwise it is part of `subscribe`
            error = channel_error(reason, "inbox")
            self.on_lost(error if isinstance(error, RelayLost) else RelayLost(error.message, hint=error.hint))
