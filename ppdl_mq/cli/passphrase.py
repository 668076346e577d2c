"""Where a passphrase comes from: a variable, a file, or the keyboard. Never an argument, which others can see."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import PassphraseError
from ppdl_mq.peer.identity_file import passphrase_from

F = TypeVar("F", bound=Callable[..., Any])


def passphrase_options(command: F) -> F:
    """Add --passphrase-env and --passphrase-file."""
    from_file = click.option(
        "--passphrase-file", type=click.Path(path_type=Path), help="File of mode 0600 whose first line it is."
    )
    from_variable = click.option("--passphrase-env", metavar="NAME", help="Environment variable that holds it.")
    return from_variable(from_file(command))


def new_passphrase(variable: str | None, file: Path | None, *, ask: bool) -> Secret | None:
    """Return the passphrase for a new identity, or None for none.

    Args:
        variable: environment variable that holds it.
        file: file that holds it.
        ask: read it twice from the keyboard, where neither is given.

    Raises:
        PassphraseError: it cannot be had, or is empty.
    """
    found = passphrase_from(variable, file)
    if found is not None or not ask:
        return found
    return _typed(confirm=True)


def known_passphrase(variable: str | None, file: Path | None) -> Secret:
    """Return the passphrase of a sealed identity; asks at the keyboard where neither source is given.

    Raises:
        PassphraseError: it cannot be had, or is empty.
    """
    found = passphrase_from(variable, file)
    return found if found is not None else _typed(confirm=False)


def _typed(*, confirm: bool) -> Secret:
    if not sys.stdin.isatty():
        raise PassphraseError(
            "A passphrase is needed, and there is no terminal to ask at.",
            hint="Use --passphrase-env or --passphrase-file.",
        )
    typed: str = click.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm, err=True)
    return Secret(typed.encode())
