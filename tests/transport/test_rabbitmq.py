"""What only a real broker shows: it dies, refuses, runs full; rights, topology, and what an administrator sees."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pika
import pytest

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.errors import InboxTaken, NotTaken, RelayError, RelayLost, RelayRefused, RelayUnreachable, Unroutable
from ppdl_mq.transport.base import MAX_HELD, Transport
from ppdl_mq.transport.opening import open_transport
from ppdl_mq.transport.rabbitmq import stillness
from ppdl_mq.transport.rabbitmq.check_message import MARK, SMALL
from tests.rabbit import RabbitNode
from tests.transport.relays import SOON_S, bodies, eventually, new_trial, rabbit_address, receive_all, subscribe_soon

PASSWORD = "correct horse battery"


@pytest.fixture
def trial() -> str:
    return new_trial()


def opened(node: RabbitNode, trial: str, **changes: object) -> Transport:
    return open_transport(rabbit_address(node, **changes), trial=trial, prefix="test", peer="a")


@pytest.fixture
def transport(rabbit: RabbitNode, trial: str) -> Iterator[Transport]:
    with opened(rabbit, trial) as transport:
        transport.declare("a")
        yield transport


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_nothing_confirmed_is_lost_when_the_broker_is_killed(rabbit: RabbitNode, trial: str, queue_type: str) -> None:
    transport = opened(rabbit, trial, queue_type=queue_type)
    transport.connect()
    transport.declare("a")
    declared_s = time.monotonic()
    transport.subscribe("a")
    transport.publish("a", [b"1", b"2" * 900_000])
    first = transport.receive(SOON_S)
    assert first is not None
    started = threading.Event()

    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * 100_000
            # RabbitMQ 3.10 writes down that a quorum queue exists up to a second after it said so.
            if time.monotonic() - declared_s > 2.0:
                started.set()

    with ThreadPoolExecutor(2) as pool:
        publishing = pool.submit(transport.publish, "a", endless())
        assert started.wait(SOON_S)
        rabbit.kill()
        with pytest.raises(RelayLost):
            publishing.result(SOON_S)
    for attempt in (
        lambda: transport.receive(SOON_S),
        lambda: transport.ack([first]),
        lambda: transport.get("a"),
        lambda: transport.publish("a", [b"x"]),
    ):
        with pytest.raises(RelayLost):
            attempt()
    with pytest.raises(RelayUnreachable):
        transport.connect()
    rabbit.start()
    transport.connect()
    transport.declare("a")
    eventually(lambda: transport.depth("a") >= 2, True)
    subscribe_soon(transport, "a")
    assert bodies(receive_all(transport, 2)) == [b"1", b"2" * 900_000]
    transport.publish("a", [b"works"])
    transport.close()


def test_a_waiting_receive_ends_when_the_connection_breaks(rabbit: RabbitNode, transport: Transport) -> None:
    transport.subscribe("a")
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(transport.receive, SOON_S) for _ in range(2)]
        rabbit.ctl("close_all_connections", "--vhost", "/", "test")
        for future in waiting:
            with pytest.raises(RelayLost):
                future.result(SOON_S)


def test_a_wrong_password_is_refused_without_showing_it(
    rabbit: RabbitNode, trial: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TEST_PASSWORD", PASSWORD)
    with pytest.raises(RelayRefused) as caught:
        opened(rabbit, trial, password_env="TEST_PASSWORD").connect()
    assert "guest" in str(caught.value)
    assert PASSWORD not in str(caught.value) + caplog.text


def test_a_missing_vhost_is_refused_by_name(rabbit: RabbitNode, trial: str) -> None:
    with pytest.raises(RelayRefused) as caught:
        opened(rabbit, trial, vhost="nowhere").connect()
    assert "'nowhere'" in str(caught.value)
    assert "'guest'" in str(caught.value)


def test_nobody_listening_is_unreachable(trial: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = BrokerAddress.parse(f"amqp://guest@127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(RelayUnreachable):
            open_transport(address, trial=trial, prefix="test", peer="a").connect()


def test_an_unknown_host_is_unreachable(trial: str) -> None:
    with pytest.raises(RelayUnreachable):
        open_transport(BrokerAddress.parse("amqp://broker.invalid"), trial=trial, prefix="test", peer="a").connect()


def test_something_else_than_a_broker_is_unreachable(trial: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(8)

        answering = pool.submit(answer)
        address = BrokerAddress.parse(f"amqp://127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(RelayUnreachable) as caught:
            open_transport(address, trial=trial, prefix="test", peer="a").connect()
        answering.result(SOON_S)
    assert "amqps://" in caught.value.hint


def test_tls_with_a_broker_that_has_none_is_refused(rabbit: RabbitNode, trial: str) -> None:
    with pytest.raises(RelayRefused):
        opened(rabbit, trial, scheme="amqps").connect()


def test_tls_files_that_cannot_be_read_are_refused(rabbit: RabbitNode, trial: str, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("not a certificate")
    for name in ("ca.pem", "missing.pem"):
        with pytest.raises(RelayRefused):
            opened(rabbit, trial, scheme="amqps", ca_file=tmp_path / name).connect()


def test_a_publisher_waits_while_the_broker_takes_nothing(rabbit: RabbitNode, transport: Transport) -> None:
    rabbit.ctl("set_vm_memory_high_watermark", "absolute", "1")
    try:
        with ThreadPoolExecutor(1) as pool:
            publishing = pool.submit(transport.publish, "a", [b"late"])
            eventually(lambda: transport.blocked_reason is not None, True)
            assert not publishing.done()
            rabbit.ctl("set_vm_memory_high_watermark", "0.4")
            publishing.result(SOON_S)
    finally:
        rabbit.ctl("set_vm_memory_high_watermark", "0.4")
    eventually(lambda: transport.blocked_reason, None)
    assert transport.get("a").body == b"late"


def test_closing_does_not_wait_for_a_broker_that_takes_nothing(rabbit: RabbitNode, trial: str) -> None:
    transport = opened(rabbit, trial)
    transport.connect()
    transport.declare("a")
    rabbit.ctl("set_vm_memory_high_watermark", "absolute", "1")
    try:
        with ThreadPoolExecutor(1) as pool:
            publishing = pool.submit(transport.publish, "a", [b"x"] * 3)
            eventually(lambda: transport.blocked_reason is not None, True)
            transport.close()
            with pytest.raises(RelayLost):
                publishing.result(SOON_S)
    finally:
        rabbit.ctl("set_vm_memory_high_watermark", "0.4")


@contextlib.contextmanager
def hanging(rabbit: RabbitNode, trial: str, address: str) -> Iterator[None]:
    """Let the process of a classic queue stand still."""
    find = (
        f'{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"test.{trial}.{address}">>)),'
        " Pid = amqqueue:get_pid(Q), "
    )
    rabbit.ctl("eval", find + "sys:suspend(Pid).")
    try:
        yield
    finally:
        rabbit.ctl("eval", find + "sys:resume(Pid).")


@pytest.fixture
def soon_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stillness, "SAID_AFTER_S", 0.5)
    monkeypatch.setattr(stillness, "LOST_AFTER_S", 3.0)


@pytest.mark.usefixtures("soon_lost")
def test_an_inbox_that_hangs_is_named_and_ends_the_connection(rabbit: RabbitNode, trial: str) -> None:
    with opened(rabbit, trial, queue_type="classic") as transport:
        for address in ("a", "b"):
            transport.declare(address)
        with hanging(rabbit, trial, "b"):
            seen: list[str | None] = []
            transport.look_round(lambda: seen.append(transport.blocked_reason))
            with pytest.raises(RelayLost):
                transport.publish_all([("a", [b"a"]), ("b", [b"b"])])
            assert transport.withheld == ("b",)
            assert seen[0] is None
            assert seen[-1] is not None
            assert "sent to b since" in seen[-1]
        transport.connect()
        assert (transport.withheld, transport.blocked_reason) == ((), None)
        transport.publish_all([("b", [b"b"])])
        assert [transport.get("b").body for _ in range(2)] == [b"b", b"b"]
        assert transport.get("a").body == b"a"


@pytest.mark.usefixtures("soon_lost")
@pytest.mark.parametrize("ask", ["depth", "get", "purge", "declare", "subscribe", "delete"])
def test_a_queue_that_answers_nothing_is_said_and_ends_the_connection(rabbit: RabbitNode, trial: str, ask: str) -> None:
    with opened(rabbit, trial, queue_type="classic") as transport:
        transport.declare("b")
        with hanging(rabbit, trial, "b"):
            seen: list[str | None] = []
            transport.look_round(lambda: seen.append(transport.blocked_reason))
            with pytest.raises(RelayLost):
                getattr(transport, ask)("b")
            assert seen[0] is None
            assert seen[-1] is not None
            assert "does not answer" in seen[-1]
            assert transport.blocked_reason is None, "nothing is asked any more"
        transport.connect()
        transport.declare("b")  # the queue was only slow: what it was asked it has done
        assert transport.depth("b") == 0


def test_a_full_queue_refuses_and_says_so(rabbit: RabbitNode, transport: Transport, trial: str) -> None:
    policy = '{"max-length": 2, "overflow": "reject-publish"}'
    rabbit.ctl("set_policy", trial, f"^test\\.{trial}\\.", policy, "--apply-to", "queues")
    try:
        with pytest.raises(RelayError) as caught:
            # A quorum queue notices a little late that it is full, and takes what comes until then.
            transport.publish("a", [b"%d" % number for number in range(500)])
        assert type(caught.value) is NotTaken
    finally:
        rabbit.ctl("clear_policy", trial)


def test_what_a_check_left_in_the_inbox_is_taken_off_it_and_not_handed_out(
    rabbit: RabbitNode, transport: Transport, trial: str
) -> None:
    with rabbit.channel() as channel:
        for number in range(2 * MAX_HELD):  # more than are handed out without an acknowledgement
            body = SMALL if number != MAX_HELD else b"sealed"
            channel.basic_publish(f"test.{trial}", "a", body, pika.BasicProperties(type=MARK, delivery_mode=2))
    transport.subscribe("a")
    (delivery,) = receive_all(transport, 1)
    assert delivery.body == b"sealed"
    assert transport.receive(0.2) is None
    transport.ack([delivery])
    with rabbit.channel() as channel:  # neither waits there nor is held
        transport.close()
        eventually(lambda: channel.queue_declare(f"test.{trial}.a", passive=True).method.message_count, 0)


def test_the_inbox_being_deleted_ends_receiving(transport: Transport) -> None:
    transport.subscribe("a")
    transport.delete("a")
    with pytest.raises(RelayLost):
        transport.receive(SOON_S)


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_of_two_who_subscribe_at_once_at_most_one_reads(rabbit: RabbitNode, trial: str, queue_type: str) -> None:
    with (
        opened(rabbit, trial, queue_type=queue_type) as first,
        opened(rabbit, trial, queue_type=queue_type) as second,
        ThreadPoolExecutor(2) as pool,
    ):
        first.declare("a")
        outcomes = [pool.submit(transport.subscribe, "a").exception() for transport in (first, second)]
        assert outcomes.count(None) <= 1
        assert all(outcome is None or isinstance(outcome, InboxTaken) for outcome in outcomes)


class TestTopology:
    def test_everything_is_durable_and_named_after_the_trial(
        self, rabbit: RabbitNode, transport: Transport, trial: str
    ) -> None:
        transport.publish("a", [b"x"])
        queues = rabbit.ctl("--silent", "list_queues", "name", "durable", "type").splitlines()
        assert f"test.{trial}.a\ttrue\tquorum" in queues
        exchanges = rabbit.ctl("--silent", "list_exchanges", "name", "type", "durable").splitlines()
        assert f"test.{trial}\ttopic\ttrue" in exchanges
        bindings = rabbit.ctl(
            "--silent", "list_bindings", "source_name", "destination_name", "routing_key"
        ).splitlines()
        assert f"test.{trial}\ttest.{trial}.a\ta" in bindings
        with rabbit.channel() as channel:
            _, properties, body = channel.basic_get(f"test.{trial}.a", auto_ack=True)
        assert body == b"x"
        assert properties.delivery_mode == 2

    def test_a_quorum_queue_is_made_where_asked(self, rabbit: RabbitNode, trial: str) -> None:
        with opened(rabbit, trial, queue_type="quorum") as transport:
            transport.declare("a")
            queues = rabbit.ctl("--silent", "list_queues", "name", "type").splitlines()
            assert f"test.{trial}.a\tquorum" in queues
            transport.delete("a")

    def test_without_declaring_what_is_missing_is_refused(self, rabbit: RabbitNode, trial: str) -> None:
        with opened(rabbit, trial, declare=False) as transport:
            with pytest.raises(RelayRefused):
                transport.declare("a")
            with rabbit.channel() as channel:
                channel.exchange_declare(f"test.{trial}", "topic", durable=True)
            with pytest.raises(RelayRefused):
                transport.declare("a")
            with rabbit.channel() as channel:
                channel.queue_declare(f"test.{trial}.a", durable=True)
                channel.queue_bind(f"test.{trial}.a", f"test.{trial}", "a")
            transport.declare("a")
            transport.publish("a", [b"x"])
            assert transport.get("a").body == b"x"

    def test_a_queue_of_another_type_is_good_enough(self, rabbit: RabbitNode, trial: str) -> None:
        with opened(rabbit, trial, queue_type="classic") as first, opened(rabbit, trial) as second:
            first.declare("a")
            second.declare("a")
            second.publish("a", [b"x"])
            assert first.get("a").body == b"x"

    def test_a_queue_of_another_type_is_bound_as_well(self, rabbit: RabbitNode, trial: str) -> None:
        with opened(rabbit, trial) as transport, rabbit.channel() as channel:
            channel.queue_declare(f"test.{trial}.a", durable=True)
            transport.declare("a")
            transport.publish("a", [b"x"])
            assert transport.get("a").body == b"x"

    @pytest.mark.parametrize("arguments", [{"x-message-ttl": 1000}, {"x-expires": 60000}, {"x-max-length": 5}])
    def test_a_queue_that_loses_messages_is_refused(
        self, rabbit: RabbitNode, trial: str, arguments: dict[str, int]
    ) -> None:
        with rabbit.channel() as channel:
            channel.queue_declare(f"test.{trial}.a", durable=True, arguments=arguments)
        with opened(rabbit, trial) as transport, pytest.raises(RelayRefused):
            transport.declare("a")

    def test_a_transient_exchange_or_one_of_another_type_is_refused(self, rabbit: RabbitNode, trial: str) -> None:
        with rabbit.channel() as channel, opened(rabbit, trial) as transport:
            for kind, durable in (("fanout", True), ("topic", False)):
                channel.exchange_declare(f"test.{trial}", kind, durable=durable)
                with pytest.raises(RelayRefused):
                    transport.declare("a")
                channel.exchange_delete(f"test.{trial}")

    def test_a_user_without_configure_right_works_with_what_is_there(
        self, rabbit: RabbitNode, trial: str, transport: Transport, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        transport.declare("weights")
        transport.declare("b")
        queues = rf"test\.{trial}\.(a|weights)"
        rabbit.add_user(trial, PASSWORD, configure="^$", write=rf"^test\.{trial}$", read=f"^{queues}$")
        monkeypatch.setenv("TEST_PASSWORD", PASSWORD)
        try:
            with opened(rabbit, trial, user=trial, password_env="TEST_PASSWORD") as few:
                few.declare("a")
                few.declare("weights")
                few.subscribe("a")
                few.publish("a", [b"to myself"])
                few.publish("weights", [b"weights"])
                few.publish("b", [b"to b"])
                assert bodies(receive_all(few, 1)) == [b"to myself"]
                held = few.get("weights")
                few.ack([held])
                with pytest.raises(RelayRefused):
                    few.get("b")
                with pytest.raises(Unroutable):
                    few.publish("c", [b"nobody"])
                few.publish("weights", [b"1", b"2"])
                few.delete("weights")  # may only empty it
                assert few.depth("weights") == 0
                with pytest.raises(RelayRefused):
                    few.declare("d")
        finally:
            rabbit.delete_user(trial)

    def test_a_user_who_may_not_write_is_refused(
        self, rabbit: RabbitNode, trial: str, transport: Transport, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rabbit.add_user(trial, PASSWORD, configure="^$", write="^$", read="^$")
        monkeypatch.setenv("TEST_PASSWORD", PASSWORD)
        try:
            with opened(rabbit, trial, user=trial, password_env="TEST_PASSWORD") as few:
                with pytest.raises(RelayRefused):
                    few.publish("a", [b"x"])
                with pytest.raises(RelayRefused):
                    few.subscribe("a")
                with pytest.raises(RelayRefused):
                    few.purge("a")
                assert few.depth("a") == 0
        finally:
            rabbit.delete_user(trial)


def test_what_is_not_acknowledged_in_time_goes_back_and_the_ack_is_passed_over(
    rabbit: RabbitNode, transport: Transport
) -> None:
    """The delivery timeout of the broker closes the channel of `get`; the connection lives on."""
    transport.publish("a", [b"1"])
    late = transport.get("a")
    channel = late.tag[0]
    closed = threading.Event()
    channel.connection.ioloop.add_callback_threadsafe(
        lambda: (channel.add_on_close_callback(lambda *_: closed.set()), channel.basic_ack(999))
    )  # an unknown tag closes the channel as the timeout does, with the same code
    assert closed.wait(SOON_S)
    transport.ack([late])
    eventually(lambda: transport.depth("a"), 1)
    again = transport.get("a")
    assert again.body == b"1"
    transport.ack([again])


def test_an_administrator_recognises_the_connection(rabbit: RabbitNode, transport: Transport, trial: str) -> None:
    listed = rabbit.ctl("--silent", "list_connections", "client_properties", "frame_max")
    assert f"ppdl-mq {trial}/a" in listed
    assert "32768" in listed


def test_the_tap_sees_what_passes(rabbit: RabbitNode, transport: Transport, trial: str) -> None:
    with rabbit.tap() as tap:
        transport.publish("a", [b"seen"])
        transport.ack([transport.get("a")])
        seen = tap.read()
    assert ("publish", f"test.{trial}", ("a",), b"seen") in [
        (message.kind, message.name, message.routing_keys, message.body) for message in seen
    ]
    assert ("deliver", f"test.{trial}.a") in [(message.kind, message.name) for message in seen]


def test_pika_is_imported_only_where_it_is_used() -> None:
    program = (
        "import sys\n"
        "from ppdl_mq.config.broker import BrokerAddress\n"
        "from ppdl_mq.transport.opening import open_transport\n"
        "open_transport(BrokerAddress.parse('embedded:x.db'), trial='t', prefix='p', peer='a')\n"
        "assert 'pika' not in sys.modules\n"
        "open_transport(BrokerAddress.parse('amqp://localhost'), trial='t', prefix='p', peer='a')\n"
        "assert 'pika' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_bug_in_the_io_thread_leaves_nobody_waiting(transport: Transport) -> None:
    transport.subscribe("a")
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(transport.receive, SOON_S)
        transport._current.link.submit(lambda: 1 / 0)
        with pytest.raises(RelayLost):
            waiting.result(SOON_S)
    for attempt in (lambda: transport.publish("a", [b"x"]), lambda: transport.depth("a")):
        with pytest.raises(RelayLost):
            attempt()


def test_that_the_connection_is_gone_comes_before_a_missing_subscription(
    rabbit: RabbitNode, transport: Transport
) -> None:
    rabbit.ctl("close_all_connections", "--vhost", "/", "test")

    def is_gone() -> bool:
        try:
            transport.depth("a")
        except RelayLost:
            return True
        return False

    eventually(is_gone, True)
    with pytest.raises(RelayLost):
        transport.receive(0)
