"""The program's log on stderr: lines for a person, or one JSON object a line for what collects logs."""

from __future__ import annotations

import datetime
import json
import logging
import math
import threading
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

LogFormat = Literal["text", "json"]
FORMATS: Final[tuple[LogFormat, ...]] = ("text", "json")

OPTION: Final = "--log-format"
LOGGER: Final = "ppdl_mq"

# What each record has by itself; whatever else it carries was given as `extra`.
_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def printable(text: str) -> str:
    """Return text without control characters but newlines: part of it may come from others."""
    return "".join(each if each.isprintable() or each == "\n" else "?" for each in text)


class TextFormatter(logging.Formatter):
    """Lines for a person; what other peers wrote cannot steer the terminal."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without control characters."""
        return printable(super().format(record))


class JsonFormatter(logging.Formatter):
    """One object a line; docs/METRICS.md says what is in it.

    Args:
        about: stands in every line: `trial`, `trial_id` and `peer`, None where they are not known.
        traceback: whether an exception is written out; its text may hold anything, so otherwise only its class is.
    """

    def __init__(self, about: Mapping[str, str | None], *, traceback: bool = False) -> None:
        super().__init__()
        self._about = dict(about)
        self._traceback = traceback

    def format(self, record: logging.LogRecord) -> str:
        """Return the object; control characters are escaped, as JSON demands."""
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            "at": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **self._about,
        }
        for name, value in record.__dict__.items():
            if name not in _STANDARD and name not in line:  # a record cannot change what every line says
                line[name] = _plain(value)
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            line["error"] = type(error).__name__
            if self._traceback:
                line["traceback"] = "".join(traceback.format_exception(error))
        return json.dumps(line, allow_nan=False)


def format_in(arguments: Sequence[str]) -> LogFormat:
    """Return the format that a command line asks for, known even where it cannot be parsed."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if argument == f"{OPTION}=json" or (before == OPTION and argument == "json"):
            return "json"
    return "text"


def start(formatter: logging.Formatter, level: int) -> None:
    """Write the program's log to stderr, and with it what Python warns of, and the end of a thread by an error."""
    handler = logging.StreamHandler()
    handler.setFormatter(formatter)
    logger = logging.getLogger(LOGGER)
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(level)
    if isinstance(formatter, JsonFormatter):  # in text both are written to stderr anyway
        logging.captureWarnings(True)
        warned = logging.getLogger("py.warnings")
        warned.handlers[:] = [handler]
        warned.propagate = False
        threading.excepthook = _log_end_of_thread


def _log_end_of_thread(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is not None and not isinstance(ended.exc_value, SystemExit):
        name = ended.thread.name if ended.thread is not None else "?"
        logging.getLogger(LOGGER).critical("The thread %s has ended by an error.", name, exc_info=ended.exc_value)


def _plain(value: object) -> Any:
    """Return what JSON can say of a value: lists and numbers stay, the rest becomes text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return str(value)
