"""docker-compose.yml and Dockerfile agree with the folders that they use. No Docker engine is needed or tried."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deployment.heart import heart_manifest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def compose() -> dict[str, Any]:
    answer: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return answer


def organisations(compose: dict[str, Any]) -> list[str]:
    return sorted(name for name in compose["services"] if name != "broker")


def test_three_organisations_run_as_their_own_files_say(compose: dict[str, Any]) -> None:
    names = organisations(compose)
    assert len(names) == 3
    aliases = compose["services"]["broker"]["networks"]["default"]["aliases"]
    for name in names:
        service = compose["services"][name]
        settings = tomllib.loads((ROOT / "peers" / name / "peer.toml").read_text())
        assert f"@{aliases[0]}:" in settings["broker"]["url"]
        mounts = dict(reversed(each.split(":")[:2]) for each in service["volumes"])
        assert mounts["/etc/ppdl-mq/peer.toml"] == f"./peers/{name}/peer.toml"
        data = settings["data"]["arguments"]["path"]
        assert mounts[data] == f"./out/heart/{Path(data).name}"
        assert mounts[settings["state_dir"].rpartition("/")[0]] in compose["volumes"]
        assert [each["target"] for each in service["secrets"]] == [settings["broker"]["password_file"]]
        assert (ROOT / service["env_file"]).is_file()


def test_each_organisation_gets_its_own_password_and_volume_alone(compose: dict[str, Any]) -> None:
    for name in organisations(compose):
        service = compose["services"][name]
        assert [each["source"] for each in service["secrets"]] == [f"{name}-password"]
        assert [each.split(":")[0] for each in service["volumes"] if each[0] != "."] == [f"{name}-state"]
    assert {each["source"] for each in compose["services"]["broker"]["secrets"]} == {"definitions"}


def test_the_broker_uses_the_files_of_brokers_single(compose: dict[str, Any]) -> None:
    broker = compose["services"]["broker"]
    for mount in (each for each in broker["volumes"] if each.startswith("./")):
        assert (ROOT / mount.split(":")[0]).is_file()
    assert "ports" not in broker  # reached by the peers alone
    assert broker["healthcheck"]["test"][0] == "CMD"
    assert "environment" not in broker  # no default user


def test_secrets_are_made_once_and_kept(compose_secrets: Path, tmp_path: Path) -> None:
    command = [compose_secrets / "scripts" / "compose-secrets"]
    environment = os.environ | {"PPDL_MQ": f"{sys.executable} -m ppdl_mq.cli.main", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    folder = compose_secrets / "secrets"
    first = {file.name: file.read_text() for file in folder.glob("*.password")}
    manifest = heart_manifest(tmp_path, ("cleveland", "hungary", "va"))
    subprocess.run([*command, manifest], check=True, capture_output=True, timeout=120, env=environment)
    assert {file.name: file.read_text() for file in folder.glob("*.password")} == first
    assert len(set(first.values())) == 3
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / ".gitignore").read_text() == "*\n"
    text = (folder / "definitions.json").read_text()
    for user in json.loads(text)["users"]:
        password = first[f"{user['name']}.password"].strip()
        assert password not in text
        raw = base64.b64decode(user["password_hash"])
        assert raw[4:] == hashlib.sha256(raw[:4] + password.encode()).digest()
    made = {file.name for file in folder.iterdir()} - {".gitignore"}
    named = set(re.findall(r"file: secrets/(\S+)", (ROOT / "docker-compose.yml").read_text()))
    assert made == named


@pytest.fixture
def compose_secrets(tmp_path: Path) -> Path:
    """A copy of the scripts, so that nobody's real secrets are touched."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    assert os.access(tmp_path / "scripts" / "compose-secrets", os.X_OK)
    return tmp_path


def test_the_image_does_not_run_as_root_and_has_both_targets() -> None:
    stages = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    by_name = {stage.splitlines()[0].split(" AS ")[1]: stage for stage in stages}
    for target in ("cpu", "cuda"):
        assert re.findall(r"^USER (.*)$", by_name[target], re.MULTILINE) == ["10001:10001"]
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {name for line in re.findall(r"^COPY (.*)$", "".join(stages), re.MULTILINE) for name in line.split()[:-1]}
    assert copied == allowed
