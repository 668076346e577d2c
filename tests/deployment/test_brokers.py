"""brokers/single: who may do what at the relay, and that nobody can log in with what is in the repository."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SINGLE = ROOT / "brokers" / "single"
SCRIPT = ROOT / "scripts" / "broker_definitions.py"
HOSPITALS = ("cleveland", "hungary", "switzerland", "va")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=60, check=False)


def made(*arguments: str | Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(run(*arguments).stdout)
    return answer


def test_the_example_is_what_the_script_writes() -> None:
    assert json.loads((SINGLE / "definitions.json").read_text()) == made("heart", *HOSPITALS)


def test_nobody_can_log_in_with_what_is_in_the_repository() -> None:
    users = json.loads((SINGLE / "definitions.json").read_text())["users"]
    assert {user["name"] for user in users} == set(HOSPITALS)
    assert all(user["password_hash"] == "" and user["tags"] == "" for user in users)


@pytest.mark.parametrize("peer", HOSPITALS)
def test_a_peer_reads_its_own_inbox_and_the_weights_and_makes_nothing(peer: str) -> None:
    answer = made("heart", *HOSPITALS)
    (rights,) = [each for each in answer["permissions"] if each["user"] == peer]
    resources = [each["name"] for each in (*answer["queues"], *answer["exchanges"])]
    resources += ["amq.default", "amq.topic", "ppdl.heart2", "ppdlxheart", "ppdl.other.weights", f"ppdl.heart.{peer}x"]

    def allowed(right: str) -> list[str]:
        return [name for name in resources if re.search(rights[right], name)]

    assert sorted(allowed("read")) == sorted([f"ppdl.heart.{peer}", "ppdl.heart.weights"])
    assert allowed("write") == ["ppdl.heart"]
    assert allowed("configure") == []
    (topics,) = [each for each in answer["topic_permissions"] if each["user"] == peer]
    keys = [*HOSPITALS, "weights", "other", "cleveland.x"]
    assert [key for key in keys if re.search(topics["write"], key)] == [*HOSPITALS, "weights"]


def test_every_queue_is_durable_and_bound_with_its_address() -> None:
    answer = made("heart", "a", "b", "--prefix", "x", "--vhost", "v")
    assert [(each["name"], each["durable"]) for each in answer["queues"]] == [
        ("x.heart.a", True),
        ("x.heart.b", True),
        ("x.heart.weights", True),
    ]
    assert [(each["source"], each["routing_key"], each["destination"]) for each in answer["bindings"]] == [
        ("x.heart", "a", "x.heart.a"),
        ("x.heart", "b", "x.heart.b"),
        ("x.heart", "weights", "x.heart.weights"),
    ]
    assert {each["vhost"] for key in ("queues", "bindings", "exchanges") for each in answer[key]} == {"v"}


def test_a_fully_connected_trial_has_no_queue_of_the_weights() -> None:
    assert "weights" not in json.dumps(made("heart", "a", "b", "--no-weights"))


def test_passwords_come_from_files_and_leave_as_salted_hashes(tmp_path: Path) -> None:
    for peer in ("a", "b"):
        (tmp_path / f"{peer}.password").write_text(f"secret of {peer}\n")
    answer = run("heart", "a", "b", "--passwords", tmp_path).stdout
    assert "secret" not in answer
    for user in json.loads(answer)["users"]:
        raw = base64.b64decode(user["password_hash"])
        assert raw[4:] == hashlib.sha256(raw[:4] + f"secret of {user['name']}".encode()).digest()


@pytest.mark.parametrize(
    "arguments",
    [
        ("heart", "a"),
        ("heart", "a", "a"),
        ("heart", "a", "weights"),
        ("Heart", "a", "b"),
        ("heart", "a.*", "b"),
        ("heart", "a", "b", "--passwords", "no-such-folder"),
    ],
)
def test_wrong_arguments_write_nothing(arguments: tuple[str, ...]) -> None:
    answer = run(*arguments)
    assert answer.returncode == 2
    assert answer.stdout == ""
    assert "Traceback" not in answer.stderr


def test_the_configuration_takes_passwords_alone_and_loads_the_definitions() -> None:
    lines = (SINGLE / "rabbitmq.conf").read_text().splitlines()
    pairs = [(key, value) for key, mark, value in (line.partition(" = ") for line in lines) if mark and key[0] != "#"]
    settings = dict(pairs)
    assert len(settings) == len(pairs)
    assert [value for key, value in pairs if key.startswith("auth_mechanisms.")] == ["PLAIN"]
    assert settings["load_definitions"] == "/etc/rabbitmq/definitions.json"
    assert settings["loopback_users.guest"] == "true"
