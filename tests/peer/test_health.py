"""A peer that waits is well, one that hangs or is gone is not; and every key of the status is in the documents."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ppdl_mq.cli import exit_codes
from ppdl_mq.cli.main import run
from ppdl_mq.cli.peer_status import status_text
from ppdl_mq.config import limits
from ppdl_mq.config.reading import read_settings
from ppdl_mq.errors import JournalError, Unwell
from ppdl_mq.peer import health
from ppdl_mq.peer.journal import take_lock
from ppdl_mq.peer.status import is_of_rounds, peers_in, read_status
from ppdl_mq.transport.memory import MemoryRelay, MemoryTransport
from tests.trial import TrialInProcess, manifest_for
from tests.trials.files import TrialFiles

OPERATIONS = Path(__file__).parents[2] / "docs" / "OPERATIONS.md"
STATUS: dict[str, Any] = {
    "trial": "small",
    "trial_id": "00" * 32,
    "peer": "anna",
    "phase": "training",
    "phase_s": 3,
    "turn": 1,
    "turns": 4,
    "waiting_for": [],
    "waiting_since": {},
    "last_contact": {"bert": None},
    "not_there_yet": [],
    "other_manifests": {},
    "received": 0,
    "published_messages": 0,
    "published_bytes": 0,
    "reconnects": 0,
    "asked_again": 0,
    "sent_again": 0,
    "unsent": {},
    "inbox_messages": None,
    "refused": {},
    "set_aside": {"records": 0, "bytes": 0, "limit": 1_000},
    "checkpoint_at": None,
    "pid": os.getpid(),
}


@pytest.fixture
def files(tmp_path: Path) -> TrialFiles:
    return TrialFiles(tmp_path, ("anna", "bert"))


def says(files: TrialFiles, **changes: Any) -> None:
    folder = files.state("anna")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "status.json").write_text(json.dumps(STATUS | {"updated": time.time()} | changes))


@pytest.fixture
def lock(files: TrialFiles) -> Iterator[int]:
    handle = take_lock(files.state("anna"))
    yield handle
    os.close(handle)


def checked(files: TrialFiles) -> health.Health:
    return health.check(read_settings(files.settings_path("anna")), files.manifest)


def test_one_that_runs_and_waits_is_well(files: TrialFiles, lock: int) -> None:
    says(files, waiting_for=["bert"], waiting_since={"bert": time.time() - 90_000}, phase_s=90_000)
    assert "waiting for bert" in checked(files).why


def test_a_loop_that_hangs_is_not(files: TrialFiles, lock: int) -> None:
    os.utime(files.state("anna") / "lock", (time.time() - 300,) * 2)
    says(files, updated=time.time() - 200)
    with pytest.raises(Unwell, match="has not gone round"):
        checked(files)


def test_one_that_begins_in_a_container_is_well(files: TrialFiles, lock: int) -> None:
    """Its number is that of the process before; a probe that took the old status for its own would end it again."""
    says(files, updated=time.time() - 200)
    assert "starting" in checked(files).why


def test_a_clock_that_was_set_back_hides_no_hanging_loop(files: TrialFiles, lock: int) -> None:
    os.utime(files.state("anna") / "lock", (time.time() + 9_000,) * 2)
    says(files, updated=time.time() - 200)
    with pytest.raises(Unwell, match="has not gone round"):
        checked(files)


NESTED = "[" * 100_000 + "]" * 100_000
ODD = [json.dumps(STATUS | {"updated": 1.0} | odd) for odd in ({"updated": "now"}, {"waiting_for": 3}, {"phase": []})]


@pytest.mark.parametrize(
    "content", ["{}", "[]", "3", '{"phase": "training"}', "", "\0", '{"trial": "small"', NESTED, *ODD], ids=lambda _: ""
)
@pytest.mark.parametrize("asks", [("status",), ("status", "--check"), ("drop", "bert", "--yes"), ("leave", "--yes")])
def test_a_status_that_is_damaged_is_said(
    files: TrialFiles, content: str, asks: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    says(files)
    (files.state("anna") / "status.json").write_text(content)
    assert run(("peer", *asks, "--config", str(files.settings_path("anna")))) == (
        exit_codes.UNWELL if "--check" in asks else exit_codes.STATE
    )
    assert "cannot be read" in capfd.readouterr().err


ROUNDS = {key: value for key, value in STATUS.items() if key not in ("turn", "turns")} | {
    "round": 2,
    "rounds": 3,
    "step": 3,
    "attempt": 1,
    "word": 32,
    "members": ["anna", "bert"],
    "agreed_round": 1,
    "dropped": [],
    "left": ["cleo"],
    "going_on_without_this_peer": [],
    "rests_s": 30,
    "abandons_first": None,
    "relay": {"state": "connected", "since": 1.0, "host": None, "tries": 0, "reason": "", "reconnects": 0},
}
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.sampled_from([1e300, 10**400])
)
VALUES = st.recursive(
    SCALARS,
    lambda within: (
        st.lists(within, max_size=2)
        | st.dictionaries(st.sampled_from(["bert", "state", "since", "records"]), within, max_size=3)
    ),
    max_leaves=4,
)


@given(whole=st.sampled_from([STATUS, ROUNDS]), data=st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_status_holds_is_told_or_damage(files: TrialFiles, lock: int, whole: Any, data: Any) -> None:
    keys = sorted({*whole, "updated", "relay", "round", "rests_s"})
    changes = data.draw(st.dictionaries(st.sampled_from(keys), VALUES, min_size=1, max_size=2))
    folder, own = files.state("anna"), read_settings(files.settings_path("anna"))
    written = json.dumps(whole | {"updated": time.time()} | changes)
    (folder / "status.json").write_text(written)
    with contextlib.suppress(Unwell):
        found_well = health.check(own, files.manifest)
        assert found_well.age_s is None or found_well.age_s <= limits.HEALTHY_S
    with contextlib.suppress(JournalError):
        found = read_status(own, files.manifest)
        assert status_text(found, now=time.time())
        assert not is_of_rounds(found) or peers_in(found, None)


@pytest.mark.parametrize(
    "odd",
    [{"waiting_for": [1]}, {"updated": float("inf")}, {"updated": float("nan")}, {"relay": {}}, {"round": 1}],
    ids=str,
)
def test_a_status_whose_elements_are_of_another_form_is_damaged(
    files: TrialFiles, odd: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    says(files, **odd)
    config = str(files.settings_path("anna"))
    assert run(("peer", "status", "--config", config)) == exit_codes.STATE
    assert run(("peer", "status", "--config", config, "--check")) == exit_codes.UNWELL
    assert capfd.readouterr().err.count("cannot be read") == 2


def test_a_status_that_is_ahead_of_the_clock_is_not_well_until_then(files: TrialFiles, lock: int) -> None:
    says(files, updated=time.time() + 60)
    assert checked(files).age_s == 0.0
    says(files, updated=time.time() + 9_000)
    with pytest.raises(Unwell, match="ahead of the clock"):
        checked(files)


@pytest.mark.parametrize("trial", [True, False])
@pytest.mark.parametrize("what", ["nothing", "folder", "given up"])
def test_one_that_has_told_nothing_is_not_well(
    files: TrialFiles, trial: bool, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if what != "nothing":
        os.close(take_lock(files.state("anna")))
    if what == "given up":
        (files.state("anna") / "given-up").touch()
    command = ("peer", "status", "--check", "--config", str(files.settings_path("anna")))
    assert run((*command, *(("--trial", str(files.manifest_path)) if trial else ()))) == exit_codes.UNWELL
    said = capfd.readouterr().err
    assert ("given up its part" in said) == (what == "given up")
    assert "hint: " in said


def test_a_probe_that_asks_wrongly_is_told_so(files: TrialFiles) -> None:
    says(files)
    shutil.copytree(files.state("anna"), files.state("anna").with_name("other"))
    config = str(files.settings_path("anna"))
    assert run(("peer", "status", "--check", "--config", config)) == exit_codes.CONFIG
    assert run(("peer", "status", "--check", "--config", config + "x")) == exit_codes.CONFIG
    assert run(("peer", "status", "--check", "--config", config, "--trial", config)) == exit_codes.CONFIG
    given = ("--config", config, "--trial", str(files.manifest_path))
    assert run(("peer", "status", "--check", *given)) == exit_codes.UNWELL


def test_one_that_is_gone_is_not(files: TrialFiles) -> None:
    says(files)
    with pytest.raises(Unwell, match="not running"):
        checked(files)


@pytest.mark.parametrize("phase", ["ended", "left", "ended early"])
def test_a_trial_that_is_over_is_well(files: TrialFiles, phase: str) -> None:
    says(files, phase=phase, updated=0.0)
    assert "has ended" in checked(files).why


@pytest.mark.parametrize("before", [True, False])
def test_one_that_begins_is_well_for_a_while(files: TrialFiles, lock: int, before: bool) -> None:
    if before:
        says(files, updated=1.0, pid=1)
    assert "starting" in checked(files).why
    os.utime(files.state("anna") / "lock", (1.0, 1.0))
    with pytest.raises(Unwell, match="not gone round yet"):
        checked(files)


def test_on_the_command_line(files: TrialFiles, capfd: pytest.CaptureFixture[str]) -> None:
    command = ("peer", "status", "--config", str(files.settings_path("anna")), "--check")
    says(files, phase="ended")
    assert run(command) == 0
    assert "has ended" in capfd.readouterr().out
    says(files)
    assert run((*command, "--json")) == 11
    assert json.loads(capfd.readouterr().err)["error"]["kind"] == "Unwell"


def test_the_words_for_people() -> None:
    now = 1_000_000.0
    told = status_text(
        STATUS
        | {
            "running": True,
            "updated": now - 1,
            "waiting_for": ["bert"],
            "waiting_since": {"bert": now - 7_260},
            "last_contact": {"bert": now - 90, "cleo": None},
            "unsent": {"bert": 2},
            "inbox_messages": 5,
            "asked_again": 1,
            "refused": {"Malformed": 7},
            "set_aside": {"records": 7, "bytes": 900, "limit": 1_000},
            "checkpoint_at": now - 5,
            "privacy": {"epsilon": 1.2341, "budget": 8.0, "delta": 1e-5, "noise": 1.1, "steps": 40},
            "relay": {
                "state": "reconnecting",
                "since": now - 61,
                "host": None,
                "tries": 3,
                "reason": "Nobody answers.",
                "reconnects": 1,
            },
        },
        now=now,
    )
    for words in (
        "waiting for bert (since 2 h 1 min)",
        "relay: reconnecting since 1 min 1 s, 3 tries failed: Nobody answers.",
        "last heard: bert 1 min 30 s ago, cleo never",
        "not sent yet: 2 to bert",
        "waiting in the inbox at the relay: 5 messages",
        "asked others again 1 times",
        "refused: 7 Malformed; 7 of 1000 set aside (900 bytes)",
        "checkpoint of the turn under way: 5 s ago",
        "differential privacy: epsilon 1.235 of 8 spent, at delta 1e-05",
    ):
        assert words in told, told
    assert "its loop hangs" in status_text(STATUS | {"running": True, "updated": now - 300}, now=now)


# --- the documents --------------------------------------------------------------------------------------------------


def table(name: str) -> list[str]:
    text = OPERATIONS.read_text()
    return re.findall(r"^\| (.*?) \|", text.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0], re.M)[1:]


def test_every_key_of_the_status_is_in_the_documents(tmp_path: Path) -> None:
    documented = {key for cell in table("status") for key in re.findall(r"`(\w+)`", cell)}
    found = {"running", "folder"}  # what the reader adds
    for protocol in ("server-aided", "fully-connected", "masked-average"):
        manifest, relay = manifest_for(protocol=protocol, training__epochs=1), MemoryRelay()
        trial = TrialInProcess(manifest, tmp_path / protocol, lambda _, relay=relay: MemoryTransport(relay))  # type: ignore[misc]
        trial.run()
        status = json.loads((tmp_path / protocol / "anna" / "status.json").read_text())
        found |= set(status)
        assert all(status["last_contact"].values()), status
        assert set(status["last_contact"]) == {"bert", "cleo"}
    assert found - documented == set()
    # `relay` comes with the connection's own facts; the others are entries within an entry.
    within = {"state", "since", "host", "tries", "reason", "records", "bytes", "limit", "loss", "accuracy"}
    within |= {"times", "seconds", "steps", "samples", "holdout_loss", "holdout_accuracy"}
    resting = {"rests_s", "abandons_first"}  # after many attempts that were given up, only
    private = {"privacy"}  # with [privacy] only (tests/trials/test_private.py)
    assert documented - found - within - resting - private <= {"relay"}


def test_every_exit_code_is_in_the_documents() -> None:
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", OPERATIONS.read_text(), re.M)
    assert {int(code): meaning for code, meaning in rows} == exit_codes.MEANINGS


def test_a_trial_of_turns_that_has_ended_is_not_told_as_one_in_its_middle() -> None:
    """Each peer counts to its own last turn, which is not the trial's."""
    assert "; turn 3 of 4" in status_text(STATUS | {"running": True, "updated": 1.0, "turn": 3}, now=1.0)
    ended = STATUS | {"running": False, "updated": 1.0, "turn": 3, "phase": "ended"}
    assert "; all 4 turns are done" in status_text(ended, now=1.0)
