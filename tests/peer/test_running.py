from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from ppdl_mq.config.reading import settings_from_text
from ppdl_mq.errors import JournalError
from ppdl_mq.peer.journal import Journal
from ppdl_mq.peer.running import run_peer
from tests.people import identity_of, manifest_for

SETTINGS = """
identity = "anna.key"
state_dir = "state"
[broker]
url = "embedded:relay.sqlite"
[data]
callable = "no.such.module:samples"
"""


def test_what_sqlite_finds_before_the_runner_runs_is_a_journal_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(journal: Journal, name: str) -> bytes:
        raise sqlite3.DatabaseError("database disk image is malformed")

    monkeypatch.setattr(Journal, "fact", damaged)
    settings = settings_from_text(SETTINGS, source="peer.toml", folder=tmp_path)
    with pytest.raises(JournalError, match="malformed"):
        run_peer(manifest_for(), settings, identity_of("anna"), folder=tmp_path)
