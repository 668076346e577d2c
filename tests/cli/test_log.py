"""The log as lines for a person and as JSON; through whole processes in tests/trials/test_log.py."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from typing import Any

import pytest

from ppdl_mq import errors
from ppdl_mq.cli.log import JsonFormatter, TextFormatter, format_in
from ppdl_mq.cli.main import run
from ppdl_mq.cli.terminal import Terminal

ABOUT = {"trial": "heart", "trial_id": "ab" * 32, "peer": "mercy"}
ALWAYS = ["at", "level", "logger", "message", "trial", "trial_id", "peer"]


def logged(message: str = "Said.", **more: Any) -> logging.LogRecord:
    facts = {"name": "ppdl_mq.peer", "levelname": "WARNING", "msg": message, "created": 1_800_000_000.25}
    return logging.makeLogRecord(facts | more)


def line_of(record: logging.LogRecord, **options: Any) -> dict[str, Any]:
    text = JsonFormatter(ABOUT, **options).format(record)
    assert "\n" not in text
    line: dict[str, Any] = json.loads(text)
    return line


def test_what_every_line_says() -> None:
    line = line_of(logged())
    assert list(line) == ALWAYS
    assert datetime.datetime.fromisoformat(line["at"]) == datetime.datetime.fromtimestamp(
        1_800_000_000.25, datetime.UTC
    )
    assert line["at"] == "2027-01-15T08:00:00.250Z"
    assert (line["level"], line["logger"], line["message"]) == ("WARNING", "ppdl_mq.peer", "Said.")
    assert {name: line[name] for name in ABOUT} == ABOUT


def test_what_a_line_says_beside() -> None:
    line = line_of(logged(turn=3, waiting_for=("basel", "va"), ratio=float("nan"), reason=errors.Malformed))
    assert list(line) == [*ALWAYS, "turn", "waiting_for", "ratio", "reason"]
    assert line["turn"] == 3
    assert line["waiting_for"] == ["basel", "va"]
    assert line["ratio"] is None
    assert line["reason"] == str(errors.Malformed)


def test_a_record_cannot_change_what_every_line_says() -> None:
    line = line_of(logged(peer="mallory", at="never", trial_id="other"))
    assert line["peer"] == "mercy"
    assert line["trial_id"] == ABOUT["trial_id"]
    assert line["at"].startswith("2027")


def test_what_others_wrote_stays_within_its_line() -> None:
    hostile = '"}\n{"at": "forged"\x1b[2J\u202e'
    text = JsonFormatter(ABOUT).format(logged("It said %s.", args=(hostile,)))
    assert text.isascii()
    assert text.isprintable()
    assert json.loads(text)["message"] == f"It said {hostile}."
    assert "\x1b" not in TextFormatter().format(logged("It said %s.", args=(hostile,)))


def test_an_exception_is_named_and_told_with_debug_only() -> None:
    try:
        raise RuntimeError("somebody's row: 63,1,4")
    except RuntimeError:
        record = logged(exc_info=sys.exc_info())
    line = line_of(record)
    assert line["error"] == "RuntimeError"
    assert "63,1,4" not in json.dumps(line)
    assert "63,1,4" in line_of(record, traceback=True)["traceback"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "text"),
        (["peer", "run", "--log-format", "json"], "json"),
        (["peer", "run", "--log-format=json"], "json"),
        (["peer", "run", "--log-format", "text"], "text"),
        (["peer", "status", "--json"], "text"),
        (["--log-format"], "text"),
    ],
)
def test_the_format_is_known_before_the_command_line_is_parsed(arguments: list[str], expected: str) -> None:
    assert format_in(arguments) == expected


def test_the_error_that_ends_the_run_is_a_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(log_format="json", about=dict(ABOUT))
    assert terminal.failure(errors.RelayLost("Lost.", hint="Wait.")) == 6
    line = json.loads(capsys.readouterr().err)
    assert {name: line[name] for name in ("level", "message", "kind", "hint", "exit_code", "peer")} == {
        "level": "ERROR",
        "message": "Lost.",
        "kind": "RelayLost",
        "hint": "Wait.",
        "exit_code": 6,
        "peer": "mercy",
    }


@pytest.mark.parametrize("arguments", [["--config", "no.toml"], ["--no-such-option"]])
def test_a_run_that_never_began_says_so_in_one_object(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["peer", "run", "no-trial.toml", *arguments, "--log-format", "json"]) in (2, 3)
    shown = capsys.readouterr()
    assert shown.out == ""
    line = json.loads(shown.err)
    assert (line["level"], line["trial"], line["peer"]) == ("ERROR", None, None)
    assert line["exit_code"] in (2, 3)


def test_beside_such_a_log_an_answer_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal(json=True, log_format="json").answer({"model": "m", "log": "l"}, "text")
    assert capsys.readouterr().out == '{"log": "l", "model": "m"}\n'
