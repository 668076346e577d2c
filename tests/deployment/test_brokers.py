"""brokers/single: it is what `relay plan` writes, and nobody can log in with what is in the repository."""

from __future__ import annotations

import json
from pathlib import Path

from tests.deployment.heart import HOSPITALS, ROOT, heart_manifest, planned

SINGLE = ROOT / "brokers" / "single"


def test_the_example_is_what_the_plan_says(tmp_path: Path) -> None:
    assert json.loads((SINGLE / "definitions.json").read_text()) == planned(heart_manifest(tmp_path))["definitions"]


def test_nobody_can_log_in_with_what_is_in_the_repository() -> None:
    users = json.loads((SINGLE / "definitions.json").read_text())["users"]
    assert {user["name"] for user in users} == set(HOSPITALS)
    assert all(user["password_hash"] == "" and user["tags"] == "" for user in users)


def test_the_configuration_takes_passwords_alone_and_loads_the_definitions() -> None:
    lines = (SINGLE / "rabbitmq.conf").read_text().splitlines()
    pairs = [(key, value) for key, mark, value in (line.partition(" = ") for line in lines) if mark and key[0] != "#"]
    settings = dict(pairs)
    assert len(settings) == len(pairs)
    assert [value for key, value in pairs if key.startswith("auth_mechanisms.")] == ["PLAIN"]
    assert settings["definitions.local.path"] == "/etc/rabbitmq/definitions.json"
    assert settings["loopback_users.guest"] == "true"
