"""Secrets that must be erased in time, in one small file apart from the journal.

A journal that was restored from a backup, copied elsewhere or put back to an earlier state must not resume: its peer
could sign twice what may be signed once. So the journal records name, inode, birth time and generation of the file at
each change, and a peer resumes with that very file only. A copy is another file, whatever it holds.

Order of things: `write`, commit the mark, `drop_others`, and only then what reaches beyond this machine.

A journal that names no such file is new, or has lost all that it held: its write-ahead log is gone, or it was put back
to before the first commit. A peer that began anew then would sign a second session key. So an empty file beside the
journal, `spoken`, says that a mark was committed once; a death before it is made is harmless, as nothing has gone out.

Not detected: a roll-back of the whole file system or machine (a snapshot, an image), which puts the file back as
well; a file that somebody moved away while the peer ran, and moved back; a journal put back to a state since the last
change of the secrets (`peer/transcript.py` finds it, if a statement was signed or met since); a whole folder put back
to before the first commit, or removed, with `spoken` in it; and, on a file system
that keeps no birth time, a copy that by chance got the same inode.

Source: docs/PROTOCOL.md, section 16, "Roll-back".
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, Self

from ppdl_mq.config import limits
from ppdl_mq.config.writing import sync_folder
from ppdl_mq.crypto import labels
from ppdl_mq.crypto.hashing import sha256
from ppdl_mq.crypto.identity import Identity
from ppdl_mq.crypto.seal import OVERHEAD_BYTES, open_sealed, seal
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import IllegalEvent, JournalError, Malformed, Unauthentic
from ppdl_mq.peer.birth import born_ns
from ppdl_mq.peer.durable import is_missing, read_error, write_error, write_note
from ppdl_mq.peer.folders import LIVE_NAME, SPOKEN_NAME, has_spoken
from ppdl_mq.wire import canonical

_NAME: Final = re.compile(r"[0-9a-f]{16}")
_UNFINISHED: Final = ".unfinished"  # ends the name of a file that is being written
_LIMIT_BYTES: Final = limits.MAX_STATE_BYTES + 1_024
_READ_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def live_key(identity: Identity, trial_id: bytes) -> Secret:
    """Return the key under which a peer's live secrets of a trial are sealed."""
    return Secret(sha256(labels.LIVE_KEY, identity.secret.reveal(), trial_id))


@dataclass(frozen=True, slots=True)
class LiveMark:
    """Which file holds the live secrets; the journal keeps it.

    Args:
        name: 16 hex digits.
        inode: its number.
        generation: 1 for the first, one more with each change that was committed.
        born_ns: birth time of the file, in nanoseconds; 0 where the file system keeps none.
    """

    name: str
    inode: int
    generation: int
    born_ns: int

    def as_data(self) -> dict[str, Any]:
        """Return the mark as plain data."""
        return asdict(self)

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Self:
        """Return the mark that `as_data` described."""
        return cls(**data)


