"""What keeps a peer from its files for a while says nothing against what stands in them: it ends, and goes on later."""

from __future__ import annotations

import errno
import os
import resource
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ppdl_mq.cli import exit_codes
from ppdl_mq.cli.exit_codes import exit_code
from ppdl_mq.errors import InTheWay, JournalError
from ppdl_mq.peer.blobs import INLINE_BYTES, Blobs
from ppdl_mq.peer.folders import GIVEN_UP_NAME, LIVE_NAME, SPOKEN_NAME
from ppdl_mq.peer.journal import Journal
from ppdl_mq.peer.live import LiveMark, LiveSecrets, live_key
from ppdl_mq.peer.orders import Order, give_order, take_orders
from tests.people import identity_of

TRIAL_ID = bytes(range(32))
ANNA = identity_of("anna")
LARGE = bytes(INLINE_BYTES + 1)  # as a blob of this size has a file of its own
MAY_PASS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS)
DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)


@contextmanager
def no_more_files() -> Iterator[None]:
    """Let this process open no file any more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("name", [SPOKEN_NAME, LIVE_NAME, GIVEN_UP_NAME])
@pytest.mark.parametrize("number", MAY_PASS)
def test_nothing_begins_anew_where_it_cannot_be_told_whether_a_peer_has_spoken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    def fails(path: Path, real: Callable[[Path], os.stat_result] = Path.lstat) -> os.stat_result:
        if path.name == name:
            raise OSError(number, os.strerror(number))
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "lstat", fails)
        with pytest.raises(InTheWay, match="cannot be read"):
            Journal(tmp_path, trial_id=TRIAL_ID, identity=ANNA)
    Journal(tmp_path, trial_id=TRIAL_ID, identity=ANNA).close()  # the lock was given back


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "state", trial_id=TRIAL_ID, identity=ANNA)
    yield opened
    opened.close()


def secrets_of(journal: Journal) -> LiveSecrets:
    return LiveSecrets(journal.folder, live_key(ANNA, TRIAL_ID))


def written(journal: Journal, data: dict[str, Any]) -> LiveMark:
    secrets = secrets_of(journal)
    secrets.load(None)
    mark = secrets.write(data)
    secrets.drop_others(mark)
    return mark


def attempts(journal: Journal) -> dict[str, Callable[[], object]]:
    """Return, by name, what reads a file of a state folder."""
    blobs = Blobs(journal)
    blob, mark = blobs.put(LARGE), written(journal, {"x": 1})
    give_order(journal.folder, Order())

    def read_blob() -> bytes:
        with blobs.view(blob) as view:
            return bytes(view)

    return {
        "blob": read_blob,
        "live secrets": lambda: secrets_of(journal).load(mark),
        "orders": lambda: take_orders(journal.folder),
    }


def held_up(attempt: Callable[[], object]) -> None:
    """Hold a failed attempt to what a person is told of it."""
    with pytest.raises(InTheWay) as caught:
        attempt()
    assert exit_code(caught.value) == exit_codes.IN_THE_WAY
    assert "Nothing is lost" in caught.value.hint
    assert "drop" not in str(caught.value)


@pytest.mark.parametrize("what", ["blob", "live secrets", "orders"])
def test_no_file_can_be_opened_any_more(journal: Journal, what: str) -> None:
    attempt = attempts(journal)[what]
    with no_more_files():
        held_up(attempt)
    assert attempt()


def test_a_journal_is_not_opened_for_want_of_files(tmp_path: Path) -> None:
    Journal(tmp_path, trial_id=TRIAL_ID, identity=ANNA).close()
    with no_more_files():
        held_up(lambda: Journal(tmp_path, trial_id=TRIAL_ID, identity=ANNA))
    Journal(tmp_path, trial_id=TRIAL_ID, identity=ANNA).close()


def failing(number: int) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [*MAY_PASS, *DAMAGE], ids=errno.errorcode.get)
@pytest.mark.parametrize(("what", "call"), [("blob", (Path, "open")), ("live secrets", (os, "open"))])
def test_only_what_is_not_there_is_damage(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, what: str, call: tuple[Any, str], number: int
) -> None:
    attempt = attempts(journal)[what]
    with monkeypatch.context() as patched:
        patched.setattr(*call, failing(number))
        if number in MAY_PASS:
            held_up(attempt)
        else:
            with pytest.raises(JournalError) as caught:
                attempt()
            assert exit_code(caught.value) == exit_codes.STATE
            assert "peer drop" in caught.value.hint
    assert attempt()


def test_live_secrets_that_do_not_come_from_the_disk(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file opens, and the disk fails in the middle of it."""
    attempt = attempts(journal)["live secrets"]
    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", failing(errno.EIO))
        held_up(attempt)
    assert attempt()


def test_live_secrets_that_may_be_newer_are_kept(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file beside the right one that cannot be read may show that the journal was put back: it is not removed."""
    mark = written(journal, {"x": 1})
    other = journal.folder / "live" / "0123456789abcdef"
    other.write_bytes(b"of another time")
    os_open = os.open

    def opened(path: Any, flags: int, *given: Any) -> int:
        if Path(path) == other:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return os_open(path, flags, *given)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", opened)
        held_up(lambda: secrets_of(journal).load(mark))
    assert other.exists()


IOERR = {name for name in dir(sqlite3) if name.startswith("SQLITE_IOERR")}
SAID = {
    exit_codes.IN_THE_WAY: (IOERR - {"SQLITE_IOERR_CORRUPTFS", "SQLITE_IOERR_DATA"})
    | {"SQLITE_NOMEM", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_READONLY", "SQLITE_LOCKED", "SQLITE_PROTOCOL"}
    | {"SQLITE_FULL", "SQLITE_READONLY_DBMOVED", "SQLITE_CANTOPEN_FULLPATH"},
    exit_codes.RUNNING: {"SQLITE_BUSY", "SQLITE_BUSY_RECOVERY", "SQLITE_BUSY_SNAPSHOT"},
    exit_codes.STATE: {"SQLITE_IOERR_CORRUPTFS", "SQLITE_IOERR_DATA", "SQLITE_CORRUPT", "SQLITE_CORRUPT_INDEX"}
    | {"SQLITE_NOTADB", "SQLITE_ERROR", "SQLITE_CONSTRAINT", "SQLITE_MISMATCH", "SQLITE_TOOBIG"},
}


@pytest.mark.parametrize(("name", "code"), sorted((name, code) for code, names in SAID.items() for name in names))
def test_what_sqlite_says(journal: Journal, name: str, code: int) -> None:
    fault = sqlite3.OperationalError("as SQLite puts it")
    fault.sqlite_errorcode = getattr(sqlite3, name)
    error = journal.damaged(fault)
    assert exit_code(error) == code
    assert ("peer drop" in error.hint) == (code == exit_codes.STATE)
    assert ("Nothing is lost" in error.hint) == (code != exit_codes.STATE)
