"""Starting a trial anew at one peer: what it may forget, and when it may not come back.

A peer that has said nothing yet may forget everything. One that has said something has signed a session key: with a
new one it would sign twice what may be signed once, which the others take for a lie and which ends the trial for them
(docs/PROTOCOL.md, section 7). So it gives up its part in the trial: its live secrets are erased, all else is set
aside in the state folder, and a mark there keeps this trial from being run again by accident.

Order of things: the mark, then the secrets, then the rest. Whatever is cut short is finished by doing it again.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ppdl_mq.config.writing import sync_folder
from ppdl_mq.errors import InTheWay
from ppdl_mq.peer.durable import is_there, read_error, write_error, write_note
from ppdl_mq.peer.folders import (
    GIVEN_UP_NAME,
    JOURNAL_NAME,
    LOCK_NAME,
    free_name,
    has_live_secrets,
    has_spoken,
)
from ppdl_mq.peer.journal import of_another, take_lock
from ppdl_mq.peer.live import erase_all
from ppdl_mq.wire.entries import LOG_NAME, MAX_LINE_BYTES

_ASIDE: Final = "set-aside-"
_GIVEN_UP: Final = "This organisation gave up its part in this trial with `ppdl-mq peer run --fresh`.\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What a state folder holds.

    Args:
        has_anything: there is something to lose.
        has_spoken: messages of this peer may have gone out, or it cannot be told.
    """

    has_anything: bool
    has_spoken: bool


def look(folder: Path, *, trial_id: bytes, keys: bytes) -> Holding:
    """Tell what a fresh start would lose. Nothing is changed.

    Args:
        folder: the state folder; may be missing.
        trial_id: 32 bytes.
        keys: of the identity, 64 bytes.

    Raises:
        JournalError: the folder is another trial's or identity's.
        InTheWay: it cannot be read for now, for instance since it is another user's.
    """
    try:
        if is_there(folder / GIVEN_UP_NAME):
            return Holding(has_anything=True, has_spoken=True)
        if not _to_move(folder):
            return Holding(has_anything=False, has_spoken=False)
        return Holding(has_anything=True, has_spoken=_may_have_spoken(folder, {"trial": trial_id, "keys": keys}))
    except OSError as fault:
        raise read_error(f"The state folder {folder}", fault) from None


def set_aside(folder: Path, *, trial_id: bytes, keys: bytes) -> Path | None:
    """Forget what a state folder holds, and give up the trial if the peer has spoken in it. Arguments as of `look`.

    Returns:
        Where everything lies now; None where there was nothing.

    Raises:
        AlreadyRunning: another process works there.
        JournalError: of `look`; or something cannot be written: what was begun is finished by doing it again.
    """
    lock = take_lock(folder)
    try:
        if look(folder, trial_id=trial_id, keys=keys).has_spoken:
            write_note(folder / GIVEN_UP_NAME, _GIVEN_UP)
        erase_all(folder)
        names = _to_move(folder)
        if not names:
            return None
        aside = free_name(folder, _ASIDE)
        aside.mkdir(mode=0o700)
        # The journal's own file last: as long as it is here, what was said can still be read from it.
        for name in sorted(names, key=lambda name: name == JOURNAL_NAME):
            (folder / name).rename(aside / name)
        sync_folder(aside)
        sync_folder(folder)
        return aside
    except OSError as fault:
        raise write_error(f"The state folder {folder}", fault) from None
    finally:
        os.close(lock)


def _to_move(folder: Path) -> list[str]:
    try:
        names = [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return []
    return [name for name in names if name not in (LOCK_NAME, GIVEN_UP_NAME) and not name.startswith(_ASIDE)]


def _may_have_spoken(folder: Path, belongs: dict[str, bytes]) -> bool:
    """Tell whether anything was ever meant for the others; what cannot be read may have been said.

    A message is journalled, with the state that it is of, before it is published. The journal is not opened as ours
    here, since it may be damaged.
    """
    path = folder / JOURNAL_NAME
    if not path.exists():  # a journal is there before anything that belongs to it, so it was taken away
        return True
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as db:
            found = dict(db.execute("SELECT name, value FROM fact").fetchall())
            has_messages = bool(db.execute("SELECT EXISTS (SELECT 1 FROM outgoing)").fetchone()[0])
    except (sqlite3.Error, UnicodeDecodeError):
        return True
    for name, value in belongs.items():
        if name in found and found[name] != value:
            raise of_another(folder, name)
    # Live secrets, too: the journal that names them may have lost its write-ahead log. Who died right between the two
    # had said nothing, and gives up the trial for nothing; the other mistake is worse.
    try:
        has_begun = has_messages or "state" in found or has_live_secrets(folder) or has_spoken(folder)
    except InTheWay:
        return True
    return has_begun or _has_statements(folder / LOG_NAME)


def _has_statements(log: Path) -> bool:
    """Tell whether a transcript has more than its beginning, for the same reason."""
    try:
        with log.open("rb") as file:
            return bool(file.readline(MAX_LINE_BYTES) and file.readline(MAX_LINE_BYTES))
    except FileNotFoundError:
        return False
    except OSError:
        return True
