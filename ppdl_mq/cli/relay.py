"""`ppdl-mq relay`: the broker as this organisation reaches it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from ppdl_mq.cli.arguments import config_option
from ppdl_mq.cli.terminal import Terminal, json_option
from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.config.reading import read_manifest, read_settings
from ppdl_mq.crypto.identity import PublicIdentity
from ppdl_mq.errors import IdentityError, RelayError
from ppdl_mq.peer.identity_file import read_public_line
from ppdl_mq.transport.base import Transport
from ppdl_mq.transport.opening import open_transport

NOBODY = "ppdl-mq-check"  # stands for a trial and a peer where none is given


@click.group()
def relay() -> None:
    """Check the broker; empty the own inbox."""


@relay.command()
@click.argument("url", required=False)
@click.option("--config", type=click.Path(path_type=Path), help="The settings, instead of a URL.")
@click.option("--trial", type=click.Path(path_type=Path), help="Also make sure of the own inbox in this trial.")
@click.option("--password-env", metavar="NAME", help="With a URL: environment variable of the password.")
@json_option
@click.pass_obj
def check(
    terminal: Terminal, url: str | None, config: Path | None, trial: Path | None, password_env: str | None
) -> None:
    """Reach the broker and log in; with --trial, also make sure of the own inbox.

    Of several hosts in the URL each is tried; one that lets us in is enough for a peer.

    \b
    Example:
      ppdl-mq relay check amqp://mercy@relay.example/ppdl --password-env BROKER_PASSWORD
      ppdl-mq relay check --config mercy.toml --trial heart.toml
    """
    if (url is None) == (config is None):
        raise click.UsageError("Give either a URL or --config.")
    if config is None and trial is not None:
        raise click.UsageError("--trial needs --config, which says who we are.")
    if config is not None and trial is not None:
        transport, address, name = _of_trial(config, trial)
    else:
        address = _address(url, config, password_env)
        transport, name = open_transport(address, trial=NOBODY, prefix="ppdl", peer=NOBODY), None
    with transport:
        if name is not None:
            transport.declare(name)
        failures = _failures(address, transport.connected_to)
    for failure in failures.values():
        terminal.remark(f"warning: {failure}")
    done = "answers and lets us in" + (f", and the inbox of {name} is there" if name is not None else "")
    if len(address.hosts) > 1:
        done = f"{done}, at {len(address.hosts) - len(failures)} of {len(address.hosts)} hosts"
    data = {"relay": str(address), "reachable": True, "unreachable_hosts": failures, "inbox": name}
    terminal.answer(data, f"{address} {done}.")


@relay.command()
@config_option
@click.option("--trial", type=click.Path(path_type=Path), required=True, help="The manifest of the trial.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_obj
def purge(terminal: Terminal, config: Path, trial: Path, yes: bool) -> None:
    """Empty this organisation's own inbox in a trial; nothing else is touched.

    A trial that is under way cannot go on without the messages that are dropped.

    \b
    Example:
      ppdl-mq relay purge --config mercy.toml --trial heart.toml --yes
    """
    transport, address, name = _of_trial(config, trial)
    if not yes:
        click.confirm(f"Drop every message in the inbox of {name} at {address}?", abort=True, err=True)
    with transport:
        dropped = transport.purge(name)
    terminal.answer(
        {"relay": str(address), "inbox": name, "dropped": dropped},
        f"Dropped {dropped} messages of {name} at {address}.",
    )


def _failures(address: BrokerAddress, connected_to: str | None) -> dict[str, str]:
    """Try the other hosts of a relay that answers; return for each that does not let us in why."""
    failures = {}
    for host in address.hosts:
        if str(host) == connected_to:
            continue
        try:
            with open_transport(address.at(host), trial=NOBODY, prefix="ppdl", peer=NOBODY):
                pass
        except RelayError as error:
            failures[str(host)] = error.message
    return failures


def _address(url: str | None, config: Path | None, password_env: str | None) -> BrokerAddress:
    if config is not None:
        return BrokerAddress.from_settings(read_settings(config).broker, config.absolute().parent)
    assert url is not None, "checked by the caller"
    return dataclasses.replace(BrokerAddress.parse(url), password_env=password_env)


def _of_trial(config: Path, trial: Path) -> tuple[Transport, BrokerAddress, str]:
    """Return the way to the relay, not yet connected, its address, and our name in the trial."""
    settings, manifest = read_settings(config), read_manifest(trial)
    public = PublicIdentity.from_line(read_public_line(settings.identity))
    if (public.name, public.keys) not in {(peer.name, peer.keys) for peer in manifest.peers}:
        raise IdentityError(
            f"The identity {public.name} in {settings.identity} is not one of the peers of {trial}.",
            hint="Compare the fingerprints of `ppdl-mq identity show` and `ppdl-mq trial check`.",
        )
    address = _address(None, config, None)
    transport = open_transport(address, trial=manifest.name, prefix=manifest.relay.prefix, peer=public.name)
    return transport, address, public.name
