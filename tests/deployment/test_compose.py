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
from urllib.parse import urlsplit

import pytest
import yaml
from cryptography import x509

from tests.deployment.heart import heart_manifest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def compose() -> dict[str, Any]:
    # `${NAME:-default}` as compose reads it where NAME is not set.
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (ROOT / "docker-compose.yml").read_text())
    answer: dict[str, Any] = yaml.safe_load(text)
    return answer


def organisations(compose: dict[str, Any]) -> list[str]:
    return sorted(name for name in compose["services"] if (ROOT / "peers" / name).is_dir())


def composer() -> list[str] | None:
    """Return how compose is called here, if it is: the plug-in of docker, or the program of its own."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            done = subprocess.run([*command, "version"], capture_output=True, timeout=60, check=False)
            if done.returncode == 0:
                return command
    return None


@pytest.mark.parametrize("profiles", [(), ("cluster",), ("monitoring",), ("cluster", "monitoring")])
def test_compose_itself_takes_it(profiles: tuple[str, ...], compose: dict[str, Any]) -> None:
    command = composer()
    if command is None:
        pytest.skip("docker compose is not on this machine")
    options = [option for profile in profiles for option in ("--profile", profile)]
    done = subprocess.run(
        [*command, "--file", str(ROOT / "docker-compose.yml"), *options, "config", "--services"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    chosen = {
        name for name, service in compose["services"].items() if set(service.get("profiles", profiles)) <= set(profiles)
    }
    assert set(done.stdout.split()) >= chosen


def as_compose_reads_it(compose: dict[str, Any]) -> dict[str, Any]:
    """Return the services with all that is inherited, from compose itself where it is on this machine."""
    command = composer()
    if command is None:
        return dict(compose["services"])
    profiles = [option for name in ("cluster", "monitoring") for option in ("--profile", name)]
    done = subprocess.run(
        [*command, "--file", str(ROOT / "docker-compose.yml"), *profiles, "config"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    answer: dict[str, Any] = yaml.safe_load(done.stdout)["services"]
    return answer


def mounted(volume: str | dict[str, Any]) -> tuple[str, bool]:
    """Return where a volume is, and whether for reading only; newer versions of compose write it out at length."""
    if isinstance(volume, dict):
        return str(volume["target"]), bool(volume.get("read_only"))
    return volume.split(":")[1], volume.endswith(":ro")


def test_a_peer_can_write_to_its_volume_and_tmp_alone_and_gains_no_rights(compose: dict[str, Any]) -> None:
    services = as_compose_reads_it(compose)
    for name in organisations(compose):
        service = services[name]
        assert service["read_only"] is True
        assert [str(each).partition(":")[0] for each in service["tmpfs"]] == ["/tmp"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not {"cap_add", "privileged", "user", "pid", "ipc", "network_mode", "devices"} & service.keys()
        writable = [where for where, is_read_only in map(mounted, service["volumes"]) if not is_read_only]
        settings = tomllib.loads((ROOT / "peers" / name / "peer.toml").read_text())
        assert len(writable) == 1
        for path in (settings["state_dir"], settings["identity"]):
            assert path.startswith(f"{writable[0]}/")


def test_without_a_profile_there_are_one_broker_and_three_peers(compose: dict[str, Any]) -> None:
    always = {name for name, service in compose["services"].items() if "profiles" not in service}
    assert always == {"broker", *organisations(compose)}
    by_profile = {name: service["profiles"] for name, service in compose["services"].items() if name not in always}
    assert by_profile == {
        "broker-2": ["cluster"],
        "broker-3": ["cluster"],
        "prometheus": ["monitoring"],
        "grafana": ["monitoring"],
    }


def test_the_nodes_of_the_cluster_look_for_each_other(compose: dict[str, Any]) -> None:
    settings = (ROOT / "brokers" / "cluster" / "rabbitmq.conf").read_text()
    looked_for = re.findall(r"^cluster_formation\.classic_config\.nodes\.\d = rabbit@(\S+)$", settings, re.MULTILINE)
    nodes = {name: service for name, service in compose["services"].items() if name.startswith("broker")}
    assert sorted(looked_for) == sorted(service["hostname"] for service in nodes.values()) == sorted(nodes)
    for service in nodes.values():
        (conf,) = [
            each.split(":")[0] for each in service["volumes"] if each.endswith(":/etc/rabbitmq/rabbitmq.conf:ro")
        ]
        lines = (ROOT / conf).read_text().splitlines()
        # One node that went on where the others pause would take what they know nothing of.
        assert [line for line in lines if line.startswith("cluster_partition")] == [
            "cluster_partition_handling = pause_minority"
        ]
        assert "erlang-cookie" in service["secrets"]
        assert service["networks"]["default"]["aliases"] == ["relay.example.org"]


def test_nothing_is_reached_from_outside_this_machine(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert ports == ["127.0.0.1:3000:3000"]  # Grafana, which has a password
    assert "GF_SECURITY_ADMIN_PASSWORD__FILE" in compose["services"]["grafana"]["environment"]


def test_what_is_mounted_exists(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for mount in service.get("volumes", ()):
            where = mount.split(":")[0]
            if where.startswith("./") and not where.startswith("./out/"):
                assert (ROOT / where).exists(), where
            elif not where.startswith("."):
                assert where in compose["volumes"]


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
        own = {each["target"]: each["source"] for each in service["secrets"]}
        assert own == {settings["broker"]["password_file"]: f"{name}-password", settings["broker"]["ca_file"]: "ca"}
        assert (ROOT / service["env_file"]).is_file()


def test_each_organisation_gets_its_own_password_and_volume_alone(compose: dict[str, Any]) -> None:
    for name in organisations(compose):
        service = compose["services"][name]
        assert [each["source"] for each in service["secrets"]] == ["ca", f"{name}-password"]
        assert [each.split(":")[0] for each in service["volumes"] if each[0] != "."] == [f"{name}-state"]
    tls = ["ca", "broker-certificate", "broker-key"]
    assert secrets_of(compose, "broker") == ["erlang-cookie", *tls, "definitions"]
    assert secrets_of(compose, "broker-2") == secrets_of(compose, "broker-3") == ["erlang-cookie", *tls]


def secrets_of(compose: dict[str, Any], name: str) -> list[str]:
    return [each if isinstance(each, str) else each["source"] for each in compose["services"][name]["secrets"]]


def test_the_brokers_find_their_certificates_and_listen_where_the_peers_knock(compose: dict[str, Any]) -> None:
    ports = set()
    for name in organisations(compose):
        url = urlsplit(tomllib.loads((ROOT / "peers" / name / "peer.toml").read_text())["broker"]["url"])
        assert url.scheme == "amqps"
        ports.add(str(url.port))
    for name in ("broker", "broker-2", "broker-3"):
        service = compose["services"][name]
        given = {each["target"] for each in service["secrets"] if isinstance(each, dict)}
        (conf,) = [
            each.split(":")[0] for each in service["volumes"] if each.endswith(":/etc/rabbitmq/rabbitmq.conf:ro")
        ]
        lines = (line.partition(" = ") for line in (ROOT / conf).read_text().splitlines())
        settings = {key: value for key, mark, value in lines if mark and key[0] != "#"}
        assert {value for key, value in settings.items() if key.startswith("ssl_options.") and "file" in key} <= given
        assert {settings["listeners.ssl.default"]} == ports
        assert settings["listeners.tcp"] == "none"


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
    subprocess.run(command, check=True, capture_output=True, timeout=60, env=environment)
    folder = compose_secrets / "secrets"
    first = {file.name: file.read_text() for file in folder.glob("*.password")}
    certificate = (folder / "tls" / "server.pem").read_bytes()
    manifest = heart_manifest(tmp_path, ("cleveland", "hungary", "va"))
    subprocess.run([*command, manifest], check=True, capture_output=True, timeout=120, env=environment)
    assert {file.name: file.read_text() for file in folder.glob("*.password")} == first
    assert len(set(first.values())) == 4  # three peers and Grafana
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / ".gitignore").read_text() == "*\n"
    text = (folder / "definitions.json").read_text()
    for user in json.loads(text)["users"]:
        password = first[f"{user['name']}.password"].strip()
        assert password not in text
        raw = base64.b64decode(user["password_hash"])
        assert raw[4:] == hashlib.sha256(raw[:4] + password.encode()).digest()
    assert (folder / "tls" / "server.pem").read_bytes() == certificate
    names = x509.load_pem_x509_certificate(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.DNSName) == ["relay.example.org"]
    assert (folder / "tls" / "server.key").stat().st_mode & 0o777 == 0o644  # RabbitMQ's user reads it, in the container
    assert (folder / "tls" / "ca.key").stat().st_mode & 0o777 == 0o600
    made = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    made -= {".gitignore", "tls/ca.key"}
    named = set(re.findall(r"^    file: secrets/(\S+)", (ROOT / "docker-compose.yml").read_text(), re.MULTILINE))
    assert made == named


@pytest.fixture
def compose_secrets(tmp_path: Path) -> Path:
    """A copy of the scripts, so that nobody's real secrets are touched."""
    for folder in ("scripts", "brokers/tls"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
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
