"""Compare the transcripts of one or several peers of a trial.

One log alone proves that its statements were signed by the peers that the manifest pins, and that its owner neither
removed nor changed one before the last; it does not prove that the owner logged everything, or that others saw the
same. The logs of several peers prove what their peers agreed on, and a peer that signed two different things where
the protocol allows one is named by its own signatures, whoever shows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from ppdl_mq.audit.ledger import Ledger, Place
from ppdl_mq.audit.reading import Log
from ppdl_mq.errors import RemoteError
from ppdl_mq.wire.trial_id import short_id

MAX_FINDINGS: Final = 20  # of each kind
_SAID_TWICE: Final = {
    "session key": "two session keys",
    "turn": "two results of one turn",
    "final": "two ends of the trial",
    "commitment": "two commitments in one attempt",
    "receipt": "two receipts in one attempt",
    "sum": "two sums of one shard",
    "agreement": "two results of one step",
    "abandon": "two different ABANDONs of one attempt",
}
_DIFFERS: Final = {
    "final": "the end of the trial",
    "receipt": "the commitments of an attempt",
    "sum": "the sum of a shard",
    "agreement": "the result of a step",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that does not hold.

    Args:
        kind: `broken log`: an entry of it is not genuine. `other trial`: the logs are not to be compared.
            `contradiction`: a peer signed two different things. `difference`: two peers signed different results, and
            none of them signed two; who is wrong shows in the shards behind a sum.
        peer: whose fault it is; empty where that does not follow.
        text: a sentence for people.
        places: file and number of the entries that prove it.
    """

    kind: Literal["broken log", "other trial", "contradiction", "difference"]
    peer: str
    text: str
    places: tuple[tuple[str, int], ...]


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
        findings += _compared(ledger, logs)
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
    try:
        for entry, digest in log.read():
            ledger.add_logged(index, log.trial, entry, digest)
            if entry.number:
                ledger.add(index, entry)
    except RemoteError as fault:
        text = f"Entry {log.entries} of {log.path} does not hold: {fault.message}"
        return Finding(kind="broken log", peer="", text=text, places=((str(log.path), log.entries),))
    return None


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


def _compared(ledger: Ledger, logs: list[Log]) -> list[Finding]:
    def finding(kind: Literal["contradiction", "difference"], peer: str, what: str, places: Sequence[Place]) -> Finding:
        shown = " and ".join(f"entry {place.entry} of {logs[place.log].path}" for place in places)
        named = tuple((str(logs[place.log].path), place.entry) for place in places)
        return Finding(kind=kind, peer=peer, text=f"{what}: {shown}.", places=named)

    contradictions = [
        finding("contradiction", peer, f"{peer} signed {_SAID_TWICE[says]}", places)
        for peer, says, places in ledger.contradictions(MAX_FINDINGS)
    ]
    forks = [
        finding("contradiction", peer, f"{peer} kept two different transcripts", places)
        for peer, places in ledger.forks(MAX_FINDINGS)
    ]
    differences = [
        finding("difference", "", f"{one.signer} and {other.signer} differ about {_DIFFERS[says]}", (one, other))
        for says, (one, other) in ledger.differences(MAX_FINDINGS)
    ]
    return contradictions + forks + differences


def _summary(ledger: Ledger, index: int, log: Log) -> LogSummary:
    return LogSummary(
        path=str(log.path),
        peer=log.owner,
        trial=short_id(log.trial) if log.trial else "",
        entries=log.entries,
        last_step=ledger.last_step(index),
        is_unfinished=log.is_unfinished,
    )
