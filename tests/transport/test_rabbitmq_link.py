"""How long a question to the broker may stay unanswered, on a clock that passes where the test has it pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pika
import pytest

from ppdl_mq.config import limits
from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.errors import RelayLost
from ppdl_mq.transport.rabbitmq import stillness
from ppdl_mq.transport.rabbitmq.link import Link

LOOK_EVERY_S = 10.0  # on the clock
MAX_LOOKS = 200


class Stage:
    """A link whose broker never answers. A test says what else happens at each look."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = time.time()
        clock = SimpleNamespace(monotonic=lambda: self.now, time=lambda: self.now)
        monkeypatch.setattr(stillness, "time", clock)
        monkeypatch.setattr(limits, "LOOK_S", 0.001)
        self.happens: Callable[[Any], object] = lambda _: None
        self.looks = 0
        self.reasons: list[str | None] = []
        address = BrokerAddress.parse("amqp://anna@127.0.0.1/")
        self.link = Link(pika.ConnectionParameters(), address, lambda _: None, look=self._look)
        self.hung_up: list[RelayLost] = []
        self.link.connection = SimpleNamespace(bytes_received=0, unwritten_bytes=10**6, hang_up=self.hung_up.append)

    def _look(self) -> None:
        self.looks += 1
        self.now += LOOK_EVERY_S
        self.reasons.append(self.link.unanswered_reason)
        if self.looks == MAX_LOOKS:
            raise InterruptedError
        self.happens(self.link)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    stage = Stage(monkeypatch)
    yield stage
    stage.link._loop.close()  # as its thread would, which never began


def test_is_said_after_a_while_and_ends_the_connection_after_a_longer_one(stage: Stage) -> None:
    with pytest.raises(RelayLost) as lost:
        stage.link.ask(lambda _: None)
    stage.link._loop.process_timeouts()  # as its thread would
    assert [str(each) for each in stage.hung_up] == [str(lost.value)]
    assert stage.looks == stillness.LOST_AFTER_S / LOOK_EVERY_S
    assert stage.reasons[:2] == [None, None]
    (said,) = set(stage.reasons[2:])
    assert said is not None
    assert "does not answer" in said
    assert stage.link.unanswered_reason is None, "nothing is asked any more"


@pytest.mark.parametrize("attribute", ["bytes_received", "unwritten_bytes"])
def test_heartbeats_are_no_answer(stage: Stage, attribute: str) -> None:
    def beats(link: Any) -> None:
        setattr(link.connection, attribute, getattr(link.connection, attribute) + 8)

    stage.happens = beats
    with pytest.raises(RelayLost):
        stage.link.ask(lambda _: None)


def grows(link: Any) -> None:
    link.connection.bytes_received += 4_096


def drains(link: Any) -> None:
    link.connection.unwritten_bytes -= 1


def blocked(link: Any) -> None:
    link.blocked_reason = "low on memory"


@pytest.mark.parametrize("moves", [grows, drains, blocked])
def test_a_slow_line_and_a_full_relay_are_waited_for(stage: Stage, moves: Callable[[Any], None]) -> None:
    stage.happens = moves
    with pytest.raises(InterruptedError):
        stage.link.ask(lambda _: None)
    assert stage.looks == MAX_LOOKS
    assert set(stage.reasons) == {None}


def test_a_thread_that_does_not_end_keeps_nobody_from_closing(stage: Stage) -> None:
    joined: list[float] = []
    stage.link._thread = cast("Any", SimpleNamespace(join=joined.append, is_alive=lambda: True))
    stage.link.close()
    assert len(joined) == 2
    assert sum(joined) <= 10
