"""peers/: the example organisations' files hold, and agree with the relay's."""

from __future__ import annotations

import importlib
import json
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from ppdl_mq.config.manifest import Manifest
from ppdl_mq.config.reading import read_manifest, read_settings
from ppdl_mq.config.settings import PeerSettings

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / "peers"
HOSPITALS = ("cleveland", "hungary", "switzerland", "va")
HEART_DATA = ROOT.parent / "shared" / "data" / "heart"  # present on some machines, never in the repository


def parsed(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", HOSPITALS)
def test_settings_hold_and_carry_no_password(name: str) -> None:
    settings: PeerSettings = read_settings(PEERS / name / "peer.toml")
    url = urlsplit(settings.broker.url)
    assert (url.scheme, url.username, url.password, url.path) == ("amqp", name, None, "/ppdl")
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


def test_every_hospital_has_its_environment_and_the_same_unit() -> None:
    units = {(PEERS / name / "ppdl-mq.service").read_text() for name in HOSPITALS}
    assert len(units) == 1
    (unit,) = units
    assert (
        "ExecStart=/opt/ppdl-mq/bin/ppdl-mq peer run /etc/ppdl-mq/heart.toml --config /etc/ppdl-mq/peer.toml\n" in unit
    )
    for name in HOSPITALS:
        lines = (PEERS / name / "peer.env").read_text().splitlines()
        assert all(line.startswith("#") or "=" in line for line in lines)


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
