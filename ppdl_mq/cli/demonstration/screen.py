"""What a person sees while the demonstration runs (on stderr), and the table at its end (on stdout)."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Protocol

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from ppdl_mq.report.result import Result, in_short

_STEPS: Final = 5  # lines about one trial where nobody watches a bar


class TrialView(Protocol):
    """Shows one trial under way."""

    def show(self, turn: int, holdout: Mapping[str, float]) -> None:
        """Show how far it is.

        Args:
            turn: the last one that was trained, or round; 0 before the first.
            holdout: by peer, accuracy on its own hold-out, 0 to 1, as far as known.
        """


class Screen:
    """Progress on stderr: a live bar on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)

    def say(self, text: str) -> None:
        """Say what comes next."""
        if self._console.is_terminal:
            self._console.print(text, style="dim", highlight=False, markup=False)
        else:
            click.echo(text, err=True)

    @contextmanager
    def trial(self, name: str, turns: int, unit: str = "turn") -> Iterator[TrialView]:
        """Show one trial until the block ends.

        Args:
            name: of its protocol.
            turns: that it has.
            unit: what these are called.
        """
        if not self._console.is_terminal:
            yield _Lines(name, turns, unit)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console) as progress:
            yield _Bar(progress, progress.add_task(f"{name:<16}", total=turns, state="peers start"), turns, unit)


class _Bar:
    """A trial on a terminal."""

    def __init__(self, progress: Progress, task: TaskID, turns: int, unit: str) -> None:
        self._progress = progress
        self._task = task
        self._turns = turns
        self._unit = unit

    def show(self, turn: int, holdout: Mapping[str, float]) -> None:
        """Move the bar."""
        state = f"{self._unit} {turn} of {self._turns}" if turn else "peers start"
        if holdout:
            state += "  own hold-outs " + " ".join(f"{share:.0%}" for share in holdout.values())
        self._progress.update(self._task, completed=turn, state=state)


class _Lines:
    """A trial where nobody watches."""

    def __init__(self, name: str, turns: int, unit: str) -> None:
        self._name = name
        self._turns = turns
        self._unit = unit
        self._said = 0
        click.echo(f"{name}: the peers start.", err=True)

    def show(self, turn: int, holdout: Mapping[str, float]) -> None:
        """Say something now and then."""
        step = turn * _STEPS // self._turns
        if step == self._said:
            return
        self._said = step
        known = ", ".join(f"{peer} {share:.1%}" for peer, share in holdout.items())
        shown = f"{self._name}: {self._unit} {turn} of {self._turns}"
        click.echo(shown + (f"; hold-outs: {known}" if known else ""), err=True)


def print_table(result: Result, files: Mapping[str, str]) -> None:
    """Print the comparison on stdout.

    Args:
        result: all of it.
        files: what was written, by what it is.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=0)  # fits into 80 columns
    table.add_column("", no_wrap=True)
    for head in ("\naccuracy", "differing\nbits", "\nseconds", "relay saw\nmessages", "\nMB", "\ncould read"):
        table.add_column(head, justify="right", no_wrap=True)
    for share in result.shares:
        table.add_row(f"{share.name} alone, {share.training_rows} rows", f"{result.alone[share.name]:.1%}")
    table.add_row("SGD, pooled, shuffled", f"{result.pooled_accuracy:.1%}")
    table.add_row("SGD, pooled, same order", f"{result.pooled_same_order_accuracy:.1%}", end_section=True)
    for name, outcome in result.protocols.items():
        table.add_row(
            name,
            f"{outcome.accuracy:.1%}",
            "-" if outcome.differing_bits is None else f"{outcome.differing_bits:,}",
            f"{outcome.seconds:.1f}",
            f"{outcome.relay_messages:,}",
            f"{outcome.relay_bytes / 1e6:.1f}",
            "unknown" if outcome.relay_readable is None else f"{outcome.relay_readable:,}",
            style="bold",
        )
    console = Console(file=sys.stdout, highlight=False)
    console.print(f"\n{result.title}: accuracy on {result.public_rows} public samples", soft_wrap=True)
    console.print(table)
    for note in _notes(result):
        console.print(note, soft_wrap=True, markup=False)
    console.print()
    for name, path in files.items():
        console.print(f"{name:<8} {path}", soft_wrap=True, markup=False)


def _notes(result: Result) -> Iterator[str]:
    """Yield what the table's numbers mean, a line each."""
    if any(outcome.differing_bits is not None for outcome in result.protocols.values()):
        yield "Differing bits: of the final weights, from SGD on the pooled data in the same order."
    for name, outcome in result.protocols.items():
        if outcome.distinct_models > 1:
            yield f"{name}: the organisations ended with {outcome.distinct_models} different models."
        if (averaged := outcome.averaged) is not None:
            near = in_short(averaged.largest_difference)
            yield f"{name}: within {near} of plain federated averaging in PyTorch;"
            yield f"{averaged.values_off:,} of {averaged.values:,} values off by more than the stated bound."
            yield averaged.a_round
            yield f"{outcome.turns:,} rounds, {outcome.seconds_a_turn:.2f} s each."
    yield from result.cautions
