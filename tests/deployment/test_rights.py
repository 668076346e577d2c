"""On a real RabbitMQ: with the rights of scripts/broker_definitions.py a peer can do its work, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker, ProbableAuthenticationError

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.transport.base import Transport
from ppdl_mq.transport.opening import open_transport
from tests.rabbit import RabbitNode

ROOT = Path(__file__).resolve().parents[2]
VHOST = "rights"
PEERS = ("rights-a", "rights-b")
ACCESS_REFUSED = 403


@pytest.fixture(scope="module")
def passwords(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("passwords")
    for peer in PEERS:
        (folder / f"{peer}.password").write_text(f"password of {peer}\n")
    return folder


@pytest.fixture(scope="module")
def node(rabbit_node: RabbitNode, passwords: Path) -> Iterator[RabbitNode]:
    """The session's node with the definitions of a trial, in a vhost of its own."""
    rabbit_node.start()
    script = [sys.executable, str(ROOT / "scripts" / "broker_definitions.py")]
    arguments = ["heart", *PEERS, "--vhost", VHOST, "--passwords", str(passwords)]
    file = passwords / "definitions.json"
    file.write_bytes(subprocess.run([*script, *arguments], capture_output=True, timeout=60, check=True).stdout)
    rabbit_node.ctl("import_definitions", str(file))
    yield rabbit_node
    rabbit_node.start()  # a test of another module may have ended it
    for peer in PEERS:
        rabbit_node.delete_user(peer)
    rabbit_node.ctl("delete_vhost", VHOST)


@pytest.fixture
def open_as(node: RabbitNode, passwords: Path) -> Callable[[str], Transport]:
    def opened(peer: str) -> Transport:
        address = BrokerAddress(
            scheme="amqp",
            host="127.0.0.1",
            port=node.port,
            user=peer,
            vhost=VHOST,
            password_file=passwords / f"{peer}.password",
            declare=False,
        )
        return open_transport(address, trial="heart", prefix="ppdl", peer=peer)

    return opened


def refused(node: RabbitNode, action: Callable[[Any], object]) -> bool:
    """Say whether the broker denies the first peer an action."""
    credentials = pika.PlainCredentials(PEERS[0], f"password of {PEERS[0]}")
    parameters = pika.ConnectionParameters("127.0.0.1", node.port, VHOST, credentials)
    with pika.BlockingConnection(parameters) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        try:
            action(channel)
        except ChannelClosedByBroker as error:
            return bool(error.reply_code == ACCESS_REFUSED)
        return False


@pytest.mark.rabbitmq
def test_the_rights_are_enough_for_the_adapter(open_as: Callable[[str], Transport]) -> None:
    first, second = PEERS
    with open_as(first) as sender, open_as(second) as receiver:
        for transport, address in ((sender, first), (receiver, second)):
            transport.declare(address)
            transport.declare("weights")
            transport.subscribe(address)
        sender.publish(second, [b"notice"])
        sender.publish("weights", [b"sealed"])
        notice = receiver.receive(timeout_s=10.0)
        assert notice is not None
        weights = receiver.get("weights")
        assert weights is not None
        assert (notice.body, weights.body) == (b"notice", b"sealed")
        receiver.ack([notice, weights])
        assert (receiver.depth("weights"), receiver.purge("weights")) == (0, 0)


@pytest.mark.rabbitmq
@pytest.mark.parametrize(
    "action",
    [
        pytest.param(lambda at: at.basic_get("ppdl.heart.rights-b"), id="read another's inbox"),
        pytest.param(lambda at: at.queue_purge("ppdl.heart.rights-b"), id="empty another's inbox"),
        pytest.param(lambda at: at.queue_delete("ppdl.heart.rights-a"), id="remove its inbox"),
        pytest.param(lambda at: at.queue_declare("ppdl.heart.spy"), id="make a queue"),
        pytest.param(lambda at: at.exchange_delete("ppdl.heart"), id="remove the exchange"),
        pytest.param(
            lambda at: at.queue_bind("ppdl.heart.rights-a", "ppdl.heart", "rights-b"), id="bind another's messages"
        ),
        pytest.param(lambda at: at.basic_publish("", "ppdl.heart.rights-b", b""), id="use the default exchange"),
        pytest.param(lambda at: at.basic_publish("ppdl.heart", "other", b""), id="use another routing key"),
    ],
)
def test_a_peer_can_do_nothing_else(node: RabbitNode, action: Callable[[Any], object]) -> None:
    assert refused(node, action)


@pytest.mark.rabbitmq
def test_a_check_of_the_check_above(node: RabbitNode) -> None:
    assert not refused(node, lambda at: at.basic_get("ppdl.heart.rights-a"))
    assert not refused(node, lambda at: at.basic_publish("ppdl.heart", "rights-a", b"", mandatory=True))


@pytest.mark.rabbitmq
def test_without_passwords_nobody_can_log_in(node: RabbitNode, passwords: Path) -> None:
    definitions = json.loads((passwords / "definitions.json").read_text())
    definitions["users"] = [{**definitions["users"][0], "name": "rights-nobody", "password_hash": ""}]
    definitions["permissions"] = [{**definitions["permissions"][0], "user": "rights-nobody"}]
    definitions["topic_permissions"] = []
    (passwords / "nobody.json").write_text(json.dumps(definitions))
    node.ctl("import_definitions", str(passwords / "nobody.json"))
    try:
        parameters = pika.ConnectionParameters(
            "127.0.0.1", node.port, VHOST, pika.PlainCredentials("rights-nobody", "")
        )
        with pytest.raises(ProbableAuthenticationError):
            pika.BlockingConnection(parameters)
    finally:
        node.delete_user("rights-nobody")
