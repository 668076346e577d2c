"""`ppdl-mq relay`: the broker as this organisation reaches it."""

from __future__ import annotations

from pathlib import Path

import click

from ppdl_mq.cli.arguments import config_option
from ppdl_mq.cli.relay_check import check
from ppdl_mq.cli.relay_parties import address_of, own_name
from ppdl_mq.cli.relay_plan import plan
from ppdl_mq.cli.terminal import Terminal, json_option
from ppdl_mq.config.reading import read_manifest
from ppdl_mq.transport.opening import open_transport


@click.group()
def relay() -> None:
    """Plan and check the broker; empty the own inbox."""


relay.add_command(plan)
relay.add_command(check)


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
    manifest = read_manifest(trial)
    name, address = own_name(config, manifest, trial), address_of(config)
    transport = open_transport(address, trial=manifest.name, prefix=manifest.relay.prefix, peer=name)
    if not yes:
        terminal.confirm(f"Drop every message in the inbox of {name} at {address}?")
    with transport:
        dropped = transport.purge(name)
    terminal.answer(
        {"relay": str(address), "inbox": name, "dropped": dropped},
        f"Dropped {dropped} messages of {name} at {address}.",
    )
