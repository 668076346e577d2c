"""On a real RabbitMQ: the lines of rabbitmqctl do what the definitions do, and the last ones leave nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppdl_mq.transport.plan.lines import password_lines, removal_lines, setup_script
from tests.brokers.planned import PlannedTrial, run_lines
from tests.rabbit import RabbitNode
from tests.trial import manifest_for

pytestmark = [pytest.mark.rabbitmq, pytest.mark.slow]

LISTS = {
    "list_permissions": (),
    "list_topic_permissions": (),
    "list_policies": (),
    "list_exchanges": ("name", "type", "durable", "policy"),
    "list_queues": ("name", "type", "durable", "arguments", "policy"),
    "list_bindings": ("source_name", "destination_name", "routing_key", "arguments"),
}


def state(trial: PlannedTrial) -> dict[str, list[str]]:
    return {command: trial.listed(command, *columns) for command, columns in LISTS.items()}


def test_the_script_does_what_the_definitions_do(bare_node: RabbitNode, tmp_path: Path) -> None:
    manifest = manifest_for(("anna", "bert"), name="lines", protocol="server-aided")
    users = {"anna": "CN=anna.example,O=Anna's hospital"}  # as a certificate's name may be
    trial = PlannedTrial(bare_node, manifest, tmp_path, users=users, vhost="a vhost/of lines")
    (tmp_path / "passwords").mkdir()
    for peer in manifest.peer_names:
        (tmp_path / "passwords" / f"{peer}.password").write_text(f"first password of {peer}\n")

    run_lines(bare_node, tmp_path, setup_script(trial.plan))
    by_lines = state(trial)
    assert all(by_lines.values())
    for peer, user in trial.users.items():
        bare_node.ctl("authenticate_user", user, f"first password of {peer}")

    # Only what is this trial's; the vhost stays.
    run_lines(bare_node, tmp_path, "\n".join(line for line in removal_lines(trial.plan) if "delete_vhost" not in line))
    assert not {"list_permissions", "list_topic_permissions", "list_policies", "list_queues"} & {
        command for command, lines in state(trial).items() if lines
    }
    assert not set(trial.users.values()) & {line.split("\t")[0] for line in bare_node.ctl("list_users").splitlines()}

    trial.import_definitions()
    run_lines(bare_node, tmp_path, "\n".join(password_lines(trial.plan)))
    assert state(trial) == by_lines
    for peer, user in trial.users.items():
        bare_node.ctl("authenticate_user", user, (tmp_path / "passwords" / f"{peer}.password").read_text().strip())
