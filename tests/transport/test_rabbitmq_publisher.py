"""The publisher on a connection that the test plays: what it makes of each thing at each moment."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from pika import exceptions as amqp

from ppdl_mq.errors import RelayLost
from ppdl_mq.transport.rabbitmq.publisher import Publisher, _Set


class Channel:
    """A channel that notes what is published; the test confirms."""

    def __init__(self) -> None:
        self.is_open = True
        self.published: list[tuple[str, bytes]] = []
        self.confirm: Callable[[Any], None] = lambda _: None

    def add_on_close_callback(self, _: object) -> None: ...

    def add_on_return_callback(self, _: object) -> None: ...

    def confirm_delivery(self, on_confirm: Callable[[Any], None], ready: Callable[[object], None]) -> None:
        self.confirm = on_confirm
        ready(None)

    def basic_publish(self, _: str, address: str, body: bytes, __: object, *, mandatory: bool) -> None:
        assert mandatory
        self.published.append((address, body))


class Link:
    """A connection whose I/O thread is the test: `work` does what was submitted."""

    def __init__(self) -> None:
        self.connection = self
        self.opened: list[Channel] = []
        self._submitted: deque[Callable[[], None]] = deque()

    def channel(self, on_open_callback: Callable[[Channel], None]) -> Channel:
        self.opened.append(Channel())
        self._submitted.append(lambda: on_open_callback(self.opened[-1]))
        return self.opened[-1]

    def ask(self, question: Callable[[Future[Any]], None]) -> Any:
        answer: Future[Any] = Future()
        question(answer)
        self.work()
        return answer.result(0)

    def submit(self, work: Callable[[], None]) -> None:
        self._submitted.append(work)

    def work(self) -> None:
        while self._submitted:
            self._submitted.popleft()()

    def look(self) -> None: ...


class Gap(threading.Condition):
    """A lock that lets another thread in as soon as it is free: `then` is done at that very moment, once."""

    then: Callable[[], object] | None = None

    def __exit__(self, *how: Any) -> None:
        super().__exit__(*how)
        then, self.then = self.then, None
        if then is not None:
            then()


class TestAChannelThatIsClosed:
    """What is handed over meanwhile is neither forgotten nor waited for."""

    def hand_over(self, publisher: Publisher, channel: Channel) -> bool:
        publisher._sets = [current := _Set("a")]
        return publisher._hand_over(channel, current, b"x")

    def test_what_is_handed_over_as_it_closes_is_not_waited_for(self) -> None:
        link, channel = Link(), Channel()
        publisher = Publisher(link, "exchange")
        publisher._changed = gap = Gap()
        channel.is_open = False
        gap.then = lambda: self.hand_over(publisher, channel)
        publisher._on_channel_closed(amqp.ChannelClosedByBroker(404, "NOT_FOUND"))
        assert gap.then is None
        link.work()
        assert publisher._nothing_under_way
        assert publisher._error is not None

    def test_nor_what_was_on_its_way_to_the_channel(self) -> None:
        link, channel = Link(), Channel()
        publisher = Publisher(link, "exchange")
        assert self.hand_over(publisher, channel)
        channel.is_open = False
        link.work()
        assert publisher._nothing_under_way
        assert type(publisher._error) is RelayLost
        assert not self.hand_over(publisher, channel)
        assert channel.published == []
