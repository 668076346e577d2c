"""Whether a peer is well: its process is there and its loop goes round, however long it waits for others."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppdl_mq.config import limits
from ppdl_mq.config.manifest import Manifest
from ppdl_mq.config.settings import PeerSettings
from ppdl_mq.errors import JournalError, PeerFileError, Unwell
from ppdl_mq.peer.folders import LOCK_NAME, state_folder
from ppdl_mq.peer.status import (
    has_ended,
    is_locked,
    known_folders,
    only_folder,
    read_status,
    without_this_peer,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Why a peer counts as well.

    Args:
        why: one sentence.
        age_s: of its status, in seconds; None before the first of this process.
    """

    why: str
    age_s: float | None


def check(settings: PeerSettings, manifest: Manifest | None, *, max_age_s: float = limits.HEALTHY_S) -> Health:
    """Return why a peer is well.

    Args:
        settings: the organisation's own.
        manifest: of the trial; may be left out where the settings serve one trial only.
        max_age_s: how old the status of a loop that goes round may be.

    Raises:
        Unwell: it is not running, or its loop hangs, or nothing of it can be told.
        PeerFileError: several trials were run with these settings, and no manifest names one.
    """
    if manifest is None and not known_folders(settings):
        raise Unwell(
            f"No trial was run in {settings.state_dir} yet.",
            hint="Start the peer: `ppdl-mq peer run`. With --trial FILE one that has just begun is seen, too.",
        )
    folder = only_folder(settings) if manifest is None else state_folder(settings, manifest)
    try:
        status = read_status(settings, manifest)
    except (PeerFileError, JournalError) as error:
        if is_locked(folder / LOCK_NAME):
            return _starting(folder)
        raise Unwell(f"No peer is running in {folder}: {error.message}", hint=error.hint) from None
    if has_ended(status):
        return Health(why=f"The trial {status['trial']} has ended here.", age_s=None)
    if not status["running"]:
        if (gone_on := without_this_peer(status)) is not None:
            raise Unwell(
                f"{status['peer']} is not running, and {gone_on}",
                hint="Ask these organisations why before it is run again: once all others have dropped it, it cannot "
                "come back, and takes part in a renewed trial only.",
            )
        raise Unwell(
            f"{status['peer']} is not running, and the trial {status['trial']} has not ended.",
            hint="Run it again: `ppdl-mq peer run`; it goes on where it was.",
        )
    if _is_of_the_process_before(status, folder / LOCK_NAME):
        return _starting(folder)
    age_s = time.time() - float(status["updated"])
    if -age_s > max_age_s:  # it would count as well until then
        raise Unwell(
            f"The status of {status['peer']} is {-age_s:.0f} s ahead of the clock.",
            hint="A loop that goes round writes it anew at once, also when the clock was set back. If this stays, stop "
            "the process and run it again: it goes on where it was.",
        )
    age_s = max(0.0, age_s)
    if age_s > max_age_s:
        raise Unwell(
            f"The loop of {status['peer']} has not gone round for {age_s:.0f} s, while {status['phase']}.",
            hint="Stop the process and run it again: it goes on where it was.",
        )
    return Health(why=f"{_what(status)}; its loop went round {age_s:.0f} s ago.", age_s=round(age_s, 3))


def _what(status: Mapping[str, Any]) -> str:
    waits = f", waiting for {', '.join(status['waiting_for'])}" if status["waiting_for"] else ""
    return f"{status['peer']} is {status['phase']}{waits}"


def _starting(folder: Path) -> Health:
    """Return that a peer begins: it reads its data and builds its model before its loop goes round."""
    try:
        since_s = max(0.0, time.time() - (folder / LOCK_NAME).stat().st_mtime)
    except OSError:
        since_s = 0.0
    if since_s > limits.STARTING_S:
        raise Unwell(
            f"The peer in {folder} began {since_s:.0f} s ago, and its loop has not gone round yet.",
            hint="See its log: does it read its data?",
        )
    return Health(why="The peer is starting.", age_s=None)


def _is_of_the_process_before(status: Mapping[str, Any], lock: Path) -> bool:
    if _pid_in(lock) not in (None, status["pid"]):
        return True
    # In a container every process of the peer has the same number. But the lock's file is written when one begins.
    try:
        began = lock.stat().st_mtime
    except OSError:
        return False
    return float(status["updated"]) < began <= time.time()  # unless the clock was set back since


def _pid_in(lock: Path) -> int | None:
    try:
        return int(lock.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
