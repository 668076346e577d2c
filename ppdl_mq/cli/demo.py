"""`ppdl-mq demo`: several peers on this machine, on real data."""

from __future__ import annotations

from pathlib import Path

import click

from ppdl_mq.cli.terminal import Terminal, json_option
from ppdl_mq.config import limits

PROTOCOLS = ("server-aided", "fully-connected", "masked-average")
DATASETS = ("digits", "breast-cancer")
MAX_ORGANISATIONS = 12  # as many as there are names and, of breast cancer, samples for


@click.command()
@click.option(
    "--peers",
    type=click.IntRange(2, MAX_ORGANISATIONS),
    default=3,
    show_default=True,
    help="How many organisations, each a process.",
)
@click.option("--dataset", type=click.Choice(DATASETS), default=DATASETS[0], show_default=True)
@click.option(
    "--protocol",
    type=click.Choice(PROTOCOLS),
    multiple=True,
    help="How the weights move; may be repeated. [default: all]",
)
@click.option("--activation", default="relu", show_default=True, help="Any of torch.nn that keeps the shape.")
@click.option("--epochs", type=click.IntRange(1, limits.MAX_EPOCHS), default=15, show_default=True)
@click.option("--broker", metavar="URL", help="Through this relay. [default: an embedded one in the output folder]")
@click.option("--password-env", metavar="NAME", help="Environment variable of the broker's password.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/demo"), show_default=True)
@json_option
@click.pass_obj
def demo(
    terminal: Terminal,
    peers: int,
    dataset: str,
    protocol: tuple[str, ...],
    activation: str,
    epochs: int,
    broker: str | None,
    password_env: str | None,
    out: Path,
) -> None:
    """Train on real data with several peers, and compare with SGD on the pooled data and with federated averaging.

    Writes model.safetensors, report.html and result.json.

    \b
    Example:
      ppdl-mq demo --peers 4 --dataset digits --activation gelu
    """
    # Imported here because they need torch and rich.
    from ppdl_mq.cli.demonstration.children import interruptible
    from ppdl_mq.cli.demonstration.run import Request, demonstrate
    from ppdl_mq.cli.demonstration.screen import Screen, print_table

    request = Request(
        organisations=peers,
        dataset=dataset,
        protocols=tuple(dict.fromkeys(protocol)) or PROTOCOLS,
        activation=activation,
        epochs=epochs,
        broker=broker,
        password_env=password_env,
        out=out,
    )
    with interruptible():
        result = demonstrate(request, Screen())
    if terminal.json:
        terminal.answer(result.as_data(), "")
    else:
        files = {"report": "report.html", "result": "result.json", "model": "model.safetensors"}
        print_table(result, {name: str(out / file) for name, file in files.items()})
