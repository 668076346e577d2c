"""The file that holds a peer's identity: mode 0600, written once, never over another.

# a comment that says that it is secret
format = "ppdl-mq-identity-1"
public = "ppdl-mq-peer-1 NAME KEYS SIGNATURE"
secret = "base64url of 64 bytes"             without a passphrase, or
sealed = "base64url of 80 bytes"             with one, and then
salt = "base64url of 16 bytes"
argon2id_ops = 3
argon2id_memory_bytes = 268435456
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
import stat
from pathlib import Path
from typing import Any, Final

from ppdl_mq.config import limits, plain
from ppdl_mq.config.writing import sync_folder
from ppdl_mq.crypto import passphrase as sealing
from ppdl_mq.crypto.identity import SECRET_BYTES, Identity, PublicIdentity
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import IdentityError, PassphraseError

FORMAT: Final = "ppdl-mq-identity-1"

_OPEN_KEYS: Final = {"format", "public", "secret"}
_SEALED_KEYS: Final = {"format", "public", "sealed", "salt", "argon2id_ops", "argon2id_memory_bytes"}


def create_identity(
    path: Path, name: str, *, passphrase: Secret | None = None, cost: sealing.Cost = sealing.MODERATE
) -> Identity:
    """Make a new identity and write it.

    Args:
        path: where; nothing may be there yet.
        name: of the peer.
        passphrase: seals the secret; None leaves it protected by the file's mode alone.
        cost: of one guess at the passphrase.

    Raises:
        IdentityError: the name is not valid, the file exists, or cannot be written.
    """
    identity = Identity(name=name, secret=Secret(secrets.token_bytes(SECRET_BYTES)))
    lines = [
        f"# The ppdl-mq identity of {identity.public.name}. SECRET: whoever has this file can act as {name}.",
        "# Keep it at mode 0600 and send it to nobody. The line `public` is what the others need.",
        f'format = "{FORMAT}"',
        f'public = "{identity.line}"',
    ]
    if passphrase is None:
        lines.append(f'secret = "{_text(identity.secret.reveal())}"')
    else:
        salt = secrets.token_bytes(sealing.SALT_BYTES)
        sealed = sealing.seal(identity.secret, passphrase, salt=salt, cost=cost)
        lines += [
            f'sealed = "{_text(sealed)}"',
            f'salt = "{_text(salt)}"',
            f"argon2id_ops = {cost.ops}",
            f"argon2id_memory_bytes = {cost.memory_bytes}",
        ]
    _write_new(path, ("\n".join(lines) + "\n").encode("ascii"))
    return identity


def read_identity(path: Path, *, passphrase: Secret | None = None) -> Identity:
    """Read a peer's own identity.

    Args:
        path: the file.
        passphrase: needed when the file is sealed; otherwise not looked at.

    Raises:
        IdentityError: missing, readable by others, or damaged.
        PassphraseError: the passphrase is missing or wrong.
    """
    fields, line = _read(path)
    if "secret" in fields:
        secret = Secret(_raw(path, fields, "secret"))
    elif passphrase is None:
        raise PassphraseError(
            f"{path}: is protected by a passphrase.", hint="Name it with passphrase_env or passphrase_file."
        )
    else:
        cost = sealing.Cost(
            ops=_count(path, fields, "argon2id_ops"), memory_bytes=_count(path, fields, "argon2id_memory_bytes")
        )
        salt = _raw(path, fields, "salt")
        if len(salt) != sealing.SALT_BYTES:
            raise _damaged(path, "salt")
        try:
            secret = sealing.open_sealed(_raw(path, fields, "sealed"), passphrase, salt=salt, cost=cost)
        except PassphraseError as wrong:
            raise PassphraseError(
                f"{path}: {wrong.message}", hint="Try again; a damaged file looks the same."
            ) from None
    public = PublicIdentity.from_line(line)
    if len(secret) != SECRET_BYTES:
        raise _damaged(path, "secret")
    identity = Identity(name=public.name, secret=secret)
    if identity.public != public:
        raise IdentityError(f"{path}: the secret does not belong to the public line.", hint="Restore it from a copy.")
    return identity


def read_public_line(path: Path) -> str:
    """Return the public line of an identity file, checked; needs no passphrase.

    Raises:
        IdentityError: missing, readable by others, or damaged.
    """
    return _read(path)[1]


def is_sealed(path: Path) -> bool:
    """Tell whether reading the identity needs a passphrase.

    Raises:
        IdentityError: missing, readable by others, or damaged.
    """
    return "sealed" in _read(path)[0]


def passphrase_from(variable: str | None, file: Path | None) -> Secret | None:
    """Fetch a passphrase from where the settings say, or return None when they say nothing.

    Args:
        variable: name of an environment variable.
        file: its first line is the passphrase; only its owner may read it.

    Raises:
        PassphraseError: the variable is not set, the file cannot be read, or the passphrase is empty.
    """
    if variable is not None:
        found = os.environ.get(variable)
        if found is None:
            raise PassphraseError(f"The environment variable {variable}, which should hold the passphrase, is not set.")
        return _checked_passphrase(found.encode(), f"The environment variable {variable}")
    if file is not None:
        try:
            raw = _read_private(file, limits.MAX_IDENTITY_BYTES)
        except IdentityError as fault:
            raise PassphraseError(fault.message, hint=fault.hint) from None
        return _checked_passphrase(raw.split(b"\n", 1)[0].removesuffix(b"\r"), str(file))
    return None


def _checked_passphrase(value: bytes, source: str) -> Secret:
    if not value:
        raise PassphraseError(f"{source} holds no passphrase: it is empty.")
    if len(value) > limits.MAX_PASSPHRASE_BYTES:
        raise PassphraseError(f"{source} holds a passphrase of more than {limits.MAX_PASSPHRASE_BYTES} bytes.")
    return Secret(value)


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """Return the fields and the public line, whose signature has been checked."""
    try:
        fields = plain.toml_of(_read_private(path, limits.MAX_IDENTITY_BYTES).decode("utf-8"))
    except (ValueError, RecursionError):  # from None: the cause would carry the file's text
        raise IdentityError(f"{path}: is not an identity file.", hint="`ppdl-mq identity new` writes one.") from None
    if fields.get("format") != FORMAT or fields.keys() not in (_OPEN_KEYS, _SEALED_KEYS):
        raise IdentityError(f"{path}: is not an identity file of the format {FORMAT}.")
    line = fields["public"]
    if not isinstance(line, str):
        raise _damaged(path, "public")
    try:
        PublicIdentity.from_line(line)
    except IdentityError:
        raise _damaged(path, "public") from None
    return fields, line


def _read_private(path: Path, limit_bytes: int) -> bytes:
    """Return what a file holds that only its owner may read."""
    try:
        # Without O_NONBLOCK a named pipe in its place would wait for a writer.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise IdentityError(f"{path}: there is no such file.", hint="`ppdl-mq identity new` writes one.") from None
    except OSError as fault:
        raise IdentityError(f"{path}: cannot be read: {fault.strerror}.") from None
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise IdentityError(f"{path}: is not a plain file.")
        if status.st_mode & 0o077:
            raise IdentityError(f"{path}: can be read by others.", hint=f"Do: chmod 600 {path}")
        with os.fdopen(handle, "rb", closefd=False) as file:
            raw = file.read(limit_bytes + 1)
    finally:
        os.close(handle)
    if len(raw) > limit_bytes:
        raise IdentityError(f"{path}: is larger than {limit_bytes} bytes.")
    return raw


def _write_new(path: Path, content: bytes) -> None:
    """Write a private file completely or not at all, and never over another."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(handle)
            os.link(unfinished, path)  # unlike a rename, fails where something is
        finally:
            unfinished.unlink()
        sync_folder(path.parent)
    except FileExistsError:
        raise IdentityError(f"{path}: exists already, and an identity is never overwritten.") from None
    except OSError as fault:
        raise IdentityError(f"{path}: cannot be written: {fault.strerror}.") from None


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _raw(path: Path, fields: dict[str, Any], name: str) -> bytes:
    try:
        return base64.b64decode(fields[name] + "=" * (-len(fields[name]) % 4), altchars=b"-_", validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise _damaged(path, name) from None


def _count(path: Path, fields: dict[str, Any], name: str) -> int:
    value = fields[name]
    if type(value) is not int or not 0 <= value < 2**63:  # a number of thousands of digits could not even be printed
        raise _damaged(path, name)
    return value


def _damaged(path: Path, name: str) -> IdentityError:
    return IdentityError(f"{path}: the field {name} is damaged.", hint="Restore the file from a copy.")
