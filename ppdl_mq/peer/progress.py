"""What a person or program can watch while a peer runs: `progress.jsonl` grows, `status.json` is replaced."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from ppdl_mq.peer.folders import CHECKPOINT_ENDING
from ppdl_mq.peer.tally import Tally

STATUS_NAME: Final = "status.json"
PROGRESS_NAME: Final = "progress.jsonl"
_STATUS_EVERY_S: Final = 0.5

log = logging.getLogger("ppdl_mq.peer")


class Progress:
    """Writes both files of one peer. Nothing in them is secret to the organisation; they never leave it.

    Where they cannot be written, the trial goes on without, and the log says so.

    Args:
        folder: of the journal.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written_at = 0.0
        self._has_warned = False
        self.tally = Tally()
        # What `show` was given last, and when: replaced as a whole, never changed, so any thread may read it.
        self.latest: dict[str, Any] = {}

    def note(self, event: str, **facts: Any) -> None:
        """Append one line: what happened, and when (seconds since 1970)."""
        # A loss may be infinite while the weights are not; JSON has no number for it.
        writable = {name: None if _is_not_finite(fact) else fact for name, fact in facts.items()}
        self.tally.add(event, writable)
        line = json.dumps({"event": event, "at": round(time.time(), 3), **writable}, allow_nan=False)
        try:
            _append(self._folder / PROGRESS_NAME, line.encode() + b"\n")
        except OSError as fault:
            self._warn(fault)

    def is_due(self) -> bool:
        """Tell whether the status may be written again: twice a second at most."""
        return time.monotonic() - self._written_at >= _STATUS_EVERY_S

    def show(self, status: dict[str, Any], *, now: bool = False) -> None:
        """Replace the status, if it is due or is wanted `now`."""
        self.latest = status | {"updated": round(time.time(), 3)}
        if not now and not self.is_due():
            return
        self._written_at = time.monotonic()
        complete = self.latest | {"pid": os.getpid()}
        path = self._folder / STATUS_NAME
        fresh = path.with_suffix(".new")
        try:
            fresh.write_text(json.dumps(complete, indent=1, allow_nan=False) + "\n", encoding="utf-8")
            fresh.replace(path)
        except OSError as fault:
            self._warn(fault)

    def last_contacts(self, names: Iterable[str]) -> dict[str, float | None]:
        """Return when each peer was last heard, as the process before this one wrote it; None where that is not known.

        Args:
            names: of the others.
        """
        try:
            found = json.loads((self._folder / STATUS_NAME).read_text(encoding="utf-8"))["last_contact"]
            return {name: None if found.get(name) is None else float(found[name]) for name in names}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return dict.fromkeys(names)

    def checkpoint_at(self) -> float | None:
        """Return when the checkpoint of the turn under way was written, in seconds since 1970; None without one."""
        newest = 0.0
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.endswith(CHECKPOINT_ENDING):
                    with contextlib.suppress(OSError):
                        newest = max(newest, entry.stat().st_mtime)
        return round(newest, 3) or None

    def _warn(self, fault: OSError) -> None:
        """Say once that people see less than there is. A trial does not end for that: the journal is what counts."""
        if not self._has_warned:
            log.warning("%s and %s cannot be written: %s.", STATUS_NAME, PROGRESS_NAME, fault.strerror)
        self._has_warned = True


def final_entry(folder: Path) -> dict[str, Any] | None:
    """Return what was noted of the trial's result, or None."""
    try:
        lines = (folder / PROGRESS_NAME).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):  # ValueError: it is no text
        return None
    entries = [entry for line in lines if '"event": "final"' in line and (entry := _entry(line)) is not None]
    return entries[-1] if entries else None


def _entry(line: str) -> dict[str, Any] | None:
    """Return an entry, or None for a line that a crash left half written."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _append(path: Path, line: bytes) -> None:
    """Append a line, whole or not at all."""
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(before)
            raise


def _is_not_finite(fact: Any) -> bool:
    return isinstance(fact, float) and not math.isfinite(fact)
