"""What people write and pass on: manifests, settings, public lines, identity files."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

from fuzz.harness import Form, Target, scratch_folder
from fuzz.people import manifest_of
from ppdl_mq.config import limits
from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.config.differences import differences
from ppdl_mq.config.reading import manifest_from_text, settings_from_text
from ppdl_mq.crypto.identity import PublicIdentity
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import IdentityError, ManifestError, PpdlError
from ppdl_mq.peer.identity_file import is_sealed, passphrase_from, read_identity, read_public_line
from ppdl_mq.wire.trial_id import manifest_bytes, manifest_from_bytes

_OURS = manifest_of("server-aided")
_PASSPHRASE = Secret(b"correct horse")
_FOLDER = scratch_folder()
_FILE = _FOLDER / "identity"


def _text(data: bytes) -> str | None:
    """Return what a file of these bytes holds; other than UTF-8 is refused before these decoders."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def run_manifest_text(data: bytes) -> None:
    """Read a manifest's TOML; what is accepted is a manifest on the wire too."""
    if (text := _text(data)) is not None:
        manifest = manifest_from_text(text, source="trial.toml")
        assert manifest_from_bytes(manifest_bytes(manifest)).as_data() == manifest.as_data()


def run_manifest_bytes(data: bytes) -> None:
    """Read another peer's manifest and compare it with ours; equal is what has equal bytes."""
    theirs = manifest_from_bytes(data)
    fields = differences(_OURS.as_data(), theirs.as_data())
    assert bool(fields) == (data != manifest_bytes(_OURS))
    assert len(fields) <= limits.MAX_DIFFERENCES


def run_settings(data: bytes) -> None:
    """Read peer.toml, and the relay's address in it."""
    if (text := _text(data)) is not None:
        settings = settings_from_text(text, source="peer.toml", folder=Path("/folder"))
        assert settings.state_dir.is_absolute()
        str(BrokerAddress.from_settings(settings.broker, Path("/folder")))


def run_public_line(data: bytes) -> None:
    """Read a public line; what is accepted has one encoding."""
    line = data.decode("utf-8", errors="surrogateescape")  # as Python gives a program its arguments
    public = PublicIdentity.from_line(line)
    assert line.split()[1:3] == [public.name, public.keys]


def run_identity_file(data: bytes) -> None:
    """Read an identity file of these bytes in every way; Argon2id is kept cheap."""
    with os.fdopen(os.open(_FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
    with mock.patch.multiple(limits, MAX_ARGON2_OPS=2, MAX_ARGON2_BYTES=64 * 1024):
        errors = 0
        for read in (
            lambda: read_public_line(_FILE),
            lambda: is_sealed(_FILE),
            lambda: read_identity(_FILE, passphrase=_PASSPHRASE),
            lambda: passphrase_from(None, _FILE),
        ):
            try:
                read()
            except PpdlError as error:
                assert isinstance(error, IdentityError)
                errors += 1
    assert errors or data


TARGETS = (
    Target(name="manifest-text", run=run_manifest_text, form=Form.TOML, errors=(ManifestError,)),
    Target(name="manifest-bytes", run=run_manifest_bytes, form=Form.CANONICAL),
    Target(name="settings", run=run_settings, form=Form.TOML),
    Target(name="public-line", run=run_public_line, errors=(IdentityError,), longest_bytes=512),
    Target(name="identity-file", run=run_identity_file, form=Form.TOML),
)
