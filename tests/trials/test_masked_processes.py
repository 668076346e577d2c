"""masked-average as people run it: `ppdl-mq` processes over RabbitMQ that are killed, dropped and left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ppdl_mq.cli.exit_codes import REMOTE
from tests.processes import Process, Processes
from tests.rabbit import RabbitNode
from tests.trials.files import TrialFiles

pytestmark = [pytest.mark.slow, pytest.mark.rabbitmq]

NAMES = ("anna", "bert", "cleo", "dora")
ROUNDS = 6
TRIAL = ("--protocol", "masked-average", "--epochs", str(ROUNDS), "--batch-size", "4")


class Trial:
    """A trial of four peers, each a process.

    Args:
        folder: empty.
        name: of the trial; the broker is shared.
        started: starts processes.
        rabbit: the broker.
    """

    def __init__(self, folder: Path, name: str, started: Processes, rabbit: RabbitNode) -> None:
        self.files = TrialFiles(folder, NAMES, broker=rabbit.url(), new=TRIAL, name=name)
        self._started = started
        self.peers: dict[str, Process] = {}
        for peer in NAMES:
            self.run(peer)

    def run(self, peer: str) -> None:
        """Start a peer, or start it again."""
        self.peers[peer] = self._started.start(*self.files.run_arguments(peer))

    def say(self, *arguments: str) -> str:
        """Run another command to its end; return what it printed."""
        ended = self._started.start(*arguments).wait()
        assert ended.code == 0, ended.err
        return ended.out

    def of(self, peer: str, *command: str) -> str:
        """Run a `peer` command with the settings of a peer."""
        return self.say("peer", *command, "--config", str(self.files.settings_path(peer)))

    def end(self, *peers: str) -> None:
        """Wait for the end of some peers; their models are one, and nothing was said that should not be."""
        for peer in peers:
            ended = self.peers[peer].wait()
            assert ended.code == 0, ended.err
            assert "Traceback" not in ended.err
        assert len({self.files.model(peer).read_bytes() for peer in peers}) == 1

    def noted(self, peer: str, event: str) -> list[dict[str, Any]]:
        """Return the lines of one kind in a peer's progress.jsonl."""
        lines = (self.files.state(peer) / "progress.jsonl").read_text().splitlines()
        return [entry for entry in map(json.loads, lines) if entry["event"] == event]

    def verified(self, *peers: str) -> str:
        """Return what `trial verify-log` says of some peers' transcripts; it must hold."""
        return self.say("trial", "verify-log", *(str(self.files.state(peer) / "transcript.log") for peer in peers))


def test_four_peers_of_which_one_is_killed_and_started_again(
    tmp_path: Path, started: Processes, rabbit: RabbitNode
) -> None:
    trial = Trial(tmp_path, "killed", started, rabbit)
    trial.peers["cleo"].wait_for(f"Round 2 of {ROUNDS} is done")
    trial.peers["cleo"].kill()
    shown = json.loads(trial.of("cleo", "status", "--json"))
    assert (shown["running"], shown["rounds"]) == (False, ROUNDS)
    assert 1 <= shown["round"] <= 4  # it may lag by half a second
    assert f"round {shown['round']} of {ROUNDS}, attempt 0, 4 members" in trial.of("cleo", "status")
    trial.run("cleo")
    trial.end(*NAMES)
    for peer in NAMES:
        assert [entry["attempts"] for entry in trial.noted(peer, "evaluation")].count(1) >= ROUNDS - 1
        assert {tuple(entry["members"]) for entry in trial.noted(peer, "round")} == {NAMES}
    assert f"They agree on {2 * ROUNDS} steps." in trial.verified(*NAMES)
    assert "ppdl.killed." not in rabbit.ctl("list_queues", "--silent", "name"), "nothing remains at the broker"


def test_one_peer_is_dropped_and_one_leaves(tmp_path: Path, started: Processes, rabbit: RabbitNode) -> None:
    trial = Trial(tmp_path, "left", started, rabbit)
    trial.peers["bert"].wait_for(f"Round 1 of {ROUNDS} is done")
    trial.peers["bert"].kill()  # from now on nobody can finish a step: there is time for people
    for peer in ("anna", "cleo", "dora"):  # their status, which may lag behind by half a second, shows it too
        while not json.loads(trial.of(peer, "status", "--json")).get("step"):
            pass
    for peer in ("anna", "cleo", "dora"):  # who leaves must not wait for bert's DONE either
        assert "is given" in trial.of(peer, "drop", "bert", "--yes")
    assert "is given" in trial.of("dora", "leave", "--yes")
    # Killed after the others' release and before its own it is needed for this step; in any case it is told then.
    trial.run("bert")
    trial.end("anna", "cleo")
    left = trial.peers["dora"].wait()
    assert left.code == 0
    assert "This organisation has left the trial left. The model is in" in left.out
    back = trial.peers["bert"].wait()
    assert back.code == REMOTE, back.err
    assert "decided to go on without this peer" in back.err
    assert json.loads(trial.of("dora", "status", "--json"))["phase"] == "left"
    members = [tuple(entry["members"]) for entry in trial.noted("anna", "round")]
    assert members[0] == NAMES
    assert members[-1] == ("anna", "cleo")
    assert members == sorted(members, key=len, reverse=True), "nobody comes back"
    assert "They agree on" in trial.verified(*NAMES)
