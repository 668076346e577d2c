"""Several hosts in one URL: which is tried when, and what is said when none lets us in."""

from __future__ import annotations

import collections
import errno
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ppdl_mq.config import limits
from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.errors import Interrupted, RelayError, RelayRefused, RelayUnreachable
from ppdl_mq.transport.address import Names
from ppdl_mq.transport.opening import open_transport
from ppdl_mq.transport.rabbitmq import RabbitMQTransport, adapter
from tests.rabbit import RabbitNode
from tests.transport.certificates import Authority
from tests.transport.relays import SOON_S, new_trial

NAMES = Names(prefix="test", trial="hosts")
FIVE = BrokerAddress.parse("amqp://mercy@a,b,c,d,e/heart")

Failing = dict[str, RelayError]


class Session:
    """Stands for a connection; `tried` has the hosts in the order in which they were asked."""

    failing: Failing
    tried: list[str]

    def __init__(self, broker: BrokerAddress, _: Names, __: str, look: Callable[[], None], **___: object) -> None:
        (self._host,) = broker.hosts
        self._look = look
        self.link = self

    def open(self) -> None:
        self.tried.append(str(self._host))
        self._look()
        if self._host.name in self.failing:
            raise self.failing[self._host.name]

    def close(self) -> None:
        """Nothing to close."""


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Failing:
    """The hosts that fail, and how; none at first."""
    monkeypatch.setattr(Session, "failing", {}, raising=False)
    monkeypatch.setattr(Session, "tried", [], raising=False)
    monkeypatch.setattr(adapter, "_Session", Session)
    return Session.failing


def transport_to(broker: BrokerAddress) -> RabbitMQTransport:
    return RabbitMQTransport(broker, NAMES, peer="a")


def test_every_loss_moves_on_to_the_next_host(failing: Failing) -> None:
    transport = transport_to(FIVE)
    for _ in range(10):
        transport.connect()
    assert sorted(Session.tried[:5]) == [str(host) for host in FIVE.hosts]
    assert Session.tried[5:] == Session.tried[:5]


def test_a_host_that_fails_is_passed_over(failing: Failing) -> None:
    failing |= {name: RelayUnreachable(name) for name in "abce"}
    for _ in range(10):
        transport = transport_to(FIVE)
        transport.connect()
        assert transport.connected_to == "d:5672"
        transport.close()
        assert transport.connected_to is None


def test_load_spreads_at_first_and_after_a_loss(failing: Failing) -> None:
    random.seed(5)
    first: collections.Counter[str] = collections.Counter()
    next_after_a: collections.Counter[str] = collections.Counter()
    for _ in range(1000):
        Session.tried.clear()
        transport = transport_to(FIVE)
        transport.connect()
        transport.connect()
        first[Session.tried[0]] += 1
        if Session.tried[0] == "a:5672":
            next_after_a[Session.tried[1]] += 1
    assert set(first) == {str(host) for host in FIVE.hosts}
    assert min(first.values()) > 150  # 200 each
    assert set(next_after_a) == set(first) - {"a:5672"}
    assert min(next_after_a.values()) > 25  # 50 each


def test_when_none_answers_each_is_named_with_its_reason(failing: Failing) -> None:
    failing |= {name: RelayUnreachable(f"{name} does not answer: reason {name}.") for name in "abcde"}
    with pytest.raises(RelayUnreachable) as caught:
        transport_to(FIVE).connect()
    assert all(f"{name} does not answer: reason {name}" in caught.value.message for name in "abcde")
    assert len(Session.tried) == 5


def test_what_one_host_refuses_is_refused(failing: Failing) -> None:
    failing |= {name: RelayUnreachable(name) for name in "abcde"}
    failing["c"] = RelayRefused("c refuses the password.", hint="Look at it.")
    with pytest.raises(RelayRefused) as caught:
        transport_to(FIVE).connect()
    assert caught.value.hint == "Look at it."


def test_a_peer_that_is_stopped_tries_no_more_hosts(failing: Failing) -> None:
    failing |= {name: RelayUnreachable(name) for name in "abcde"}
    transport = transport_to(FIVE)

    def stop() -> None:
        raise Interrupted("stop")

    transport.look_round(stop)
    with pytest.raises(Interrupted):
        transport.connect()
    assert len(Session.tried) == 1


@pytest.mark.parametrize(
    ("where", "fault"),
    [
        ("ppdl_mq.transport.rabbitmq.link.IOLoop", OSError(errno.EMFILE, os.strerror(errno.EMFILE))),
        ("threading.Thread.start", RuntimeError("can't start new thread")),
    ],
    ids=["no file", "no thread"],
)
def test_for_want_of_files_or_threads_it_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, where: str, fault: Exception
) -> None:
    def refuse(*_: object) -> None:
        raise fault

    monkeypatch.setattr(where, refuse)
    with pytest.raises(RelayUnreachable, match="was not asked"):
        transport_to(BrokerAddress.parse("amqp://guest@127.0.0.1/")).connect()


