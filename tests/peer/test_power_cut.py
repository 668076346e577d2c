"""What a power cut may not take: files are synced before the commit that names them, and commits are synced."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppdl_mq.peer import blobs, intake
from ppdl_mq.peer.journal import Journal
from ppdl_mq.wire.kinds import Kind
from tests.peer.desk import desk_for, moments
from tests.peer.test_outbox import Post, confirm, turn
from tests.trial import identity_of
from tests.writes import noted_writes

_FULL, _ON = 2, 1


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(blobs, "INLINE_BYTES", 16)
    monkeypatch.setattr(intake, "INLINE_BYTES", 16)
    return noted_writes(monkeypatch, lambda path: "folder" if path.is_dir() else "file")


def note_commits(journal: Journal, steps: list[str]) -> None:
    journal.db.set_trace_callback(lambda sql: steps.append("commit") if sql == "COMMIT" else None)


def test_commits_are_synced_and_what_is_deleted_is_overwritten(tmp_path: Path) -> None:
    secret = b"a very secret word " * 20
    for is_new in (True, False):
        journal = Journal(tmp_path, trial_id=bytes(32), identity=identity_of("anna"))
        assert journal.db.execute("PRAGMA synchronous").fetchone() == (_FULL,)
        assert journal.db.execute("PRAGMA secure_delete").fetchone() == (_ON,)
        with journal.transaction() as db:
            if is_new:
                journal.keep_fact("secret", secret)
            else:
                db.execute("DELETE FROM fact WHERE name = 'secret'")
        journal.close()
        assert (secret in (tmp_path / "journal.sqlite").read_bytes()) == is_new


def test_a_part_is_on_disk_before_it_is_committed_and_only_then_may_be_acknowledged(
    tmp_path: Path, steps: list[str]
) -> None:
    moment = moments("server-aided")[Kind.TURN]
    first, *others = moment.parts(stride=100)
    with desk_for(moment, tmp_path) as desk:
        note_commits(desk.journal, steps)
        steps.clear()
        desk.take(first)
        assert steps == ["commit"]  # that it has begun
        desk.intake.flush()
        assert steps == ["commit", "fsync file", "fsync folder", "commit"]
        steps.clear()
        for part in others:
            desk.take(part)
        desk.intake.flush()
        assert steps == ["fsync file", "commit"]


def test_weights_and_letters_are_on_disk_before_they_are_committed_and_then_published(
    tmp_path: Path, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    post = Post(tmp_path)
    note_commits(post.journal, steps)
    plain_publish = post.transport.publish_all

    def publish_all(sets: object) -> object:
        steps.append("publish")
        return plain_publish(sets)  # type: ignore[arg-type]

    monkeypatch.setattr(post.transport, "publish_all", publish_all)
    for send in (confirm(), turn(1, b"weights " * 20)):
        steps.clear()
        with post.journal.transaction():
            if send.blob is not None:
                post.slots.put(send.blob.slot, b"weights " * 20)
            post.add(send)
        assert steps == ["fsync file", "fsync folder", "commit"]
        assert post.publish()
        assert steps == ["fsync file", "fsync folder", "commit", "publish", "commit"]
    post.close()
