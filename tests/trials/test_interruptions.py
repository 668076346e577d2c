"""Peers and brokers that end in the middle: what comes back goes on, to the same bits as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.processes import Process, Processes
from tests.rabbit import RabbitNode
from tests.trials.exact import assert_equal_bits, expected_state
from tests.trials.files import TrialFiles

pytestmark = pytest.mark.slow

# A booting broker may hold up a try to connect for 20 s, and the pause behind it may be of 10 s (docs/CONNECTION.md).
RECOVERY_S = 120.0
LONG = ("--epochs", "15", "--turns-per-epoch", "3", "--batch-size", "4")  # 90 turns: the middle is not missed


def hidden_fault(process: Process) -> str:
    """Return what should not be on stderr of a peer that had nothing but bad luck."""
    return "\n".join(line for line in process.err.splitlines() if "Traceback" in line or "bug" in line)


def finish(files: TrialFiles, peers: dict[str, Process]) -> None:
    """Wait for the end of all, and compare their models with the oracle's."""
    for process in peers.values():
        ended = process.wait(RECOVERY_S)
        assert ended.code == 0, ended.err
        assert not hidden_fault(process)
    expected = expected_state(files.manifest, files.splits())
    for peer in files.names:
        assert_equal_bits(files.model(peer), expected)


def interrupt(process: Process) -> None:
    process.interrupt()
    ended = process.wait()
    assert ended.code == 130, ended.err
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert errors == ["error: Stopped; run the peer again and it goes on where it was."]
    assert not hidden_fault(process)


@pytest.mark.parametrize(
    ("protocol", "victim", "ends"),
    [
        ("server-aided", "anna", (Process.kill, interrupt)),
        ("fully-connected", "bert", (interrupt, Process.kill)),
    ],
)
def test_a_peer_that_ends_in_the_middle(
    tmp_path: Path, started: Processes, protocol: str, victim: str, ends: tuple[Callable[[Process], None], ...]
) -> None:
    files = TrialFiles(tmp_path, ("anna", "bert"), new=(*LONG, "--protocol", protocol))
    peers = {peer: started.start(*files.run_arguments(peer)) for peer in files.names}
    for number, end in zip((9, 31), ends, strict=True):  # anna has the odd turns, bert the even ones
        peers[victim].wait_for(f"Turn {number + (victim == 'bert')} of 90")
        end(peers[victim])
        peers[victim] = started.start(*files.run_arguments(victim))
    finish(files, peers)


def test_a_broker_that_comes_late_and_goes_in_the_middle(
    tmp_path: Path, started: Processes, rabbit: RabbitNode
) -> None:
    files = TrialFiles(tmp_path, ("anna", "bert"), broker=rabbit.url(), new=LONG)
    rabbit.stop()
    peers = {peer: started.start(*files.run_arguments(peer)) for peer in files.names}
    for process in peers.values():
        process.wait_for("Waiting for the relay.")
    rabbit.start()
    peers["anna"].wait_for("Turn 9 of 90")
    rabbit.kill()
    for process in peers.values():
        process.wait_for("Reconnecting.")
    rabbit.start()
    finish(files, peers)
    assert f"ppdl.{files.manifest.name}." not in rabbit.ctl("list_queues", "--silent", "name")
