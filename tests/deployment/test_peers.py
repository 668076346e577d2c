"""peers/: the example organisations' files hold, and agree with the relay's."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from ppdl_mq.cli import exit_codes
from ppdl_mq.cli.main import main, run
from ppdl_mq.config.manifest import Manifest
from ppdl_mq.config.reading import read_manifest, read_settings
from ppdl_mq.config.settings import PeerSettings
from ppdl_mq.training.data.prepare import load_split
from tests.deployment.test_documents import faults_of_command

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / "peers"
HOSPITALS = ("cleveland", "hungary", "switzerland", "va")
FOLDERS = (*HOSPITALS, "mnist")
IMAGES = ROOT.parent / "shared" / "data" / "mnist"  # present on some machines, never in the repository
HEART_DATA = ROOT.parent / "shared" / "data" / "heart"  # present on some machines, never in the repository


def parsed(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """What peer.env does: the image organisation's own plug-in is found beside its settings."""
    monkeypatch.syspath_prepend(PEERS / "mnist")


def own_name(folder: str) -> str:
    """Return the peer's name in its trial."""
    return "north" if folder == "mnist" else folder


@pytest.mark.parametrize("name", FOLDERS)
def test_settings_hold_and_carry_no_password(name: str) -> None:
    settings: PeerSettings = read_settings(PEERS / name / "peer.toml")
    url = urlsplit(settings.broker.url)
    assert (url.scheme, url.username, url.password, url.path) == ("amqps", own_name(name), None, "/ppdl")
    assert settings.broker.ca_file is not None
    assert settings.broker.password_file is not None
    assert not settings.broker.declare
    assert settings.mode == "production"


def test_the_manifest_is_a_draft_that_lacks_only_the_peers() -> None:
    manifest: Manifest = read_manifest(PEERS / "heart" / "heart.toml", complete=False)
    assert manifest.peers == ()
    assert manifest.relay.prefix == "ppdl"
    definitions = json.loads((ROOT / "brokers" / "single" / "definitions.json").read_text())
    assert [each["name"] for each in definitions["exchanges"]] == [f"ppdl.{manifest.name}"]


def test_what_the_files_name_can_be_called() -> None:
    names = [parsed(PEERS / "heart" / "heart.toml")["model"]["callable"]]
    names += [parsed(file)["data"]["callable"] for file in PEERS.glob("*/peer.toml")]
    for module, _, attribute in (name.partition(":") for name in sorted(set(names))):
        found = getattr(importlib.import_module(module), attribute, None)
        assert callable(found), f"{module}:{attribute}"


def test_every_organisation_has_its_environment_and_the_same_unit() -> None:
    units = {(PEERS / name / "ppdl-mq.service").read_text().replace("mnist.toml", "heart.toml") for name in FOLDERS}
    assert len(units) == 1
    (unit,) = units
    assert (
        "ExecStart=/opt/ppdl-mq/bin/ppdl-mq peer run /etc/ppdl-mq/heart.toml --config /etc/ppdl-mq/peer.toml\n" in unit
    )
    for lock in ("NoNewPrivileges", "ProtectKernelLogs", "RestrictNamespaces", "RestrictRealtime", "ProtectHostname"):
        assert f"\n{lock}=true\n" in unit
    for name in FOLDERS:
        lines = (PEERS / name / "peer.env").read_text().splitlines()
        assert all(line.startswith("#") or "=" in line for line in lines)


