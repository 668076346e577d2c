"""`ppdl-mq relay plan`: what an administrator of RabbitMQ needs, from the manifest."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click

from ppdl_mq.cli.arguments import file_argument
from ppdl_mq.cli.relay_sizes import sizes_known
from ppdl_mq.cli.terminal import Terminal, json_option
from ppdl_mq.config import writing
from ppdl_mq.config.reading import read_manifest
from ppdl_mq.errors import ConfigError
from ppdl_mq.report.relay_plan.page import DEFINITIONS, PAGE, SCRIPT, page
from ppdl_mq.report.relay_plan.sizes import readable
from ppdl_mq.transport.plan.definitions import definitions
from ppdl_mq.transport.plan.lines import setup_script
from ppdl_mq.transport.plan.making import make_plan
from ppdl_mq.transport.plan.objects import Choices, QueueType


@click.command()
@file_argument
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for the three files; without it, the page is printed."
)
@click.option("--vhost", default="ppdl", show_default=True, help="Virtual host of the trial.")
@click.option(
    "--queue-type",
    type=click.Choice(["quorum", "classic"]),
    default="quorum",
    show_default=True,
    help="Of all queues of the trial.",
)
@click.option(
    "--user", multiple=True, metavar="PEER=NAME", help="A peer's user, if not called as the peer; repeatable."
)
@click.option("--peers-declare", is_flag=True, help="Each peer makes its own inbox, instead of the administrator.")
@click.option("--existing-vhost", is_flag=True, help="The vhost is there; leave it as it is.")
@click.option(
    "--existing-users", is_flag=True, help="The users are there, or come from elsewhere; leave them as they are."
)
@click.option("--weights-bytes", type=click.IntRange(min=1), help="Size of a model that is not the program's own.")
@json_option
@click.pass_obj
def plan(
    terminal: Terminal,
    file: Path,
    out: Path | None,
    vhost: str,
    queue_type: QueueType,
    user: tuple[str, ...],
    peers_declare: bool,
    existing_vhost: bool,
    existing_users: bool,
    weights_bytes: int | None,
) -> None:
    """Write what the broker's administrator needs: definitions to import, the same as rabbitmqctl lines, and a page.

    No broker is asked, and nothing in it is secret.

    \b
    Example:
      ppdl-mq relay plan heart.toml --out plan
    """
    manifest = read_manifest(file)
    sizes = sizes_known(manifest, weights_bytes)
    made = make_plan(
        manifest,
        Choices(
            vhost=vhost,
            queue_type=queue_type,
            users=_users(user),
            peers_declare=peers_declare,
            existing_vhost=existing_vhost,
            existing_users=existing_users,
            max_queue_bytes=None if sizes is None else sizes.queue_limit,
        ),
    )
    text = page(made, manifest, sizes)
    data = definitions(made)
    written = []
    if out is not None:
        script = setup_script(made)
        files = {DEFINITIONS: json.dumps(data, indent=2) + "\n", SCRIPT: script, PAGE: text}
        written = _write(out, files)
        text = (
            f"Wrote {', '.join(map(str, written))}.\n"
            f"The administrator reads {out / PAGE}; each organisation gets a password and the broker's URL."
        )
        if sizes is None:
            text += "\nThe model is not the program's own, so no queue has a limit: --weights-bytes sets one."
        else:
            text += f"\nThe model has {readable(sizes.weights)}; a queue may hold {readable(sizes.queue_limit)}."
    terminal.answer(
        {
            "trial": manifest.name,
            "vhost": vhost,
            "files": [str(each) for each in written],
            "sizes_bytes": None if sizes is None else dataclasses.asdict(sizes),
            "definitions": data,
        },
        text,
    )


def _users(pairs: tuple[str, ...]) -> dict[str, str]:
    users = {}
    for pair in pairs:
        peer, equals, name = pair.partition("=")
        if not equals or not peer or not name:
            raise click.UsageError(f"--user {pair!r} is not of the form PEER=NAME.")
        if peer in users:
            raise click.UsageError(f"--user names {peer} twice.")
        users[peer] = name
    return users


def _write(folder: Path, files: dict[str, str]) -> list[Path]:
    """Write all files or none: a folder with files of two plans would be worse than an error."""
    paths = [folder / name for name in files]
    there = [path for path in paths if path.exists()]
    if there:
        raise ConfigError(f"{there[0]}: exists already.", hint="Choose another folder with --out, or remove it first.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise ConfigError(f"{folder}: cannot be made: {fault.strerror}.") from None
    for path, text in zip(paths, files.values(), strict=True):
        writing.write_new(path, text, error=ConfigError)
    return paths