class LiveSecrets:
    """The live secrets of one peer in one trial. Used by one thread, under the lock of the journal.

    Args:
        folder: the state folder; the file lies in `live` within it.
        key: 32 bytes; see `live_key`.
    """

    def __init__(self, folder: Path, key: Secret) -> None:
        self._state_folder = folder
        self._folder = folder / LIVE_NAME
        self._key = key
        self._has_lasting_folder = False  # the name of `live` itself is on disk
        self._has_lasting_mark = False  # and that of `spoken`
        self._committed: int | None = None  # generation of the last mark that is known to be in the journal

    def load(self, mark: LiveMark | None) -> dict[str, Any] | None:
        """Return the secrets of the file that the journal names; what a crash left beside it is removed.

        Args:
            mark: from the journal; None if it is new.

        Returns:
            What `write` was given; None if `mark` is None.

        Raises:
            JournalError: it is not that very file, or another one is newer than the journal, or a journal before this
                one has named some; or a file cannot be written.
            InTheWay: a file cannot be read for now.
        """
        data = None if mark is None else self._opened(mark)
        most = 1 if mark is None else mark.generation + 1
        for name in self._names():
            generation = 0 if mark is not None and name == mark.name else self._generation_of(name)
            # With a mark, what does not open is an older file that was being overwritten. A new journal has none.
            if generation > most or (generation < 0 and mark is None):
                self._refuse("the secrets in it are newer than its journal")
        if mark is None and has_spoken(self._state_folder):
            self._refuse("its journal has lost what this peer has begun, and may have said")
        self._remove_all_but(None if mark is None else mark.name)
        if mark is not None:
            self._note_spoken()  # the process that committed it may have died before it did
        self._committed = 0 if mark is None else mark.generation
        return data

    def write(self, data: dict[str, Any]) -> LiveMark:
        """Put secrets into a new file, which is on disk when this returns; the one before stays until `drop_others`.

        Args:
            data: plain data for `canonical.encode`.

        Raises:
            JournalError: it cannot be written.
        """
        if self._committed is None:
            raise IllegalEvent("Live secrets were written before they were loaded.")
        # Not one more than the file before: that one may belong to a transaction that was rolled back.
        generation = self._committed + 1
        name = secrets.token_hex(8)
        content = {"name": name, "generation": generation, "data": data}
        sealed = seal(self._key, canonical.encode(content), name.encode())
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            unfinished = self._folder / (name + _UNFINISHED)
            handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(sealed)
                file.flush()
                os.fsync(handle)
                mark = LiveMark(name, os.fstat(handle).st_ino, generation, born_ns(handle))
            unfinished.rename(self._folder / name)  # so that what bears a full name is whole
            sync_folder(self._folder)
            if not self._has_lasting_folder:
                sync_folder(self._state_folder)
                self._has_lasting_folder = True
        except OSError as fault:
            raise self._unusable(fault) from None
        return mark

    def drop_others(self, mark: LiveMark) -> None:
        """Erase every file but that of a mark which the journal has committed: overwritten as far as that helps.

        Journals and flash memory may keep the old blocks; what they keep is sealed. When this returns, `spoken` is on
        disk.

        Raises:
            JournalError: one cannot be removed, or that cannot be written.
        """
        self._note_spoken()
        self._remove_all_but(mark.name)
        self._committed = mark.generation

    def _note_spoken(self) -> None:
        """Return when it is on disk that a journal here has named live secrets."""
        if self._has_lasting_mark:
            return
        path = self._state_folder / SPOKEN_NAME
        try:
            write_note(path)  # also where it is there: the process that made it may have died before it was on disk
        except OSError as fault:
            raise write_error(f"The file {path}", fault) from None
        self._has_lasting_mark = True

    def _opened(self, mark: LiveMark) -> dict[str, Any]:
        try:
            with open(self._folder / mark.name, "rb", opener=lambda path, _: os.open(path, _READ_FLAGS)) as file:
                handle = file.fileno()
                status = os.fstat(handle)
                if not stat.S_ISREG(status.st_mode) or (status.st_ino, born_ns(handle)) != (mark.inode, mark.born_ns):
                    self._refuse("the file of its live secrets is a copy")
                content = self._content(file.read(_LIMIT_BYTES + 1), mark.name)
        except FileNotFoundError:
            self._refuse("the file of its live secrets is missing")
        except OSError as fault:
            if not is_missing(fault):
                raise self._unreadable(fault) from None
            self._refuse("the file of its live secrets cannot be opened")  # a folder or a link is in its place
        if content is None:
            self._refuse("the file of its live secrets does not open")
        if content["generation"] != mark.generation:
            self._refuse("the file of its live secrets is of another state than the journal")
        data: dict[str, Any] = content["data"]
        return data

    def _generation_of(self, name: str) -> int:
        """Return the generation of a file, or -1 if what is in it does not open.

        Raises:
            InTheWay: it cannot be read for now, so it may be newer than the journal.
        """
        try:
            handle = os.open(self._folder / name, _READ_FLAGS)
            with os.fdopen(handle, "rb") as file:
                content = self._content(file.read(_LIMIT_BYTES + 1), name)
        except OSError as fault:
            if not is_missing(fault):
                raise self._unreadable(fault) from None
            return -1
        return -1 if content is None else int(content["generation"])

    def _content(self, sealed: bytes, name: str) -> dict[str, Any] | None:
        if not OVERHEAD_BYTES <= len(sealed) <= _LIMIT_BYTES:
            return None
        try:
            content: dict[str, Any] = canonical.decode(
                open_sealed(self._key, sealed, name.encode()), limit_bytes=_LIMIT_BYTES
            )
        except (Unauthentic, Malformed):
            return None
        return content if content["name"] == name else None

    def _names(self) -> list[str]:
        """Return the names of the files that are whole, sorted."""
        try:
            return sorted(path.name for path in self._folder.iterdir() if _NAME.fullmatch(path.name))
        except FileNotFoundError:
            return []
        except OSError as fault:
            raise self._unreadable(fault) from None

    def _remove_all_but(self, kept: str | None) -> None:
        try:
            for path in sorted(self._folder.iterdir()) if self._folder.is_dir() else ():
                stem = path.name.removesuffix(_UNFINISHED)
                if path.name != kept and _NAME.fullmatch(stem):
                    if kept is None and path.name == stem:
                        # A new journal refuses what bears a full name and does not open: nobody may die in between.
                        path = path.rename(path.with_name(stem + _UNFINISHED))
                        sync_folder(self._folder)
                    _overwrite(path)
                    path.unlink(missing_ok=True)
            if self._folder.is_dir():
                sync_folder(self._folder)
        except OSError as fault:
            raise self._unusable(fault) from None

    def _unreadable(self, fault: OSError) -> JournalError:
        return read_error(f"The file of the live secrets in {self._folder}", fault)

    def _unusable(self, fault: OSError) -> JournalError:
        return write_error(f"The file of the live secrets in {self._folder}", fault)

    def _refuse(self, reason: str) -> NoReturn:
        raise JournalError(
            f"The state folder {self._state_folder} does not resume: {reason}.",
            hint="It was restored or copied, and a peer cannot resume a trial from a copy. If the original still "
            "stands, run there. Otherwise the others decide with `ppdl-mq peer drop` where the protocol has it, or "
            "all start again after `ppdl-mq trial renew`.",
        )


def erase_all(folder: Path) -> None:
    """Erase whatever live secrets a state folder holds, and the folder they lie in. Under the lock of the journal.

    Raises:
        OSError: something cannot be removed.
    """
    live = folder / LIVE_NAME
    if not live.is_dir():
        return
    for path in live.iterdir():
        _overwrite(path)
        path.unlink()
    sync_folder(live)
    live.rmdir()


def _overwrite(path: Path) -> None:
    """Write zeros over a file's content, best effort: a link to it elsewhere then holds nothing either."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "wb") as file:
            file.write(bytes(os.fstat(handle).st_size))
            file.flush()
            os.fsync(handle)
