"""brokers/single: it is what `relay plan` writes, and nobody can log in with what is in the repository."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.deployment.heart import HOSPITALS, ROOT, heart_manifest, planned

SINGLE = ROOT / "brokers" / "single"


def test_the_example_is_what_the_plan_says(tmp_path: Path) -> None:
    assert json.loads((SINGLE / "definitions.json").read_text()) == planned(heart_manifest(tmp_path))["definitions"]


def test_nobody_can_log_in_with_what_is_in_the_repository() -> None:
    users = json.loads((SINGLE / "definitions.json").read_text())["users"]
    assert {user["name"] for user in users} == set(HOSPITALS)
    assert all(user["password_hash"] == "" and user["tags"] == "" for user in users)


@pytest.mark.parametrize("folder", ["single", "federated"])
def test_definitions_are_not_loaded_at_every_start(folder: str) -> None:
    """They hold no passwords, and would take away those that were set since; tests/brokers/test_single.py shows it."""
    lines = (ROOT / "brokers" / folder / "rabbitmq.conf").read_text().splitlines()
    assert "definitions.skip_if_unchanged = true" in lines
    assert not [line for line in lines if line.startswith("load_definitions")]  # which does not heed that


def test_the_configuration_takes_passwords_alone_and_loads_the_definitions() -> None:
    lines = (SINGLE / "rabbitmq.conf").read_text().splitlines()
    pairs = [(key, value) for key, mark, value in (line.partition(" = ") for line in lines) if mark and key[0] != "#"]
    settings = dict(pairs)
    assert len(settings) == len(pairs)
    assert [value for key, value in pairs if key.startswith("auth_mechanisms.")] == ["PLAIN"]
    assert settings["definitions.local.path"] == "/etc/rabbitmq/definitions.json"
    assert settings["loopback_users.guest"] == "true"


@pytest.mark.parametrize("folder", ["cluster", "federated"])
def test_every_example_has_the_same_listeners(folder: str) -> None:
    """tests/brokers/test_single.py starts a broker with them."""
    assert tls_lines(folder) == tls_lines("single")


def tls_lines(folder: str) -> list[str]:
    lines = (ROOT / "brokers" / folder / "rabbitmq.conf").read_text().splitlines()
    return [line for line in lines if line.startswith(("listeners.", "ssl_options."))]
