"""On a real RabbitMQ: the lines of rabbitmqctl do what the definitions do, and the last ones leave nothing behind."""

from __future__ import annotations

import dataclasses
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
    left = state(trial)
    assert not {"list_permissions", "list_topic_permissions", "list_policies", "list_queues", "list_bindings"} & {
        command for command, lines in left.items() if lines
    }
    assert all(line.startswith(("amq.", "\tdirect")) for line in left["list_exchanges"]), left["list_exchanges"]
    assert not set(trial.users.values()) & {line.split("\t")[0] for line in bare_node.ctl("list_users").splitlines()}

    trial.import_definitions()
    run_lines(bare_node, tmp_path, "\n".join(password_lines(trial.plan)))
    assert state(trial) == by_lines
    for peer, user in trial.users.items():
        bare_node.ctl("authenticate_user", user, (tmp_path / "passwords" / f"{peer}.password").read_text().strip())


def test_the_script_runs_again_and_over_what_is_there(bare_node: RabbitNode, tmp_path: Path) -> None:
    """The password of a user that exists is somebody's: it is not set, and no file claims another."""
    manifest = manifest_for(("anna", "bert", "cleo"), name="again", protocol="fully-connected")
    names = {"anna": "again-anna", "bert": 'Spital Zürich\'s \\ "again"', "cleo": "again"}  # one in another's name
    trial = PlannedTrial(bare_node, manifest, tmp_path, users=names)
    passwords = tmp_path / "passwords"
    bare_node.ctl("add_vhost", trial.vhost, "--description", "of somebody", "--tags", "kept")
    bare_node.ctl("add_user", names["anna"], "anna's own")
    bare_node.ctl("set_user_tags", names["anna"], "monitoring")
    bare_node.ctl("add_user", "again-anna-2", "not asked for")

    said = run_lines(bare_node, tmp_path, f"{{ {setup_script(trial.plan)}\n}} 2>&1")
    assert f"The user {names['anna']} exists" in said
    assert said.count(" exists:") == 1
    assert sorted(file.name for file in passwords.iterdir()) == ["bert.password", "cleo.password"]
    whole = state(trial)
    assert all(whole[section] for section in LISTS)

    bare_node.ctl("change_password", names["bert"], "bert's own")  # the administrator's way is not in the file
    bare_node.ctl("clear_policy", "--vhost", trial.vhost, trial.plan.policy.name)  # stopped halfway, say
    bare_node.ctl("clear_permissions", "--vhost", trial.vhost, names["cleo"])
    said = run_lines(bare_node, tmp_path, f"{{ {setup_script(trial.plan)}\n}} 2>&1")
    assert said.count(" exists:") == 3
    assert state(trial) == whole
    own = {"anna": "anna's own", "bert": "bert's own", "cleo": (passwords / "cleo.password").read_text().strip()}
    for peer, password in own.items():
        bare_node.ctl("authenticate_user", names[peer], password)
    users = bare_node.ctl("list_users", "--silent", "--no-table-headers").splitlines()
    assert f"{names['anna']}\t[monitoring]" in users
    vhosts = bare_node.ctl("list_vhosts", "--silent", "--no-table-headers", "name", "description", "tags").splitlines()
    assert f"{trial.vhost}\tof somebody\tkept" in vhosts


def test_what_is_missing_comes_back_by_the_line_and_nobody_loses_a_password(
    bare_node: RabbitNode, tmp_path: Path
) -> None:
    """Importing the definitions again, in the middle of a trial, would lock all peers out."""
    manifest = manifest_for(("anna", "bert"), name="missing", protocol="server-aided")
    trial = PlannedTrial(bare_node, manifest, tmp_path)
    trial.set_up()
    whole = state(trial)
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "rabbitmqctl.sh").write_text(setup_script(trial.plan))
    names = Names(prefix=manifest.relay.prefix, trial=manifest.name)
    wanted = Wanted(names=names, me="anna", peers=("anna", "bert"), shares_weights=True, chunk_bytes=100_000)

    bare_node.ctl("delete_queue", "--vhost", trial.vhost, names.queue("anna"))
    (failure,) = [each for each in examine(trial.address("anna"), wanted) if each.result == "fail"]
    assert "does not exist" in failure.says
    run_lines(bare_node, tmp_path, failure.line)
    assert state(trial) == whole
    for peer in ("anna", "bert"):  # both with their own password
        found = examine(trial.address(peer), dataclasses.replace(wanted, me=peer))
        assert {each.result for each in found} == {"pass", "unknown"}


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
