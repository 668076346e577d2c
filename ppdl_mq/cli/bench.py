"""`ppdl-mq bench`: figures of this machine and a relay."""

from __future__ import annotations

import json

import click

_DEMO_EPOCHS = 15


@click.command()
@click.option("--broker", metavar="URL", help="The relay to measure. [default: an embedded one in a temporary folder]")
@click.option("--password-env", metavar="NAME", help="Environment variable of the broker's password.")
@click.option(
    "--megabytes",
    type=click.IntRange(1, 4_000),
    multiple=True,
    default=[4, 40],
    show_default=True,
    help="Size of the weights; may be given several times.",
)
@click.option(
    "--repeat", type=click.IntRange(1, 100), default=3, show_default=True, help="How often; medians are told."
)
@click.option(
    "--epochs",
    type=click.IntRange(1, 1_000),
    default=_DEMO_EPOCHS,
    show_default=True,
    help="Of the trials that are timed; the demo's by default.",
)
def bench(broker: str | None, password_env: str | None, megabytes: tuple[int, ...], repeat: int, epochs: int) -> None:
    """Measure what the relay and the sealing cost; prints JSON.

    Weights of each size go from one process to another, sealed and not, and a trial like the demo's runs through the
    relay and without any. Queues are the benchmark's own and are removed. docs/BENCHMARKS.md explains the figures.

    \b
    Example:
      ppdl-mq bench > bench.json
      ppdl-mq bench --broker amqp://guest@localhost --megabytes 4 --megabytes 400
    """
    from ppdl_mq.report.bench.run import run_bench  # it imports torch

    report = run_bench(
        broker=broker,
        password_env=password_env,
        megabytes=megabytes,
        repeat=repeat,
        epochs=epochs,
        on_step=lambda step: click.echo(step, err=True),
    )
    click.echo(json.dumps(report, indent=2))
