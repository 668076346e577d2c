"""What only the embedded relay shows: processes that die, its file, and several trials in it."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from ppdl_mq.config import limits
from ppdl_mq.errors import Interrupted, RelayError, RelayLost, RelayRefused, RelayUnreachable
from ppdl_mq.transport.address import Names
from ppdl_mq.transport.embedded import EmbeddedTransport, store
from ppdl_mq.transport.embedded.store import folder_of, opening_error, working_error
from tests.transport.relays import SOON_S, bodies, receive_all

NAMES = Names(prefix="test", trial="trial")

HOLDER = """
import sys
from pathlib import Path
from ppdl_mq.transport.address import Names
from ppdl_mq.transport.embedded import EmbeddedTransport
transport = EmbeddedTransport(Path(sys.argv[1]), Names(prefix="test", trial="trial"))
transport.connect()
transport.subscribe("a")
held = [transport.receive(10), transport.get("weights")]
print("holding", flush=True)
sys.stdin.read()
"""

PUBLISHER = """
import sys
from pathlib import Path
from ppdl_mq.transport.address import Names
from ppdl_mq.transport.embedded import EmbeddedTransport
with EmbeddedTransport(Path(sys.argv[1]), Names(prefix="test", trial="trial")) as transport:
    transport.declare("a")
    for number in range(20):
        transport.publish("a", [sys.argv[2].encode() + b":%d" % number])
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "relay.db"


def opened(path: Path, names: Names = NAMES) -> EmbeddedTransport:
    transport = EmbeddedTransport(path, names, message_bytes=4_096)
    transport.connect()
    return transport


def test_what_a_killed_process_held_is_ready_again_and_first(path: Path) -> None:
    with opened(path) as ours:
        ours.declare("a")
        ours.declare("weights")
        ours.publish("a", [b"1", b"2"])
        ours.publish("weights", [b"w1", b"w2"])
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        with holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "holding\n"
            assert ours.depth("a") == 1
            assert ours.depth("weights") == 1
            ours.publish("a", [b"3"])
            holder.send_signal(signal.SIGKILL)
        assert ours.depth("weights") == 2
        ours.subscribe("a")
        assert bodies(receive_all(ours, 3)) == [b"1", b"2", b"3"]
        assert [ours.get("weights").body, ours.get("weights").body] == [b"w1", b"w2"]
    assert [file.name for file in folder_of(path).iterdir()] == ["open.lock"]


def test_a_waiting_reader_gets_what_a_dying_holder_leaves(path: Path) -> None:
    with opened(path) as reader, opened(path) as holder:
        reader.declare("a")
        reader.subscribe("a")
        holder.publish("a", [b"1"])
        assert holder.get("a") is not None
        assert reader.receive(0) is None
        os.close(holder._holder._lock)  # as the system does for a process that died
        assert bodies(receive_all(reader, 1)) == [b"1"]
        holder._holder._lock = os.open("/dev/null", os.O_RDONLY)