@pytest.mark.parametrize("unit", sorted(PEERS.glob("*/ppdl-mq.service")), ids=lambda path: path.parent.name)
def test_the_unit_tries_again_what_may_pass_and_nothing_else(unit: Path) -> None:
    (line,) = re.findall(r"^RestartPreventExitStatus=(.*)$", unit.read_text(), re.M)
    held_back = {int(code) for code in line.split()}
    assert exit_codes.STATE in held_back
    assert not held_back & {exit_codes.RELAY, exit_codes.RUNNING, exit_codes.IN_THE_WAY}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this machine")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    text = (PEERS / "va" / "ppdl-mq.service").read_text()
    assert text.count("/opt/ppdl-mq/bin/ppdl-mq") == 1
    for name, changed, is_fine in (("good", text, True), ("bad", text.replace("Restart=", "Restarts="), False)):
        file = tmp_path / f"{name}.service"
        file.write_text(changed.replace("/opt/ppdl-mq/bin/ppdl-mq", "/bin/true"))  # it looks whether the program exists
        done = subprocess.run(
            ["systemd-analyze", "verify", str(file)], capture_output=True, text=True, timeout=60, check=False
        )
        said = [line for line in (done.stdout + done.stderr).splitlines() if file.name in line]
        assert (not said and done.returncode == 0) == is_fine, done.stderr


# --- Kubernetes ------------------------------------------------------------------------------------------------------


def manifests(name: str) -> dict[str, dict[str, Any]]:
    """Return the objects of one folder by kind."""
    return {each["kind"]: each for each in yaml.safe_load_all((PEERS / name / "kubernetes.yaml").read_text())}


