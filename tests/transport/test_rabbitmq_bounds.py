"""A broker that keeps to no limit fills no memory: messages and frames without an end. No RabbitMQ is needed."""

from __future__ import annotations

import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pika
import pytest
from pika import exceptions as amqp
from pika import frame, spec

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.errors import RelayError, RelayLost
from ppdl_mq.transport.opening import open_transport
from ppdl_mq.transport.rabbitmq.connection import BoundedMessage
from tests.transport.relays import SOON_S, eventually

MB = 1_000_000
ENDLESS = 2**40


def deliver() -> frame.Method:
    return frame.Method(1, spec.Basic.Deliver("c", 1, False, "", "a"))


class TestAMessage:
    def test_that_fits_comes_whole(self) -> None:
        bounded = BoundedMessage(10)
        for _ in range(2):
            assert bounded.process(deliver()) is None
            assert bounded.process(frame.Header(1, 10, pika.BasicProperties())) is None
            assert bounded.process(frame.Body(1, b"01234")) is None
            whole = bounded.process(frame.Body(1, b"56789"))
            assert whole is not None
            assert whole[2] == b"0123456789"

    def test_without_a_body_is_whole_with_its_header(self) -> None:
        bounded = BoundedMessage(10)
        bounded.process(deliver())
        whole = bounded.process(frame.Header(1, 0, pika.BasicProperties()))
        assert whole is not None
        assert whole[2] == b""

    def test_without_an_end_is_not_kept(self) -> None:
        bounded = BoundedMessage(MB)
        bounded.process(deliver())
        bounded.process(frame.Header(1, ENDLESS, pika.BasicProperties()))
        part = frame.Body(1, bytes(MB // 10))
        tracemalloc.start()
        try:
            for _ in range(1_000):
                assert bounded.process(part) is None
            assert tracemalloc.get_traced_memory()[1] < 3 * MB
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize(
        "frames",
        [
            [frame.Header(1, 1, pika.BasicProperties())],
            [frame.Body(1, b"0")],
            [deliver(), frame.Body(1, b"0")],
            [deliver(), *[frame.Header(1, 1, pika.BasicProperties())] * 2],
            [deliver(), frame.Header(1, 1, pika.BasicProperties()), frame.Body(1, b"01")],
        ],
        ids=["no method", "neither method nor header", "no header", "two headers", "a longer body"],
    )
    def test_of_frames_that_do_not_fit_is_refused(self, frames: list[Any]) -> None:
        bounded = BoundedMessage(10)
        *before, last = frames
        assert [bounded.process(each) for each in before] == [None] * len(before)
        with pytest.raises(amqp.AMQPError):
            bounded.process(last)


class Broker:
    """Lets anybody in, answers what a peer asks to begin with, and then does harm.

    Args:
        at: the method of the client that is answered by `harm` instead.
        harm: what is sent then, again and again, until the client hangs up or `limit_bytes` have gone out.
    """

    def __init__(self, at: type, harm: Callable[[int], Iterator[bytes]], limit_bytes: int = 400 * MB) -> None:
        self._at, self._harm, self._limit_bytes = at, harm, limit_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.sent_bytes = 0
        self.has_hung_up = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def address(self) -> BrokerAddress:
        return BrokerAddress.parse(f"amqp://guest@127.0.0.1:{self._listener.getsockname()[1]}/")

    def close(self) -> None:
        self._listener.close()
        self._thread.join(SOON_S)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        with client:
            try:
                self._speak(client)
            except (OSError, EOFError):
                self.has_hung_up.set()

    def _speak(self, client: socket.socket) -> None:
        def answer(channel: int, *methods: Any) -> None:
            for method in methods:
                client.sendall(frame.Method(channel, method).marshal())

        data = b""
        while len(data) < 8:  # the protocol's header
            data += client.recv(8 - len(data))
        data = b""
        answer(0, spec.Connection.Start(0, 9, {"capabilities": {"publisher_confirms": True}}, "PLAIN", "en_US"))
        while True:
            size, found = frame.decode_frame(data)
            if found is None:
                more = client.recv(65_536)
                if not more:
                    raise EOFError
                data += more
                continue
            data = data[size:]
            if not isinstance(found, frame.Method):
                continue
            channel, asked = found.channel_number, found.method
            if isinstance(asked, self._at):
                for part in self._harm(channel):
                    client.sendall(part)
                    self.sent_bytes += len(part)
                    if self.sent_bytes > self._limit_bytes:
                        break
                self._limit_bytes = 0
            elif isinstance(asked, spec.Connection.StartOk):
                answer(0, spec.Connection.Tune(2047, 131_072, 30))
            elif isinstance(asked, spec.Connection.Open):
                answer(0, spec.Connection.OpenOk())
            elif isinstance(asked, spec.Channel.Open):
                answer(channel, spec.Channel.OpenOk())
            elif isinstance(asked, spec.Queue.Declare):
                answer(channel, spec.Queue.DeclareOk("q", 0, 0))
            elif isinstance(asked, spec.Connection.Close):
                answer(0, spec.Connection.CloseOk())


@contextmanager
def broker(at: type, harm: Callable[[int], Iterator[bytes]]) -> Iterator[Broker]:
    found = Broker(at, harm)
    try:
        yield found
    finally:
        found.close()


def endless_frame(_: int) -> Iterator[bytes]:
    yield b"\x03\x00\x01\xff\xff\xff\xff"
    while True:
        yield bytes(MB)


def endless_message(channel: int) -> Iterator[bytes]:
    yield frame.Method(channel, spec.Basic.GetOk(1, False, "", "a", 0)).marshal()
    yield frame.Header(channel, ENDLESS, pika.BasicProperties()).marshal()
    while True:
        yield frame.Body(channel, bytes(30_000)).marshal()


@pytest.mark.parametrize("at", [spec.Connection.StartOk, spec.Connection.Open, spec.Queue.Declare])
def test_a_frame_without_an_end_ends_the_connection(at: type) -> None:
    with broker(at, endless_frame) as hostile:
        transport = open_transport(hostile.address, trial="t", prefix="test", peer="a")
        if at is spec.Queue.Declare:
            transport.connect()
            with pytest.raises(RelayLost, match="larger frame than was agreed"):
                transport.depth("a")
        else:
            with pytest.raises(RelayError, match="larger frame than was agreed"):
                transport.connect()
        transport.close()
        assert hostile.has_hung_up.wait(SOON_S)
        assert hostile.sent_bytes < 50 * MB


def test_a_message_without_an_end_fills_no_memory() -> None:
    with broker(spec.Basic.Get, endless_message) as hostile:
        transport = open_transport(hostile.address, trial="t", prefix="test", peer="a", message_bytes=MB)
        transport.connect()
        lost = []

        def get() -> None:
            try:
                transport.get("a")
            except RelayLost as error:
                lost.append(error)

        asking = threading.Thread(target=get)
        tracemalloc.start()
        try:
            asking.start()
            eventually(lambda: hostile.sent_bytes > 100 * MB, expected=True)
            assert tracemalloc.get_traced_memory()[1] < 20 * MB
        finally:
            tracemalloc.stop()
            transport.close()
            asking.join(SOON_S)
        assert lost
