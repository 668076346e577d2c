"""A peer's state folder, damaged in every way that files can be: what a peer does when it opens it.

The input is a list of edits, see `_edit`. The folder is made once, with something in every table, and put back
before each run. The file of the live secrets keeps its inode, for by that the peer knows it from a copy.
"""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from fuzz.harness import Target, scratch_folder
from fuzz.people import PEOPLE, manifest_of
from ppdl_mq.crypto.agreement import public_half
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import AlreadyRunning, JournalError, RemoteError
from ppdl_mq.peer.blobs import Blobs
from ppdl_mq.peer.driver import Driver
from ppdl_mq.peer.evidence import refuse_after_equivocation
from ppdl_mq.peer.intake import Intake
from ppdl_mq.peer.journal import Journal
from ppdl_mq.peer.live import LiveSecrets, live_key
from ppdl_mq.peer.outbox import Outbox
from ppdl_mq.peer.quarantine import Quarantine
from ppdl_mq.peer.slots import Slots
from ppdl_mq.peer.transcript import Transcript
from ppdl_mq.protocol.events import Received, Started
from ppdl_mq.protocol.keyring import Keyring
from ppdl_mq.protocol.sequential import SequentialMachine
from ppdl_mq.protocol.session import SessionState
from ppdl_mq.protocol.slots import Slot
from ppdl_mq.protocol.statements import session_key_bytes
from ppdl_mq.protocol.terms import Terms
from ppdl_mq.transport.memory import MemoryRelay, MemoryTransport
from ppdl_mq.wire.envelope import body_bytes, seal_parts
from ppdl_mq.wire.header import NO_SESSION, Header
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.messages import Hello

_MANIFEST = manifest_of("fully-connected")
_ME = PEOPLE["anna"]
_TERMS = Terms.of(_MANIFEST, _ME, layout=b"\x09" * 32, software="fuzz")
_FOLDER = scratch_folder() / "peer"
_WEIGHTS_BYTES: Final = 9_000
_CHUNK_BYTES: Final = 4_096
_TABLES: Final = ("fact", "blob", "incoming", "incoming_part", "parked", "seen", "slot", "outgoing", "transcript")
_VALUES: Final[tuple[Any, ...]] = (0, 1, -1, 2**40, 2**63 - 1, 1.5, "text", "", b"", b"\0" * 40, b"PPDL\x01")


def _desk(journal: Journal) -> tuple[Blobs, Slots, Outbox, Intake]:
    """Return what a peer opens first, as the runner does."""
    blobs, keyring = Blobs(journal), Keyring(_TERMS, _ME)
    slots = Slots(journal, blobs)
    outbox = Outbox(_TERMS, keyring, journal, blobs, slots, chunk_bytes=_CHUNK_BYTES)
    sizes = {"weights_bytes": _WEIGHTS_BYTES, "blob_bytes": _WEIGHTS_BYTES, "chunk_bytes": _CHUNK_BYTES}
    return blobs, slots, outbox, Intake(_TERMS, keyring, journal, blobs, **sizes)


def _driver(journal: Journal, slots: Slots, outbox: Outbox, intake: Intake) -> Driver:
    live = LiveSecrets(journal.folder, live_key(_ME, _TERMS.trial_id))
    transcript = Transcript(journal, me="anna", sign=_ME.sign, trial_id=_TERMS.trial_id, manifest=_TERMS.manifest)
    return Driver(SequentialMachine(_TERMS), journal, live, outbox, slots, intake, transcript, lambda _: None)


