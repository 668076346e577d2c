"""Compare the transcripts of one or several peers of a trial.

One log alone proves that its statements were signed by the peers that the manifest pins, and that its owner neither
removed nor changed one before the last; it does not prove that the owner logged everything, or that others saw the
same. The logs of several peers prove what their peers agreed on, and a peer that signed two different things where
the protocol allows one is named by its own signatures, whoever shows them. So is one that signed for what its own log
does not hold; where that log is missing, it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ppdl_mq.audit.findings import Comparison, Finding
from ppdl_mq.audit.ledger import Ledger
from ppdl_mq.audit.reading import Log
from ppdl_mq.errors import RemoteError
from ppdl_mq.wire.trial_id import short_id


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSummary:
    """What one log holds.

    Args:
        path: of the file.
        peer: its owner; empty if not even entry 0 holds.
        trial: short id; empty likewise.
        entries: how many hold, from the first on.
        last_step: the last turn or step whose result it holds; 0 if none.
        is_unfinished: its last line is cut off, as in a copy made while the peer wrote; that line is passed over.
    """

    path: str
    peer: str
    trial: str
    entries: int
    last_step: int
    is_unfinished: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the logs prove together.

    Args:
        logs: in the order given.
        findings: what does not hold; empty if all is well.
        agreed_steps: of how many turns or steps all logs hold the same result.
        protocol: of the trial; empty if unknown.
    """

    logs: tuple[LogSummary, ...]
    findings: tuple[Finding, ...]
    agreed_steps: int
    protocol: str

    @property
    def holds(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def as_data(self) -> dict[str, Any]:
        """Return the verdict as plain data."""
        return asdict(self) | {"holds": self.holds}


def verify_logs(paths: Sequence[Path]) -> Verdict:
    """Check each log, then all of them against each other.

    Args:
        paths: files `transcript.log` of peers of one trial; at least one.

    Raises:
        JournalError: a file cannot be read, or there is no room to compare them.
    """
    logs = [Log(path) for path in paths]
    with Ledger() as ledger:
        findings = [fault for index, log in enumerate(logs) if (fault := _broken(ledger, index, log))]
        findings += _of_other_trials(logs)
        ledger.close_books()
        findings += Comparison(ledger, logs).findings()
        summaries = tuple(_summary(ledger, index, log) for index, log in enumerate(logs))
        is_one_trial = len({log.trial for log in logs}) == 1
        return Verdict(
            logs=summaries,
            findings=tuple(findings),
            agreed_steps=ledger.agreed_steps(len(logs)) if is_one_trial else 0,
            protocol=logs[0].protocol,
        )


def _broken(ledger: Ledger, index: int, log: Log) -> Finding | None:
    """Take the statements of a log into the ledger; return what ends it early, if something does."""
    fault: RemoteError | None = None
    try:
        for entry, digest in log.read():
            ledger.add_logged(index, log.trial, entry, digest)
            if entry.number:
                ledger.add(index, entry)
    except RemoteError as error:
        fault = error
    ledger.close_log(index, log.owner)
    if fault is None:
        return None
    text = f"Entry {log.entries} of {log.path} does not hold: {fault.message}"
    return Finding(kind="broken log", peer="", text=text, places=((str(log.path), log.entries),))


def _of_other_trials(logs: list[Log]) -> list[Finding]:
    known = [log for log in logs if log.trial]
    return [
        Finding(
            kind="other trial",
            peer="",
            text=f"{log.path} is of trial {short_id(log.trial)}, {known[0].path} of trial {short_id(known[0].trial)}.",
            places=((str(log.path), 0), (str(known[0].path), 0)),
        )
        for log in known
        if log.trial != known[0].trial
    ]


def _summary(ledger: Ledger, index: int, log: Log) -> LogSummary:
    return LogSummary(
        path=str(log.path),
        peer=log.owner,
        trial=short_id(log.trial) if log.trial else "",
        entries=log.entries,
        last_step=ledger.last_step(index),
        is_unfinished=log.is_unfinished,
    )
