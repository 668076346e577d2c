"""Where a trial is kept in an organisation's state_dir."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from ppdl_mq.config.manifest import Manifest
from ppdl_mq.config.settings import PeerSettings
from ppdl_mq.wire.trial_id import trial_id

JOURNAL_NAME: Final = "journal.sqlite"
LOCK_NAME: Final = "lock"
CHECKPOINT_ENDING: Final = ".checkpoint"
GIVEN_UP_NAME: Final = "given-up"  # the file that keeps a trial from being run again here; see `peer/fresh.py`


def state_folder(settings: PeerSettings, manifest: Manifest) -> Path:
    """Return the folder of one trial: its name, and enough of its id that a renewed one gets another."""
    return settings.state_dir / f"{manifest.name}-{trial_id(manifest).hex()[:12]}"
