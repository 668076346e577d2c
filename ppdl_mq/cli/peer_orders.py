"""`ppdl-mq peer drop` and `ppdl-mq peer leave`: decisions of people, for the peer to take up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ppdl_mq.cli.arguments import config_option
from ppdl_mq.cli.terminal import Terminal, json_option
from ppdl_mq.config.manifest import Manifest
from ppdl_mq.config.reading import read_manifest, read_settings
from ppdl_mq.errors import ManifestError, PeerFileError
from ppdl_mq.peer.orders import Order, give_order
from ppdl_mq.peer.status import has_begun, has_ended, is_of_rounds, peers_in, read_status, without_this_peer
from ppdl_mq.protocol.phases import Phase

trial_option = click.option(
    "--trial", type=click.Path(path_type=Path), help="The manifest, where several trials share the settings."
)
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


@click.command()
@click.argument("name")
@config_option
@trial_option
@yes_option
@json_option
@click.pass_obj
def drop(terminal: Terminal, name: str, config: Path, trial: Path | None, yes: bool) -> None:
    """Go on without the peer NAME, which is lost for good (masked-average).

    Every remaining organisation must do the same, having asked NAME by telephone; then the trial goes on without NAME,
    for good. Nobody is dropped from a step in which masks were released: that step is finished with NAME's part in it,
    or stops until NAME is back.

    In the other protocols the peer of the last turn can so end its wait for the last word of NAME, which the relay has
    lost; only that.

    \b
    Example:
      ppdl-mq peer drop basel --config mercy.toml
    """
    manifest, found = _of_trial(config, trial, may_drop=name)
    if not is_of_rounds(found):
        _wait_no_longer(terminal, found, name, yes=yes)
        return
    if manifest is None:  # without it the peers are not known before the first step
        _check_phase(found)
    me, others = found["peer"], [peer for peer in peers_in(found, manifest) if peer != found["peer"]]
    if name == me:
        raise ManifestError(
            f"{me} is this organisation itself.", hint="`ppdl-mq peer leave` is the way to leave the trial."
        )
    if name not in others:
        raise ManifestError(
            f"{name} is not another peer of trial {found['trial']}.", hint=f"The others are: {', '.join(others)}."
        )
    _check_phase(found)
    if name not in found["members"]:
        raise ManifestError(f"{name} has gone from trial {found['trial']} already.")
    _confirm(
        terminal,
        found,
        f"Every remaining organisation must do the same, having asked {name} by telephone; then the trial goes on "
        f"without {name}, for good.\n"
        f"Nobody is dropped from a step in which masks were released: that step is finished with {name}'s part in it, "
        f"or stops until {name} is back.",
        f"Drop {name} from trial {found['trial']}?",
        yes=yes,
    )
    _give(terminal, found, Order(drop=name), f"drop {name}")


@click.command()
@config_option
@trial_option
@yes_option
@json_option
@click.pass_obj
def leave(terminal: Terminal, config: Path, trial: Path | None, yes: bool) -> None:
    """Leave the trial for good, with a signed farewell (masked-average only).

    The others go on without this organisation; with fewer than min_peers left the trial ends early for them. It
    finishes a step that it has signed a receipt in, keeps what it has, and cannot come back.

    \b
    Example:
      ppdl-mq peer leave --config mercy.toml
    """
    _, found = _of_trial(config, trial)
    _check_phase(found)
    _confirm(
        terminal,
        found,
        f"The others go on without {found['peer']}; with fewer than min_peers left the trial ends early for them.\n"
        f"{found['peer']} finishes a step that it has signed a receipt in, keeps what it has, and cannot come back.",
        f"Leave trial {found['trial']}?",
        yes=yes,
    )
    _give(terminal, found, Order(), "leave")


def _wait_no_longer(terminal: Terminal, found: dict[str, Any], name: str, *, yes: bool) -> None:
    """End the wait of a sequential trial's last peer for another one's last word."""
    _confirm(
        terminal,
        found,
        f"{found['peer']} has the model, and waits until {name} says that it has it, too. Ask {name} by telephone: if "
        f"it has, the relay has lost its last word, and nothing else is lost.\nIf it has not, it will not get it.",
        f"Wait for {name} no longer?",
        yes=yes,
    )
    _give(terminal, found, Order(drop=name), f"drop {name}")


def _of_trial(
    config: Path, trial: Path | None, *, may_drop: str | None = None
) -> tuple[Manifest | None, dict[str, Any]]:
    """Return the manifest, where it is named, and what the peer last said of itself.

    Args:
        config: the settings' file.
        trial: the manifest's file.
        may_drop: whose last word may be waited for no longer, also in a sequential trial.

    Raises:
        ManifestError: of a protocol that cannot do without a peer.
    """
    settings, manifest = read_settings(config), read_manifest(trial) if trial else None
    try:
        found = read_status(settings, manifest)
    except PeerFileError:
        if manifest is None or manifest.protocol == "masked-average":
            raise
        name = manifest.name
    else:
        is_awaited = found["phase"] == Phase.AWAITING_DONES.value and may_drop in found["waiting_for"]
        if is_of_rounds(found) or is_awaited:
            return manifest, found
        name = found["trial"]
    raise ManifestError(
        f"Trial {name} cannot go on without a peer: only masked-average can.",
        hint="Start a renewed trial among those who remain.",
    )


def _check_phase(found: dict[str, Any]) -> None:
    """Refuse where the peer could do nothing with an order.

    Raises:
        ManifestError: the trial has ended for this peer, or its first round has not begun.
    """
    if has_ended(found):
        raise ManifestError(f"Trial {found['trial']} has ended for {found['peer']} ({found['phase']}).")
    if not has_begun(found):
        raise ManifestError(
            f"The first round of trial {found['trial']} has not begun here: nobody can go before that.",
            hint="Stop the peer, and start a renewed trial among those who take part.",
        )


def _confirm(terminal: Terminal, found: dict[str, Any], meaning: str, question: str, *, yes: bool) -> None:
    terminal.remark(meaning)
    if (gone_on := without_this_peer(found)) is not None:
        terminal.remark(f"{gone_on} Ask them why first: once all others do, this order comes too late.")
    if not yes:
        terminal.confirm(question)


def _give(terminal: Terminal, found: dict[str, Any], order: Order, words: str) -> None:
    given = give_order(Path(found["folder"]), order)
    when = (
        "The running peer takes it up within a second."
        if found["running"]
        else ("The peer is not running: it takes it up when it is run again.")
    )
    terminal.answer(
        {
            "trial": found["trial"],
            "peer": found["peer"],
            "order": "leave" if order.drop is None else "drop",
            "drop": order.drop,
            "file": str(given.file),
            "running": found["running"],
        },
        f"The order to {words} is given to {found['peer']} in trial {found['trial']}. {when}",
    )
