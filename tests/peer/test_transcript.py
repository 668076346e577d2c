from __future__ import annotations

import dataclasses
import json
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ppdl_mq.audit.verdict import verify_logs
from ppdl_mq.errors import IllegalEvent, JournalError
from ppdl_mq.peer.journal import Journal
from ppdl_mq.peer.transcript import Transcript
from ppdl_mq.protocol.effects import Record
from ppdl_mq.wire.entries import LOG_NAME
from ppdl_mq.wire.trial_id import manifest_bytes, trial_id
from tests.audit.logs import MASKED, entries_of, lines_of, masked_records
from tests.trial import identity_of

ANNA = identity_of("anna")
RECORDS = masked_records(1)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = open_journal(tmp_path)
    yield opened
    opened.close()


def open_journal(folder: Path) -> Journal:
    return Journal(folder, trial_id=trial_id(MASKED), identity=ANNA)


def transcript_of(journal: Journal) -> Transcript:
    return Transcript(journal, me="anna", sign=ANNA.sign, trial_id=trial_id(MASKED), manifest=manifest_bytes(MASKED))


def expected(records: list[Record]) -> bytes:
    return b"".join(lines_of(entries_of("anna", records, MASKED), ANNA.sign))


def add(journal: Journal, transcript: Transcript, records: list[Record]) -> None:
    with journal.transaction():
        for record in records:
            transcript.add(record)


def test_the_mirror_holds_every_entry_and_verifies(journal: Journal) -> None:
    transcript = transcript_of(journal)
    assert transcript.path.read_bytes() == expected([])
    add(journal, transcript, RECORDS[:4])
    transcript.flush()
    add(journal, transcript, RECORDS[4:])
    transcript.flush()
    assert transcript.path.read_bytes() == expected(RECORDS)
    assert stat.S_IMODE(transcript.path.stat().st_mode) == 0o600
    verdict = verify_logs([transcript.path])
    assert verdict.holds
    assert verdict.logs[0].entries == len(RECORDS) + 1


def test_a_person_can_glance_at_it(journal: Journal) -> None:
    transcript = transcript_of(journal)
    add(journal, transcript, RECORDS)
    transcript.flush()
    lines = [json.loads(line) for line in transcript.path.read_text().splitlines()]
    assert lines[0]["says"] == "trial"
    assert lines[-1]["says"] == "leave"
    assert lines[-1]["by"] == "anna"
    assert lines[-1]["about"]["step"] == 2


def test_a_statement_is_recorded_once(journal: Journal) -> None:
    transcript = transcript_of(journal)
    add(journal, transcript, RECORDS)
    add(journal, transcript, RECORDS[::-1])
    transcript.flush()
    transcript = transcript_of(journal)
    add(journal, transcript, RECORDS)
    transcript.flush()
    assert transcript.path.read_bytes() == expected(RECORDS)


def test_what_was_rolled_back_is_not_in_it(journal: Journal) -> None:
    transcript = transcript_of(journal)
    add(journal, transcript, RECORDS[:3])
    nonsense = dataclasses.replace(RECORDS[4], about={})
    with pytest.raises(KeyError):
        add(journal, transcript, [RECORDS[3], nonsense])
    transcript.flush()
    assert transcript.path.read_bytes() == expected(RECORDS[:3])
    add(journal, transcript, RECORDS[3:])
    transcript.flush()
    assert transcript.path.read_bytes() == expected(RECORDS)


def test_it_is_not_mirrored_before_the_commit(journal: Journal) -> None:
    transcript = transcript_of(journal)
    with journal.transaction():
        transcript.add(RECORDS[0])
        with pytest.raises(IllegalEvent):
            transcript.flush()
    assert transcript.path.read_bytes() == expected([])


def test_a_crash_at_every_byte_of_the_mirror(journal: Journal) -> None:
    """Between commit and flush, or in the middle of a line: the next start writes what is missing."""
    transcript = transcript_of(journal)
    add(journal, transcript, RECORDS[:3])
    transcript.flush()
    whole = transcript.path.read_bytes()
    last_line = whole.rstrip(b"\n").rfind(b"\n") + 1
    ends = [*range(0, last_line, 301), *range(last_line - 2, len(whole) + 1)]
    for end in ends:
        transcript.path.write_bytes(whole[:end])
        again = transcript_of(journal)
        assert again.path.read_bytes() == whole, end
    assert sorted(path.name for path in journal.folder.glob(f"{LOG_NAME}*")) == [LOG_NAME]


