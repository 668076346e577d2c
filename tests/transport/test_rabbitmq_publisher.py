"""The publisher on a connection that the test plays: what it makes of each thing at each moment."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pika
import pytest
from pika import exceptions as amqp

from ppdl_mq.config import limits
from ppdl_mq.errors import Interrupted, NotTaken, RelayLost, Unroutable
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
        self.looked = 0
        self.each_look: Callable[[], None] = lambda: None
        self.unwritten_bytes = 0
        self.blocked_reason: str | None = None
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

    def look(self) -> None:
        self.looked += 1
        self.work()
        self.each_look()


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


class Clock:
    """Time that passes where a test has it pass."""

    def __init__(self) -> None:
        self.now = 1_000_000_000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


LOOK_EVERY_S = 10.0  # on the clock


class Stage:
    """A publisher on a link, whose time passes as it looks round. A test says what else happens at each look."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.link = Link()
        self.link.each_look = self._look
        self.publisher = Publisher(self.link, "exchange")
        self.happens: Callable[[int], None] = lambda _: None
        self.seen: list[tuple[str, ...]] = []  # what was withheld, at each look
        self.reasons: list[str | None] = []

    def _look(self) -> None:
        self.clock.now += LOOK_EVERY_S
        self.seen.append(self.publisher.withheld)
        self.reasons.append(self.publisher.withheld_reason)
        assert self.link.looked < 200, "it waits for good"
        self.happens(self.link.looked)

    def confirm(self, up_to: int) -> None:
        method = pika.spec.Basic.Ack(delivery_tag=up_to, multiple=True)
        self.link.opened[-1].confirm(SimpleNamespace(method=method))

    def publish(self) -> list[Unroutable | NotTaken | None]:
        return self.publisher.publish_all([("bert", [b"1", b"2"]), ("cleo", [b"3"])])


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    clock = Clock()
    monkeypatch.setattr("ppdl_mq.transport.rabbitmq.stillness.time", clock)
    monkeypatch.setattr(limits, "LOOK_S", 0.001)
    return Stage(clock)


class TestConfirmsThatStayAway:
    def test_are_said_after_a_while_and_end_the_connection_after_a_longer_one(self, stage: Stage) -> None:
        def cleo_is_confirmed(look: int) -> None:
            if look == 1:
                stage.link.opened[-1].confirm(SimpleNamespace(method=pika.spec.Basic.Ack(delivery_tag=3)))

        stage.happens = cleo_is_confirmed
        with pytest.raises(RelayLost) as caught:
            stage.publish()
        assert "bert" in caught.value.message
        assert "cleo" not in caught.value.message
        assert stage.seen == [()] * 3 + [("bert",)] * 10  # at 10, 20, ... s
        assert set(stage.reasons[3:]) == {
            "the relay confirms nothing that was sent to bert since 2001-09-09 01:46:50 UTC"
        }
        assert stage.publisher.withheld == ("bert",), "to be asked afterwards"
        with pytest.raises(RelayLost):  # what comes late must not be taken for an answer to something else
            stage.publish()

    def test_of_any_message_keep_it(self, stage: Stage) -> None:
        stage.happens = lambda look: stage.confirm(look // 10) if look % 10 == 0 else None
        assert stage.publish() == [None, None]
        assert stage.link.looked == 30
        assert stage.seen[8] == ("bert", "cleo")
        assert stage.seen[11] == (), "it moves again"
        assert stage.publisher.withheld == ()

    def test_of_nothing_that_was_sent_do_not(self, stage: Stage) -> None:
        stage.happens = lambda look: stage.link.opened[-1].confirm(
            SimpleNamespace(method=pika.spec.Basic.Ack(delivery_tag=1_000 + look))
        )
        with pytest.raises(RelayLost):
            stage.publish()

    def test_a_line_that_is_slow_keeps_it(self, stage: Stage) -> None:
        stage.link.unwritten_bytes = 1_000_000

        def drains(look: int) -> None:
            stage.link.unwritten_bytes -= 5_000
            if look == 100:
                stage.confirm(3)

        stage.happens = drains
        assert stage.publish() == [None, None]
        assert set(stage.seen) == {()}

    def test_a_backlog_that_only_grows_does_not(self, stage: Stage) -> None:
        """As with heartbeats on a connection that the relay does not read."""

        def grows(_: int) -> None:
            stage.link.unwritten_bytes += 8

        stage.happens = grows
        with pytest.raises(RelayLost):
            stage.publish()

    def test_a_relay_whose_memory_is_full_is_waited_for(self, stage: Stage) -> None:
        stage.link.blocked_reason = "low on memory"

        def blocked_for_long(look: int) -> None:
            if look == 100:
                stage.link.blocked_reason = None
            if look == 110:
                stage.confirm(3)

        stage.happens = blocked_for_long
        assert stage.publish() == [None, None]
        assert set(stage.seen[:100]) == {()}
        assert stage.seen[-1] == ("bert", "cleo"), "the time counts again"

    def test_what_raises_at_a_look_ends_it_at_once(self, stage: Stage) -> None:
        def stopped(_: int) -> None:
            raise Interrupted("stopped")

        stage.happens = stopped
        with pytest.raises(Interrupted):
            stage.publish()


def test_after_a_nack_what_follows_for_that_address_is_not_taken_either(stage: Stage) -> None:
    """It is under way by then, and would lie in the queue before what comes again."""

    def nack_the_second(_: int) -> None:
        confirm = stage.link.opened[-1].confirm
        for tag in range(1, 5):
            kind = pika.spec.Basic.Nack if tag == 2 else pika.spec.Basic.Ack
            confirm(SimpleNamespace(method=kind(delivery_tag=tag)))

    stage.happens = nack_the_second
    sets = [("bert", [b"1"]), ("bert", [b"2"]), ("cleo", [b"3"]), ("bert", [b"4"])]
    fates = stage.publisher.publish_all(sets)
    assert [type(fate) for fate in fates] == [type(None), NotTaken, type(None), NotTaken]
