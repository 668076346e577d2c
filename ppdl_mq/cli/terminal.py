"""The terminal: what is said to a person or a program, and how an error looks."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import click

from ppdl_mq.cli import log
from ppdl_mq.cli.exit_codes import exit_code
from ppdl_mq.cli.log import LogFormat
from ppdl_mq.cli.log import printable as printable
from ppdl_mq.errors import InTheWay, PpdlError

F = TypeVar("F", bound=Callable[..., Any])


class NotWithout(click.UsageError):
    """A command line that asks for what is not done without another word from people.

    Args:
        message: one sentence that says what is missing.
        hint: which word.
    """

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class Declined(click.ClickException):
    """A person has answered a question with no."""

    def __init__(self) -> None:
        super().__init__("Nothing was done.")


@dataclass(slots=True, kw_only=True)
class Terminal:
    """How this run of the program speaks.

    Args:
        json: answers and errors as JSON.
        debug: errors with their traceback.
        log_format: of the log, and of an error that ends the run.
        about: what every line of a log in JSON says beside its message.
    """

    json: bool = False
    debug: bool = False
    log_format: LogFormat = "text"
    about: dict[str, str | None] = field(default_factory=lambda: {"trial": None, "trial_id": None, "peer": None})

    def answer(self, data: dict[str, Any], text: str, *, is_extra: bool = False) -> None:
        """Print the answer of a command on stdout: `data` for a program, or `text` for a person.

        Args:
            data: for a program.
            text: for a person.
            is_extra: the command has done its work without it, and succeeds also where stdout cannot be written: that
                is said on stderr, or not at all where the reader has left.

        Raises:
            OSError: stdout cannot be written; `main.run` tells people.
        """
        indent = None if self.log_format == "json" else 2  # beside a log of one object a line, the answer is another
        try:
            click.echo(json.dumps(data, indent=indent, sort_keys=True) if self.json else printable(text))
        except OSError as fault:
            if not is_extra:
                raise
            if not isinstance(fault, BrokenPipeError):
                self._warn(f"{not_written(fault).message} The work is done all the same.")

    def remark(self, text: str) -> None:
        """Say something beside the answer, on stderr, so that the answer alone can be sent to a file."""
        if not self.json:
            _say(printable(text))

    def confirm(self, question: str) -> None:
        """Ask a person, on stderr; return if the answer is yes.

        Raises:
            Declined: it is no; the end of what is typed is one, too.
            NotWithout: there is no answer, and nobody to give one.
            click.Abort: Ctrl-C.
        """
        if sys.stdin is None:  # it was closed before the program began
            raise _nobody_answers()
        try:
            is_yes = click.confirm(question, err=True)
        except click.Abort as end:
            if not isinstance(end.__context__, EOFError):
                raise
            _say("")
            if not sys.stdin.isatty():
                raise _nobody_answers() from None
            is_yes = False
        if not is_yes:
            raise Declined

    def declined(self, error: Declined, code: int) -> int:
        """Say that a person has answered no, which is no error; return the exit code."""
        if self.json:
            return self.refusal("Declined", error.message, "", code)
        _say(error.message)
        return code

    def start_log(self, *, quiet: bool = False) -> None:
        """Write the program's log to stderr: what happens, for a person; with --debug, in detail."""
        log.start(self._formatter(), logging.DEBUG if self.debug else logging.ERROR if quiet else logging.INFO)

    def failure(self, error: PpdlError) -> int:
        """Print an error on stderr and return its exit code."""
        return self._fail(type(error).__name__, error.message, error.hint, exit_code(error), error)

    def bug(self, error: BaseException, code: int) -> int:
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
        if self.log_format == "json":
            self._log_end(message, {"kind": kind, "hint": hint, "exit_code": code}, error)
            return code
        if self.debug and error is not None:
            _say("".join(traceback.format_exception(error)).rstrip("\n"))
        if self.json:
            _say(json.dumps({"error": {"kind": kind, "message": message, "hint": hint, "exit_code": code}}))
            return code
        _say(f"{click.style('error:', fg='red', bold=True)} {printable(message)}")
        if hint:
            _say(f"{click.style('hint:', bold=True)} {printable(hint)}")
        return code

    def _warn(self, message: str) -> None:
        """Say on stderr what is wrong and ends nothing."""
        if self.log_format == "json":
            record = {"name": log.LOGGER, "levelno": logging.WARNING, "levelname": "WARNING", "msg": message}
            _say(self._formatter().format(logging.makeLogRecord(record)))
        elif self.json:
            _say(json.dumps({"warning": {"message": message}}))
        else:
            _say(f"{click.style('warning:', fg='yellow', bold=True)} {printable(message)}")

    def _log_end(self, message: str, facts: dict[str, Any], error: BaseException | None) -> None:
        """Write the error that ends the run as one more line of the log."""
        record = logging.makeLogRecord({"name": log.LOGGER, "levelno": logging.ERROR, "levelname": "ERROR"} | facts)
        record.msg = message
        record.exc_info = None if error is None or not self.debug else (type(error), error, error.__traceback__)
        _say(self._formatter().format(record))

    def _formatter(self) -> logging.Formatter:
        return log.JsonFormatter(self.about, traceback=self.debug) if self.log_format == "json" else log.TextFormatter()


def not_written(fault: OSError) -> InTheWay:
    """Return the error for a person of an answer that stdout does not take."""
    return InTheWay(
        f"stdout cannot be written: {fault.strerror or type(fault).__name__}.",
        hint="Send the answer to where there is room for it, and ask again.",
    )


def _nobody_answers() -> NotWithout:
    return NotWithout("This needs an answer, and stdin is no terminal.", hint="Give --yes, or ask at one.")


def _say(text: str) -> None:
    """Print a line on stderr; where nobody can be told, the exit code still tells."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def json_option(command: F) -> F:
    """Add --json, which `Terminal.json` then holds."""

    def remember(context: click.Context, _parameter: click.Parameter, given: bool) -> None:
        if given:
            context.ensure_object(Terminal).json = True

    option = click.option(
        "--json", is_flag=True, expose_value=False, is_eager=True, callback=remember, help="Answer in JSON."
    )
    return option(command)


def log_format_option(command: F) -> F:
    """Add --log-format, which `Terminal.log_format` then holds."""

    def remember(context: click.Context, _parameter: click.Parameter, given: LogFormat) -> None:
        context.ensure_object(Terminal).log_format = given

    option = click.option(
        log.OPTION,
        type=click.Choice(log.FORMATS),
        default="text",
        show_default=True,
        expose_value=False,
        is_eager=True,
        callback=remember,
        help="Of the log on stderr: text, or json for one object a line.",
    )
    return option(command)