def test_a_mirror_that_is_gone_is_written_anew(journal: Journal) -> None:
    transcript = transcript_of(journal)
    add(journal, transcript, RECORDS[:3])
    transcript.flush()
    transcript.path.unlink()
    add(journal, transcript, RECORDS[3:5])
    transcript.flush()
    assert transcript.path.read_bytes() == expected(RECORDS[:5])


def test_a_line_that_an_error_cut_is_written_again(journal: Journal) -> None:
    transcript = transcript_of(journal)
    add(journal, transcript, RECORDS[:3])
    transcript.flush()
    with transcript.path.open("ab") as file:
        file.write(b'{"number": 4, "prev' + b"x" * 9_999)  # as after a full disk
    add(journal, transcript, RECORDS[3:5])
    transcript.flush()
    assert transcript.path.read_bytes() == expected(RECORDS[:5])


@pytest.mark.parametrize("fault", ["changed", "junk", "another"])
def test_a_mirror_that_is_not_the_journals_is_set_aside(
    journal: Journal, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    transcript = transcript_of(journal)
    add(journal, transcript, RECORDS[:3])
    transcript.flush()
    held = {
        "changed": expected(RECORDS[:3]).replace(b"hex:", b"HEX:"),
        "junk": expected(RECORDS[:3]) + b"\0" * 100,
        "another": expected(RECORDS[:3]) + expected(RECORDS[:1]),
    }[fault]
    for number in (1, 2):
        transcript.path.write_bytes(held)
        assert transcript_of(journal).path.read_bytes() == expected(RECORDS[:3])
        assert (journal.folder / f"{LOG_NAME}.{number}").read_bytes() == held
    assert f"{LOG_NAME}.2" in caplog.text


@pytest.mark.parametrize("end", [4, 5])
def test_a_mirror_that_is_ahead_shows_a_journal_that_was_put_back(journal: Journal, end: int) -> None:
    """Here nothing may go on: what the missing entries say was signed, and would be forgotten."""
    transcript = transcript_of(journal)
    add(journal, transcript, RECORDS[:3])
    transcript.flush()
    held = expected(RECORDS[:end])
    transcript.path.write_bytes(held)
    for _ in range(2):
        with pytest.raises(JournalError, match="put back"):
            transcript_of(journal)
    assert transcript.path.read_bytes() == held
    assert sorted(path.name for path in journal.folder.glob(f"{LOG_NAME}*")) == [LOG_NAME]


@pytest.mark.parametrize("fault", ["gone", "a bit"])
def test_a_write_ahead_log_that_was_damaged(journal: Journal, tmp_path: Path, fault: str) -> None:
    """SQLite opens what stands before the damage as if nothing had been behind it."""
    transcript = transcript_of(journal)
    add(journal, transcript, RECORDS[:3])
    transcript.flush()
    journal.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    add(journal, transcript, RECORDS[3:5])
    transcript.flush()
    killed = tmp_path / "killed"  # as the process would leave it
    killed.mkdir()
    for name in ("journal.sqlite", "journal.sqlite-wal", LOG_NAME):
        shutil.copyfile(journal.folder / name, killed / name)
    log = killed / "journal.sqlite-wal"
    if fault == "gone":
        log.unlink()
    else:
        content = bytearray(log.read_bytes())
        content[1_000] ^= 1
        log.write_bytes(content)
    again = open_journal(killed)
    with pytest.raises(JournalError, match="put back"):
        transcript_of(again)
    again.close()


def test_a_mirror_that_cannot_be_written_is_an_error_and_loses_nothing(journal: Journal) -> None:
    transcript = transcript_of(journal)
    transcript.path.unlink()
    transcript.path.mkdir()
    add(journal, transcript, RECORDS[:3])
    with pytest.raises(JournalError, match=LOG_NAME):
        transcript.flush()
    transcript.path.rmdir()
    transcript.flush()
    assert transcript.path.read_bytes() == expected(RECORDS[:3])


def test_a_damaged_journal_is_an_error(journal: Journal) -> None:
    transcript = transcript_of(journal)
    journal.db.execute("DROP TABLE transcript")
    with pytest.raises(JournalError):
        add(journal, transcript, RECORDS[:1])
    with pytest.raises(JournalError):
        transcript.flush()


def test_it_survives_a_restart(tmp_path: Path) -> None:
    for end in (2, 4, len(RECORDS)):
        journal = open_journal(tmp_path)
        try:
            add(journal, transcript_of(journal), RECORDS[:end])  # and the process ends before the flush
        finally:
            journal.close()
    journal = open_journal(tmp_path)
    transcript_of(journal)
    journal.close()
    assert (tmp_path / LOG_NAME).read_bytes() == expected(RECORDS)
