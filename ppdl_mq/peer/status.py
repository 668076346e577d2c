"""How far a trial is at this peer, without disturbing the process that runs it."""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

from ppdl_mq.config.manifest import Manifest
from ppdl_mq.config.settings import PeerSettings
from ppdl_mq.errors import JournalError, PeerFileError
from ppdl_mq.peer.folders import GIVEN_UP_NAME, LOCK_NAME, state_folder
from ppdl_mq.peer.progress import STATUS_NAME
from ppdl_mq.protocol.phases import Phase

Check: TypeAlias = Callable[[Any], bool]

# What a status of an earlier version of this program lacks.
_UNTOLD: Final[Mapping[str, Any]] = {
    "waiting_since": {},
    "last_contact": {},
    "unsent": {},
    "other_manifests": {},
    "inbox_messages": None,
    "asked_again": 0,
    "sent_again": 0,
    "set_aside": {"records": 0, "bytes": 0, "limit": 0},
    "checkpoint_at": None,
    "updated": 0.0,
    "pid": 0,
}
# What every status has that this program ever wrote, and what is done with it needs.
_TOLD: Final = frozenset(
    {"trial", "trial_id", "peer", "phase", "phase_s", "waiting_for", "not_there_yet", "refused"}
    | {"received", "published_messages", "published_bytes", "reconnects"}
)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _MOST


def _is_number(value: Any) -> bool:
    # NaN compares with nothing, and what is infinite would be younger than any limit for ever.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MOST


def _or_null(is_one: Check) -> Check:
    return lambda value: value is None or is_one(value)


def _list_of(is_one: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(is_one, value))


