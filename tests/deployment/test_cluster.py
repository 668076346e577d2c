"""brokers/cluster: three real nodes with its configuration form one cluster; queues imported then live on each."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from tests.rabbit import RabbitNode

ROOT = Path(__file__).resolve().parents[2]
VHOST = "ppdl"


def settings() -> str:
    """Return the file without what a test decides: listeners, names of nodes, limits that `RabbitNode` sets itself."""
    own = ("listeners.", "ssl_options.", "cluster_formation.classic_config.")
    own += ("max_message_size", "disk_free_limit", "log.console")
    lines = (ROOT / "brokers" / "cluster" / "rabbitmq.conf").read_text().splitlines()
    return "".join(f"{line}\n" for line in lines if line and not line.startswith(("#", *own)))


@pytest.mark.rabbitmq
@pytest.mark.slow
def test_three_nodes_with_a_copy_of_each_queue_on_each(rabbit_is_installed: None, tmp_path: Path) -> None:
    definitions = json.loads((ROOT / "brokers" / "single" / "definitions.json").read_text())
    (tmp_path / "definitions.json").write_text(json.dumps(definitions))
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(RabbitNode(config=settings()))
        nodes = [first, *(RabbitNode(config=settings(), beside=first) for _ in range(2))]
        for node in nodes[1:]:
            stack.callback(node.remove)
            node.launch()
        for node in nodes[1:]:
            node.wait()
        first.ctl("await_online_nodes", "3")
        first.ctl("import_definitions", str(tmp_path / "definitions.json"))
        first.ctl("delete_user", "guest")
        columns = ("name", "type", "members", "online")
        said = first.ctl("list_queues", "--vhost", VHOST, "--silent", "--formatter", "json", *columns)
        queues = json.loads(said)
        assert {each["name"] for each in queues} == {each["name"] for each in definitions["queues"]}
        for each in queues:
            assert each["type"] == "quorum"
            assert sorted(each["members"]) == sorted(each["online"]) == sorted(node.name for node in nodes)
        assert "guest" not in first.ctl("list_users", "--silent")
