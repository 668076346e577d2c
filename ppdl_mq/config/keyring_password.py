"""A password from the keyring of the desktop or server, through the `keyring` library where it is installed."""

from __future__ import annotations

import importlib

from pydantic import SecretStr

from ppdl_mq.errors import ConfigError


def keyring_password(service: str, user: str) -> SecretStr:
    """Ask the keyring.

    The library is no dependency: few servers have a keyring, and it brings half a dozen packages along.

    Args:
        service: under which the password was stored.
        user: whose it is.

    Raises:
        ConfigError: there is no library, no keyring, or no such password in it.
    """
    try:
        library = importlib.import_module("keyring")
    except ImportError:
        raise ConfigError(
            "password_keyring is set, and the keyring library is not installed.",
            hint="Install it (pip install keyring), or use password_file.",
        ) from None
    try:
        value = library.get_password(service, user)
    except Exception as error:  # every keyring has errors of its own, and their text may be anything
        raise ConfigError(
            f"The keyring does not answer: {type(error).__name__}.",
            hint="Is it unlocked, and is there one at all? Without a desktop use password_file.",
        ) from None
    if not value:
        raise ConfigError(
            f"The keyring holds no password of {user!r} for {service!r}.",
            hint=f"Put it there: keyring set {service} {user}",
        )
    return SecretStr(value)