def _each(is_one: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(map(is_one, value.values()))


def _has(**checks: Check) -> Check:
    return lambda value: (
        isinstance(value, dict) and all(key in value and is_one(value[key]) for key, is_one in checks.items())
    )


_TOLD_OF_TURNS: Final = frozenset({"turn", "turns"})
_TOLD_OF_ROUNDS: Final = frozenset({"round", "rounds", "step", "attempt", "word", "members"})
# No number of a status comes near it; more would not be a float, nor a time.
_MOST: Final = 10**15
_NAMES: Final = ("waiting_for", "not_there_yet", "members", "dropped", "left", "going_on_without_this_peer")
_COUNTS: Final = (
    *("turn", "turns", "round", "rounds", "step", "attempt", "word", "agreed_round", "pid", "received"),
    *("published_messages", "published_bytes", "reconnects", "asked_again", "sent_again"),
)
# Of what form they and others are where they are there; what people and probes are told is made of them.
_FORMS: Final[Mapping[str, Check]] = {
    **dict.fromkeys(("trial", "trial_id", "peer", "phase"), _is_text),
    **dict.fromkeys(_NAMES, _list_of(_is_text)),
    **dict.fromkeys(_COUNTS, _is_count),
    **dict.fromkeys(("phase_s", "updated", "rests_s"), _is_number),
    **dict.fromkeys(("unsent", "refused"), _each(_is_count)),
    "waiting_since": _each(_is_number),
    "last_contact": _each(_or_null(_is_number)),
    "other_manifests": _each(_list_of(_is_text)),
    "set_aside": _has(records=_is_count, bytes=_is_count, limit=_is_count),
    "abandons_first": _or_null(_is_text),
    "inbox_messages": _or_null(_is_count),
    "privacy": _has(epsilon=_is_number, budget=_is_number, delta=_is_number, noise=_is_number, steps=_is_count),
    "checkpoint_at": _or_null(_is_number),
    "relay": _has(state=_is_text, since=_is_number, host=_or_null(_is_text), tries=_is_count, reason=_is_text),
}


def read_status(settings: PeerSettings, manifest: Manifest | None) -> dict[str, Any]:
    """Return what the peer last said of itself, and whether it is running now.

    Args:
        settings: the organisation's own.
        manifest: of the trial; may be left out where the settings serve one trial only.

    Raises:
        PeerFileError: no trial was run with these settings, or several were.
        JournalError: the status cannot be read.
    """
    folder = state_folder(settings, manifest) if manifest else only_folder(settings)
    try:
        status: dict[str, Any] = _whole(json.loads((folder / STATUS_NAME).read_text(encoding="utf-8")))
    except FileNotFoundError:
        if (folder / GIVEN_UP_NAME).exists():
            raise PeerFileError(
                "This organisation has given up its part in this trial.", hint="A renewed trial: `ppdl-mq trial renew`."
            ) from None
        raise PeerFileError(
            f"There is no status in {folder}.", hint="Start the peer first: `ppdl-mq peer run`."
        ) from None
    except (OSError, ValueError, RecursionError):  # RecursionError: arrays in arrays, without an end
        raise JournalError(
            f"The status in {folder} cannot be read.",
            hint="A running peer writes it anew within a second: see whether one runs, and ask as its user.",
        ) from None
    return dict(_UNTOLD) | status | {"running": is_locked(folder / LOCK_NAME), "folder": str(folder)}


def _whole(status: Any) -> dict[str, Any]:
    """Return a status that has what it must have.

    Raises:
        ValueError: it has not.
    """
    if not isinstance(status, dict) or not status.keys() >= _TOLD:
        raise ValueError("not a status")
    if not status.keys() >= (_TOLD_OF_ROUNDS if is_of_rounds(status) else _TOLD_OF_TURNS):
        raise ValueError("a status of no protocol")
    if not all(is_one(status[key]) for key, is_one in _FORMS.items() if key in status):
        raise ValueError("a status of another form")
    return status


def kept_phase(settings: PeerSettings, manifest: Manifest) -> str | None:
    """Return the phase that the peer last told of; None where that cannot be read."""
    try:
        phase = read_status(settings, manifest)["phase"]
    except (JournalError, PeerFileError, KeyError):
        return None
    return str(phase)


def is_over(settings: PeerSettings, manifest: Manifest) -> bool:
    """Tell whether the trial has ended for this peer, and nobody waits for anything of it, as it last told."""
    try:
        status = read_status(settings, manifest)
    except (JournalError, PeerFileError):
        return False
    return has_ended(status) and not status["unsent"]


def is_of_rounds(status: Mapping[str, Any]) -> bool:
    """Tell whether a status is of masked-average, where all peers train at once."""
    return "round" in status


def has_begun(status: Mapping[str, Any]) -> bool:
    """Tell whether the peer has come to the first step of masked-average; until then its members are not known."""
    begun: bool = status["step"] > 0
    return begun


def has_ended(status: Mapping[str, Any]) -> bool:
    """Tell whether the trial is over for this peer."""
    return status["phase"] in (Phase.ENDED.value, Phase.LEFT.value, Phase.ENDED_EARLY.value)


def peers_in(status: Mapping[str, Any], manifest: Manifest | None) -> tuple[str, ...]:
    """Return the names of all peers of a trial of masked-average, sorted, those included that have gone.

    Args:
        status: of the trial; counts where the manifest is not at hand. It names the peers from the first step on.
        manifest: of the trial, or None.
    """
    if manifest is not None:
        return manifest.peer_names
    return tuple(sorted({status["peer"], *status["members"], *status.get("dropped", ()), *status.get("left", ())}))


def without_this_peer(status: Mapping[str, Any]) -> str | None:
    """Return in a sentence who goes on without this peer, in masked-average; None if nobody does or the trial is over.

    Args:
        status: as it was read.
    """
    names = status.get("going_on_without_this_peer")
    if not names or has_ended(status):
        return None
    return f"{', '.join(names)} {'goes' if len(names) == 1 else 'go'} on without this organisation."


def epsilon_text(epsilon: float) -> str:
    """Return what differential privacy costs, in words: rounded up, since it is a bound."""
    return f"{math.ceil(1000 * epsilon) / 1000:g}"


def known_folders(settings: PeerSettings) -> list[Path]:
    """Return the state folders of the trials that were run with these settings."""
    folders = sorted(path.parent for path in settings.state_dir.glob(f"*/{STATUS_NAME}"))
    return folders or sorted(path.parent for path in settings.state_dir.glob(f"*/{GIVEN_UP_NAME}"))


def only_folder(settings: PeerSettings) -> Path:
    """Return the state folder of the one trial that was run with these settings.

    Raises:
        PeerFileError: none was, or several were.
    """
    folders = known_folders(settings)
    if len(folders) == 1:
        return folders[0]
    if not folders:
        raise PeerFileError(
            f"No trial was run in {settings.state_dir} yet.", hint="Start the peer first: `ppdl-mq peer run`."
        )
    names = ", ".join(folder.name for folder in folders)
    raise PeerFileError(f"{settings.state_dir} holds several trials: {names}.", hint="Name one with --trial FILE.")


def is_locked(lock: Path) -> bool:
    """Tell whether a process works in the state folder that this lock is of."""
    try:
        handle = os.open(lock, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(handle)
