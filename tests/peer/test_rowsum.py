"""Whatever changes a row behind the journal's back is noticed when it is opened; what the journal does is not."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from ppdl_mq.errors import Interrupted, JournalError
from ppdl_mq.peer.blobs import INLINE_BYTES, Blobs
from ppdl_mq.peer.journal import Journal
from ppdl_mq.peer.slots import Slots
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.slots import Slot
from ppdl_mq.transport.memory import MemoryRelay, MemoryTransport
from tests.people import identity_of, manifest_for
from tests.trial import TrialInProcess

TRIAL_ID = bytes(range(32))
ANNA = identity_of("anna")
SLOT = Slot("turn", 1)


def opened(folder: Path) -> Journal:
    return Journal(folder, trial_id=TRIAL_ID, identity=ANNA)


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A closed journal with some rows, of which some were changed and removed again."""
    journal = opened(tmp_path)
    slots = Slots(journal, Blobs(journal))
    slots.put(SLOT, b"gone soon")
    slots.put(Slot("turn", 2), bytes(range(100)))
    with journal.transaction() as db:
        db.execute("INSERT INTO seen VALUES ('bert', x'01', 7)")
        db.execute("INSERT INTO seen VALUES ('bert', x'02', 8)")
        db.execute("INSERT INTO refused (at, reason, head) VALUES (1.5, 'Malformed', x'00')")
    with journal.transaction() as db:
        db.execute("DELETE FROM seen WHERE turn = 8")
        db.execute("UPDATE refused SET at = 2.5")
        journal.keep_fact("replaced", b"1")
        journal.keep_fact("replaced", b"2")
        slots.forget(2)
    with contextlib.suppress(KeyError), journal.transaction() as db:
        db.execute("INSERT INTO seen VALUES ('bert', x'03', 9)")
        raise KeyError
    with journal.transaction() as db:
        with contextlib.suppress(KeyError), journal.savepoint():
            db.execute("INSERT INTO seen VALUES ('bert', x'04', 9)")
            raise KeyError
        db.execute("INSERT INTO seen VALUES ('bert', x'05', 9)")
    journal.close()
    return tmp_path


def behind_its_back(folder: Path, statement: str) -> None:
    with closing(sqlite3.connect(folder / "journal.sqlite")) as db, db:
        assert db.execute(statement).rowcount == 1


def test_what_the_journal_does_itself_is_fine(filled: Path) -> None:
    for _ in range(2):
        journal = opened(filled)
        with journal.transaction() as db:
            db.execute("INSERT INTO seen VALUES ('cleo', ?, 1)", (hashlib.sha256(str(filled).encode()).digest(),))
            db.execute("DELETE FROM seen WHERE sender = 'cleo'")
        journal.keep_fact("x", b"y")
        journal.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE seen SET turn = 8 WHERE turn = 7",
        "DELETE FROM seen WHERE turn = 7",
        "INSERT INTO seen VALUES ('cleo', x'09', 7)",
        "UPDATE slot SET bytes = 99",
        "UPDATE blob SET inline = x'00' WHERE id = (SELECT max(id) FROM blob)",
        "DELETE FROM fact WHERE name = 'replaced'",
        "DELETE FROM fact WHERE name = 'rows'",
        "UPDATE refused SET at = 2.25",
        "UPDATE fact SET value = zeroblob(32) WHERE name = 'rows'",
    ],
)
def test_a_row_changed_behind_its_back_is_noticed(filled: Path, statement: str) -> None:
    behind_its_back(filled, statement)
    for _ in range(2):
        with pytest.raises(JournalError, match="not what was written") as caught:
            opened(filled)
        assert "trial renew" in caught.value.hint


def test_writing_outside_of_a_transaction_is_a_bug_that_is_met_at_once(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    try:
        with pytest.raises(sqlite3.OperationalError):
            journal.db.execute("INSERT INTO seen VALUES ('bert', x'01', 7)")
    finally:
        journal.close()
    opened(tmp_path).close()


@pytest.mark.parametrize("size_bytes", [INLINE_BYTES + 1, 3 * INLINE_BYTES])
def test_weights_that_changed_within_their_file(tmp_path: Path, size_bytes: int) -> None:
    journal = opened(tmp_path)
    Slots(journal, Blobs(journal)).put(SLOT, bytes(size_bytes))
    journal.close()
    (file,) = (tmp_path / "blobs").iterdir()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    journal = opened(tmp_path)
    try:
        Slots(journal, Blobs(journal)).check()
        file.write_bytes(content)
        with pytest.raises(JournalError, match="turn of step 1"):
            Slots(journal, Blobs(journal)).check()
    finally:
        journal.close()


@pytest.mark.parametrize("how", ["removed", "emptied"])
@pytest.mark.parametrize("rest", ["transcript.log", "live/0123456789abcdef"])
def test_a_journal_that_has_gone_does_not_begin_anew(filled: Path, how: str, rest: str) -> None:
    (filled / rest).parent.mkdir(exist_ok=True)
    (filled / rest).write_bytes(b"x")
    (filled / "journal.sqlite").unlink()
    if how == "emptied":
        (filled / "journal.sqlite").touch()
    for _ in range(2):
        with pytest.raises(JournalError, match="missing or empty"):
            opened(filled)


def test_a_peer_that_resumes_checks_its_slots_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    relay = MemoryRelay()
    trial = TrialInProcess(manifest_for(("anna", "bert")), tmp_path, lambda _: MemoryTransport(relay))
    (thread,) = trial.start("anna")
    while "anna" not in trial.runners or trial.runners["anna"].state.phase is not Phase.AWAITING_HELLOS:
        assert thread.is_alive(), trial.errors
        thread.join(0.01)
    trial.runners["anna"].stop()
    thread.join(10)
    assert isinstance(trial.errors.pop("anna"), Interrupted)

    def changed(_: Slots, pulse: object) -> None:
        raise JournalError("changed on the disk")

    monkeypatch.setattr(Slots, "check", changed)
    trial.run_one("anna")
    assert isinstance(trial.errors["anna"], JournalError)
