"""`ppdl-mq relay check`: a doctor for the broker, as this organisation reaches it."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from pathlib import Path
from typing import Final

import click
from pydantic import SecretStr

from ppdl_mq.cli import exit_codes
from ppdl_mq.cli.relay_parties import address_of, own_name
from ppdl_mq.cli.relay_sizes import sizes_known
from ppdl_mq.cli.terminal import Terminal, json_option, printable
from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.config.reading import read_manifest
from ppdl_mq.errors import ConfigError, ManifestError
from ppdl_mq.peer.preflight import wanted_of
from ppdl_mq.transport.findings import Finding, Result, Wanted, verdict
from ppdl_mq.transport.opening import examine_relay

_COLOURS: Final[dict[Result, str]] = {"pass": "green", "warn": "yellow", "fail": "red", "unknown": "cyan"}
_path = click.Path(path_type=Path)


@click.command()
@click.argument("url", required=False)
@click.option("--config", "-c", type=_path, help="The settings, instead of a URL.")
@click.option("--trial", type=_path, help="Look at what this trial needs, too, and make sure of the own inbox.")
@click.option("--peer", metavar="NAME", help="With a URL: our name in the trial. [default: the user in the URL]")
@click.option("--password-env", metavar="NAME", help="With a URL: environment variable of the password.")
@click.option("--password-file", type=_path, help="With a URL: a file whose first line is the password.")
@click.option("--ca-file", type=_path, help="With a URL: PEM certificates to trust.")
@click.option("--certificate-file", type=_path, help="With a URL: PEM client certificate, to log in with.")
@click.option("--key-file", type=_path, help="With a URL: its private key.")
@click.option("--no-declare", is_flag=True, help="With a URL: an administrator made the queues.")
@click.option("--management", metavar="URL", help="Of RabbitMQ's management, http(s)://USER@HOST:PORT: shows more.")
@click.option("--management-password-env", metavar="NAME", help="Environment variable of its user's password.")
@json_option
@click.pass_obj
def check(
    terminal: Terminal,
    url: str | None,
    config: Path | None,
    trial: Path | None,
    peer: str | None,
    password_env: str | None,
    password_file: Path | None,
    ca_file: Path | None,
    certificate_file: Path | None,
    key_file: Path | None,
    no_declare: bool,
    management: str | None,
    management_password_env: str | None,
) -> None:
    """Look for whatever would keep a trial from running at the broker, and say what to do.

    Each line says pass, warn, fail or unknown; below it what to do, and the line for the broker's administrator. With
    --trial it looks at the rights, queues and sizes of that trial, and makes the own inbox where it may. It takes no
    message of a running trial. The exit code is 6 if anything fails.

    \b
    Example:
      ppdl-mq relay check amqps://mercy@relay.example/ppdl --password-env BROKER_PASSWORD
      ppdl-mq relay check --config mercy.toml --trial heart.toml
    """
    if (url is None) == (config is None):
        raise click.UsageError("Give either a URL or --config.")
    if config is not None:
        if peer or password_env or password_file or ca_file or certificate_file or key_file or no_declare:
            raise click.UsageError("With --config the settings say who we are and how to log in.")
        address = address_of(config)
    else:
        assert url is not None, "checked above"
        address = _from_options(url, password_env, password_file, ca_file, certificate_file, key_file)
        address = dataclasses.replace(address, declare=not no_declare)
    wanted = None if trial is None else _wanted(trial, config, peer, address, with_sizes=management is not None)
    findings: list[Finding] = []
    looks = examine_relay(
        address,
        wanted,
        management_url=management,
        management_password=None if management_password_env is None else _from_environment(management_password_env),
    )
    for finding in looks:
        findings.append(finding)
        if not terminal.json:
            click.echo(_lines(finding))
    result = verdict(findings)
    data = {
        "relay": str(address),
        "result": result,
        "inbox": None if wanted is None else wanted.me,
        "findings": [finding.data() for finding in findings],
    }
    terminal.answer(data, f"{address}: {_summary(findings)}")
    if result == "fail":
        click.get_current_context().exit(exit_codes.RELAY)


def _from_options(
    url: str,
    password_env: str | None,
    password_file: Path | None,
    ca_file: Path | None,
    certificate_file: Path | None,
    key_file: Path | None,
) -> BrokerAddress:
    """Join a URL and the options, held to the same rules as `[broker]` of peer.toml."""
    if password_env and password_file:
        raise click.UsageError("Give --password-env or --password-file, not both.")
    address = BrokerAddress.parse(url)
    if address.scheme != "amqps" and (ca_file or certificate_file or key_file):
        raise ConfigError("--ca-file, --certificate-file and --key-file need an amqps:// URL.")
    if key_file and not certificate_file:
        raise click.UsageError("--key-file needs --certificate-file.")
    return dataclasses.replace(
        address,
        password_env=password_env,
        password_file=password_file,
        ca_file=ca_file,
        certificate_file=certificate_file,
        key_file=key_file,
    )


def _from_environment(name: str) -> SecretStr:
    value = os.environ.get(name, "")
    if not value:
        raise ConfigError(f"The environment variable {name} with the management's password is not set.")
    return SecretStr(value)


def _wanted(trial: Path, config: Path | None, peer: str | None, address: BrokerAddress, *, with_sizes: bool) -> Wanted:
    manifest = read_manifest(trial)
    me = own_name(config, manifest, trial) if config is not None else peer or address.user
    if me is None:
        raise click.UsageError("--trial with a URL needs --peer, or a user in the URL, which says who we are.")
    if me not in {each.name for each in manifest.peers}:
        raise ManifestError(f"{me} is not one of the peers of {trial}.", hint="Give --peer NAME.")
    wanted = wanted_of(manifest, me)
    sizes = sizes_known(manifest) if with_sizes else None  # only the management shows limits, and torch takes seconds
    return wanted if sizes is None else dataclasses.replace(wanted, queue_bytes=sizes.queue_limit)


def _lines(finding: Finding) -> str:
    """Return a finding as a person reads it; the broker's words in it are made printable."""
    word = click.style(f"{finding.result:<8}", fg=_COLOURS[finding.result])
    lines = [f"{word}{finding.check:<18}{printable(finding.says)}"]
    if finding.todo and finding.result != "pass":
        lines.append(f"{'':<26}{printable(finding.todo)}")
    if finding.line and finding.result != "pass":
        lines.append(f"{'':<26}administrator: {printable(finding.line)}")
    return "\n".join(lines)


def _summary(findings: list[Finding]) -> str:
    counts = Counter(finding.result for finding in findings)
    words = {
        "fail": "a trial cannot run here",
        "unknown": "nothing found that keeps a trial from running",
        "warn": "a trial can run here",
        "pass": "a trial can run here",
    }[verdict(findings)]
    counted = ", ".join(
        f"{counts[result]} {result}" for result in ("pass", "warn", "fail", "unknown") if counts[result]
    )
    return f"{words} ({counted})."