def test_a_lock_file_that_cannot_be_looked_at_loses_the_connection_only(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_many_open_files(*_: object) -> bool:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with opened(path) as reader, opened(path) as holder:
        reader.declare("a")
        reader.subscribe("a")
        holder.publish("a", [b"1", b"2"])
        assert holder.get("a").body == b"1"
        with monkeypatch.context() as for_a_moment:
            for_a_moment.setattr("ppdl_mq.transport.embedded.adapter.is_alive", too_many_open_files)
            for use in (lambda: reader.receive(SOON_S), lambda: reader.depth("a")):  # the second has no connection
                with pytest.raises(RelayLost):
                    use()
        holder.close()
        reader.connect()
        reader.subscribe("a")
        assert bodies(receive_all(reader, 2)) == [b"1", b"2"]


def test_files_that_cannot_be_removed_keep_nobody_from_closing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    before = open_files()
    transport = opened(path)
    transport.declare("a")
    with monkeypatch.context() as for_a_moment:
        for_a_moment.setattr("ppdl_mq.transport.embedded.holder.remove", read_only)
        transport.close()
    assert open_files() == before


def test_several_processes_publish_and_nothing_is_lost_or_mixed(path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", PUBLISHER, str(path), name]) for name in "xyz"]
    assert [writer.wait(SOON_S) for writer in writers] == [0, 0, 0]
    with opened(path) as reader:
        reader.subscribe("a")
        received = bodies(receive_all(reader, 60))
    for name in (b"x", b"y", b"z"):
        assert [body for body in received if body.startswith(name)] == [b"%s:%d" % (name, i) for i in range(20)]


def test_two_connections_of_one_process_do_not_lose_the_write_ahead_log(path: Path) -> None:
    """Opening and closing the file itself would drop SQLite's locks on it; the next process would remove the log."""
    with opened(path) as first, opened(path) as second:
        first.declare("a")
        second.publish("a", [b"before"])
        subprocess.run([sys.executable, "-c", PUBLISHER, str(path), "other"], check=True, timeout=60)
        log = path.with_name(path.name + "-wal")
        assert log.exists()
        with sqlite3.connect(path) as fresh:
            assert fresh.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        fresh.close()
        assert first.depth("a") == 21


def test_a_message_wakes_its_reader_at_once(path: Path) -> None:
    with opened(path) as reader, opened(path) as sender:
        reader.declare("a")
        reader.subscribe("a")
        begun = time.monotonic()
        for _ in range(50):
            sender.publish("a", [b"x"])
            reader.ack(receive_all(reader, 1))
        assert time.monotonic() - begun < SOON_S


def test_two_trials_share_a_file(path: Path) -> None:
    with opened(path) as one, opened(path, Names(prefix="test", trial="other")) as two:
        one.declare("a")
        two.declare("a")
        one.publish("a", [b"one"])
        assert two.get("a") is None
        assert one.get("a").body == b"one"


def test_file_and_folders_are_private(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "relay.db"
    with opened(path) as transport:
        transport.declare("a")
        transport.subscribe("a")
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(folder_of(path).stat().st_mode) == 0o700
        files = [path, *path.parent.glob("relay.db-*"), *folder_of(path).glob("*.wake")]
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def open_files() -> set[str]:
    return {file.name for file in Path("/dev/fd").iterdir()}


def test_no_file_is_left_open_or_behind(path: Path) -> None:
    before = open_files()
    for _ in range(3):
        with opened(path) as transport:
            transport.declare("a")
    assert open_files() == before
    assert {file.name for file in path.parent.iterdir()} == {"relay.db", "relay.db.d"}


@contextmanager
def opened_by_another(path: Path) -> Iterator[int]:
    """Another process is at the first steps of opening the file, and stays there."""
    opened(path).close()
    with (folder_of(path) / "open.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield turn.fileno()


def test_whoever_is_stopped_while_he_opens_it_holds_others_up_for_a_while_only(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(store, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    with opened_by_another(path):
        transport = EmbeddedTransport(path, NAMES)
        transport.look_round(lambda: looks.append(now))
        with pytest.raises(RelayUnreachable, match="Another process"):
            transport.connect()
    assert now == pytest.approx(10.0, abs=0.1)
    assert len(looks) >= 10 / limits.LOOK_S
    opened(path).close()


def test_a_peer_that_waits_for_it_can_be_stopped_or_gets_its_turn(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> None:
        raise Interrupted("stopped")

    with opened_by_another(path) as turn:
        transport = EmbeddedTransport(path, NAMES)
        transport.look_round(stop)
        with pytest.raises(Interrupted):
            transport.connect()
        monkeypatch.setattr(store.time, "sleep", lambda _: fcntl.flock(turn, fcntl.LOCK_UN))
        opened(path).close()


def test_something_else_than_a_relay_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a database, and long enough to be looked at\n" * 100)
    with sqlite3.connect(tmp_path / "other.db") as database:
        database.execute("CREATE TABLE something (x)")
    database.close()
    (tmp_path / "folder").mkdir()
    for name in ("text", "other.db", "folder", "text/below"):
        with pytest.raises(RelayRefused):
            opened(tmp_path / name)


def test_a_file_that_loses_its_tables_loses_the_connection(path: Path) -> None:
    transport = opened(path)
    transport.declare("a")
    with sqlite3.connect(path) as database:
        database.execute("DROP TABLE bodies")
    database.close()
    with pytest.raises(RelayLost):
        transport.publish("a", [b"x"])
    with pytest.raises(RelayLost):
        transport.depth("a")


def test_a_full_disk_loses_the_connection_and_nothing_else(path: Path) -> None:
    transport = opened(path)
    transport.declare("a")
    transport.publish("a", [b"kept"])
    transport._database.execute("PRAGMA max_page_count = 1")  # SQLite's own way to be full
    with pytest.raises(RelayLost) as caught:
        transport.publish("a", [bytes(100_000)])
    assert "full" in caught.value.message
    transport.connect()
    assert transport.get("a").body == b"kept"
    transport.close()


def _sqlite_error(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("text")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (sqlite3.SQLITE_NOTADB, RelayRefused),
        (sqlite3.SQLITE_CORRUPT, RelayRefused),
        (sqlite3.SQLITE_PERM, RelayRefused),
        (sqlite3.SQLITE_READONLY, RelayRefused),
        (sqlite3.SQLITE_READONLY_DIRECTORY, RelayRefused),
        (sqlite3.SQLITE_CANTOPEN, RelayUnreachable),
        (sqlite3.SQLITE_FULL, RelayUnreachable),
        (sqlite3.SQLITE_BUSY, RelayUnreachable),
        (sqlite3.SQLITE_IOERR, RelayUnreachable),
    ],
)
def test_each_error_of_sqlite_is_mapped(code: int, expected: type[RelayError], path: Path) -> None:
    assert type(opening_error(_sqlite_error(code), path)) is expected
    assert type(working_error(_sqlite_error(code), path)) is RelayLost


@pytest.mark.parametrize("body", [5, 0.5, "text"])
def test_what_is_no_body_is_handed_out_to_be_refused(path: Path, body: object) -> None:
    with opened(path) as ours:
        ours.declare("a")
        ours.publish("a", [b"1", b"2"])
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("UPDATE bodies SET body = ? WHERE number = (SELECT min(number) FROM bodies)", (body,))
        ours.subscribe("a")
        first, second = receive_all(ours, 2)
        assert (first.body, second.body) == (b"text" if body == "text" else b"", b"2")
        ours.ack([first, second])
        assert ours.depth("a") == 0
