"""`ppdl-mq identity`: a peer's keys."""

from __future__ import annotations

from pathlib import Path

import click

from ppdl_mq.cli.passphrase import known_passphrase, new_passphrase, passphrase_options
from ppdl_mq.cli.terminal import Terminal, json_option
from ppdl_mq.crypto.identity import PublicIdentity
from ppdl_mq.peer.identity_file import create_identity, is_sealed, read_identity, read_public_line


@click.group()
def identity() -> None:
    """Make and show a peer's keys."""


@identity.command()
@click.option("--name", required=True, help="Of the peer: 1 to 32 of a-z, 0-9 and '-'.")
@click.option("--out", type=click.Path(path_type=Path), help="The file to write. [default: NAME.key]")
@click.option("--passphrase", "ask", is_flag=True, help="Ask for a passphrase at the keyboard.")
@passphrase_options
@json_option
@click.pass_obj
def new(
    terminal: Terminal,
    name: str,
    out: Path | None,
    ask: bool,
    passphrase_env: str | None,
    passphrase_file: Path | None,
) -> None:
    """Make an identity, in a file that only you can read (mode 0600).

    \b
    Example:
      ppdl-mq identity new --name mercy --out mercy.key
    """
    path = out or Path(f"{name}.key")
    made = create_identity(path, name, passphrase=new_passphrase(passphrase_env, passphrase_file, ask=ask))
    _show(terminal, made.line, f"The identity is in {path}. Keep that file secret. Send the public line to the others:")


@identity.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--verify", is_flag=True, help="Open the secret part too, which may need the passphrase.")
@passphrase_options
@json_option
@click.pass_obj
def show(
    terminal: Terminal, file: Path | None, verify: bool, passphrase_env: str | None, passphrase_file: Path | None
) -> None:
    """Print the public line to send to the others, and a fingerprint to read to them over the telephone.

    Without FILE: the only *.key in this folder.

    \b
    Example:
      ppdl-mq identity show mercy.key
    """
    path = file or _only_key_file()
    if verify:
        sealed = is_sealed(path)
        read_identity(path, passphrase=known_passphrase(passphrase_env, passphrase_file) if sealed else None)
    _show(terminal, read_public_line(path), "The public line to send to the others:")


def _only_key_file() -> Path:
    found = sorted(Path().glob("*.key"))
    if len(found) != 1:
        raise click.UsageError(f"There are {len(found)} *.key files in this folder; name the one to show.")
    return found[0]


def _show(terminal: Terminal, line: str, introduction: str) -> None:
    public = PublicIdentity.from_line(line)
    terminal.remark(introduction)
    terminal.answer({"name": public.name, "keys": public.keys, "fingerprint": public.fingerprint, "line": line}, line)
    terminal.remark(f"Fingerprint, to compare over the telephone: {public.fingerprint}")
