"""What a peer keeps for itself: the machine's state and the transcript."""

from __future__ import annotations

from typing import Any

from fuzz.harness import Form, Target, scratch_folder
from fuzz.people import PEOPLE, manifest_of
from ppdl_mq.audit.verdict import verify_logs
from ppdl_mq.errors import JournalError, Malformed
from ppdl_mq.protocol.machine import Machine
from ppdl_mq.protocol.masked_average.machine import MaskedAverageMachine
from ppdl_mq.protocol.restoring import restored_state
from ppdl_mq.protocol.sequential import SequentialMachine
from ppdl_mq.protocol.statements import statement_bytes
from ppdl_mq.protocol.terms import Terms
from ppdl_mq.wire import canonical
from ppdl_mq.wire.entries import BEGINNING, NOTHING_BEFORE, Entry, read_line
from ppdl_mq.wire.trial_id import manifest_bytes, trial_id

_LIMIT_BYTES = 1 << 20
_FILE = scratch_folder() / "log"


def _machine(protocol: str) -> Machine[Any]:
    made = MaskedAverageMachine if protocol == "masked-average" else SequentialMachine
    return made(Terms.of(manifest_of(protocol), PEOPLE["anna"], layout=b"\x09" * 32, software="fuzz", words=45))


SEQUENTIAL, MASKED = _machine("fully-connected"), _machine("masked-average")


def _run_state(machine: Machine[Any], data: bytes) -> None:
    try:
        plain = canonical.decode(data, limit_bytes=_LIMIT_BYTES)
    except Malformed:
        return  # the journal's own decoder has a target of its own
    state = restored_state(machine, plain)
    assert canonical.encode(state.as_data()) == data


def run_state_sequential(data: bytes) -> None:
    """Restore a sequential machine's state; what is accepted is kept as the same bytes."""
    _run_state(SEQUENTIAL, data)


def run_state_masked(data: bytes) -> None:
    """Restore a state of masked-average; what is accepted is kept as the same bytes."""
    _run_state(MASKED, data)


def run_entry(data: bytes) -> None:
    """Read a line of a transcript; what is accepted has one form."""
    entry, log_signature = read_line(data)
    assert entry.line(log_signature) == data


def run_log(data: bytes) -> None:
    """Verify a log of these bytes."""
    _FILE.write_bytes(data)
    verdict = verify_logs([_FILE])
    assert verdict.logs[0].entries or not verdict.holds


def run_statements(data: bytes) -> None:
    """Verify a log of these statements, chained and signed as a liar would who has all the keys.

    The input is plain data: a list of [by, says, about], or of whole entries as maps.
    """
    try:
        said = canonical.decode(data, limit_bytes=_LIMIT_BYTES)
    except Malformed:
        return
    if isinstance(said, list) and said:
        _FILE.write_bytes(b"".join(_lines(said)))
        verify_logs([_FILE, _FILE])


def _lines(said: list[Any]) -> list[bytes]:
    protocol = "masked-average" if said[0] == "masked-average" else "fully-connected"
    manifest = manifest_of(protocol)
    begin = ["anna", BEGINNING, {"trial": trial_id(manifest), "manifest": manifest_bytes(manifest)}]
    lines: list[bytes] = []
    previous = NOTHING_BEFORE
    for each in [begin, *said[1:]]:
        match each:
            case [str(by), str(says), dict(about)]:
                pass
            case _:
                continue
        entry = Entry(
            number=len(lines),
            previous=previous,
            by=by,
            says=says,
            about=about,
            signature=_signature(by, says, about) if lines else b"",
            logged_by="anna",
        )
        try:
            lines.append(entry.line(PEOPLE["anna"].sign(entry.signed_bytes())))
        except (ValueError, TypeError):
            continue  # has no encoding: a text that reads as bytes, a number too large
        previous = entry.digest()
    return lines


def _signature(by: str, says: str, about: dict[str, Any]) -> bytes:
    try:
        return PEOPLE[by].sign(statement_bytes(says, about))
    except Exception:  # of a form that nobody can sign
        return bytes(64)


TARGETS = (
    Target(name="state-sequential", run=run_state_sequential, form=Form.CANONICAL, errors=(JournalError,)),
    Target(name="state-masked", run=run_state_masked, form=Form.CANONICAL, errors=(JournalError,)),
    Target(name="entry", run=run_entry, form=Form.JSON),
    Target(name="log", run=run_log, errors=(JournalError,), longest_bytes=16_384),
    Target(name="statements", run=run_statements, form=Form.CANONICAL, errors=(JournalError,), longest_bytes=8_192),
)
