"""`ppdl-mq peer status`: how far the trial is at this peer, who is waited for, and whether the peer is well."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from ppdl_mq.cli.arguments import config_option
from ppdl_mq.cli.terminal import Terminal, json_option
from ppdl_mq.config import limits
from ppdl_mq.config.reading import read_manifest, read_settings
from ppdl_mq.peer import health
from ppdl_mq.peer.status import epsilon_text, has_ended, is_of_rounds, read_status, without_this_peer
from ppdl_mq.protocol.phases import Phase


@click.command()
@config_option
@click.option("--trial", type=click.Path(path_type=Path), help="The manifest, where several trials share the settings.")
@click.option("--check", is_flag=True, help="Only tell whether the peer is well: exit code 0, or 11 if it is not.")
@click.option(
    "--max-age",
    type=click.FloatRange(min=1),
    default=limits.HEALTHY_S,
    show_default=True,
    metavar="SECONDS",
    help="With --check: how old the status of a peer that is well may be.",
)
@json_option
@click.pass_obj
def status(terminal: Terminal, config: Path, trial: Path | None, check: bool, max_age: float) -> None:
    """Say how far the trial is at this peer.

    With --check, for the health probes of a service manager: a peer that waits for others, for hours too, is well; one
    that is not running, or whose loop hangs, is not.

    \b
    Example:
      ppdl-mq peer status --config mercy.toml
    """
    settings, manifest = read_settings(config), read_manifest(trial) if trial else None
    if check:
        found_well = health.check(settings, manifest, max_age_s=max_age)
        terminal.answer({"well": True, "why": found_well.why, "age_s": found_well.age_s}, found_well.why, is_extra=True)
        return
    found = read_status(settings, manifest)
    terminal.answer(found, status_text(found, now=time.time()))


def status_text(found: dict[str, Any], *, now: float) -> str:
    """Return a status in words.

    Args:
        found: the status.
        now: in seconds since 1970.
    """
    since = f" for {found['phase_s']} s" if found["running"] else ""
    lines = [
        f"{found['peer']} in trial {found['trial']} ({found['trial_id'][:12]}), "
        + ("running" if found["running"] else "not running"),
        f"  {found['phase']}{since}{_waits(found, now)}; {_how_far(found)}",
        f"  received {found['received']} messages, published {found['published_messages']}"
        f" ({found['published_bytes']} bytes), reconnected {found['reconnects']} times",
        *_relay(found, now),
    ]
    if found["phase"] in (Phase.CLOSING.value, Phase.AWAITING_DONES.value) and found["waiting_for"]:
        model = f"the model of round {found['agreed_round']} is written" if found.get("agreed_round") else "it has left"
        model = model if is_of_rounds(found) else "the model is written"
        needs = f"waiting until {', '.join(found['waiting_for'])} has what it needs"
        lines.append(f"  {model}; {needs}; nothing of this peer is lost if it is stopped")
    if "rests_s" in found and found["running"]:
        because = f": {found['abandons_first']} abandons again and again" if found.get("abandons_first") else ""
        lines.append(f"  the next attempt begins in {_long(found['rests_s'])}{because}")
    if any(found["last_contact"].values()):
        heard = [f"{name} {_ago(at, now) if at else 'never'}" for name, at in found["last_contact"].items()]
        lines.append(f"  last heard: {', '.join(heard)}")
    if found["unsent"]:
        lines.append("  not sent yet: " + ", ".join(f"{count} to {name}" for name, count in found["unsent"].items()))
    if found["inbox_messages"]:
        lines.append(f"  waiting in the inbox at the relay: {found['inbox_messages']} messages")
    if found["asked_again"] or found["sent_again"]:
        lines.append(f"  asked others again {found['asked_again']} times, sent again {found['sent_again']} times")
    if found["checkpoint_at"] and not has_ended(found):
        lines.append(f"  checkpoint of the turn under way: {_ago(found['checkpoint_at'], now)}")
    if budget := found.get("privacy"):
        spent, allowed, delta = budget["epsilon"], budget["budget"], budget["delta"]
        lines.append(f"  differential privacy: epsilon {epsilon_text(spent)} of {allowed:g} spent, at delta {delta:g}")
    for gone, words in (("dropped", "dropped by this organisation"), ("left", "left")):
        lines += [f"  {words}: {', '.join(found[gone])}"] if found.get(gone) else []
    if (gone_on := without_this_peer(found)) is not None:
        lines.append(f"  {gone_on.rstrip('.')}")
    if found["not_there_yet"]:
        lines.append(f"  no inbox yet: {', '.join(found['not_there_yet'])}")
    for name, fields in found["other_manifests"].items():
        lines.append(f"  {name} had another manifest when it was last heard: {', '.join(fields)}")
    if found["refused"]:
        kept = found["set_aside"]
        lines.append(
            "  refused: "
            + ", ".join(f"{count} {name}" for name, count in found["refused"].items())
            + f"; {kept['records']} of {kept['limit']} set aside ({kept['bytes']} bytes)"
        )
    if found["running"] and now - found["updated"] > limits.HEALTHY_S:
        lines.append(f"  this is {_ago(found['updated'], now)}: its loop hangs")
    return "\n".join(lines)


def _waits(found: dict[str, Any], now: float) -> str:
    if not found["waiting_for"]:
        return ""
    since = found["waiting_since"] if found["running"] else {}
    return ", waiting for " + ", ".join(
        f"{name} (since {_long(now - since[name])})" if now - since.get(name, now) >= 1 else name
        for name in found["waiting_for"]
    )


def _relay(found: dict[str, Any], now: float) -> list[str]:
    """Return a line on the relay, where there is something to say."""
    relay = found.get("relay")
    if not relay or not found["running"]:
        return []
    what = f"  relay: {relay['state']}" + (f" to {relay['host']}" if relay["host"] else "")
    what += f" since {_long(now - relay['since'])}"
    tries = f", {relay['tries']} tries failed" if relay["tries"] else ""
    return [what + tries + (f": {relay['reason']}" if relay["reason"] else "")]


def _ago(at: float, now: float) -> str:
    return f"{_long(now - at)} ago"


def _long(seconds: float) -> str:
    """Return a time in words, in its two largest units."""
    left = max(0, int(seconds))
    for unit_s, unit, lesser_s, lesser in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if left >= unit_s:
            return f"{left // unit_s} {unit} {left % unit_s // lesser_s} {lesser}"
    return f"{left} s"


def _how_far(found: dict[str, Any]) -> str:
    """Say how far the trial is: in turns, or in the rounds of masked-average."""
    if not is_of_rounds(found):
        # Each peer counts to its own last turn, so at the end its number says nothing.
        return (
            f"all {found['turns']} turns are done" if has_ended(found) else f"turn {found['turn']} of {found['turns']}"
        )
    is_evaluation = found["step"] > 0 and found["step"] % 2 == 0  # docs/PROTOCOL.md, section 13
    word = ", in 64 bits" if found["word"] == 64 and not is_evaluation else ""  # an evaluation always is
    members = len(found["members"])
    what = f"{'evaluation of ' if is_evaluation else ''}round {found['round']} of {found['rounds']}"
    return f"{what}, attempt {found['attempt']}, {members} member{'' if members == 1 else 's'}{word}"
