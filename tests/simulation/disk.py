"""The peers' disks: every write is a moment at which a peer may die, and may find no room.

The files and the journals are real, and real code writes them. What a peer that is dead tries to write is not written:
it may still unwind through its own `finally` blocks, which a process that is killed does not.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sqlite3
import types
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from ppdl_mq.peer import journal

if TYPE_CHECKING:
    from tests.simulation.node import Node

_WRITES = ("INSERT", "UPDATE", "DELETE", "CREATE")


class Connection(sqlite3.Connection):
    """A journal's database that can find the disk full, and tells of each commit.

    Args:
        node: whose it is; None outside of a simulation.
    """

    node: Node

    def execute(self, sql: str, given: Any = (), /) -> sqlite3.Cursor:
        node = self.node
        node.alive()
        if sql == "COMMIT":
            return self._commit()
        if sql == "BEGIN IMMEDIATE":
            node.watch.begins_transaction()
        if sql.startswith(_WRITES) and node.finds_disk_full():
            self._find_full("in a statement")
        return super().execute(sql, given)

    def executemany(self, sql: str, given: Any, /) -> sqlite3.Cursor:
        self.node.alive()
        if self.node.finds_disk_full():
            self._find_full("in a statement")
        return super().executemany(sql, given)

    def executescript(self, sql: str, /) -> sqlite3.Cursor:
        self.node.boundary("before schema")
        if self.node.finds_disk_full():
            self.node.met_full_disk("in the schema")
            raise _full()
        return super().executescript(sql)

    def read(self, sql: str, given: Any = ()) -> list[Any]:
        """Look into the journal from outside of the peer."""
        return super().execute(sql, given).fetchall()

    def _commit(self) -> sqlite3.Cursor:
        has_changes = self.total_changes != self.node.changes
        if not has_changes:
            return super().execute("COMMIT")
        self.node.boundary("before commit")
        if self.node.finds_disk_full():
            self._find_full("in the commit")
        done = super().execute("COMMIT")
        self.node.changes = self.total_changes
        self.node.committed(self)
        self.node.boundary("after commit")
        return done

    def _find_full(self, where: str) -> None:
        """Fail as SQLite does: in a statement or only in the commit, and sometimes it has rolled back by itself."""
        way = self.node.full_way
        if way == "commit" and where != "in the commit":
            return
        self.node.met_full_disk(where)
        if way == "rolled back" and self.in_transaction:
            super().execute("ROLLBACK")
        raise _full()


def _full() -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("database or disk is full")  # SQLite's words
    error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_FULL, "SQLITE_FULL"
    return error


class Unsynced:
    """What of one peer's blobs a power cut could take: until a sync of the file, and of the folder with its name.

    A process that dies leaves all of it to the system, and the next one has to sync it all the same.
    """

    def __init__(self) -> None:
        self._handles: dict[int, str] = {}  # paths
        self._offsets: defaultdict[str, set[int]] = defaultdict(set)  # by blob
        self._names: set[str] = set()

    def begin_life(self) -> None:
        self._handles.clear()

    def opened(self, handle: int, path: Any, *, is_new: bool) -> None:
        self._handles[handle] = os.fspath(path)
        if is_new:
            self._names.add(Path(path).name)

    def removed(self, path: Any) -> None:
        self._offsets.pop(Path(path).name, None)  # its number may be used again
        self._names.discard(Path(path).name)

    def wrote(self, handle: int, offset: int) -> None:
        self._offsets[Path(self._handles[handle]).name].add(offset)

    def synced(self, handle: int) -> None:
        path = Path(self._handles.get(handle, ""))
        if path.name == "blobs":
            self._names.clear()
        elif path.parent.name == "blobs":
            self._offsets.pop(path.name, None)

    def has(self, blob: int, offset: int | None = None) -> bool:
        """Tell whether a blob, or what was written at one offset of it, could be gone."""
        offsets = self._offsets.get(str(blob), set())
        return str(blob) in self._names or (bool(offsets) if offset is None else offset in offsets)


def category(path: Any) -> str:
    """Tell what a file is to the product."""
    text = os.fspath(path) if not isinstance(path, int) else ""
    for part, what in (
        ("/lock", "lock"),
        ("/live/", "live secrets"),
        ("/blobs/", "blob"),
        ("transcript.log", "transcript"),
        ("model.safetensors", "model"),
        ("status.", "status"),
        ("progress.", "progress"),
    ):
        if part in text:
            return what
    return "file"


@contextlib.contextmanager
def disks(current: Callable[[], Node | None]) -> Iterator[None]:
    """Let the system's calls, for the peer that runs, be moments of its story.

    Args:
        current: returns that peer; None where a call is nobody's.
    """
    real_open, real_io_open = os.open, io.open

    def effect(name: str, real: Any, of: Callable[..., Any]) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            node = current()
            if node is None:
                return real(*given, **named)
            what = of(node, *given)
            node.boundary(f"before {name} of {what}")
            if name in ("pwrite", "fsync", "fdatasync") and node.finds_disk_full():
                node.met_full_disk(f"in {name} of {what}")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            done = real(*given, **named)
            if name == "pwrite" and what == "blob":
                node.unsynced.wrote(given[0], given[2])
            elif name == "unlink":
                node.unsynced.removed(given[0])
            elif name in ("fsync", "fdatasync"):
                node.unsynced.synced(given[0])
            node.boundary(f"after {name} of {what}")
            return done

        return call

    def opened(path: Any, flags: int, *given: Any, **named: Any) -> int:
        node = current()
        if node is not None and flags & os.O_DIRECTORY:
            handle = real_open(path, flags, *given, **named)
            node.unsynced.opened(handle, path, is_new=False)
            return handle
        if node is None or not flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            return real_open(path, flags, *given, **named)
        what = category(path)
        node.boundary(f"before open of {what}")
        is_new = bool(flags & os.O_CREAT) and not Path(path).exists()
        if is_new and node.finds_disk_full():
            node.met_full_disk(f"in open of {what}")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))
        handle = real_open(path, flags, *given, **named)
        node.handles[handle] = what
        node.unsynced.opened(handle, path, is_new=is_new and what == "blob")
        return handle

    def io_opened(path: Any, mode: str = "r", *given: Any, **named: Any) -> Any:
        node = current()
        if node is not None and not isinstance(path, int) and set(mode) & set("wa+x"):
            what = category(path)
            node.boundary(f"before write of {what}")
            if node.finds_disk_full():
                node.met_full_disk(f"in write of {what}")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))
        return real_io_open(path, mode, *given, **named)

    def by_path(_: Node, path: Any, *__: Any) -> str:
        return category(path)

    def by_handle(node: Node, handle: int, *_: Any) -> str:
        return node.handles.get(handle, "file")

    def connected(*given: Any, **named: Any) -> Any:
        node = current()
        assert node is not None, "only peers have journals here"
        db = sqlite3.connect(*given, **named, factory=Connection)
        db.node = node  # type: ignore[attr-defined]
        node.db, node.changes = db, db.total_changes  # type: ignore[assignment]
        return db

    calls = {
        "pwrite": by_handle,
        "fsync": by_handle,
        "fdatasync": by_handle,
        "truncate": by_path,
        "rename": by_path,
        "replace": by_path,
        "unlink": by_path,
    }
    with contextlib.ExitStack() as patched:
        for name, of in calls.items():
            patched.enter_context(mock.patch.object(os, name, effect(name, getattr(os, name), of)))
        patched.enter_context(mock.patch.object(os, "open", opened))
        patched.enter_context(mock.patch.object(io, "open", io_opened))
        shim = types.SimpleNamespace(**{**vars(sqlite3), "connect": connected})
        patched.enter_context(mock.patch.object(journal, "sqlite3", shim))
        yield