def pod(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = manifests(name)["StatefulSet"]["spec"]["template"]["spec"]
    return spec


def test_kubernetes_is_told_the_same_by_every_hospital() -> None:
    texts = {
        re.sub(rf"\b{name}\b", "NAME", (PEERS / name / "kubernetes.yaml").read_text().partition("\n")[2])
        for name in HOSPITALS
    }
    assert len(texts) == 1


@pytest.mark.parametrize("name", FOLDERS)
def test_in_kubernetes_a_peer_runs_once_and_keeps_its_journal(name: str) -> None:
    found = manifests(name)
    assert set(found) == {"PersistentVolumeClaim", "StatefulSet", "NetworkPolicy"}
    assert found["StatefulSet"]["spec"]["replicas"] == 1
    labels = found["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    assert found["StatefulSet"]["spec"]["selector"]["matchLabels"] == labels
    assert found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    assert found["NetworkPolicy"]["spec"]["ingress"] == []
    (container,) = pod(name)["containers"]
    mounts = {each["mountPath"]: each for each in container["volumeMounts"]}
    volumes = {each["name"]: each for each in pod(name)["volumes"]}
    assert {each["name"] for each in mounts.values()} == set(volumes)
    assert volumes["state"]["persistentVolumeClaim"]["claimName"] == found["PersistentVolumeClaim"]["metadata"]["name"]
    settings = read_settings(PEERS / name / "peer.toml")
    for path in (settings.state_dir, settings.identity):
        assert str(path).startswith("/var/lib/ppdl-mq/")
    assert mounts["/var/lib/ppdl-mq"]["name"] == "state"
    assert {str(settings.broker.password_file), str(settings.broker.ca_file)} <= mounts.keys()
    paths = [value for key, value in settings.data.arguments.items() if key.endswith("path")]
    assert paths
    assert all(str(Path(path).parent) in mounts for path in paths)
    for probe in ("startupProbe", "livenessProbe"):  # that tell a peer that waits from one that hangs
        command = container[probe]["exec"]["command"]
        assert "--check" in command
        given = [path for path in command if path.endswith(".toml")]
        assert given == [path for path in container["args"] if path.endswith(".toml")][::-1]


@pytest.mark.parametrize("name", FOLDERS)
def test_in_kubernetes_nothing_runs_as_root(name: str) -> None:
    spec = pod(name)
    (user,) = set(re.findall(r"^USER (\d+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == int(user)
    assert spec["automountServiceAccountToken"] is False
    for container in (*spec["initContainers"], *spec["containers"]):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "env" not in container  # no password in the pod's description


@pytest.mark.parametrize("name", FOLDERS)
def test_in_kubernetes_a_peer_reaches_names_and_the_brokers_port_alone(name: str) -> None:
    policy = manifests(name)["NetworkPolicy"]["spec"]
    assert sorted(policy["policyTypes"]) == ["Egress", "Ingress"]  # without Egress in it nothing is held back
    reached = [(port["protocol"], port["port"]) for rule in policy["egress"] for port in rule["ports"]]
    broker = urlsplit(read_settings(PEERS / name / "peer.toml").broker.url).port
    assert sorted(reached) == [("TCP", 53), ("TCP", broker), ("UDP", 53)]
    assert not any("endPort" in port for rule in policy["egress"] for port in rule["ports"])


@pytest.mark.parametrize("name", FOLDERS)
def test_in_kubernetes_the_password_is_a_file_of_a_secret(name: str) -> None:
    spec = pod(name)
    (peer,) = spec["containers"]
    file = str(read_settings(PEERS / name / "peer.toml").broker.password_file)
    (mount,) = [each for each in peer["volumeMounts"] if each["mountPath"] == file]
    (volume,) = [each for each in spec["volumes"] if each["name"] == mount["name"]]
    assert set(volume["secret"]) == {"secretName", "defaultMode"}
    assert volume["secret"]["defaultMode"] == 0o440  # root and the pod's group, to which `fsGroup` gives it
    assert spec["securityContext"]["fsGroup"] == spec["securityContext"]["runAsGroup"]
    assert mount["subPath"] == Path(file).name
    for container in (*spec["initContainers"], *spec["containers"]):
        assert [each for each in container.get("envFrom", ()) if "configMapRef" not in each] == []
    first = spec["initContainers"][0]["volumeMounts"]
    assert mount["name"] not in {each["name"] for each in first}  # which needs none


@pytest.mark.parametrize("name", FOLDERS)
def test_the_commands_in_kubernetes_parse(name: str) -> None:
    spec = pod(name)
    (first,), (peer,) = spec["initContainers"], spec["containers"]
    lines = [line.partition("ppdl-mq ")[2] for line in first["args"][0].splitlines() if "ppdl-mq " in line]
    lines = [line.replace('"$key"', "key").replace(" >/dev/null", "") for line in lines if line]
    lines += [" ".join(peer["args"]), " ".join(peer["livenessProbe"]["exec"]["command"][1:])]
    assert len(lines) == 4
    assert [fault for line in lines for fault in faults_of_command(line, main)] == []
    assert f"--name {own_name(name)} " in lines[0]


# --- data ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not IMAGES.is_dir(), reason="the images are not on this machine")
def test_the_image_organisations_own_plugin_reads_real_images(tmp_path: Path) -> None:
    manifest_file = tmp_path / "mnist.toml"
    assert run(["trial", "new", str(manifest_file), "--preset", "mnist"]) == 0
    manifest = read_manifest(manifest_file, complete=False)
    own = read_settings(PEERS / "mnist" / "peer.toml").data
    arguments = {key: IMAGES / Path(value).name if "path" in key else value for key, value in own.arguments.items()}
    settings = own.model_copy(
        update={"arguments": {key: str(v) if isinstance(v, Path) else v for key, v in arguments.items()}}
    )
    split = load_split(settings, manifest, bytes(32), folder=tmp_path)
    assert set(split.train.targets.tolist()) == set(own.arguments["digits"])
    assert tuple(split.train.inputs.shape[1:]) == manifest.data.shape
    assert len(split.train) + len(split.holdout) == 24_754


@pytest.mark.skipif(not HEART_DATA.is_dir(), reason="the heart data are not on this machine")
@pytest.mark.parametrize("name", HOSPITALS)
def test_as_many_rows_as_the_readme_says(name: str) -> None:
    from ppdl_mq.training import data

    arguments = parsed(PEERS / name / "peer.toml")["data"]["arguments"]
    samples = data.csv(**{**arguments, "path": str(HEART_DATA / Path(arguments["path"]).name)})
    assert samples.inputs.shape[1:] == tuple(parsed(PEERS / "heart" / "heart.toml")["data"]["shape"])
    assert set(samples.targets.tolist()) == {0, 1}
    readme = (PEERS / "README.md").read_text(encoding="utf-8")
    assert f"| {len(samples.inputs)} |" in next(line for line in readme.splitlines() if f"[{name}/]" in line)
