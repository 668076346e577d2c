"""What a trial leaves at the relay when it has ended: nothing."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.rabbit import RabbitNode
from tests.transport.relays import new_trial
from tests.trial import TrialInProcess, manifest_for
from tests.trials.relays import opener

PROTOCOLS = ("server-aided", "fully-connected")


@pytest.mark.rabbitmq
@pytest.mark.parametrize("kind", ["classic", "quorum"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_queue_stays_at_the_broker(
    kind: str, protocol: str, tmp_path: Path, request: pytest.FixtureRequest, rabbit: RabbitNode
) -> None:
    manifest = manifest_for(name=new_trial(), protocol=protocol)
    queues = f"{manifest.relay.prefix}.{manifest.name}."
    trial = TrialInProcess(manifest, tmp_path, opener(kind, manifest, tmp_path, request))
    threads = trial.start("anna", "bert")
    for thread in (*threads, *trial.start("cleo")):
        thread.join(60.0)
        assert not thread.is_alive()
    assert trial.errors == {}
    assert queues not in rabbit.ctl("list_queues", "--silent", "name")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nothing_stays_in_the_file(protocol: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    manifest = manifest_for(name=new_trial(), protocol=protocol)
    TrialInProcess(manifest, tmp_path, opener("embedded", manifest, tmp_path, request)).run()
    with closing(sqlite3.connect(tmp_path / "relay.sqlite")) as relay:
        for table in ("queues", "messages", "bodies"):
            assert relay.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table
    left = {file.name for file in tmp_path.glob("relay.sqlite*/*")}
    assert left == {"open.lock"}  # the relay's own; no lock and no pipe of a connection


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_journal_keeps_no_secret_of_the_session(
    protocol: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    manifest = manifest_for(name=new_trial(), protocol=protocol)
    trial = TrialInProcess(manifest, tmp_path, opener("memory", manifest, tmp_path, request))
    trial.run()
    for runner in trial.runners.values():
        assert runner.state.session_secret is None
        assert not runner.state.contributions
        assert not runner.state.pair_keys
