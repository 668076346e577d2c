"""`peer run --out` writes over nothing that the organisation needs; that is said before the trial begins."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from ppdl_mq.cli.main import run
from ppdl_mq.config import writing
from ppdl_mq.errors import PeerFileError
from ppdl_mq.peer import running
from tests.trials.files import TrialFiles


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrialFiles:
    """A trial whose peers end at once, with a model."""
    made = TrialFiles(tmp_path, ("anna", "bert"))
    made.edit("anna", "[broker]", 'passphrase_file = "phrase"\n\n[broker]\npassword_file = "password"')
    for name in ("phrase", "password"):
        (tmp_path / name).write_text(f"{name}\n")

    def ends(*_: Any, **__: Any) -> Path:
        made.model("anna").parent.mkdir(parents=True, exist_ok=True)
        made.model("anna").write_bytes(b"weights")
        return made.model("anna")

    monkeypatch.setattr(running, "run_peer", ends)
    return made


def never(*_: Any, **__: Any) -> Path:
    raise AssertionError("the trial began")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("anna.key", "is the identity"),
        ("anna.toml", "is the file of the settings"),
        ("small.toml", "is the manifest"),
        ("anna.csv", "is this organisation's data"),
        ("phrase", "is the file of the passphrase"),
        ("password", "is the file of the broker's password"),
        ("relay.sqlite", "is the embedded relay"),  # not there yet
        ("anna.state/another/model", "lies in"),
        ("anna.state/another/set-aside-1/model", "lies in"),
        ("fifo", "is no regular file"),
        ("circle", "is no regular file"),
        ("x" * 300, "cannot be looked at: File name too long"),
        ("x" * 300 + "/model", "cannot be looked at: File name too long"),
    ],
)
@pytest.mark.parametrize("way", ["itself", "symlink", "link"])
def test_what_is_needed_stays(
    files: TrialFiles,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    name: str,
    said: str,
    way: str,
) -> None:
    monkeypatch.setattr(running, "run_peer", never)
    folder = files.folder
    (folder / "anna.state" / "another" / "set-aside-1").mkdir(parents=True)
    (folder / "anna.state" / "another" / "journal.sqlite").touch()
    os.mkfifo(folder / "fifo")
    (folder / "circle").symlink_to("circle")
    out = folder / name
    if way == "symlink":
        out = folder / "symlink"
        out.symlink_to(name)
    elif way == "link" and os.path.isfile(out):  # noqa: PTH113
        out = folder / "link"
        os.link(folder / name, out)
    before = (folder / name).read_bytes() if os.path.isfile(folder / name) else None  # noqa: PTH113 (it takes any name)
    assert run((*files.run_arguments("anna"), "--out", str(out))) == 3
    assert said in capfd.readouterr().err
    assert before is None or (folder / name).read_bytes() == before


@pytest.mark.parametrize("where", ["model", "folder", "symlink", "old"])
def test_all_else_is_written(files: TrialFiles, where: str) -> None:
    (files.folder / "folder").mkdir()
    (files.folder / "old").write_text("an earlier model")
    (files.folder / "symlink").symlink_to("folder/led-to")
    assert run((*files.run_arguments("anna"), "--out", str(files.folder / where))) == 0
    written = {"folder": "folder/model.safetensors", "symlink": "folder/led-to"}.get(where, where)
    assert (files.folder / written).read_bytes() == b"weights"
    assert (files.folder / "symlink").is_symlink()


def test_the_folder_of_the_trial_is_kept_free_before_it_is_there(
    files: TrialFiles, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(running, "run_peer", never)
    (files.folder / "anna.state").mkdir()
    assert run((*files.run_arguments("anna"), "--out", str(files.state("anna")))) == 3
    assert "lies in" in capfd.readouterr().err


@pytest.mark.parametrize("where", ["model", "folder", "folder/model"])
def test_a_state_dir_that_holds_all_there_is_keeps_its_trials_only(files: TrialFiles, where: str) -> None:
    text = files.settings_path("anna").read_text()
    files.settings_path("anna").write_text(re.sub("(?m)^state_dir = .*", 'state_dir = "."', text))
    (files.folder / "folder").mkdir()
    assert run((*files.run_arguments("anna"), "--out", str(files.folder / where))) == 0
    written = files.folder / ("folder/model.safetensors" if where == "folder" else where)
    assert written.read_bytes() == b"weights"


def test_a_model_that_cannot_be_looked_at_is_told(
    files: TrialFiles, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(running, "run_peer", lambda *_, **__: files.folder / ("x" * 300))
    assert run(files.run_arguments("anna")) == 10
    assert "cannot be read: File name too long." in capfd.readouterr().err


def test_a_device_that_came_meanwhile_is_not_replaced(files: TrialFiles) -> None:
    source, fifo = files.folder / "anna.csv", files.folder / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(PeerFileError, match="no regular file"):
        writing.copy(source, fifo, error=PeerFileError)
    assert fifo.is_fifo()