def _read_all(journal: Journal) -> SessionState:
    """Open everything that a peer opens, and read what it reads before and while it goes on; return its state."""
    _, slots, outbox, intake = _desk(journal)
    try:
        driver = _driver(journal, slots, outbox, intake)
        refuse_after_equivocation(journal)
        journal.secret_fact("sample seed")
        slots.check()
        driver.resume()
        transport = MemoryTransport(MemoryRelay())
        transport.connect()
        for name in _TERMS.others:
            transport.declare(name)
        outbox.publish_all(transport, driver.state, outbox.due())
        for row, header, blob in intake.complete():
            try:
                intake.read(row, header, blob)
            except RemoteError:
                intake.settle(row, header, remember=False)
        with slots.view(Slot("turn", 1)) as view:
            assert bytes(view) == bytes(_WEIGHTS_BYTES)
        list(intake.unpark())
        outbox.forget(1)
        slots.forget(1)
        Quarantine(journal).add(RemoteError("tried"), b"x")
        Quarantine(journal).counts()
        return driver.state
    finally:
        intake.close()


def _first(journal: Journal) -> SessionState:
    """Do what a peer does first, up to an agreed session, and put something into every table."""
    blobs, slots, outbox, intake = _desk(journal)
    driver = _driver(journal, slots, outbox, intake)
    driver.post(Started(session_secret=Secret(b"\x05" * 32), contribution=Secret(b"\x06" * 32)))
    for name in _TERMS.others:
        key = public_half(Secret(name.encode() * 8))
        hello = Hello(
            manifest=_TERMS.manifest,
            session_key=key,
            session_signature=PEOPLE[name].sign(session_key_bytes(_TERMS.trial_id, name, key)),
            layout=_TERMS.layout,
            software="",
        )
        driver.post(Received(sender=name, turn=0, message=hello, blob_digest=bytes(32)))
    _fill(journal, blobs, slots, intake, driver)
    intake.close()
    return driver.state


def _fill(journal: Journal, blobs: Blobs, slots: Slots, intake: Intake, driver: Driver) -> None:
    """Put something into every table, once."""
    journal.keep_secret_fact("sample seed", b"\x07" * 32)
    with journal.transaction() as db:
        with blobs.writer(_WEIGHTS_BYTES) as writer:
            writer.write(0, bytes(_WEIGHTS_BYTES))
        slots.adopt(
            Slot("turn", 1),
            writer.blob,
            start=0,
            size_bytes=_WEIGHTS_BYTES,
            digest=hashlib.sha256(bytes(_WEIGHTS_BYTES)).digest(),
        )
        db.execute("INSERT INTO parked (sender, part) VALUES ('bert', x'00')")
        db.execute("INSERT INTO seen VALUES ('cleo', x'0102', 1)")
    for stride, most in ((3_000, 1), (500, 2)):  # one whole message, one of which a part is missing
        hello = Hello(
            manifest=_TERMS.manifest,
            session_key=b"\x01" * 32,
            session_signature=b"\x02" * 64,
            layout=_TERMS.layout,
            software=str(stride),
        )
        header = Header(
            kind=Kind.HELLO,
            trial_id=_TERMS.trial_id,
            session_id=NO_SESSION,
            message_id=stride.to_bytes(16, "big"),
            turn=0,
            body_bytes=body_bytes(hello, 0),
            stride=stride,
            sender="bert",
            recipient="anna",
        )
        bert = PEOPLE["bert"]
        key = Keyring(Terms.of(_MANIFEST, bert, layout=_TERMS.layout, software=""), bert).key(driver.state, header)
        assert key is not None
        for part in list(seal_parts(header, hello, key, bert.sign))[:most]:
            intake.take(driver.state, part, came_to="anna")
    intake.flush()


def open_folder(folder: Path) -> SessionState:
    """Open a state folder as `running.run_peer` does; return the state that a peer would go on from."""
    journal = Journal(folder, trial_id=_TERMS.trial_id, identity=_ME)
    try:
        return _read_all(journal)
    except sqlite3.Error as fault:  # as run_peer maps what SQLite reports beside the journal's transactions
        raise journal.damaged(fault) from None
    finally:
        journal.close()


