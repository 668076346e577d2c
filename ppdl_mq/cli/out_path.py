"""Where `ppdl-mq peer run --out` may put a copy of the model: never over what the organisation cannot do without."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ppdl_mq.cli.arguments import is_path
from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.config.settings import PeerSettings
from ppdl_mq.config.writing import copy_target, is_folder
from ppdl_mq.errors import PeerFileError
from ppdl_mq.peer.folders import GIVEN_UP_NAME, JOURNAL_NAME
from ppdl_mq.peer.progress import STATUS_NAME

_ANOTHER = "Choose another --out."
_OF_A_TRIAL = (JOURNAL_NAME, STATUS_NAME, GIVEN_UP_NAME)  # one of them is in every state folder


def check_out(out: Path, name: str, settings: PeerSettings, *, config: Path, trial: Path, folder: Path) -> None:
    """Return if a copy of the model may be written to a path; said before a trial that may take months.

    Args:
        out: as people gave it; a folder, too, and a symlink, which is followed.
        name: of the model's file, which the copy has in a folder.
        settings: the organisation's own.
        config: their file.
        trial: the manifest's file.
        folder: the state folder of the trial.

    Raises:
        PeerFileError: its folder does not exist, it cannot be looked at, or something stands there that must stay.
    """
    if not any(is_folder(path, error=PeerFileError) for path in (out, out.absolute().parent)):
        raise PeerFileError(f"{out}: its folder does not exist.", hint="Make it first, or choose another --out.")
    target = copy_target(name, out, error=PeerFileError).real
    for what, path in _kept(settings, config, trial):
        if _is_same(target, path):
            raise PeerFileError(f"--out {out} is {what}, which the model would replace.", hint=_ANOTHER)
    if (kept := _trial_around(target, settings, folder)) is not None:
        raise PeerFileError(
            f"--out {out} lies in {kept}, where a trial is kept.",
            hint=f"{_ANOTHER[:-1]}, or none: the model is kept in the trial's own folder.",
        )


def _trial_around(target: Path, settings: PeerSettings, folder: Path) -> Path | None:
    """Return the state folder in which a path lies; None in none, as beside them where `state_dir` holds all there is.

    Args:
        target: its real path.
        settings: the organisation's own.
        folder: the state folder of the trial that is to be run; may be missing.
    """
    if target.is_relative_to(os.path.realpath(folder)):
        return folder
    state_dir = Path(os.path.realpath(settings.state_dir))
    if target.parent == state_dir or not target.is_relative_to(state_dir):
        return None
    another = state_dir / target.relative_to(state_dir).parts[0]
    return another if any(os.path.lexists(another / name) for name in _OF_A_TRIAL) else None


def _kept(settings: PeerSettings, config: Path, trial: Path) -> Iterator[tuple[str, Path]]:
    """Give, with a name for people, the files without which this organisation cannot go on, or has lost something."""
    yield "the identity", settings.identity
    yield "the file of the settings", config
    yield "the manifest", trial
    broker = settings.broker
    named = {
        "file of the passphrase": settings.passphrase_file,
        "file of the broker's password": broker.password_file,
        "CA of the broker": broker.ca_file,
        "certificate for the broker": broker.certificate_file,
        "key for the broker": broker.key_file,
        "embedded relay": BrokerAddress.from_settings(broker, config.absolute().parent).path,
    }
    yield from ((f"the {what}", path) for what, path in named.items() if path is not None)
    for key, value in settings.data.arguments.items():
        if is_path(key, value):
            with contextlib.suppress(RuntimeError):  # ~ of a user who has no home here; loading says so
                yield "this organisation's data", config.absolute().parent / Path(value).expanduser()


def _is_same(target: Path, path: Path) -> bool:
    """Tell whether two paths are one file, by another link to it as well."""
    try:
        return target.samefile(path)
    except OSError:  # one of them is not there, or not to be looked at
        return str(target) == os.path.realpath(path)
