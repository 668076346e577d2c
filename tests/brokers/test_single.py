"""A real RabbitMQ with the files of brokers/single: no guest, and passwords that outlive a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rabbit import RabbitNode

pytestmark = pytest.mark.rabbitmq

SINGLE = Path(__file__).resolve().parents[2] / "brokers" / "single"
# The node of the tests has its own of these.
NOT_HERE = ("listeners.", "log.", "max_message_size", "disk_free_limit")


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
