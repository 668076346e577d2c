"""`ppdl-mq trial`: the manifest that the organisations agree on."""

from __future__ import annotations

import dataclasses
import itertools
import secrets
from pathlib import Path
from typing import Any

import click

from ppdl_mq.cli.arguments import arguments_of, file_argument
from ppdl_mq.cli.terminal import Terminal, json_option
from ppdl_mq.cli.trial_log import verify_log
from ppdl_mq.config import limits, plain, writing
from ppdl_mq.config.cautions import cautions_of
from ppdl_mq.config.manifest import MODELS, Averaging, Manifest
from ppdl_mq.config.manifest_text import PRESETS, manifest_text, with_nonce, with_peer
from ppdl_mq.config.reading import manifest_from_text, read_manifest
from ppdl_mq.crypto.identity import PublicIdentity
from ppdl_mq.errors import ManifestError
from ppdl_mq.protocol.schedule import Schedule
from ppdl_mq.wire.trial_id import short_id, trial_id

FIRST_TURNS = 12  # shown by `check`


@click.group()
def trial() -> None:
    """Write, complete and check the manifest of a trial."""


trial.add_command(verify_log)


@trial.command()
@file_argument
@click.option("--name", help="Of the trial. [default: the file's]")
@click.option("--preset", type=click.Choice(list(PRESETS)), default="blank", show_default=True, help="What to fill in.")
@click.option(
    "--protocol",
    type=click.Choice(["server-aided", "fully-connected", "masked-average"]),
    default="server-aided",
    show_default=True,
    help="How the weights move.",
)
@click.option(
    "--weighting",
    type=click.Choice(["equal", "declared", "secret"]),
    help="Of masked-average: whose weights count how much. [default: equal]",
)
@click.option("--order", type=click.Choice(["fixed", "shuffled"]), default="fixed", show_default=True)
@click.option("--model", help="module:callable, or the name of a model of the zoo, such as mlp.")
@click.option("--model-arg", multiple=True, metavar="KEY=VALUE", help="Argument of the model; may be repeated.")
@click.option("--loss", type=click.Choice(["cross-entropy", "binary-cross-entropy", "mse"]))
@click.option("--learning-rate", type=float)
@click.option("--batch-size", type=int)
@click.option("--epochs", type=int)
@click.option("--turns-per-epoch", type=int, default=1, show_default=True, help="Of each peer.")
@click.option("--turn-steps", type=int, help="Batches in a turn, instead of the peer's share of its epoch.")
@json_option
@click.pass_obj
def new(
    terminal: Terminal,
    /,
    file: Path,
    name: str | None,
    preset: str,
    protocol: str,
    weighting: str | None,
    order: str,
    model: str | None,
    model_arg: tuple[str, ...],
    turns_per_epoch: int,
    turn_steps: int | None,
    **training: Any,
) -> None:
    """Write a commented manifest to edit; FILE must not exist yet.

    \b
    Example:
      ppdl-mq trial new heart.toml --preset heart --protocol fully-connected
    """
    if weighting is not None and protocol != "masked-average":
        raise click.UsageError("--weighting is for --protocol masked-average.")
    changes = {key: value for key, value in training.items() if value is not None}
    chosen = dataclasses.replace(PRESETS[preset], **changes)
    if model is not None:
        # Another model takes other arguments.
        chosen = dataclasses.replace(chosen, model=model if ":" in model else f"{MODELS}:{model}", arguments={})
    chosen = dataclasses.replace(chosen, arguments={**chosen.arguments, **arguments_of(model_arg)})
    if chosen.loss == "mse":
        chosen = dataclasses.replace(chosen, classes=None)
    name = file.stem if name is None else name
    text = manifest_text(
        chosen,
        name=name,
        nonce=secrets.token_hex(16),
        protocol=protocol,
        order=order,
        turns_per_epoch=turns_per_epoch,
        turn_steps=turn_steps,
        weighting=weighting or "equal",
    )
    manifest_from_text(text, source="This manifest would not hold", complete=False)
    writing.write_new(file, text, error=ManifestError)
    terminal.answer(
        {"file": str(file), "name": name},
        f"Wrote {file}. Edit it, then pin each organisation: ppdl-mq trial add-peer {file} LINE",
    )


@trial.command("add-peer")
@file_argument
@click.argument("line", nargs=-1, required=True)
@click.option("--samples", type=int, help="How many it declares; for masked-average with the weighting declared.")
@json_option
@click.pass_obj
def add_peer(terminal: Terminal, file: Path, line: tuple[str, ...], samples: int | None) -> None:
    """Pin an organisation's public LINE in the manifest, quoted or not.

    \b
    Example:
      ppdl-mq trial add-peer heart.toml "$(cat mercy.line)"
    """
    public = PublicIdentity.from_line(" ".join(line))
    text = with_peer(
        _text(file),
        name=public.name,
        keys=public.keys,
        comment=public.fingerprint,
        source=str(file),
        samples=samples,
    )
    writing.replace(file, text, error=ManifestError)
    names = manifest_from_text(text, source=str(file), complete=False).peer_names
    terminal.answer(
        {"name": public.name, "fingerprint": public.fingerprint, "peers": list(names)}
        | ({} if samples is None else {"samples": samples}),
        f"Added {public.name}{'' if samples is None else f' with {samples} samples'}, fingerprint "
        f"{public.fingerprint}: compare it over the telephone.\n"
        f"The trial has {len(names)} peer{'s' if len(names) > 1 else ''}: {', '.join(names)}.",
    )


