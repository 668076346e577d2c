from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from ppdl_mq.config import limits
from ppdl_mq.crypto.identity import Identity
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import AlreadyRunning, InTheWay, JournalError, Malformed
from ppdl_mq.peer import durable, runner
from ppdl_mq.peer.blobs import INLINE_BYTES, Blobs
from ppdl_mq.peer.journal import Journal, take_lock
from ppdl_mq.peer.live import LiveMark, LiveSecrets, live_key
from ppdl_mq.peer.quarantine import Quarantine
from ppdl_mq.protocol.events import Started
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.sequential import SequentialMachine
from ppdl_mq.protocol.state import State
from ppdl_mq.transport.memory import MemoryRelay, MemoryTransport
from ppdl_mq.wire import canonical
from tests.protocol.world import started, terms_of
from tests.trial import TrialInProcess, identity_of, manifest_for

TRIAL_ID = bytes(range(32))
ANNA = identity_of("anna")


def opened(folder: Path, *, trial_id: bytes = TRIAL_ID, identity: Identity = ANNA) -> Journal:
    return Journal(folder, trial_id=trial_id, identity=identity)


# --- whose it is -----------------------------------------------------------------------------------------------------


def test_a_second_one_is_refused_while_the_first_is_open(tmp_path: Path) -> None:
    first = opened(tmp_path)
    with pytest.raises(AlreadyRunning):
        opened(tmp_path)
    first.close()
    opened(tmp_path).close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses before another try for the lock, which take no time here."""
    taken: list[float] = []
    monkeypatch.setattr(time, "sleep", taken.append)
    return taken


def test_who_only_looks_whether_a_peer_runs_keeps_none_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look takes the lock for a moment: here until the peer that starts has met it once."""
    opened(tmp_path).close()
    look = os.open(tmp_path / "lock", os.O_RDONLY)
    fcntl.flock(look, fcntl.LOCK_SH | fcntl.LOCK_NB)
    monkeypatch.setattr(time, "sleep", lambda _: fcntl.flock(look, fcntl.LOCK_UN))
    opened(tmp_path).close()
    os.close(look)


def test_a_lock_that_is_kept_is_waited_for_a_second(tmp_path: Path, pauses: list[float]) -> None:
    first = opened(tmp_path)
    with pytest.raises(AlreadyRunning):
        opened(tmp_path)
    assert 0.9 <= sum(pauses) <= 1.0
    assert min(pauses) >= 0.01
    assert [file.path for file in psutil.Process().open_files()].count(str(tmp_path / "lock")) == 1
    first.close()
    opened(tmp_path).close()


def test_a_file_system_without_locks_is_told_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(InTheWay, match="No locks available"):
        opened(tmp_path)
    assert pauses == []


def test_only_its_owner_can_look_into_the_folder(tmp_path: Path) -> None:
    for folder in (tmp_path / "new" / "state", tmp_path / "was-there"):
        if folder.name == "was-there":
            folder.mkdir()
            folder.chmod(0o755)
        opened(folder).close()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_names_of_folders_that_were_made_are_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    fsync = os.fsync

    def noted(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").readlink())
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    folder = tmp_path / "new" / "state"
    # That of the last one which is there, too: a process that made it may have died before its name was on disk.
    for made in ([tmp_path.parent, tmp_path, tmp_path / "new"], [tmp_path / "new"]):
        synced.clear()
        os.close(take_lock(folder))
        assert synced == made


def test_a_folder_in_one_that_this_user_may_not_look_into_is_there_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))

    monkeypatch.setattr(durable, "sync_folder", refuse)
    os.close(take_lock(tmp_path))
    with pytest.raises(JournalError, match="Permission denied"):  # it would be made there, and must be on disk
        take_lock(tmp_path / "state")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="file"):
        opened(tmp_path / "file" / "state")


