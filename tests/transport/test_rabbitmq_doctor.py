"""What the doctor says where a broker breaks off in the middle of a question; the rest is in tests/brokers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pika import exceptions as amqp

from ppdl_mq.errors import RelayLost
from ppdl_mq.transport.address import Names
from ppdl_mq.transport.findings import Wanted
from ppdl_mq.transport.rabbitmq.doctor import probes, round_trip
from ppdl_mq.transport.rabbitmq.doctor.session import Blocked, Late, Reply, Session

BROKER = cast("Any", SimpleNamespace(vhost="/", declare=True))


@pytest.mark.parametrize(
    ("error", "told"),
    [(amqp.StreamLostError("broke"), RelayLost), (amqp.ConnectionBlockedTimeout("full"), Blocked)],
)
def test_a_connection_that_gives_no_channel(error: Exception, told: type[Exception]) -> None:
    def channel() -> None:
        raise error

    session = Session.__new__(Session)
    session._connection, session._why_blocked = cast("Any", SimpleNamespace(channel=channel)), ""
    with pytest.raises(told):
        session.channel()


class Channel:
    """The inbox is empty; what is published meets `publishes`, and what comes after the first fetch is late."""

    is_open = True

    def __init__(self, publishes: Callable[[], None]) -> None:
        self._publishes = publishes
        self._fetches = 0

    def confirm_delivery(self) -> None: ...

    def basic_publish(self, *_: Any, **__: Any) -> None:
        self._publishes()

    def basic_get(self, _: str) -> tuple[None, None, None]:
        self._fetches += 1
        if self._fetches > 1:
            raise Late
        return None, None, None


def nacked() -> None:
    raise amqp.NackError([])


def unroutable() -> None:
    raise amqp.UnroutableError([])


def late(*_: object) -> bool:
    raise Late


@pytest.mark.parametrize(
    ("publishes", "says"),
    [(nacked, "does not hold"), (unroutable, "does not answer"), (late, "does not answer")],
    ids=["in taking back", "in looking why", "in sending"],
)
def test_time_may_be_up_in_every_question(
    monkeypatch: pytest.MonkeyPatch, publishes: Callable[[], None], says: str
) -> None:
    @contextmanager
    def within(_: float) -> Iterator[None]:
        yield

    monkeypatch.setattr(probes, "is_there", lambda *_: Reply(200, value=(0, 0)))
    monkeypatch.setattr(probes, "may_make_queue", late)
    session = cast("Any", SimpleNamespace(channel=lambda: Channel(publishes), within=within))
    names = Names(prefix="test", trial="doctor")
    wanted = Wanted(names=names, me="anna", peers=("anna", "bert"), shares_weights=False, chunk_bytes=4096)
    (finding,) = round_trip.short_trip(session, BROKER, wanted)
    assert says in finding.says
