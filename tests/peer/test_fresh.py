"""A fresh start: a peer that has said nothing begins anew, one that has spoken cannot come back; nothing is lost."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from types import ModuleType

import pytest

from ppdl_mq.cli.main import run
from ppdl_mq.errors import AlreadyRunning, JournalError
from ppdl_mq.peer import durable, fresh, running
from ppdl_mq.peer.identity_file import read_identity
from ppdl_mq.peer.journal import Journal, take_lock
from ppdl_mq.wire.trial_id import trial_id
from tests.people import identity_of
from tests.trials.files import TrialFiles

TRIAL_ID = bytes(range(32))
ANNA = identity_of("anna")
BELONGS = {"trial_id": TRIAL_ID, "keys": ANNA.public.raw_keys}


def opened(folder: Path) -> Journal:
    return Journal(folder, trial_id=TRIAL_ID, identity=ANNA)


def spoken(folder: Path) -> None:
    """Leave a folder as a peer does that has sent something."""
    journal = opened(folder)
    journal.keep_secret_fact("state", {"x": 1})
    journal.close()
    (folder / "live").mkdir()
    (folder / "live" / "0123456789abcdef").write_bytes(b"secret")
    (folder / "model.safetensors").write_bytes(b"model")


def test_nothing_is_there(tmp_path: Path) -> None:
    assert fresh.look(tmp_path / "none", **BELONGS) == fresh.Holding(has_anything=False, has_spoken=False)
    assert fresh.set_aside(tmp_path / "none", **BELONGS) is None


def test_who_said_nothing_begins_anew(tmp_path: Path) -> None:
    opened(tmp_path).close()
    assert fresh.look(tmp_path, **BELONGS) == fresh.Holding(has_anything=True, has_spoken=False)
    aside = fresh.set_aside(tmp_path, **BELONGS)
    assert aside is not None
    assert (aside / "journal.sqlite").exists()
    opened(tmp_path).close()


def test_who_has_spoken_gives_up(tmp_path: Path) -> None:
    spoken(tmp_path)
    held_elsewhere = tmp_path.parent / "link"
    os.link(tmp_path / "live" / "0123456789abcdef", held_elsewhere)
    assert fresh.look(tmp_path, **BELONGS).has_spoken
    aside = fresh.set_aside(tmp_path, **BELONGS)
    assert aside is not None
    assert (aside / "model.safetensors").read_bytes() == b"model"
    assert not list(tmp_path.rglob("0123456789abcdef"))
    assert held_elsewhere.read_bytes() == bytes(6)  # erased, not only removed
    for _ in range(2):
        with pytest.raises(JournalError, match="given up"):
            opened(tmp_path)
    assert fresh.look(tmp_path, **BELONGS).has_spoken
    assert fresh.set_aside(tmp_path, **BELONGS) is None
    with pytest.raises(JournalError, match="given up"):
        opened(tmp_path)


@pytest.mark.parametrize("damage", ["no database", "missing", "empty"])
def test_what_cannot_be_read_may_have_been_said(tmp_path: Path, damage: str) -> None:
    spoken(tmp_path)
    path = tmp_path / "journal.sqlite"
    path.unlink() if damage == "missing" else path.write_bytes(
        b"no database " * 100 if damage == "no database" else b""
    )
    assert fresh.look(tmp_path, **BELONGS).has_spoken
    fresh.set_aside(tmp_path, **BELONGS)
    with pytest.raises(JournalError, match="given up"):
        opened(tmp_path)


@pytest.mark.parametrize("lines", [0, 1, 2])
def test_a_journal_that_lost_its_state_has_spoken_if_the_transcript_says_so(tmp_path: Path, lines: int) -> None:
    """SQLite passes over a damaged end of its write-ahead log without a word, and the first state may stand there."""
    opened(tmp_path).close()
    (tmp_path / "transcript.log").write_bytes(b"{}\n" * lines)
    assert fresh.look(tmp_path, **BELONGS).has_spoken is (lines == 2)


def test_live_secrets_without_a_state_may_have_spoken(tmp_path: Path) -> None:
    """As above, before the others' session keys are known and entered in the transcript."""
    opened(tmp_path).close()
    (tmp_path / "live").mkdir()
    assert not fresh.look(tmp_path, **BELONGS).has_spoken
    (tmp_path / "live" / "0123456789abcdef").write_bytes(b"secret")
    assert fresh.look(tmp_path, **BELONGS).has_spoken


@pytest.mark.parametrize("journal", ["without a state", "missing"])
def test_a_note_that_something_was_begun_means_that_it_has_spoken(tmp_path: Path, journal: str) -> None:
    opened(tmp_path).close()
    (tmp_path / "spoken").touch()
    if journal == "missing":
        (tmp_path / "journal.sqlite").unlink()
        with pytest.raises(JournalError, match="missing"):
            opened(tmp_path)
    assert fresh.look(tmp_path, **BELONGS).has_spoken
    aside = fresh.set_aside(tmp_path, **BELONGS)
    assert aside is not None
    assert (aside / "spoken").exists()
    with pytest.raises(JournalError, match="given up"):
        opened(tmp_path)