def test_a_second_process_is_refused_and_a_killed_one_leaves_the_lock_free(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.peer.test_journal import opened\n"
        "journal = opened(Path(sys.argv[1])); print('open', flush=True); sys.stdin.read()"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(AlreadyRunning):
            opened(tmp_path)
        assert (tmp_path / "lock").read_text() == f"{other.pid}\n"
        other.kill()
    opened(tmp_path).close()


@pytest.mark.parametrize(
    ("trial_id", "identity"), [(bytes(32), ANNA), (TRIAL_ID, identity_of("bert"))], ids=["trial", "identity"]
)
def test_of_another_trial_or_identity(tmp_path: Path, trial_id: bytes, identity: Identity) -> None:
    opened(tmp_path).close()
    for _ in range(2):  # and it leaves no lock behind
        with pytest.raises(JournalError) as caught:
            opened(tmp_path, trial_id=trial_id, identity=identity)
        assert type(caught.value) is JournalError
    opened(tmp_path).close()


def test_an_identity_with_the_same_public_keys_cannot_be_made_up(tmp_path: Path) -> None:
    """The secrets in it are sealed: a copied folder is of no use without the identity."""
    journal = opened(tmp_path)
    journal.keep_secret_fact("state", {"x": 1})
    journal.close()
    db = sqlite3.connect(tmp_path / "journal.sqlite")
    with db:
        db.execute("UPDATE fact SET value = ? WHERE name = 'keys'", (identity_of("bert").public.raw_keys,))
    db.close()
    with pytest.raises(JournalError):
        opened(tmp_path, identity=identity_of("bert"))


# --- damage ----------------------------------------------------------------------------------------------------------


def test_not_a_database(tmp_path: Path) -> None:
    opened(tmp_path).close()
    (tmp_path / "journal.sqlite").write_bytes(b"not a database, but something else" * 100)
    for _ in range(2):
        with pytest.raises(JournalError) as caught:
            opened(tmp_path)
        assert type(caught.value) is JournalError


@pytest.mark.parametrize(
    "damaged",
    [lambda raw: b"not a database" * 400, lambda raw: raw.replace(b"CREATE TABLE fact", b"CREATE TABLE \x80act")],
    ids=["no-database", "schema"],
)
def test_one_that_is_refused_stays_open_nowhere(tmp_path: Path, damaged: Callable[[bytes], bytes]) -> None:
    opened(tmp_path).close()
    path = tmp_path / "journal.sqlite"
    path.write_bytes(damaged(path.read_bytes()))
    with pytest.raises(JournalError) as caught:  # which is held, and its traceback with it
        opened(tmp_path)
    assert [file.path for file in psutil.Process().open_files() if file.path.startswith(str(tmp_path))] == []
    assert caught.value.hint


@pytest.mark.parametrize("what", ["folder", "fifo", "dangling link"])
def test_what_is_no_file_in_its_place_is_damage(tmp_path: Path, what: str) -> None:
    opened(tmp_path).close()
    journal = tmp_path / "journal.sqlite"
    journal.unlink()
    if what == "folder":
        journal.mkdir()
    elif what == "fifo":
        os.mkfifo(journal)
    else:
        journal.symlink_to("nowhere")
    for _ in range(2):  # the lock was given back
        with pytest.raises(JournalError) as caught:
            opened(tmp_path)
        assert not isinstance(caught.value, (InTheWay, AlreadyRunning))


@pytest.mark.parametrize("at", ["9e999", "-9e999"])
def test_a_number_without_end_is_damage(tmp_path: Path, at: str) -> None:
    journal = opened(tmp_path)
    Quarantine(journal).add(Malformed("It does not decode."), b"")
    journal.close()
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as db, db:
        db.execute(f"UPDATE refused SET at = {at}")
    with pytest.raises(JournalError, match=r"refused\.at"):
        opened(tmp_path)


def test_whatever_keeps_it_from_being_opened_the_lock_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Journal, "_prepare", lambda *_, **__: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        opened(tmp_path)
    monkeypatch.undo()
    opened(tmp_path).close()


@pytest.mark.parametrize("is_empty", [False, True])
def test_a_missing_one_leaves_its_write_ahead_log_alone(tmp_path: Path, *, is_empty: bool) -> None:
    """Somebody moved the file away by mistake, and will put it back: SQLite would have thrown the rest of it away."""
    journal = opened(tmp_path)
    journal.keep_fact("what", b"is not in the file yet")
    (tmp_path / "transcript.log").write_text("")
    killed = tmp_path / "killed"
    killed.mkdir()
    for name in ("journal.sqlite", "journal.sqlite-wal", "transcript.log"):
        shutil.copyfile(tmp_path / name, killed / name)
    journal.close()
    moved = (killed / "journal.sqlite").rename(tmp_path / "moved")
    if is_empty:
        (killed / "journal.sqlite").touch()
    with pytest.raises(JournalError, match="missing or empty"):
        opened(killed)
    moved.rename(killed / "journal.sqlite")
    again = opened(killed)
    assert again.fact("what") == b"is not in the file yet"
    again.close()


@pytest.mark.parametrize("at", [16, 100, 2_000, 4_096, 5_000, 8_192, 9_000, 12_288])
def test_overwritten_pages(tmp_path: Path, at: int) -> None:
    """Wherever the damage is: a JournalError when it is met, never another exception."""
    journal = opened(tmp_path)
    with journal.transaction():
        for number in range(20):
            journal.keep_secret_fact(f"entry {number}", {"x": bytes(200)})
        Blobs(journal).put(bytes(3_000))
    journal.close()
    path = tmp_path / "journal.sqlite"
    raw = bytearray(path.read_bytes())
    raw[at : at + 3_000] = bytes(0xA5 for _ in raw[at : at + 3_000])
    path.write_bytes(raw)
    try:
        journal = opened(tmp_path)
    except JournalError:
        return
    try:
        for number in range(20):
            journal.secret_fact(f"entry {number}")
            journal.keep_secret_fact(f"entry {number}", {})
        with journal.transaction() as db:
            db.execute("SELECT * FROM blob").fetchall()
    except JournalError:
        pass
    finally:
        journal.close()


def test_a_sealed_entry_under_another_name_does_not_open(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.keep_secret_fact("state", {"phase": "new"})
    sealed = journal.fact("state")
    assert sealed is not None
    journal.keep_fact("other", sealed)
    journal.keep_fact("state", sealed[:-1] + bytes([sealed[-1] ^ 1]))
    for name in ("state", "other"):
        with pytest.raises(JournalError):
            journal.secret_fact(name)
    assert journal.secret_fact("none") is None
    journal.close()


def test_what_could_not_be_read_again_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_STATE_BYTES", 1_000)
    journal = opened(tmp_path)
    largest = {"x": bytes(1_000 - len(canonical.encode({"x": bytes(500)})) + 500)}
    journal.keep_secret_fact("state", largest)
    assert journal.secret_fact("state") == largest

    def keep_too_much() -> None:
        with journal.transaction():
            journal.keep_fact("beside", b"1")
            journal.keep_secret_fact("state", {"x": largest["x"] + b"1"})

    with pytest.raises(JournalError, match="would have 1001 bytes"):
        keep_too_much()
    assert journal.fact("beside") is None
    assert journal.secret_fact("state") == largest
    journal.close()


def test_another_program_that_holds_it_is_no_damage(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.db.execute("PRAGMA busy_timeout = 10")
    other = sqlite3.connect(tmp_path / "journal.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(AlreadyRunning, match="Another program") as caught:
        journal.keep_fact("what", b"")
    assert "Nothing is lost" in caught.value.hint
    other.close()
    journal.keep_fact("what", b"")
    journal.close()


def test_what_is_in_the_way_is_no_damage(tmp_path: Path) -> None:
    """Nobody may be told to give up the trial since the file system was mounted anew for reading only."""
    journal = opened(tmp_path)
    journal.db.execute("PRAGMA query_only = ON")
    with pytest.raises(JournalError, match="readonly") as caught:
        journal.keep_fact("what", b"")
    assert "Nothing is lost" in caught.value.hint
    journal.close()


def test_blobs_that_are_missing_or_cut(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    blobs = Blobs(journal)
    large = blobs.put(bytes(INLINE_BYTES + 1))
    path = tmp_path / "blobs" / str(large)
    os.truncate(path, 100)
    with pytest.raises(JournalError), blobs.view(large):
        pass
    path.unlink()
    for missing in (large, 999):
        with pytest.raises(JournalError), blobs.view(missing):
            pass
    journal.close()


# --- all or nothing --------------------------------------------------------------------------------------------------


def test_a_transaction_is_all_or_nothing(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    blobs = Blobs(journal)
    kept = blobs.put(bytes(INLINE_BYTES + 1))

    def fail_in_the_middle() -> None:
        with journal.transaction():
            journal.keep_fact("one", b"1")
            with journal.transaction():
                journal.keep_fact("two", b"2")
                blobs.put(bytes(INLINE_BYTES + 2))
                blobs.delete(kept)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_in_the_middle()
    assert (journal.fact("one"), journal.fact("two")) == (None, None)
    with blobs.view(kept) as view:
        assert len(view) == INLINE_BYTES + 1
    with journal.transaction():  # the roll-back left nothing to be removed later
        journal.keep_fact("three", b"3")
    assert (tmp_path / "blobs" / str(kept)).exists()
    journal.close()
    again = opened(tmp_path)
    Blobs(again)
    assert [path.name for path in (tmp_path / "blobs").iterdir()] == [str(kept)]  # the second file was swept
    again.close()


def test_a_crash_while_it_is_made(tmp_path: Path) -> None:
    """A folder with a file that SQLite has made and nobody has filled is taken as new."""
    tmp_path.joinpath("journal.sqlite").touch()
    opened(tmp_path).close()
    opened(tmp_path).close()


def test_what_was_committed_survives_the_process(tmp_path: Path) -> None:
    journal = opened(tmp_path / "one")
    journal.keep_fact("number", b"7")
    copied = tmp_path / "two"  # as a disk would look after the power failed
    shutil.copytree(tmp_path / "one", copied)
    journal.close()
    again = opened(copied)
    assert again.fact("number") == b"7"
    again.close()


# --- secrecy ---------------------------------------------------------------------------------------------------------


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_secrets_of_the_state_cannot_be_read_from_the_folder(tmp_path: Path) -> None:
    terms = terms_of("anna", protocol="server-aided")
    event = started("anna")
    assert isinstance(event, Started)
    state, _ = SequentialMachine(terms).step(State(), event)
    journal = opened(tmp_path)
    journal.keep_secret_fact("state", state.as_data())
    raw = everything_in(tmp_path)
    for secret in (event.session_secret, event.contribution, ANNA.secret, ANNA.x25519_secret):
        assert secret.reveal() not in raw
        assert secret.reveal()[:16] not in raw
        assert secret.reveal().hex().encode() not in raw
    assert State.from_data(journal.secret_fact("state")) == state
    journal.close()


@pytest.mark.parametrize("protocol", ["fully-connected", "server-aided"])
def test_after_a_trial_no_secret_is_left(tmp_path: Path, protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Secret] = []
    plain = runner.new_secret

    def remembered() -> Secret:
        drawn.append(plain())
        return drawn[-1]

    monkeypatch.setattr(runner, "new_secret", remembered)
    relay = MemoryRelay()
    names = ("anna", "bert")
    manifest = manifest_for(names, protocol=protocol, training__epochs=1)
    trial = TrialInProcess(manifest, tmp_path, lambda _: MemoryTransport(relay))
    trial.run()
    raw = everything_in(tmp_path)
    assert len(drawn) == 4
    for secret in (*drawn, *(identity_of(name).secret for name in names)):
        assert secret.reveal()[:16] not in raw
    for name in names:
        journal = Journal(tmp_path / name, trial_id=trial.runners[name].terms.trial_id, identity=identity_of(name))
        data = journal.secret_fact("state")
        assert "secrets" not in data
        mark = LiveMark.from_data(journal.secret_fact("live secrets"))
        live = LiveSecrets(tmp_path / name, live_key(identity_of(name), trial.runners[name].terms.trial_id))
        state = State.from_data(data | {"secrets": live.load(mark)})
        assert (state.phase, state.session_secret, dict(state.contributions)) == (Phase.ENDED, None, {})
        assert not state.pair_keys
        journal.close()


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        relay = MemoryRelay()
        manifest = manifest_for(("anna", "bert"), training__epochs=1)
        TrialInProcess(manifest, tmp_path / "state", lambda _: MemoryTransport(relay)).run()
    finally:
        os.umask(before)
    folder = tmp_path / "state" / "anna"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}
    assert modes["anna"] == 0o700
    assert modes["blobs"] == 0o700
    assert modes["journal.sqlite"] == modes["lock"] == 0o600


def test_a_savepoint_undoes_its_own_block_only(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    blobs = Blobs(journal)
    kept, dropped = (blobs.put(bytes(INLINE_BYTES + 1)) for _ in range(2))

    def fail() -> None:
        with journal.savepoint():
            journal.keep_fact("inner", b"1")
            blobs.delete(kept)
            raise RuntimeError

    with journal.transaction():
        journal.keep_fact("before", b"1")
        blobs.delete(dropped)
        with pytest.raises(RuntimeError):
            fail()
        with journal.savepoint():
            journal.keep_fact("after", b"1")
    assert [journal.fact(name) for name in ("before", "inner", "after")] == [b"1", None, b"1"]
    assert [path.name for path in (tmp_path / "blobs").iterdir()] == [str(kept)]
    with pytest.raises(RuntimeError):
        fail()  # alone it is a transaction
    assert journal.fact("inner") is None
    journal.close()
