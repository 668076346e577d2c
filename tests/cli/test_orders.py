"""`ppdl-mq peer drop`, `peer leave`, and the status of masked-average, over a state folder as a peer leaves it."""

from __future__ import annotations

import fcntl
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ppdl_mq.cli.main import run
from ppdl_mq.config.manifest import Manifest
from ppdl_mq.config.reading import read_manifest, read_settings
from ppdl_mq.config.toml_text import toml_value
from ppdl_mq.peer.folders import state_folder
from ppdl_mq.peer.orders import Order, take_orders
from ppdl_mq.peer.progress import Progress
from ppdl_mq.protocol.phases import Phase
from tests.config.samples import keys

NAMES = ("basel", "mercy", "zurich")
SEQUENTIAL = {"turn": 3, "turns": 12}
ROUNDS = {"round": 3, "rounds": 10, "step": 5, "attempt": 0, "members": list(NAMES), "word": 32}


def manifest_file(protocol: str, *, name: str = "heart") -> Path:
    path = Path(f"{name}.toml")
    assert run(["trial", "new", str(path), "--protocol", protocol]) == 0
    with path.open("a") as file:
        for number, peer in enumerate(NAMES, 1):
            file.write(f"[[peers]]\nname = {toml_value(peer)}\nkeys = {toml_value(keys(number))}\n")
    return path


def show(manifest: Manifest, progress: dict[str, Any], phase: Phase = Phase.RECEIPTED) -> Path:
    """Write the status that mercy's peer would."""
    folder = state_folder(read_settings(Path("mercy.toml")), manifest)
    folder.mkdir(parents=True, exist_ok=True)
    status: dict[str, Any] = {
        "trial": manifest.name,
        "trial_id": "ab" * 32,
        "peer": "mercy",
        "phase": phase.value,
        "phase_s": 12,
    }
    status |= {"waiting_for": ["basel"], "not_there_yet": [], "received": 7, "published_messages": 8}
    status |= {"published_bytes": 900, "reconnects": 0, "refused": {}}
    Progress(folder).show(status | progress, now=True)
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """The state folder of mercy in a trial of masked-average, which has come to round 3."""
    monkeypatch.chdir(tmp_path)
    given = ["--identity", "mercy.key", "--broker", "embedded:relay.sqlite", "--data", "csv:rows.csv"]
    assert run(["peer", "new", "mercy.toml", *given]) == 0
    folder = show(read_manifest(manifest_file("masked-average")), ROUNDS | {"dropped": [], "left": []})
    capsys.readouterr()
    return folder


@pytest.mark.parametrize("trial", [[], ["--trial", "heart.toml"]], ids=["settings", "manifest"])
def test_an_order_is_given(folder: Path, trial: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["peer", "drop", "basel", "-c", "mercy.toml", "--yes", *trial]) == 0
    shown = capsys.readouterr()
    assert "The order to drop basel is given to mercy in trial heart." in shown.out
    assert "asked basel by telephone" in shown.err
    assert run(["peer", "leave", "-c", "mercy.toml", "--yes", *trial]) == 0
    assert "The order to leave is given" in capsys.readouterr().out
    assert take_orders(folder) == [Order(drop="basel"), Order()]


def test_a_program_is_told_where_the_order_lies(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["peer", "drop", "zurich", "--config", "mercy.toml", "--yes", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    file = answer.pop("file")
    assert Path(file) == folder / "orders" / "drop-zurich"
    assert answer == {"trial": "heart", "peer": "mercy", "order": "drop", "drop": "zurich", "running": False}


def test_a_peer_that_runs_is_said_to_hear_it_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run(["peer", "leave", "-c", "mercy.toml", "--yes"]) == 0
    assert "within a second" in capsys.readouterr().out
    assert run(["peer", "leave", "-c", "mercy.toml", "--yes"]) == 0
    assert "when it is run again" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "code", "said"),
    [
        ("y\n", 0, "taken"),
        ("n\n", 2, "\nNothing was done.\n"),
        ("", 2, "\nerror: This needs an answer, and stdin is no"),
    ],
)
@pytest.mark.parametrize("words", [["drop", "basel"], ["leave"]], ids=" ".join)
def test_a_person_is_asked(
    folder: Path,
    words: list[str],
    answer: str,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    assert run(["peer", *words, "-c", "mercy.toml"]) == code
    shown = capsys.readouterr()
    assert "trial heart? [y/N]" in shown.err
    assert said in (f"\n{shown.err.split('[y/N]: ')[1]}" if code else "taken")
    assert ("--yes" in shown.err) == (not answer)
    assert len(take_orders(folder)) == (code == 0)


def test_a_stdin_that_is_closed_answers_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert run(["peer", "leave", "-c", "mercy.toml"]) == 2
    shown = capsys.readouterr().err
    assert "This needs an answer, and stdin is no terminal." in shown
    assert "--yes" in shown
    assert take_orders(folder) == []


@pytest.mark.parametrize(
    ("typed", "code", "said"), [(EOFError, 2, "\nNothing was done.\n"), (KeyboardInterrupt, 130, "Interrupted.\n")]
)
def test_a_person_may_end_the_question(
    folder: Path,
    typed: type[BaseException],
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def end(_: str = "") -> str:
        raise typed

    monkeypatch.setattr("click.termui.visible_prompt_func", end)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    assert run(["peer", "leave", "-c", "mercy.toml"]) == code
    assert capsys.readouterr().err.endswith(said)


@pytest.mark.parametrize("trial", [[], ["--trial", "heart.toml"]], ids=["settings", "manifest"])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mercy", "mercy is this organisation itself"),
        ("geneva", "geneva is not another peer of trial heart"),
        ("../../heart", "is not another peer"),
        ("Basel", "Basel is not another peer"),
        ("", " is not another peer"),
    ],
)
def test_nobody_else_can_be_dropped(
    folder: Path, name: str, said: str, trial: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["peer", "drop", name, "-c", "mercy.toml", "--yes", *trial]) == 3
    assert said in capsys.readouterr().err
    assert not (folder / "orders").exists()


