"""`ppdl-mq peer`: this organisation's part of a trial."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from ppdl_mq.cli.arguments import arguments_of, config_option, file_argument, is_path
from ppdl_mq.cli.fresh import fresh_option, start_afresh, yes_option
from ppdl_mq.cli.out_path import check_out
from ppdl_mq.cli.passphrase import known_passphrase
from ppdl_mq.cli.peer_orders import drop, leave
from ppdl_mq.cli.peer_status import status
from ppdl_mq.cli.signals import signals_end_it, stop_on_signals
from ppdl_mq.cli.terminal import Terminal, json_option, log_format_option
from ppdl_mq.config import writing
from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.config.reading import EMBEDDED, read_manifest, read_settings, settings_from_text
from ppdl_mq.config.settings import PeerSettings
from ppdl_mq.config.settings_text import settings_text
from ppdl_mq.crypto.identity import Identity
from ppdl_mq.errors import PeerFileError
from ppdl_mq.peer.durable import is_there
from ppdl_mq.peer.folders import MODEL_NAME, state_folder
from ppdl_mq.peer.identity_file import is_sealed, read_identity
from ppdl_mq.peer.progress import PROGRESS_NAME, final_entry
from ppdl_mq.peer.status import kept_phase
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.terms import Terms
from ppdl_mq.wire.entries import LOG_NAME
from ppdl_mq.wire.trial_id import trial_id

# Short names of the ready plug-ins: KIND:PATH -> module:callable and the argument that takes the path.
PLUGINS = {
    "csv": ("ppdl_mq.training.data.tables:csv", "path"),
    "parquet": ("ppdl_mq.training.data.tables:parquet", "path"),
    "npz": ("ppdl_mq.training.data.arrays:npz", "path"),
    "idx": ("ppdl_mq.training.data.arrays:idx", "images_path"),
    "images": ("ppdl_mq.training.data.images:image_folder", "path"),
}


_path = click.Path(path_type=Path)


@click.group()
def peer() -> None:
    """Run this organisation's part of a trial."""


