"""The terminal: what is said to a person or a program, and how an error looks."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from ppdl_mq.cli.exit_codes import exit_code
from ppdl_mq.errors import PpdlError

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(slots=True, kw_only=True)
class Terminal:
    """How this run of the program speaks.

    Args:
        json: answers and errors as JSON.
        debug: errors with their traceback.
    """

    json: bool = False
    debug: bool = False

    def answer(self, data: dict[str, Any], text: str) -> None:
        """Print the answer of a command on stdout: `data` for a program, or `text` for a person."""
        click.echo(json.dumps(data, indent=2, sort_keys=True) if self.json else printable(text))

    def remark(self, text: str) -> None:
        """Say something beside the answer, on stderr, so that the answer alone can be sent to a file."""
        if not self.json:
            click.echo(printable(text), err=True)

    def start_log(self, *, quiet: bool = False) -> None:
        """Write the program's log to stderr: what happens, for a person; with --debug, in detail."""
        handler = logging.StreamHandler()
        handler.setFormatter(_PrintableFormatter("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S"))
        logger = logging.getLogger("ppdl_mq")
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(logging.DEBUG if self.debug else logging.ERROR if quiet else logging.INFO)

    def failure(self, error: PpdlError) -> int:
        """Print an error on stderr and return its exit code."""
        return self._fail(type(error).__name__, error.message, error.hint, exit_code(error), error)

    def bug(self, error: Exception, code: int) -> int:
        """Print an error that nobody foresaw; its text may hold anything, so it is shown with --debug only."""
        return self._fail(
            type(error).__name__,
            f"This is a bug of ppdl-mq: {type(error).__name__}.",
            "Run again with `ppdl-mq --debug ...` and report what it prints.",
            code,
            error,
        )

    def refusal(self, kind: str, message: str, hint: str, code: int) -> int:
        """Print what ended the run before any work: a wrong command line, an interrupt."""
        return self._fail(kind, message, hint, code, None)

    def _fail(self, kind: str, message: str, hint: str, code: int, error: BaseException | None) -> int:
        if self.debug and error is not None:
            click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
        if self.json:
            answer = {"error": {"kind": kind, "message": message, "hint": hint, "exit_code": code}}
            click.echo(json.dumps(answer), err=True)
            return code
        click.echo(f"{click.style('error:', fg='red', bold=True)} {printable(message)}", err=True)
        if hint:
            click.echo(f"{click.style('hint:', bold=True)} {printable(hint)}", err=True)
        return code


class _PrintableFormatter(logging.Formatter):
    """Keeps what other peers wrote from steering the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without control characters."""
        return printable(super().format(record))


def printable(text: str) -> str:
    """Return text without control characters but newlines: part of it may come from others."""
    return "".join(each if each.isprintable() or each == "\n" else "?" for each in text)


def json_option(command: F) -> F:
    """Add --json, which `Terminal.json` then holds."""

    def remember(context: click.Context, _parameter: click.Parameter, given: bool) -> None:
        if given:
            context.ensure_object(Terminal).json = True

    option = click.option(
        "--json", is_flag=True, expose_value=False, is_eager=True, callback=remember, help="Answer in JSON."
    )
    return option(command)