@pytest.mark.parametrize(("name", "said"), [("geneva", "is not another peer"), ("basel", "has not begun here")])
def test_a_wrong_name_is_told_before_the_first_round_as_well(
    folder: Path, name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    new = ROUNDS | {"round": 0, "step": 0, "members": [], "dropped": [], "left": []}
    show(read_manifest(Path("heart.toml")), new, Phase.AWAITING_HELLOS)
    assert run(["peer", "drop", name, "-c", "mercy.toml", "--yes", "--trial", "heart.toml"]) == 3
    assert said in capsys.readouterr().err
    assert run(["peer", "drop", name, "-c", "mercy.toml", "--yes"]) == 3
    assert "has not begun here" in capsys.readouterr().err


@pytest.mark.parametrize("trial", [[], ["--trial", "heart.toml"]], ids=["settings", "manifest"])
def test_those_who_have_gone_are_known(folder: Path, trial: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    show(read_manifest(Path("heart.toml")), ROUNDS | {"members": ["mercy"], "dropped": ["basel"], "left": ["zurich"]})
    for name in ("basel", "zurich"):
        assert run(["peer", "drop", name, "-c", "mercy.toml", "--yes", *trial]) == 3
        assert f"{name} has gone from trial heart already." in capsys.readouterr().err
    assert take_orders(folder) == []


def test_a_drop_can_be_ordered_again_while_others_have_not_agreed(folder: Path) -> None:
    show(read_manifest(Path("heart.toml")), ROUNDS | {"dropped": ["basel"], "left": []})
    assert run(["peer", "drop", "basel", "-c", "mercy.toml", "--yes"]) == 0
    assert take_orders(folder) == [Order(drop="basel")]


def test_who_was_dropped_is_told_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without = {"dropped": [], "left": [], "going_on_without_this_peer": ["basel", "zurich"]}
    show(read_manifest(Path("heart.toml")), ROUNDS | without)
    for words in (["drop", "basel"], ["leave"]):
        assert run(["peer", *words, "-c", "mercy.toml", "--yes"]) == 0
        assert "basel, zurich go on without this organisation." in capsys.readouterr().err
    assert run(["peer", "status", "-c", "mercy.toml", "--check"]) == 11
    said = capsys.readouterr().err
    assert "mercy is not running, and basel, zurich go on without this organisation." in said
    assert "it goes on where it was" not in said
    show(read_manifest(Path("heart.toml")), ROUNDS | without, Phase.ENDED)
    assert run(["peer", "status", "-c", "mercy.toml"]) == 0
    assert "without this organisation" not in capsys.readouterr().out


@pytest.mark.parametrize("protocol", ["server-aided", "fully-connected"])
@pytest.mark.parametrize("words", [["drop", "basel"], ["leave"]], ids=" ".join)
@pytest.mark.parametrize("has_trial", [False, True])
def test_a_sequential_trial_cannot_do_without_a_peer(
    folder: Path, protocol: str, words: list[str], has_trial: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in folder.iterdir():
        file.unlink()
    manifest = manifest_file(protocol, name="turns")
    other = show(read_manifest(manifest), SEQUENTIAL, Phase.AWAITING_TURN)
    trial = ["--trial", str(manifest)] if has_trial else []
    assert run(["peer", *words, "-c", "mercy.toml", "--yes", *trial]) == 3
    assert "Trial turns cannot go on without a peer: only masked-average can." in capsys.readouterr().err
    assert take_orders(other) == []


def test_the_protocol_is_said_before_the_peer_ever_ran(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = manifest_file("server-aided", name="turns")
    assert run(["peer", "leave", "-c", "mercy.toml", "--yes", "--trial", str(manifest)]) == 3
    assert "only masked-average can" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("phase", "said"),
    [
        (Phase.ENDED, "has ended for mercy"),
        (Phase.LEFT, "has ended for mercy"),
        (Phase.ENDED_EARLY, "has ended for mercy"),
        (Phase.AWAITING_HELLOS, "has not begun here"),
        (Phase.AWAITING_INITIAL, "has not begun here"),
    ],
)
@pytest.mark.parametrize("words", [["drop", "basel"], ["leave"]], ids=" ".join)
def test_there_is_a_time_for_orders(
    folder: Path, phase: Phase, said: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    progress = ROUNDS | {"dropped": [], "left": []}
    if "begun" in said:
        progress |= {"round": 0, "step": 0, "members": []}
    show(read_manifest(Path("heart.toml")), progress, phase)
    assert run(["peer", *words, "-c", "mercy.toml", "--yes"]) == 3
    assert said in capsys.readouterr().err
    assert take_orders(folder) == []


def test_a_trial_that_never_ran_here_takes_no_orders(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = manifest_file("masked-average", name="lungs")
    assert run(["peer", "leave", "-c", "mercy.toml", "--trial", str(other), "--yes"]) == 3
    assert "Start the peer first" in capsys.readouterr().err
    show(read_manifest(other), ROUNDS | {"dropped": [], "left": []})
    assert run(["peer", "leave", "-c", "mercy.toml", "--yes"]) == 3
    assert "Name one with --trial FILE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "awaiting receipts, waiting for basel; round 3 of 10, attempt 0, 3 members\n"),
        ({"attempt": 2, "members": ["mercy"]}, "; round 3 of 10, attempt 2, 1 member\n"),
        ({"word": 64}, "; round 3 of 10, attempt 0, 3 members, in 64 bits\n"),
        ({"step": 6, "word": 64}, "; evaluation of round 3 of 10, attempt 0, 3 members\n"),
        ({"round": 0, "step": 0}, "; round 0 of 10, attempt 0, 3 members\n"),
        (
            {"phase": "closing", "agreed_round": 10},
            "\n  the model of round 10 is written; waiting until basel has what it needs; nothing of this peer is lost",
        ),
        ({"phase": "closing", "agreed_round": 0}, "\n  it has left; waiting until basel has what it needs; nothing"),
        ({"going_on_without_this_peer": ["basel"]}, "\n  basel goes on without this organisation\n"),
        (
            {"going_on_without_this_peer": ["basel", "zurich"]},
            "\n  basel, zurich go on without this organisation\n",
        ),
        ({"dropped": ["basel"], "left": ["zurich"]}, "\n  dropped by this organisation: basel\n  left: zurich\n"),
    ],
)
def test_the_status_of_rounds(
    folder: Path, changes: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    written = ROUNDS | {"dropped": [], "left": []} | changes
    show(read_manifest(Path("heart.toml")), written)
    assert run(["peer", "status", "-c", "mercy.toml"]) == 0
    assert said in capsys.readouterr().out
    assert run(["peer", "status", "-c", "mercy.toml", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {key: answer[key] for key in written} == written


def test_the_status_of_turns_stays(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show(read_manifest(Path("heart.toml")), SEQUENTIAL, Phase.AWAITING_TURN)
    assert run(["peer", "status", "-c", "mercy.toml"]) == 0
    assert "  awaiting turn, waiting for basel; turn 3 of 12\n" in capsys.readouterr().out


def test_who_leaves_before_anything_was_agreed_on_has_no_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mercy = SimpleNamespace(public=SimpleNamespace(keys=read_manifest(Path("heart.toml")).peers[1].keys))
    monkeypatch.setattr("ppdl_mq.cli.peer._own_identity", lambda _: mercy)
    monkeypatch.setattr("ppdl_mq.peer.running.run_peer", lambda *_, **__: folder / "model.safetensors")
    capsys.readouterr()
    assert run(["peer", "run", "heart.toml", "--config", "mercy.toml", "--out", "mine.safetensors"]) == 0
    said = capsys.readouterr().out
    assert "has left the trial heart before anything was agreed on: there is no model" in said
    assert not Path("mine.safetensors").exists()


def test_the_wait_for_a_last_word_can_be_ended_in_a_sequential_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--identity", "mercy.key", "--broker", "embedded:relay.sqlite", "--data", "csv:rows.csv"]
    assert run(["peer", "new", "mercy.toml", *given]) == 0
    manifest = read_manifest(manifest_file("fully-connected"))
    drop_basel = ["peer", "drop", "basel", "--config", "mercy.toml", "--yes"]
    folder = show(manifest, SEQUENTIAL, Phase.AWAITING_TURN)
    assert run(drop_basel) == 3
    show(manifest, SEQUENTIAL, Phase.AWAITING_DONES)
    assert run(["peer", "drop", "zurich", "--config", "mercy.toml", "--yes"]) == 3, "who has spoken is not waited for"
    assert take_orders(folder) == []
    capsys.readouterr()
    assert run(drop_basel) == 0
    shown = capsys.readouterr()
    assert "mercy has the model" in shown.err
    assert "The order to drop basel is given to mercy" in shown.out
    assert take_orders(folder) == [Order(drop="basel")]
    assert run(["peer", "leave", "--config", "mercy.toml", "--yes"]) == 3