@contextmanager
def silent_host() -> Iterator[str]:
    """A host on which connections open, and nobody ever says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_silent_host_holds_up_the_next_for_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LOGIN_S", 0.3)
    with silent_host() as one, silent_host() as other:
        transport = open_transport(BrokerAddress.parse(f"amqp://{one},{other}"), trial="t", prefix="test", peer="a")
        started = time.monotonic()
        with pytest.raises(RelayUnreachable) as caught:
            transport.connect()
    assert one in caught.value.message
    assert other in caught.value.message
    assert 0.6 <= time.monotonic() - started < 5


def test_a_name_that_is_not_resolved_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """pika bounds each address, once it knows it."""
    monkeypatch.setattr(limits, "HOST_S", 0.5)
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(SOON_S))
    transport = open_transport(BrokerAddress.parse("amqp://broker.example"), trial="t", prefix="test", peer="a")
    started = time.monotonic()
    try:
        with pytest.raises(RelayUnreachable):
            transport.connect()
        assert time.monotonic() - started < SOON_S / 2
    finally:
        over.set()


def test_a_connect_that_hangs_can_be_stopped() -> None:
    stopped = threading.Event()

    def look() -> None:
        if stopped.is_set():
            raise Interrupted("stop")

    with silent_host() as host:
        transport = open_transport(BrokerAddress.parse(f"amqp://{host}"), trial="t", prefix="test", peer="a")
        transport.look_round(look)
        threading.Timer(0.2, stopped.set).start()
        started = time.monotonic()
        with pytest.raises(Interrupted):
            transport.connect()
    assert time.monotonic() - started < limits.LOGIN_S / 2


@pytest.mark.rabbitmq
class TestWithABroker:
    @pytest.fixture
    def dead(self) -> Iterator[str]:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            yield f"127.0.0.1:{unused.getsockname()[1]}"

    def test_the_host_that_lives_is_found(self, rabbit: RabbitNode, dead: str) -> None:
        broker = BrokerAddress.parse(f"amqp://{dead},127.0.0.1:{rabbit.port},localhost:1")
        for _ in range(4):  # whichever comes first
            with open_transport(broker, trial=new_trial(), prefix="test", peer="a") as transport:
                assert transport.connected_to == f"127.0.0.1:{rabbit.port}"

    def test_after_a_loss_another_host_is_taken(self, rabbit: RabbitNode) -> None:
        broker = BrokerAddress.parse(f"amqp://127.0.0.1:{rabbit.port},localhost:{rabbit.port}")
        with open_transport(broker, trial=new_trial(), prefix="test", peer="a") as transport:
            first = transport.connected_to
            rabbit.ctl("close_all_connections", "--vhost", "/", "test")
            transport.connect()
            assert transport.connected_to != first

    def test_a_wrong_password_is_said_of_the_host_that_refuses_it(
        self, rabbit: RabbitNode, dead: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TEST_PASSWORD", "wrong")
        broker = BrokerAddress.parse(f"amqp://{dead},127.0.0.1:{rabbit.port}")
        with pytest.raises(RelayRefused) as caught:
            open_transport(replace(broker, password_env="TEST_PASSWORD"), trial="t", prefix="test", peer="a").connect()
        assert dead in caught.value.message
        assert f"127.0.0.1:{rabbit.port} refuses" in caught.value.message

    def test_the_name_in_a_certificate_is_compared_for_each_host(self, rabbit: RabbitNode, tmp_path: Path) -> None:
        authority = Authority(tmp_path)
        with tls_in_front_of(rabbit.port, authority.context_for("localhost")) as port:
            both = BrokerAddress.parse(f"amqps://127.0.0.1:{port},localhost:{port}")
            both = replace(both, ca_file=authority.certificate_file)
            for _ in range(4):
                with open_transport(both, trial=new_trial(), prefix="test", peer="a") as transport:
                    assert transport.connected_to == f"localhost:{port}"
            wrong = replace(both, hosts=both.hosts[:1])
            with pytest.raises(RelayRefused) as caught:
                open_transport(wrong, trial="t", prefix="test", peer="a").connect()
        assert "TLS" in caught.value.message


@contextmanager
def tls_in_front_of(port: int, context: ssl.SSLContext) -> Iterator[int]:
    """Give the port of a server that speaks TLS and passes everything on to `port`."""

    def pump(source: Any, target: Any) -> None:
        with suppress(OSError), closing(source), closing(target):
            while data := source.recv(65536):
                target.sendall(data)

    def serve(server: socket.socket) -> None:
        while True:
            try:
                plain, _ = server.accept()
            except OSError:  # the test is over
                return
            with suppress(OSError):
                secure = context.wrap_socket(plain, server_side=True)
                behind = socket.create_connection(("127.0.0.1", port))
                for ends in ((secure, behind), (behind, secure)):
                    threading.Thread(target=pump, args=ends, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        serving = threading.Thread(target=serve, args=(server,), daemon=True)
        serving.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            serving.join(SOON_S)
