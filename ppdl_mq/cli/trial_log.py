"""`ppdl-mq trial verify-log`: what the transcripts of one or several peers prove."""

from __future__ import annotations

from pathlib import Path

import click

from ppdl_mq.audit.verdict import LogSummary, Verdict, verify_logs
from ppdl_mq.cli import exit_codes
from ppdl_mq.cli.terminal import Terminal, json_option


@click.command("verify-log")
@click.argument("logs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="LOG...")
@json_option
@click.pass_obj
def verify_log(terminal: Terminal, logs: tuple[Path, ...]) -> int:
    """Verify peers' transcripts, and compare them; each LOG is a transcript.log, or the state folder that it lies in.

    One log alone proves that the peers signed what stands in it, but not that its owner logged everything, or that
    others saw the same. Several logs prove what their peers agreed on, and name a peer that signed two different
    things, or for what its own log does not hold, by its own signatures. A difference shows who stands alone, but
    does not prove who lies; a question names whose log is needed to tell.

    Ends with exit code 0 if all hold and agree, with 7 if something was found, with 9 if a file cannot be read.

    \b
    Example:
      ppdl-mq trial verify-log mercy.log basel.log
    """
    verdict = verify_logs(logs)
    word = "step" if verdict.protocol == "masked-average" else "turn"
    lines = [_line(log, word) for log in verdict.logs]
    if verdict.holds:
        counted = f"{verdict.agreed_steps} {word}{'' if verdict.agreed_steps == 1 else 's'}"
        lines.append(f"They agree on {counted}." if len(logs) > 1 else f"It holds, and comes to {counted}.")
    else:
        lines += [f"{finding.kind}: {finding.text}" for finding in verdict.findings]
    terminal.answer(verdict.as_data(), "\n".join(lines))
    return _code(verdict)


def _code(verdict: Verdict) -> int:
    return exit_codes.OK if verdict.holds else exit_codes.REMOTE


def _line(log: LogSummary, word: str) -> str:
    reach = f"to {word} {log.last_step}" if log.last_step else f"no {word} yet"
    cut = "; its last line is unfinished" if log.is_unfinished else ""
    entries = f"{log.entries} entr{'y' if log.entries == 1 else 'ies'}"
    return f"{log.peer or '?':<20} {entries}, {reach}{cut}  ({log.path})"
