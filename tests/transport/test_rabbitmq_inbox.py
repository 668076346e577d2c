"""The inbox of a broker that pushes more than it was asked for; no broker is needed."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import pika
import pytest

from ppdl_mq.errors import RelayLost
from ppdl_mq.transport.base import MAX_HELD, Delivery
from ppdl_mq.transport.rabbitmq.check_message import MARK, SMALL
from ppdl_mq.transport.rabbitmq.inbox import _MAX_CHECKS, Inbox
from ppdl_mq.transport.rabbitmq.link import Link


class Channel:
    """A channel on which every request succeeds at once."""

    is_open = True
    push: Any = None  # what the inbox wants to be called with each message

    def __init__(self) -> None:
        self.acknowledged: list[int] = []

    def basic_ack(self, delivery_tag: int) -> None:
        self.acknowledged.append(delivery_tag)

    def queue_declare(self, queue: str, *, passive: bool, callback: Any) -> None:
        consumers = 0 if self.push is None else 1
        callback(SimpleNamespace(method=SimpleNamespace(consumer_count=consumers)))

    def basic_qos(self, *, prefetch_count: int, callback: Any) -> None:
        assert prefetch_count == MAX_HELD
        callback(None)

    def basic_consume(self, queue: str, on_message: Any, *, exclusive: bool, callback: Any) -> None:
        self.push = on_message
        callback(None)

    def add_on_cancel_callback(self, callback: Any) -> None:
        """Nobody cancels."""

    def add_on_close_callback(self, callback: Any) -> None:
        """Nobody closes."""


class Connected:
    """A link whose I/O thread is the caller's."""

    def __init__(self) -> None:
        self.channel = Channel()
        self.connection = SimpleNamespace(channel=self._open)

    def _open(self, *, on_open_callback: Any) -> Channel:
        self._opened = on_open_callback
        return self.channel

    def ask(self, start: Any) -> Any:
        answer: Future[Any] = Future()
        start(answer)
        if not answer.done():  # as pika does, a channel is opened after the call that asks for it
            self._opened(self.channel)
        return answer.result(timeout=0)


@pytest.fixture
def link() -> Connected:
    return Connected()


@pytest.fixture
def inbox(link: Connected) -> Inbox:
    subscribed = Inbox(cast(Link, link), max_held=MAX_HELD)
    subscribed.subscribe("heart.mercy")
    return subscribed


def push(link: Connected, count: int) -> None:
    for number in range(count):
        hand_out(link, number, b"%d" % number)


def hand_out(link: Connected, number: int, body: bytes, kind: str | None = None) -> None:
    link.channel.push(link.channel, SimpleNamespace(delivery_tag=number), pika.BasicProperties(type=kind), body)


def test_as_many_as_were_asked_for(link: Connected, inbox: Inbox) -> None:
    push(link, MAX_HELD)
    received = [inbox.receive(timeout_s=0) for _ in range(MAX_HELD)]
    assert received == [Delivery(b"%d" % number, (link.channel, number)) for number in range(MAX_HELD)]
    assert inbox.receive(timeout_s=0) is None


@pytest.mark.parametrize("over", [1, 1_000])
def test_a_broker_that_disregards_prefetch_is_left(link: Connected, inbox: Inbox, over: int) -> None:
    push(link, MAX_HELD + over)
    for _ in range(2):  # for good: what it pushed is dropped
        with pytest.raises(RelayLost):
            inbox.receive(timeout_s=0)


def test_only_the_one_byte_of_a_check_is_dropped(link: Connected, inbox: Inbox) -> None:
    """A flood of it fills nothing, either."""
    for number in range(2 * MAX_HELD):
        hand_out(link, number, SMALL, MARK)
    others = ((MARK, b"weights"), (MARK, b""), (None, SMALL), ("other", SMALL))
    for number, (kind, body) in enumerate(others, start=1000):
        hand_out(link, number, body, kind)
    assert link.channel.acknowledged == list(range(2 * MAX_HELD))
    received = [inbox.receive(timeout_s=0) for _ in others]
    assert [each.body for each in received if each] == [b"weights", b"", SMALL, SMALL]
    assert inbox.receive(timeout_s=0) is None


def test_checks_without_an_end_are_answered_no_more(link: Connected, inbox: Inbox) -> None:
    """Where the relay reads nothing the acknowledgements would fill the memory."""
    for number in range(10_000):
        hand_out(link, number, SMALL, MARK)
    assert len(link.channel.acknowledged) == _MAX_CHECKS
    with pytest.raises(RelayLost):
        inbox.receive(timeout_s=0)