class _Template:
    """The undamaged folder, as bytes."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.live = ""
        self.inode = 0
        self.state: SessionState | None = None

    def put_back(self) -> None:
        """Make the folder whole again; keep the live file's inode if it is still there."""
        live = _FOLDER / self.live
        if not self.live or live.is_dir() or not live.exists() or live.stat().st_ino != self.inode:
            self._make()
            return
        for path in sorted(_FOLDER.rglob("*"), reverse=True):
            name = str(path.relative_to(_FOLDER))
            if name not in self.files and name not in ("live", "blobs"):
                path.rmdir() if path.is_dir() else path.unlink()
        for name, content in self.files.items():
            path = _FOLDER / name
            if path.is_dir():
                shutil.rmtree(path)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)

    def _make(self) -> None:
        shutil.rmtree(_FOLDER, ignore_errors=True)
        journal = Journal(_FOLDER, trial_id=_TERMS.trial_id, identity=_ME)
        self.state = _first(journal)
        journal.close()
        self.files = {
            str(each.relative_to(_FOLDER)): each.read_bytes() for each in _FOLDER.rglob("*") if each.is_file()
        }
        (self.live,) = (name for name in self.files if name.startswith("live/"))
        self.inode = (_FOLDER / self.live).stat().st_ino


def _edits(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Read edits of 8 bytes: which file or table, what to do, where (3 bytes), how long, 2 bytes of content."""
    for at in range(0, len(data) - 7, 8):
        which, what, *_ = edit = data[at : at + 8]
        yield which, what, int.from_bytes(edit[2:5], "big"), edit[5:8]


def _edit(files: list[str], which: int, what: int, where: int, content: bytes) -> None:
    path = _FOLDER / files[which % len(files)]
    if path.is_dir() or not path.exists():
        return
    raw = path.read_bytes()
    at = where % (len(raw) + 1)
    match what % 8:
        case 0 | 1:
            path.write_bytes(raw[:at] + content + raw[at + len(content) :])
        case 2:
            path.write_bytes(raw[:at] + bytes(512) + raw[at + 512 :])
        case 3:
            path.write_bytes(raw[:at])
        case 4:
            path.unlink()
        case 5:
            path.unlink()
            path.mkdir()
        case 6:
            path.write_bytes(raw + content * 100)
        case _:
            _change_row(which, content)


def _change_row(which: int, content: bytes) -> None:
    """Put a value of any type into a row, as flipped bits of a page can."""
    table = _TABLES[which % len(_TABLES)]
    try:
        db = sqlite3.connect(_FOLDER / "journal.sqlite")
        try:
            columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
            names = [row[0] for row in db.execute("SELECT name FROM fact")] if table == "fact" else [""]
            condition = f"name = '{names[content[2] % len(names)]}'" if table == "fact" else "1"
            value = _VALUES[content[1] % len(_VALUES)]
            column = columns[content[0] % len(columns)]
            with db:
                db.execute(f"UPDATE OR IGNORE {table} SET {column} = ? WHERE {condition}", (value,))
        finally:
            db.close()
    except (sqlite3.Error, UnicodeDecodeError, IndexError, ZeroDivisionError):
        pass  # an edit before this one broke it already


_TEMPLATE = _Template()


def run_journal(data: bytes) -> None:
    """Damage the folder and open it twice: an error, or the very state that was kept."""
    _TEMPLATE.put_back()
    for which, what, where, content in _edits(data):
        _edit(sorted(_TEMPLATE.files), which, what, where, content)
    try:
        assert open_folder(_FOLDER) == _TEMPLATE.state
    except JournalError as error:
        assert not isinstance(error, AlreadyRunning), "a lock was left behind"
    assert open_folder(_FOLDER) == _TEMPLATE.state


TARGETS = (
    Target(
        name="journal",
        run=run_journal,
        errors=(JournalError,),
        fixed_bytes=24 * 1024 * 1024,  # a file of live secrets is read up to its limit of 16 MiB
        longest_bytes=64,
    ),
)
