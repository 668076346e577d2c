"""On a real RabbitMQ: the lines of rabbitmqctl do what the definitions do, and the last ones leave nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppdl_mq.transport.address import Names
from ppdl_mq.transport.findings import Wanted
from ppdl_mq.transport.plan.lines import password_lines, removal_lines, setup_script
from ppdl_mq.transport.rabbitmq.doctor import examine
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
    (tmp_path / "passwords" / "anna.password").write_text("first password of anna\n")  # bert's is made by the script

    run_lines(bare_node, tmp_path, setup_script(trial.plan))
    by_lines = state(trial)
    assert all(by_lines.values())
    assert (tmp_path / "passwords" / "anna.password").read_text() == "first password of anna\n"
    assert (tmp_path / "passwords" / "bert.password").stat().st_mode & 0o777 == 0o600
    for peer, user in trial.users.items():
        bare_node.ctl("authenticate_user", user, (tmp_path / "passwords" / f"{peer}.password").read_text().strip())

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


def test_the_lines_for_what_amqp_does_not_show_print_it(bare_node: RabbitNode, tmp_path: Path) -> None:
    """This version refuses some columns that later ones have."""
    manifest = manifest_for(("anna", "bert"), name="unseen", protocol="server-aided")
    trial = PlannedTrial(bare_node, manifest, tmp_path)
    trial.set_up()
    names = Names(prefix=manifest.relay.prefix, trial=manifest.name)
    wanted = Wanted(names=names, me="anna", peers=("anna", "bert"), shares_weights=True, chunk_bytes=100_000)
    unknown = {each.check: each.line for each in examine(trial.address("anna"), wanted) if each.result == "unknown"}
    assert {"policies", "exchange", "delivery timeout", "inbox arguments"} <= unknown.keys()
    said = {check: run_lines(bare_node, tmp_path, line) for check, line in unknown.items()}
    assert "max-length-bytes" in said["policies"]
    assert "topic" in said["exchange"]
    assert said["bindings"].count("ppdl.unseen.") == 3
    assert "quorum" in said["inbox arguments"]
