from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ppdl_mq.errors import Equivocation, FalseSum, SplitView
from ppdl_mq.peer.evidence import keep_evidence, refuse_after_equivocation
from ppdl_mq.peer.journal import Journal
from ppdl_mq.wire.envelope import Opened
from ppdl_mq.wire.header import decode_header
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.meta import decode_meta
from tests.peer.desk import desk_for, moments
from tests.trial import identity_of

MOMENT = moments("fully-connected")[Kind.TURN]


def opened_journal(folder: Path) -> Journal:
    terms = MOMENT.reader_terms
    return Journal(folder, trial_id=terms.trial_id, identity=identity_of(terms.me))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with closing(opened_journal(tmp_path / "journal")) as journal:
        yield journal


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    """A message of another peer, as it came out of its seal."""
    with desk_for(MOMENT, tmp_path / "desk") as desk:
        for part in MOMENT.parts():
            desk.take(part)
        desk.intake.flush()
        ((row, header, blob),) = desk.intake.complete()
        return desk.intake.read(row, header, blob).opened


def test_without_evidence_a_peer_goes_on(journal: Journal) -> None:
    refuse_after_equivocation(journal)


@pytest.mark.parametrize("kind", [Equivocation, SplitView, FalseSum], ids=lambda kind: kind.__name__)
def test_a_restart_stops_for_the_same_reason(tmp_path: Path, opened: Opened, kind: type[Equivocation]) -> None:
    error = kind("bert signed two things.")
    with closing(opened_journal(tmp_path / "journal")) as journal:
        keep_evidence(journal, error, opened)
    with closing(opened_journal(tmp_path / "journal")) as journal:
        for _ in range(2):  # it does not wear off
            with pytest.raises(Equivocation) as again:
                refuse_after_equivocation(journal)
            assert again.value.message == "bert signed two things."
            assert isinstance(again.value, SplitView) == (kind is SplitView)


def test_a_split_blames_nobody_and_names_the_command_that_tells(journal: Journal, opened: Opened) -> None:
    keep_evidence(journal, SplitView("bert has other commitments."), opened)
    with pytest.raises(SplitView) as split:
        refuse_after_equivocation(journal)
    assert "ppdl-mq trial verify-log" in split.value.hint
    assert "that organisation" not in split.value.hint


def test_an_equivocation_names_where_its_proof_is(journal: Journal, opened: Opened) -> None:
    keep_evidence(journal, Equivocation("bert signed two things."), opened)
    with pytest.raises(Equivocation) as proven:
        refuse_after_equivocation(journal)
    assert str(journal.folder) in proven.value.hint
    assert "verify-log" not in proven.value.hint


def test_the_message_is_kept_with_all_that_its_signature_covers(journal: Journal, opened: Opened) -> None:
    keep_evidence(journal, Equivocation("bert signed two things."), opened)
    kept = journal.secret_fact("equivocation")
    header, _ = decode_header(kept["header"])
    assert header == opened.header
    assert kept["sender"] == opened.header.sender
    assert decode_meta(header.kind, kept["meta"]) == opened.message
    assert (kept["blob_digest"], kept["signature"]) == (opened.blob_digest, opened.signature)


def test_evidence_is_sealed(journal: Journal, opened: Opened) -> None:
    secret = b"\x5a" * 64
    keep_evidence(journal, Equivocation("bert signed two things."), dataclasses.replace(opened, signature=secret))
    journal.db.execute("PRAGMA wal_checkpoint(FULL)")
    assert not [path for path in journal.folder.iterdir() if path.is_file() and secret in path.read_bytes()]
