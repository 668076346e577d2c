"""A real RabbitMQ with the files of brokers/single: no guest, and passwords that outlive a restart."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.errors import RelayError, Unroutable
from ppdl_mq.transport.address import Names
from ppdl_mq.transport.findings import Wanted
from ppdl_mq.transport.opening import examine_relay, open_transport
from tests.rabbit import RabbitNode
from tests.transport.relays import SOON_S

pytestmark = pytest.mark.rabbitmq

SINGLE = Path(__file__).resolve().parents[2] / "brokers" / "single"
# The node of the tests has its own of these.
NOT_HERE = ("listeners.", "log.", "max_message_size", "disk_free_limit")
CHANNEL_MAX = 8
NEEDED = 4


def test_the_files_start_a_broker_that_keeps_its_passwords(rabbit_is_installed: None, tmp_path: Path) -> None:
    definitions = tmp_path / "definitions.json"
    definitions.write_bytes((SINGLE / "definitions.json").read_bytes())
    lines = (SINGLE / "rabbitmq.conf").read_text().splitlines()
    config = "\n".join(line for line in lines if not line.startswith(NOT_HERE)) + "\n"
    assert "/etc/rabbitmq/definitions.json" in config
    with RabbitNode(config=config.replace("/etc/rabbitmq/definitions.json", str(definitions))) as node:
        users = {line.split("\t")[0] for line in node.ctl("list_users", "--silent", "--no-table-headers").splitlines()}
        assert users == {"cleveland", "hungary", "switzerland", "va"}
        queues = node.ctl("list_queues", "--vhost", "ppdl", "--silent", "--no-table-headers", "name", "type", "policy")
        assert sorted(queues.splitlines()) == [
            f"ppdl.heart.{address}\tquorum\tppdl.heart" for address in (*sorted(users), "weights")
        ]
        node.ctl("change_password", "va", "a password")
        node.stop()
        node.start()
        node.ctl("authenticate_user", "va", "a password")
        a_peer_needs_four_channels(node, tmp_path)


def a_peer_needs_four_channels(node: RabbitNode, folder: Path) -> None:
    """A peer in full use, and after refusals, which close channels; and the doctor, which asks for all it ever asks."""
    names = Names(prefix="ppdl", trial="heart")
    (folder / "password").write_text("a password\n")
    address = dataclasses.replace(
        BrokerAddress.parse(f"amqp://va@127.0.0.1:{node.port}/ppdl"), password_file=folder / "password", declare=False
    )
    columns = ("user", "channels", "channel_max")
    with open_transport(address, trial=names.trial, prefix=names.prefix, peer="va") as transport:
        transport.connect()
        transport.subscribe("va")
        for _ in range(2 * CHANNEL_MAX):
            with pytest.raises(Unroutable):
                transport.depth("nobody")
            with pytest.raises(RelayError):
                transport.get("cleveland")  # no right to
        transport.publish("va", [b"x"])
        delivery = transport.receive(SOON_S)
        assert delivery is not None
        transport.ack([delivery])
        assert transport.get("weights") is None
        assert transport.depth("va") == 0
        said = node.ctl("list_connections", "--silent", "--no-table-headers", *columns)
        assert said.split() == ["va", str(NEEDED), str(CHANNEL_MAX)]
    node.ctl("eval", f"application:set_env(rabbit, channel_max, {NEEDED}).")  # of connections from now on
    peers = ("cleveland", "hungary", "switzerland", "va")
    wanted = Wanted(names=names, me="va", peers=peers, shares_weights=True, chunk_bytes=900_000)
    found = [each for each in examine_relay(address, wanted) if each.result not in ("pass", "unknown")]
    assert not found


@pytest.mark.parametrize("folder", ["cluster", "federated"])
def test_every_example_has_the_same_limit_on_channels(folder: str) -> None:
    lines = (SINGLE.parent / folder / "rabbitmq.conf").read_text().splitlines()
    assert [line for line in lines if line.startswith("channel_max")] == [f"channel_max = {CHANNEL_MAX}"]