@peer.command()
@file_argument
@click.option("--identity", type=click.Path(path_type=Path), required=True, help="The identity file.")
@click.option("--broker", required=True, metavar="URL", help="amqp://, amqps:// or embedded:PATH; no password.")
@click.option("--broker-password-env", metavar="NAME", help="Environment variable of the broker's password.")
@click.option("--broker-password-file", type=_path, help="A file of mode 0600 whose first line it is.")
@click.option("--ca-file", type=_path, help="PEM certificates to trust, for amqps.")
@click.option("--certificate-file", type=_path, help="PEM client certificate, to log in with.")
@click.option("--key-file", type=_path, help="Its private key.")
@click.option(
    "--no-declare", "declare", is_flag=True, flag_value=False, default=True, help="An administrator made the queues."
)
@click.option("--data", required=True, help=f"module:callable, or {', '.join(PLUGINS)} with a path, as csv:rows.csv.")
@click.option("--data-arg", multiple=True, metavar="KEY=VALUE", help="Argument of the data; may be repeated.")
@click.option("--state-dir", type=click.Path(path_type=Path), help="Of the journal. [default: FILE's name + .state]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@json_option
@click.pass_obj
def new(
    terminal: Terminal,
    file: Path,
    identity: Path,
    broker: str,
    broker_password_env: str | None,
    broker_password_file: Path | None,
    ca_file: Path | None,
    certificate_file: Path | None,
    key_file: Path | None,
    declare: bool,
    data: str,
    data_arg: tuple[str, ...],
    state_dir: Path | None,
    device: str,
) -> None:
    """Write this organisation's commented settings; FILE must not exist yet.

    Paths are given as seen from here; the file holds them as seen from its own folder.

    \b
    Example:
      ppdl-mq peer new mercy.toml --identity mercy.key --broker embedded:relay.sqlite \\
        --data csv:mercy.csv --data-arg label=outcome
    """
    address = BrokerAddress.parse(broker)
    if address.path is not None:
        broker = EMBEDDED + _seen_from(file, str(address.path))
    login = {"password_env": broker_password_env} if broker_password_env else {}
    files = {
        "password_file": broker_password_file,
        "ca_file": ca_file,
        "certificate_file": certificate_file,
        "key_file": key_file,
    }
    login |= {key: _seen_from(file, str(path)) for key, path in files.items() if path is not None}
    function, arguments = _data(data, arguments_of(data_arg))
    text = settings_text(
        identity=Path(_seen_from(file, str(identity))),
        state_dir=Path(_seen_from(file, str(state_dir or file.with_suffix(".state")))),
        device=device,
        broker=broker,
        login=login,
        declare=declare,
        data=function,
        data_arguments={
            key: _seen_from(file, value) if is_path(key, value) else value for key, value in arguments.items()
        },
    )
    settings_from_text(text, source="These settings would not hold", folder=file.absolute().parent)
    writing.write_new(file, text, error=PeerFileError)
    terminal.answer({"file": str(file)}, f"Wrote {file}. Run: ppdl-mq peer run TRIAL --config {file}")


@peer.command()
@click.argument("trial", type=click.Path(path_type=Path))
@config_option
@click.option("--out", type=click.Path(path_type=Path), help="Where to put a copy of the model: a file, or a folder.")
@click.option("--device", metavar="DEVICE", help="Instead of the one in the settings: auto, cpu, cuda, cuda:N or mps.")
@fresh_option
@yes_option
@click.option("--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("--metrics", metavar="HOST:PORT", help="Where to show metrics, instead of where the settings say.")
@log_format_option
@json_option
@click.pass_obj
def run(
    terminal: Terminal,
    trial: Path,
    config: Path,
    out: Path | None,
    device: str | None,
    fresh: bool,
    yes: bool,
    quiet: bool,
    metrics: str | None,
) -> None:
    """Take part in TRIAL until it ends; writes the model and a log.

    Stopped and started again, it takes up where it was. The first Ctrl-C or SIGTERM stops it within seconds, with
    everything journalled (exit code 130); the second ends it at once. `ppdl-mq --help` lists the exit codes.

    \b
    Example:
      ppdl-mq peer run heart.toml --config mercy.toml --out model.safetensors
    """
    manifest, settings = read_manifest(trial), read_settings(config)
    if out is not None:
        check_out(out, MODEL_NAME, settings, config=config, trial=trial, folder=state_folder(settings, manifest))
    if device is not None:
        settings = settings.model_copy(update={"device": device})
    if metrics is not None:
        shown = settings.metrics.model_copy(update={"listen": metrics})
        settings = settings.model_copy(update={"metrics": shown})
    identity = _own_identity(settings)
    me = Terms.name_of(manifest, identity.public)
    terminal.about |= {"trial": manifest.name, "trial_id": trial_id(manifest).hex(), "peer": me}
    if fresh:
        start_afresh(terminal, manifest, settings, identity, yes=yes)
    with signals_end_it():
        from ppdl_mq.peer.running import run_peer  # imports torch

        terminal.start_log(quiet=quiet)
        model = run_peer(
            manifest,
            settings,
            identity,
            folder=config.absolute().parent,
            on_ready=stop_on_signals,
            environment=os.environ,
        )
    kept = model
    progress, signed = kept.parent / PROGRESS_NAME, kept.parent / LOG_NAME
    files = {"log": str(progress), "transcript": str(signed)}
    told = f"The progress is in {progress}, the signed log is {signed}."
    if not is_there(kept):
        terminal.answer(
            {"model": None, "trial": manifest.name, **files, "result": {}},
            f"This organisation has left the trial {manifest.name} before anything was agreed on: there is no model.\n"
            f"{told}",
            is_extra=True,
        )
        return
    if out is not None:
        model = writing.copy(kept, out, error=PeerFileError)
    result = final_entry(kept.parent) or {}
    has_left = kept_phase(settings, manifest) == Phase.LEFT.value
    name = manifest.name
    ended = f"This organisation has left the trial {name}" if has_left else f"The trial {name} has ended"
    again = f"\nTo run the same trial again, one gives it a new nonce, and sends it round: ppdl-mq trial renew {trial}"
    terminal.answer(
        {"model": str(model), "trial": manifest.name, **files, "result": result},
        f"{ended}. The model is in {model}.{_quality(result)}\n{told}{'' if has_left else again}",
        is_extra=True,
    )


peer.add_command(drop)
peer.add_command(leave)
peer.add_command(status)


def _own_identity(settings: PeerSettings) -> Identity:
    passphrase = None
    if is_sealed(settings.identity):
        passphrase = known_passphrase(settings.passphrase_env, settings.passphrase_file)
    return read_identity(settings.identity, passphrase=passphrase)


def _quality(result: dict[str, Any]) -> str:
    """Say how good the model is on this organisation's own hold-out."""
    rows, loss, accuracy = (result.get(f"holdout_{name}") for name in ("samples", "loss", "accuracy"))
    if not rows or loss is None:
        return ""
    right = "" if accuracy is None else f"accuracy {accuracy:.1%}, "
    return f"\nOn the own hold-out ({rows} rows): {right}loss {loss:.4f}."


def _data(given: str, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return module:callable and the arguments, for a short name such as csv:PATH too."""
    kind, colon, path = given.partition(":")
    if kind not in PLUGINS:
        return given, arguments
    if not colon or not path:
        raise click.UsageError(f"--data {kind} needs a path: {kind}:PATH.")
    function, argument = PLUGINS[kind]
    return function, {argument: path, **arguments}


def _seen_from(file: Path, path: str) -> str:
    """Return a path relative to the folder of `file`; an absolute one, or one from the home folder, stays."""
    if Path(path).is_absolute() or path.startswith("~"):
        return path
    return os.path.relpath(path, file.parent)
