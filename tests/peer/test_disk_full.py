"""A disk without room: whatever is written then fails with one error, changes nothing, and goes on when there is room.

The disk is made full by a limit on the size of files, which needs no rights: the system refuses what reaches beyond.
"""

from __future__ import annotations

import resource
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from ppdl_mq.config import writing
from ppdl_mq.errors import DiskFull, JournalError, PeerFileError
from ppdl_mq.numeric.flatten import Layout
from ppdl_mq.peer.blobs import Blobs
from ppdl_mq.peer.journal import Journal
from ppdl_mq.peer.live import LiveSecrets, live_key
from ppdl_mq.peer.progress import PROGRESS_NAME, STATUS_NAME, Progress, final_entry
from ppdl_mq.peer.transcript import Transcript
from ppdl_mq.training.saving import save_model
from tests.people import identity_of

TRIAL_ID = bytes(range(32))
ANNA = identity_of("anna")
LARGE = bytes(2_000_000)  # as a blob of this size has a file of its own


@contextmanager
def no_room(limit_bytes: int = 0) -> Iterator[None]:
    """Let no file of this process grow beyond a limit (Python ignores the signal that comes with it)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "state", trial_id=TRIAL_ID, identity=ANNA)
    yield opened
    opened.close()


def test_a_transaction_is_undone_and_works_afterwards(journal: Journal) -> None:
    journal.keep_fact("before", b"1")
    with no_room(), pytest.raises(DiskFull, match="journal"), journal.transaction():
        journal.keep_fact("during", bytes(100_000))
    assert journal.fact("during") is None
    journal.keep_fact("after", b"2")
    assert (journal.fact("before"), journal.fact("after")) == (b"1", b"2")


def test_one_that_sqlite_has_ended_by_itself_is_reported_as_it_was(journal: Journal) -> None:
    def full_inside(number: int) -> None:
        with journal.savepoint() as db:
            db.execute("INSERT INTO seen VALUES ('bert', x'00', ?)", (number,))
            if number == 3:
                db.execute("ROLLBACK")  # as SQLite does where the disk is full
                fault = sqlite3.OperationalError("database or disk is full")
                fault.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise fault

    with pytest.raises(DiskFull, match="database or disk is full"), journal.transaction():
        full_inside(3)
    with journal.transaction():
        full_inside(1)
    assert journal.db.execute("SELECT turn FROM seen").fetchall() == [(1,)]


def test_a_file_of_weights(journal: Journal) -> None:
    blobs = Blobs(journal)
    with no_room(1_000_000), pytest.raises(DiskFull), journal.transaction():
        blobs.put(LARGE)
    with journal.transaction():
        number = blobs.put(LARGE)
    with blobs.view(number) as view:
        assert view == LARGE


def test_the_live_secrets(journal: Journal) -> None:
    live = LiveSecrets(journal.folder, live_key(ANNA, TRIAL_ID))
    live.load(None)
    with no_room(), pytest.raises(DiskFull):
        live.write({"x": b"1"})
    mark = live.write({"x": b"2"})
    live.drop_others(mark)
    assert LiveSecrets(journal.folder, live_key(ANNA, TRIAL_ID)).load(mark) == {"x": b"2"}
    assert len(list((journal.folder / "live").iterdir())) == 1


def test_the_transcript(journal: Journal) -> None:
    def made() -> Transcript:
        return Transcript(journal, me="anna", sign=ANNA.sign, trial_id=TRIAL_ID, manifest=b"m" * 5_000)

    made()
    (journal.folder / "transcript.log").unlink()
    with no_room(100), pytest.raises(DiskFull):
        made()
    whole = made().path.read_bytes()
    assert whole.endswith(b"\n")
    assert len(whole) > 5_000


def test_a_new_folder(tmp_path: Path) -> None:
    with no_room(), pytest.raises(DiskFull):
        Journal(tmp_path / "new", trial_id=TRIAL_ID, identity=ANNA)
    Journal(tmp_path / "new", trial_id=TRIAL_ID, identity=ANNA).close()


def test_the_model_and_its_copy(tmp_path: Path) -> None:
    module = torch.nn.Linear(100, 100)
    layout = Layout.of(module)
    model, elsewhere = tmp_path / "model.safetensors", tmp_path / "copy.safetensors"
    weights = bytearray(layout.total_bytes)
    with no_room(4_096), pytest.raises(DiskFull):
        save_model(model, layout, weights)
    assert list(tmp_path.iterdir()) == []
    save_model(model, layout, weights)
    with no_room(4_096), pytest.raises(DiskFull):
        writing.copy(model, elsewhere, error=PeerFileError)
    assert list(tmp_path.iterdir()) == [model]
    assert writing.copy(model, elsewhere, error=PeerFileError).read_bytes() == model.read_bytes()


def test_status_and_log_do_not_end_a_trial(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    progress = Progress(tmp_path)
    progress.note("turn", turn=1)
    whole = (tmp_path / PROGRESS_NAME).read_bytes()
    with no_room(len(whole) + 5):
        progress.note("turn", turn=2)
        progress.show({"phase": "training"}, now=True)
        assert (tmp_path / PROGRESS_NAME).read_bytes() == whole  # no half line
    assert len([record for record in caplog.records if "cannot be written" in record.message]) == 1
    progress.note("final", turn=3)
    progress.show({"phase": "ended"}, now=True)
    assert '"ended"' in (tmp_path / STATUS_NAME).read_text()
    found = final_entry(tmp_path)
    assert found is not None
    assert found["turn"] == 3


def test_a_line_that_a_crash_left_half_written_is_passed_over(tmp_path: Path) -> None:
    Progress(tmp_path).note("final", turn=1)
    with (tmp_path / PROGRESS_NAME).open("a") as file:
        file.write('{"event": "final", "turn')
    found = final_entry(tmp_path)
    assert found is not None
    assert found["turn"] == 1


@pytest.mark.parametrize("gone", ["blobs", "live"])
def test_what_is_not_for_want_of_room_is_another_error(
    tmp_path: Path, journal: Journal, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: dict[str, Callable[[], object]] = {
        "blobs": lambda: Blobs(journal).put(LARGE),
        "live": lambda: (live := LiveSecrets(journal.folder, live_key(ANNA, TRIAL_ID))).load(None) or live.write({}),
    }
    shutil.rmtree(journal.folder / gone, ignore_errors=True)
    (journal.folder / gone).write_text("a file where the folder was")
    with pytest.raises(JournalError) as caught, journal.transaction():
        attempts[gone]()
    assert type(caught.value) is JournalError
