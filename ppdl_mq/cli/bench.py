"""`ppdl-mq bench`: figures of this machine and a relay."""

from __future__ import annotations

import json
from typing import Literal

import click

from ppdl_mq.report.bench import PARTS

_DEMO_EPOCHS = 15


@click.command()
@click.option("--broker", metavar="URL", help="The relay to measure. [default: an embedded one in a temporary folder]")
@click.option("--password-env", metavar="NAME", help="Environment variable of the broker's password.")
@click.option(
    "--queue-type",
    type=click.Choice(["quorum", "classic"]),
    default="quorum",
    show_default=True,
    help="What queues to measure, at a broker that has both.",
)
@click.option(
    "--only",
    type=click.Choice(PARTS),
    multiple=True,
    help="One part of it; may be given several times. [default: all]",
)
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
@click.option(
    "--params",
    type=click.IntRange(1_000, 1_000_000_000),
    multiple=True,
    default=[1_000_000, 10_000_000],
    show_default=True,
    help="Parameters of the model whose masked rounds are timed; may be given several times.",
)
@click.option(
    "--peers", type=click.IntRange(2, 100), default=5, show_default=True, help="How many peers those rounds have."
)
@click.option(
    "--rounds", type=click.IntRange(2, 100), default=3, show_default=True, help="Masked rounds counted in each trial."
)
@click.option(
    "--growth",
    type=click.IntRange(2, 100),
    multiple=True,
    default=[2, 5, 10, 20],
    show_default=True,
    help="Numbers of peers whose masked rounds are compared; may be given several times.",
)
@click.option(
    "--growth-params",
    type=click.IntRange(1_000, 1_000_000_000),
    default=1_000_000,
    show_default=True,
    help="Parameters of the model then.",
)
def bench(
    broker: str | None,
    password_env: str | None,
    queue_type: Literal["quorum", "classic"],
    only: tuple[str, ...],
    megabytes: tuple[int, ...],
    repeat: int,
    epochs: int,
    params: tuple[int, ...],
    peers: int,
    rounds: int,
    growth: tuple[int, ...],
    growth_params: int,
) -> None:
    """Measure what the relay, the sealing and the masking cost; prints JSON.

    Weights of each size go from one process to another, sealed and not; a trial like the demo's runs through the relay
    and without any; rounds of masked-average run without training, and their bytes alone. Queues are the benchmark's
    own and are removed. docs/BENCHMARKS.md explains the figures.

    \b
    Example:
      ppdl-mq bench > bench.json
      ppdl-mq bench --broker amqp://guest@localhost --megabytes 4 --megabytes 400
      ppdl-mq bench --broker amqp://guest@localhost --only masked --params 10000000
    """
    from ppdl_mq.report.bench.run import run_bench  # it imports torch

    report = run_bench(
        broker=broker,
        password_env=password_env,
        queue_type=queue_type,
        only=only,
        megabytes=megabytes,
        repeat=repeat,
        epochs=epochs,
        params=params,
        peers=peers,
        rounds=rounds,
        growth=growth,
        growth_params=growth_params,
        on_step=lambda step: click.echo(step, err=True),
    )
    click.echo(json.dumps(report, indent=2))
