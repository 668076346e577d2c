"""Peers that are stopped, and disks that are full: an orderly end within seconds, and afterwards the same bits."""

from __future__ import annotations

import resource
import signal
import time
from pathlib import Path

import psutil
import pytest

from ppdl_mq.config import limits
from tests.processes import SOON_S, Process, Processes
from tests.rabbit import RabbitNode, why_absent
from tests.trials.files import TrialFiles
from tests.trials.test_interruptions import LONG, finish, hidden_fault

pytestmark = pytest.mark.slow

# A step that nothing can end, as one large batch on a slow machine, in training or in measuring.
SLOW_MODEL = """
import os, time
from pathlib import Path
import torch

class Slow(torch.nn.Linear):
    def forward(self, inputs):
        if os.environ.get("SLOW_IN") == ("training" if self.training else "measuring") and len(inputs) > 2:
            Path(os.environ["SLOW_MARK"]).touch()
            time.sleep(600)
        return super().forward(inputs)

def slow() -> Slow:
    return Slow(4, 2)
"""
SHORT = ("--epochs", "6", "--batch-size", "4")  # of three peers 18 turns, of which bert has every third from 2 on
WHILE_STOPPING_S = limits.STOP_S + 15  # the step's share, and the rest for a machine that is busy


def ended_by(process: Process, number: int) -> None:
    """Send a signal once, and hold the peer to an orderly end within seconds."""
    asked = time.monotonic()
    psutil.Process(process.pid).send_signal(number)
    ended = process.wait(WHILE_STOPPING_S)
    assert ended.code == 130, ended.err
    assert time.monotonic() - asked < WHILE_STOPPING_S
    assert "goes on where it was" in ended.err or "Stopped while waiting for the relay" in ended.err
    assert not hidden_fault(process)


def until(path: Path, process: Process) -> None:
    """Wait until another process has made a file."""
    ends_at = time.monotonic() + SOON_S
    while not path.exists():
        assert time.monotonic() < ends_at, f"no {path.name}:\n{process.err}"
        time.sleep(0.01)


@pytest.fixture
def slow_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrialFiles:
    (tmp_path / "slow_model.py").write_text(SLOW_MODEL)
    monkeypatch.syspath_prepend(str(tmp_path))
    files = TrialFiles(tmp_path, ("anna", "bert"), new=("--epochs", "2", "--batch-size", "4"))
    text = files.manifest_path.read_text()
    start, end = text.index("[model]"), text.index("[training]")
    files.manifest_path.write_text(text[:start] + '[model]\ncallable = "slow_model:slow"\n\n' + text[end:])
    for peer in files.names:
        files.edit(peer, "[broker]", 'models = ["slow_model"]\n\n[broker]')
    return files


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["training", "measuring"])
def test_in_a_step_that_takes_long(
    tmp_path: Path, started: Processes, slow_files: TrialFiles, moment: str, number: int
) -> None:
    files, mark = slow_files, tmp_path / "mark"
    peers = {"bert": started.start(*files.run_arguments("bert"))}
    stuck = started.start(*files.run_arguments("anna"), environment={"SLOW_IN": moment, "SLOW_MARK": str(mark)})
    until(mark, stuck)
    ended_by(stuck, number)
    peers["anna"] = started.start(*files.run_arguments("anna"))
    finish(files, peers)


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_it_at_once(
    tmp_path: Path, started: Processes, slow_files: TrialFiles, second: int
) -> None:
    files, mark = slow_files, tmp_path / "mark"
    peers = {"bert": started.start(*files.run_arguments("bert"))}
    stuck = started.start(*files.run_arguments("anna"), environment={"SLOW_IN": "training", "SLOW_MARK": str(mark)})
    until(mark, stuck)
    process = psutil.Process(stuck.pid)
    process.send_signal(signal.SIGINT)
    ends_at = time.monotonic() + SOON_S
    while signal_is_handled(stuck.pid, second):  # the first one is being taken up
        assert time.monotonic() < ends_at
        time.sleep(0.005)
    process.send_signal(second)
    assert stuck.wait(limits.STOP_S - 1).code == -second
    peers["anna"] = started.start(*files.run_arguments("anna"))
    finish(files, peers)


def signal_is_handled(pid: int, number: int) -> bool:
    """Tell whether a process has a handler of its own for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:")).split()[1]
    return bool(int(caught, 16) >> (number - 1) & 1)


def test_while_waiting_for_a_relay_that_is_not_there(tmp_path: Path, started: Processes) -> None:
    files = TrialFiles(tmp_path, ("anna", "bert"), broker="amqp://guest@127.0.0.1:1")
    anna = started.start(*files.run_arguments("anna"))
    anna.wait_for("Waiting for the relay.")
    ended_by(anna, signal.SIGTERM)


@pytest.mark.rabbitmq
@pytest.mark.skipif(why_absent() is not None, reason=why_absent() or "")
def test_while_the_relay_takes_nothing(tmp_path: Path, started: Processes) -> None:
    with RabbitNode() as node:
        files = TrialFiles(tmp_path, ("anna", "bert"), broker=node.url(), new=LONG)
        peers = {peer: started.start(*files.run_arguments(peer)) for peer in files.names}
        peers["anna"].wait_for("Turn 3 of 90")
        bert = psutil.Process(peers["bert"].pid)
        bert.suspend()  # the trial must not end while the broker takes up what it is told
        node.ctl("set_vm_memory_high_watermark", "0.00001")
        bert.resume()
        time.sleep(2)  # the turn goes round until it is held up: nothing tells of that moment in every version
        for process in peers.values():
            ended_by(process, signal.SIGTERM)
        peers = {peer: started.start(*files.run_arguments(peer)) for peer in files.names}
        node.ctl("set_vm_memory_high_watermark", "0.4")
        finish(files, peers)


@pytest.mark.parametrize("protocol", ["server-aided", "fully-connected", "masked-average"])
def test_a_disk_that_is_full(tmp_path: Path, started: Processes, protocol: str, rabbit: RabbitNode) -> None:
    names = ("anna", "bert", "cleo")
    files = TrialFiles(
        tmp_path, names, broker=rabbit.url(), new=(*SHORT, "--protocol", protocol), name=f"full-{protocol}"
    )
    peers = {peer: started.start(*files.run_arguments(peer)) for peer in files.names}
    moments = ("Round 1 of", "Round 4 of") if protocol == "masked-average" else ("Turn 2 of", "Turn 8 of")
    for moment, limit_bytes in zip(moments, (20_000, 60_000), strict=True):
        peers["bert"].wait_for(moment, 2 * SOON_S)  # three processes start at once
        # No file of it may grow beyond that from now on: to the process it is a disk that takes no more.
        resource.prlimit(peers["bert"].pid, resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
        ended = peers["bert"].wait()
        assert ended.code == 10, ended.err
        assert "Nothing is lost: make room, and run the peer again" in ended.err
        assert not hidden_fault(peers["bert"])
        peers["bert"] = started.start(*files.run_arguments("bert"))
    if protocol != "masked-average":
        finish(files, peers)
        return
    for process in peers.values():
        assert process.wait().code == 0, process.err
    assert len({files.model(peer).read_bytes() for peer in files.names}) == 1
