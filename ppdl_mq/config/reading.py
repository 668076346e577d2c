"""Read the files that people write into their frozen objects; whatever is wrong becomes one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from ppdl_mq.config import checks, limits, plain, sentences
from ppdl_mq.config.manifest import Manifest, Section
from ppdl_mq.config.settings import PeerSettings
from ppdl_mq.errors import ConfigError, ManifestError, PeerFileError

S = TypeVar("S", bound=Section)

EMBEDDED = "embedded:"  # begins a relay URL that is a path


def read_manifest(path: Path, *, complete: bool = True) -> Manifest:
    """Read a trial's manifest.

    Args:
        path: the TOML file.
        complete: False accepts a draft with fewer than two peers.

    Raises:
        ManifestError: missing, malformed or nonsensical.
    """
    text = plain.read_text(path, limit_bytes=limits.MAX_MANIFEST_BYTES, error=ManifestError)
    return manifest_from_text(text, source=str(path), complete=complete)


def manifest_from_text(text: str, *, source: str, complete: bool = True) -> Manifest:
    """Parse the text of a manifest; `source` names it in errors.

    Raises:
        ManifestError: malformed or nonsensical.
    """
    data = plain.parse_toml(text, source=source, error=ManifestError)
    return manifest_from_data(data, source=source, complete=complete)


def manifest_from_data(data: dict[str, Any], *, source: str = "manifest", complete: bool = True) -> Manifest:
    """Validate a manifest from plain data, as `Manifest.as_data` returns it.

    Raises:
        ManifestError: a field is missing, unknown or nonsensical, or two do not go together.
    """
    manifest = _validated(data, Manifest, source=source, error=ManifestError)
    fault = checks.fault_of(manifest, complete=complete)
    if fault is not None:
        raise ManifestError(f"{source}: {fault[0]}", hint=fault[1])
    return manifest


def read_settings(path: Path) -> PeerSettings:
    """Read an organisation's own settings; relative paths in it become absolute, from the file's folder.

    Raises:
        PeerFileError: missing, malformed or nonsensical.
    """
    text = plain.read_text(path, limit_bytes=limits.MAX_SETTINGS_BYTES, error=PeerFileError)
    return settings_from_text(text, source=str(path), folder=path.absolute().parent)


def settings_from_text(text: str, *, source: str, folder: Path) -> PeerSettings:
    """Parse the text of an organisation's settings.

    Args:
        text: TOML.
        source: names it in errors.
        folder: what relative paths start from.

    Raises:
        PeerFileError: malformed or nonsensical.
    """
    data = plain.parse_toml(text, source=source, error=PeerFileError)
    settings = _validated(data, PeerSettings, source=source, error=PeerFileError)
    if settings.sample_seed is not None and settings.mode != "rehearsal":
        raise PeerFileError(
            f'{source}: sample_seed is for mode = "rehearsal" only: the order of samples must stay secret.',
            hint="Remove it; each peer then draws its own.",
        )
    for table, name in ((settings, "passphrase"), (settings.broker, "password")):
        if getattr(table, f"{name}_env") is not None and getattr(table, f"{name}_file") is not None:
            raise PeerFileError(f"{source}: {name}_env and {name}_file exclude each other.", hint="Remove one of them.")
    try:
        return _with_absolute_paths(settings, folder)
    except RuntimeError:  # of expanduser
        raise PeerFileError(
            f"{source}: a path begins with ~ and the name of a user who has no home here.", hint="Write the whole path."
        ) from None


def _validated(data: dict[str, Any], model: type[S], *, source: str, error: type[ConfigError]) -> S:
    fault = plain.fault_of_plain(data)
    if fault is not None:
        raise error(f"{source}: {fault}.")
    try:
        # By way of JSON, pydantic's strict mode takes arrays for tuples and strings for paths, and nothing else.
        return model.model_validate_json(json.dumps(data))
    except ValidationError as invalid:
        sentence, hint = sentences.first_fault(invalid, model, data)
        raise error(f"{source}: {sentence}", hint=hint) from None


def _with_absolute_paths(section: S, folder: Path) -> S:
    """Return a copy whose paths, those of nested tables too, start from `folder`."""
    changed: dict[str, Any] = {}
    for name, value in section:
        if isinstance(value, Path):
            changed[name] = folder / value.expanduser()
        elif isinstance(value, Section):
            changed[name] = _with_absolute_paths(value, folder)
        elif name == "url" and value.startswith(EMBEDDED):
            changed[name] = EMBEDDED + str(folder / Path(value.removeprefix(EMBEDDED)).expanduser())
    return section.model_copy(update=changed)
