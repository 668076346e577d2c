"""Where a trial is kept in an organisation's state_dir."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ppdl_mq.config.manifest import Manifest
from ppdl_mq.config.settings import PeerSettings
from ppdl_mq.peer.durable import is_there, read_error
from ppdl_mq.wire.trial_id import trial_id

JOURNAL_NAME: Final = "journal.sqlite"
LOCK_NAME: Final = "lock"
MODEL_NAME: Final = "model.safetensors"  # the trial's result
LIVE_NAME: Final = "live"  # the folder of the live secrets
CHECKPOINT_ENDING: Final = ".checkpoint"
SPOKEN_NAME: Final = "spoken"  # an empty file, there before anything goes out; see `peer/live.py`
GIVEN_UP_NAME: Final = "given-up"  # the file that keeps a trial from being run again here; see `peer/fresh.py`


def state_folder(settings: PeerSettings, manifest: Manifest) -> Path:
    """Return the folder of one trial: its name, and enough of its id that a renewed one gets another."""
    return settings.state_dir / f"{manifest.name}-{trial_id(manifest).hex()[:12]}"


def has_live_secrets(folder: Path) -> bool:
    """Tell whether any live secrets lie in a state folder, or what is left of them.

    Raises:
        JournalError: it cannot be told.
    """
    live = folder / LIVE_NAME
    try:
        return is_there(live) and any(live.iterdir())
    except OSError as fault:
        raise read_error(str(live), fault) from None


def has_spoken(folder: Path) -> bool:
    """Tell whether a peer may have spoken from a state folder, whatever its journal says now.

    Raises:
        JournalError: it cannot be told.
    """
    return is_there(folder / SPOKEN_NAME)


def free_name(folder: Path, prefix: str) -> Path:
    """Return the first path of a folder whose name is the prefix with a number, from 1 on, that nothing has yet."""
    number = 1
    while (path := folder / f"{prefix}{number}").exists():
        number += 1
    return path