def test_a_running_peer_is_not_robbed(tmp_path: Path) -> None:
    spoken(tmp_path)
    handle = take_lock(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(AlreadyRunning):
        fresh.set_aside(tmp_path, **BELONGS)
    assert sorted(tmp_path.rglob("*")) == before
    os.close(handle)


@pytest.mark.parametrize("other", [{"trial_id": bytes(32)}, {"keys": identity_of("bert").public.raw_keys}])
def test_of_another_trial_or_identity_nothing_is_touched(tmp_path: Path, other: dict[str, bytes]) -> None:
    opened(tmp_path).close()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(JournalError, match="another"):
        fresh.set_aside(tmp_path, **BELONGS | other)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("module", "dies_at"),
    [
        (fresh, "write_note"),
        (durable, "sync_folder"),  # the note is there, and its name not yet on disk
        (fresh, "erase_all"),
        (fresh, "free_name"),
        (fresh, "sync_folder"),
    ],
)
def test_cut_short_it_never_lets_a_peer_speak_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, dies_at: str
) -> None:
    spoken(tmp_path)

    class Died(Exception):
        pass

    def die(*arguments: object) -> None:
        if arguments != (tmp_path.parent,):  # that is synced for the lock, before anything is done
            raise Died

    monkeypatch.setattr(module, dies_at, die)
    with pytest.raises(Died):
        fresh.set_aside(tmp_path, **BELONGS)
    monkeypatch.undo()
    if dies_at != "write_note":
        with pytest.raises(JournalError, match="given up"):
            opened(tmp_path)
    fresh.set_aside(tmp_path, **BELONGS)
    with pytest.raises(JournalError, match="given up"):
        opened(tmp_path)
    assert list(tmp_path.rglob("model.safetensors"))
    assert not list(tmp_path.rglob("0123456789abcdef"))


def test_a_folder_of_another_user_is_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    files = TrialFiles(tmp_path, ("anna", "bert"))
    folder = files.state("anna")
    opened(folder).close()
    looked_at = Path.stat

    def closed_to_others(path: Path, **given: bool) -> os.stat_result:
        if path.parent == folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return looked_at(path, **given)

    monkeypatch.setattr(Path, "stat", closed_to_others)
    capfd.readouterr()
    assert run((*files.run_arguments("anna"), "--fresh")) == 10
    said = capfd.readouterr().err
    assert f"The state folder {folder} cannot be read: Permission denied." in said
    assert "rights" in said
    assert "bug" not in said


def test_on_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = TrialFiles(tmp_path, ("anna", "bert"))
    fresh_run = (*files.run_arguments("anna"), "--fresh")
    journal = Journal(
        files.state("anna"),
        trial_id=trial_id(files.manifest),
        identity=read_identity(files.folder / "anna.key", passphrase=None),
    )
    journal.keep_secret_fact("state", {"x": 1})
    journal.close()
    capfd.readouterr()
    assert run(fresh_run) == 2
    said = capfd.readouterr().err
    assert "its model and its signed log" in said
    assert "cannot come back" in said
    assert "--fresh --yes" in said
    assert (files.state("anna") / "journal.sqlite").exists()
    assert run((*fresh_run, "--yes")) == 9
    said = capfd.readouterr().err
    assert "set-aside-1" in said
    assert "ppdl-mq trial renew" in said
    status = ("peer", "status", "--config", str(files.settings_path("anna")))
    for command in (files.run_arguments("anna"), status, (*status, "--trial", str(files.manifest_path))):
        assert run(command) in (3, 9)
        assert "given up its part" in capfd.readouterr().err


def test_where_nothing_is_there_it_does_nothing_without_a_yes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    began: list[bool] = []

    def begins(*_: object, **__: object) -> Path:
        began.append(True)
        return tmp_path / "model"

    files = TrialFiles(tmp_path, ("anna", "bert"))
    monkeypatch.setattr(running, "run_peer", begins)
    capfd.readouterr()
    assert run((*files.run_arguments("anna"), "--fresh")) == 2
    assert "There is nothing to forget" in capfd.readouterr().err
    assert not began
    assert run((*files.run_arguments("anna"), "--fresh", "--yes")) == 0
    assert began


@pytest.mark.parametrize("unsent", [{}, {"bert": 1}])
def test_of_a_trial_that_has_ended_nobody_is_said_to_wait(
    tmp_path: Path, unsent: dict[str, int], capfd: pytest.CaptureFixture[str]
) -> None:
    files = TrialFiles(tmp_path, ("anna", "bert"))
    own = read_identity(files.folder / "anna.key", passphrase=None)
    journal = Journal(files.state("anna"), trial_id=trial_id(files.manifest), identity=own)
    journal.keep_secret_fact("state", {"x": 1})
    journal.close()
    counts = dict.fromkeys(("phase_s", "received", "published_messages", "published_bytes", "reconnects"), 0)
    status = {"trial": "small", "trial_id": "", "peer": "anna", "phase": "ended", "turn": 1, "turns": 1, **counts}
    status |= {"waiting_for": [], "not_there_yet": [], "refused": {}, "unsent": unsent}
    (files.state("anna") / "status.json").write_text(json.dumps(status))
    capfd.readouterr()
    for given, code in ((("--fresh",), 2), (("--fresh", "--yes"), 9)):
        assert run((*files.run_arguments("anna"), *given)) == code
        said = capfd.readouterr().err
        assert ("has ended for this organisation" in said) == (not unsent)
        assert ("They wait for it" in said) == bool(unsent)
        assert ("goes on where it was" in said) == (bool(unsent) and code == 2)
        assert "ppdl-mq trial renew" in said
