"""`ppdl-mq peer run --fresh`: begin a trial anew where that can be done, and say what it costs where it cannot."""

from __future__ import annotations

import click

from ppdl_mq.cli.terminal import NotWithout, Terminal
from ppdl_mq.config.manifest import Manifest
from ppdl_mq.config.settings import PeerSettings
from ppdl_mq.crypto.identity import Identity
from ppdl_mq.errors import JournalError
from ppdl_mq.peer.folders import state_folder
from ppdl_mq.peer.fresh import look, set_aside
from ppdl_mq.peer.status import is_over
from ppdl_mq.wire.trial_id import trial_id

fresh_option = click.option(
    "--fresh", is_flag=True, help="Forget what this peer has of the trial, and begin anew where that is possible."
)
yes_option = click.option("--yes", is_flag=True, help="With --fresh: do it.")

_LOST = "its place in the trial, the weights that it trained and received, its model and its signed log"


def start_afresh(
    terminal: Terminal, manifest: Manifest, settings: PeerSettings, identity: Identity, *, yes: bool
) -> None:
    """Set aside what a peer has of a trial, so that it can begin anew.

    Raises:
        NotWithout: people have not said --yes.
        JournalError: the peer has spoken in the trial, and cannot come back.
    """
    folder = state_folder(settings, manifest)
    belongs = {"trial_id": trial_id(manifest), "keys": identity.public.raw_keys}
    holding = look(folder, **belongs)
    if not holding.has_anything:
        if not yes:
            raise NotWithout(f"There is nothing to forget in {folder}.", hint="Run it without --fresh.")
        return
    is_over_here = is_over(settings, manifest)  # read before it is set aside
    rejoins = _why_not_again(manifest.name, is_over_here=is_over_here)
    if not yes:
        raise NotWithout(
            f"A fresh start forgets what is in {folder}: {_LOST}."
            + (f" {rejoins}" if holding.has_spoken else " Nothing of it was said to the others yet."),
            hint=("" if is_over_here else "Without --fresh it goes on where it was. ")
            + "With --fresh --yes its live secrets are erased and the rest is set aside in that folder"
            + (
                "; to train again, all renew the trial: `ppdl-mq trial renew`."
                if holding.has_spoken
                else ", and it begins anew."
            ),
        )
    aside = set_aside(folder, **belongs)
    where = "Nothing was left to set aside." if aside is None else f"What there was is set aside in {aside}."
    if holding.has_spoken:
        renew = "To train again, one renews the trial and sends it round: `ppdl-mq trial renew`."
        drop = f"Where the protocol has it, they go on without this peer: `ppdl-mq peer drop {identity.name}`."
        raise JournalError(f"{where} {rejoins}", hint=renew if is_over_here else f"Tell the others. {renew} {drop}")
    terminal.remark(f"{where} Beginning anew.")


def _why_not_again(name: str, *, is_over_here: bool) -> str:
    if is_over_here:
        return f"Trial {name} has ended for this organisation: nobody waits for it, and it cannot be run a second time."
    return (
        f"This peer has said something in trial {name} already, so it cannot come back to it: a new session "
        "would look like a lie to the others. They wait for it, or go on without it where the protocol can."
    )
