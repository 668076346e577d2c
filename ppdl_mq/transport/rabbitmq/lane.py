"""One AMQP channel for one kind of work, opened when it is needed and again after the broker closed it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from pika.channel import Channel

from ppdl_mq.transport.rabbitmq.link import Link, fail

Question = Callable[[Channel, Future[Any]], None]


class Lane:
    """A channel on which one request at a time is under way.

    A broker answers a refused request by closing the channel; the request then fails with what the broker said, and
    the next one opens a new channel.

    Args:
        link: the connection.
        prepare: called on the I/O thread with a newly opened channel; calls its second argument when it is done.
        on_close: called on the I/O thread when an open channel is gone, with the reason.
    """

    def __init__(
        self,
        link: Link,
        *,
        prepare: Callable[[Channel, Callable[[], None]], None] | None = None,
        on_close: Callable[[BaseException], None] | None = None,
    ) -> None:
        self._link = link
        self._prepare = prepare
        self._on_close = on_close
        self._turn = threading.Lock()
        self._answer: Future[Any] | None = None  # of the I/O thread, as is:
        self.channel: Channel | None = None

    def ask(self, question: Question) -> Any:
        """Have `question` asked on an open channel, and wait for its future.

        Raises:
            RelayLost: the connection is gone.
            pika.exceptions.ChannelClosedByBroker: the broker refused.
        """
        with self._turn:
            return self._link.ask(lambda answer: self._start(question, answer))

    def _start(self, question: Question, answer: Future[Any]) -> None:
        self._answer = answer
        if self.channel is not None and self.channel.is_open:
            question(self.channel, answer)
            return

        def ready() -> None:
            try:
                question(channel, answer)
            except Exception as error:  # handed to the thread that asked
                fail(answer, error)

        def opened(channel: Channel) -> None:
            if self._prepare is None:
                ready()
            else:
                self._prepare(channel, ready)

        channel = self._link.connection.channel(on_open_callback=opened)
        channel.add_on_close_callback(self._closed)
        self.channel = channel

    def _closed(self, channel: Channel, reason: BaseException) -> None:
        if channel is self.channel:
            self.channel = None
        if self._answer is not None:
            fail(self._answer, reason)
        if self._on_close is not None:
            self._on_close(reason)