@trial.command()
@file_argument
@json_option
@click.pass_obj
def check(terminal: Terminal, file: Path) -> None:
    """Validate the manifest; print the trial's id, its peers, how they work together, and warnings.

    \b
    Example:
      ppdl-mq trial check heart.toml
    """
    manifest = read_manifest(file)
    peers = [PublicIdentity.from_keys(peer.name, peer.keys) for peer in manifest.peers]
    identifier = trial_id(manifest)
    work, schedule_text, work_data = (
        _turns(_schedule(manifest, identifier), manifest)
        if manifest.averaging is None
        else _rounds(manifest, manifest.averaging)
    )
    samples = {peer.name: peer.samples for peer in manifest.peers if peer.samples is not None}
    fingerprints = {peer.name: peer.fingerprint for peer in sorted(peers, key=lambda peer: peer.name)}
    lines = [
        f"The manifest of trial {manifest.name} holds.",
        "",
        f"id         {identifier.hex()}",
        f"short id   {short_id(identifier)}",
        f"protocol   {manifest.protocol}",
        f"model      {manifest.model.callable}",
        *work,
        "",
        *(
            f"peer       {name:<20} {fingerprint}" + (f"  {samples[name]} samples" if name in samples else "")
            for name, fingerprint in fingerprints.items()
        ),
        *schedule_text,
    ]
    warnings = cautions_of(manifest)
    if warnings:
        lines += ["", *(f"warning: {each}" for each in warnings)]
    terminal.answer(
        {
            "name": manifest.name,
            "id": identifier.hex(),
            "short_id": short_id(identifier),
            "protocol": manifest.protocol,
            "peers": fingerprints,
            "warnings": warnings,
        }
        | ({"samples": samples} if samples else {})
        | work_data,
        "\n".join(lines),
    )


@trial.command()
@file_argument
@json_option
@click.pass_obj
def renew(terminal: Terminal, file: Path) -> None:
    """Write a fresh nonce into the manifest, so that the same trial can be run again.

    \b
    Example:
      ppdl-mq trial renew heart.toml
    """
    nonce = secrets.token_hex(16)
    writing.replace(file, with_nonce(_text(file), nonce, source=str(file)), error=ManifestError)
    terminal.answer(
        {"file": str(file), "nonce": nonce}, f"{file} is a new trial now. Send it to the others; they need this text."
    )


def _text(file: Path) -> str:
    return plain.read_text(file, limit_bytes=limits.MAX_MANIFEST_BYTES, error=ManifestError)


def _turns(schedule: Schedule, manifest: Manifest) -> tuple[list[str], list[str], dict[str, Any]]:
    """Describe a sequential trial: facts, the beginning of its schedule, and both for a program."""
    first = [schedule.turn(number) for number in range(1, min(schedule.turns, FIRST_TURNS) + 1)]
    lines = [""]
    for epoch, turns in itertools.groupby(first, key=lambda turn: turn.epoch):
        lines.append(f"epoch {epoch:<4} {' -> '.join(turn.peer for turn in turns)}")
    if schedule.turns > len(first):
        lines.append(f"... and so on to turn {schedule.turns}")
    data = {
        "turns": schedule.turns,
        "first_turns": [{"number": turn.number, "epoch": turn.epoch, "peer": turn.peer} for turn in first],
    }
    return [f"turns      {schedule.turns} ({manifest.training.epochs} epochs)"], lines, data


def _rounds(manifest: Manifest, rules: Averaging) -> tuple[list[str], list[str], dict[str, Any]]:
    """Describe a trial of masked-average as `_turns` does; it has no schedule."""
    rounds = manifest.training.epochs * manifest.training.turns_per_epoch
    early = [
        f"accuracy {rules.stop_at_accuracy:g}" if rules.stop_at_accuracy is not None else "",
        f"loss {rules.stop_at_loss:g}" if rules.stop_at_loss is not None else "",
        f"{rules.stop_patience} evaluations without a lower loss" if rules.stop_patience is not None else "",
    ]
    evaluated = f"every {rules.evaluate_every} rounds" if rules.evaluate_every > 1 else "every round"
    ends = f"; ends early at {' or '.join(filter(None, early))}" if any(early) else ""
    absent = "waited for" if rules.on_absent == "wait" else f"{rules.on_absent} after {rules.absent_after_s:g} s"
    lines = [
        f"rounds     {rounds} ({manifest.training.epochs} epochs); all peers train at once",
        f"weighting  {rules.weighting}",
        f"numbers    {'64 bits' if rules.word == 64 else '32 bits; 64 in a round that they do not fit'}",
        f"absent     {absent}; with fewer than {rules.min_peers} peers the trial ends early",
        f"evaluated  {evaluated + ends if rules.evaluate_every else 'never'}",
    ]
    return lines, [], {"rounds": rounds, "averaging": rules.model_dump()}


def _schedule(manifest: Manifest, identifier: bytes) -> Schedule:
    return Schedule(
        trial_id=identifier,
        peers=manifest.peer_names,
        epochs=manifest.training.epochs,
        turns_per_epoch=manifest.training.turns_per_epoch,
        order=manifest.order,
    )
