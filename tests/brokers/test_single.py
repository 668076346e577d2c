"""A real RabbitMQ with the files of brokers/single: TLS alone, no guest, and passwords that outlive a restart."""

from __future__ import annotations

import dataclasses
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.errors import RelayError, Unroutable
from ppdl_mq.transport.address import Names
from ppdl_mq.transport.findings import Wanted
from ppdl_mq.transport.opening import examine_relay, open_transport
from tests.rabbit import START_S, RabbitNode, free_ports
from tests.transport.relays import SOON_S

pytestmark = pytest.mark.rabbitmq

ROOT = Path(__file__).resolve().parents[2]
SINGLE = ROOT / "brokers" / "single"
CHANNEL_MAX = 8
NEEDED = 4


class SingleNode(RabbitNode):
    """A node with the very files of brokers/single. Port, folder and least free disk alone are the test's.

    Args:
        etc: has definitions.json, and the certificates in tls/.
    """

    def __init__(self, etc: Path) -> None:
        self._etc = etc
        (self.tls_port,) = free_ports(1)
        super().__init__()

    def _write_files(self, config: str, plugins: tuple[str, ...]) -> None:
        super()._write_files(config, plugins)
        text = (SINGLE / "rabbitmq.conf").read_text()
        for old, new in (
            ("\nlisteners.ssl.default = 5671\n", f"\nlisteners.ssl.1 = 127.0.0.1:{self.tls_port}\n"),
            ("\ndisk_free_limit.absolute = 2GB\n", "\ndisk_free_limit.absolute = 10MB\n"),
            ("/etc/rabbitmq/", f"{self._etc}/"),
        ):
            assert old in text
            text = text.replace(old, new)
        (self.folder / "rabbitmq.conf").write_text(text)
        (self.folder / "plugins").write_bytes((SINGLE / "enabled_plugins").read_bytes())

    def wait(self) -> None:
        """Wait for its only listener."""
        self._wait_at(self.tls_port, b"")

    def tool(self, name: str, *arguments: str) -> str:
        """Run another of RabbitMQ's tools than `rabbitmqctl`."""
        command = [str(self._scripts / name), "--node", self.name, *arguments]
        return subprocess.run(
            command, env=self._environment(), capture_output=True, text=True, timeout=START_S, check=True
        ).stdout


def test_the_files_start_a_broker_that_keeps_its_passwords(rabbit_is_installed: None, tmp_path: Path) -> None:
    (tmp_path / "definitions.json").write_bytes((SINGLE / "definitions.json").read_bytes())
    make_ca = [sys.executable, str(ROOT / "brokers" / "tls" / "make_ca.py"), str(tmp_path / "tls")]
    subprocess.run([*make_ca, "--server", "localhost"], capture_output=True, timeout=60, check=True)
    with SingleNode(tmp_path) as node:
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
        said = json.loads(node.tool("rabbitmq-diagnostics", "listeners", "--formatter", "json"))
        assert {each["protocol"] for each in said["listeners"]} == {"amqp/ssl", "clustering"}  # nothing in the clear
        node.tool("rabbitmq-diagnostics", "--quiet", "check_port_connectivity")  # as docker-compose.yml asks
        a_peer_needs_four_channels(node, tmp_path)


def a_peer_needs_four_channels(node: SingleNode, folder: Path) -> None:
    """A peer in full use, and after refusals, which close channels; and the doctor, which asks for all it ever asks."""
    names = Names(prefix="ppdl", trial="heart")
    (folder / "password").write_text("a password\n")
    address = dataclasses.replace(
        BrokerAddress.parse(f"amqps://va@localhost:{node.tls_port}/ppdl"),
        ca_file=folder / "tls" / "ca.pem",
        password_file=folder / "password",
        declare=False,
    )
    columns = ("user", "channels", "channel_max")
    with open_transport(address, trial=names.trial, prefix=names.prefix, peer="va") as transport:
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


def test_a_node_that_does_not_start_in_time_leaves_nothing(
    rabbit_is_installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = RabbitNode()
    monkeypatch.setattr("tests.rabbit.START_S", 0.0)
    with pytest.raises(AssertionError, match="does not answer"), node:
        raise NotImplementedError
    assert not node.is_running
    assert not node.folder.exists()
    with socket.create_server(("127.0.0.1", node._epmd_port)):
        """Its port mapper is gone, too."""


@pytest.mark.parametrize("folder", ["cluster", "federated"])
def test_every_example_has_the_same_limit_on_channels(folder: str) -> None:
    lines = (SINGLE.parent / folder / "rabbitmq.conf").read_text().splitlines()
    assert [line for line in lines if line.startswith("channel_max")] == [f"channel_max = {CHANNEL_MAX}"]
