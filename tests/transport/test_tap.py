"""What whoever runs the relay can copy: everything of the trial, and nothing of another."""

from __future__ import annotations

from pathlib import Path

import pika
import pytest

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.errors import RelayLost, RelayRefused, RelayUnreachable
from ppdl_mq.transport.opening import open_tap, open_transport
from ppdl_mq.transport.rabbitmq.check_message import MARK, SMALL
from tests.rabbit import RabbitNode
from tests.transport.relays import eventually, new_trial, rabbit_address


@pytest.fixture(params=["embedded", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> BrokerAddress:
    if request.param == "embedded":
        return BrokerAddress.parse(f"embedded:{tmp_path / 'relay.db'}")
    node: RabbitNode = request.getfixturevalue("rabbit")
    return rabbit_address(node)


def test_a_tap_copies_everything_of_its_trial(broker: BrokerAddress) -> None:
    trial, other = new_trial(), new_trial()
    with (
        open_transport(broker, trial=other, prefix="test", peer="a") as elsewhere,
        open_transport(broker, trial=trial, prefix="test", peer="a") as transport,
        open_tap(broker, trial=trial, prefix="test") as tap,
    ):
        for each in (transport, elsewhere):
            each.declare("a")
        transport.declare("weights")
        transport.publish("a", [b"one", b"two"])
        elsewhere.publish("a", [b"not ours"])
        transport.publish("weights", [b"three"])
        copied: list[bytes] = []
        eventually(lambda: len(more(copied, tap.read())), 3)
        assert copied == [b"one", b"two", b"three"]
        assert tap.read() == []
        tap.close()
        transport.publish("a", [b"four"])
        assert transport.depth("a") == 3  # the tap took nothing away
        for each in (transport, elsewhere):
            each.delete("a")
        transport.delete("weights")


def more(copied: list[bytes], fresh: list[bytes]) -> list[bytes]:
    copied += fresh
    return copied


def test_a_tap_on_an_embedded_relay_leaves_nothing_behind(tmp_path: Path) -> None:
    broker = BrokerAddress.parse(f"embedded:{tmp_path / 'relay.db'}")
    for _ in range(2):  # a second one of the same trial finds no remains
        tap = open_tap(broker, trial="again", prefix="test")
        tap.close()
        tap.close()
        assert tap.read() == []


def test_only_the_one_byte_of_a_check_is_left_out(rabbit: RabbitNode) -> None:
    trial = new_trial()
    with open_tap(rabbit_address(rabbit), trial=trial, prefix="test") as tap, rabbit.channel() as channel:
        for kind, body in ((MARK, SMALL), (MARK, b"weights"), (MARK, b""), (None, SMALL), ("other", SMALL)):
            channel.basic_publish(f"test.{trial}", "a", body, pika.BasicProperties(type=kind))
        copied: list[bytes] = []
        eventually(lambda: len(more(copied, tap.read())), 4)
        assert copied == [b"weights", b"", SMALL, SMALL]


def test_a_file_that_is_no_relay_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "relay.db"
    with open_tap(BrokerAddress.parse(f"embedded:{path}"), trial="gone", prefix="test") as tap:
        pass
    path.write_bytes(b"something else" * 100)
    with pytest.raises(RelayRefused):
        open_tap(BrokerAddress.parse(f"embedded:{path}"), trial="gone", prefix="test")
    assert tap.read() == []


def test_a_user_without_the_right_is_told_so(rabbit: RabbitNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASSWORD", "secret")
    rabbit.add_user("peeronly", "secret", configure="^nothing$")
    try:
        with pytest.raises(RelayRefused):
            open_tap(rabbit_address(rabbit, user="peeronly", password_env="PASSWORD"), trial="small", prefix="test")
    finally:
        rabbit.delete_user("peeronly")


def test_nobody_at_home() -> None:
    with pytest.raises((RelayUnreachable, RelayLost)):
        open_tap(BrokerAddress.parse("amqp://127.0.0.1:1/"), trial="nobody", prefix="test")
