"""Trials with differential privacy, as people run them: killed in the middle, they come to the same bits and cost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ppdl_mq.training.order import rehearsal_seed
from ppdl_mq.training.private.accountant import Steps, epsilon
from ppdl_mq.training.private.gradient import Mechanism
from ppdl_mq.training.saving import load_model
from ppdl_mq.training.worker import Worker
from tests.processes import Process, Processes
from tests.trials.exact import SAMPLE_SEED, schedule_of
from tests.trials.files import TrialFiles
from tests.trials.test_interruptions import LONG, RECOVERY_S, hidden_fault

pytestmark = pytest.mark.slow

DELTA = 0.01
PRIVACY = f"[privacy]\nepsilon = 60.0\ndelta = {DELTA}\n\n"


def private_files(folder: Path, *new: str, privacy: str = PRIVACY) -> TrialFiles:
    files = TrialFiles(folder, ("anna", "bert"), new=new)
    files.edit(None, 'standardise = "own"', 'standardise = "none"')
    for peer in files.names:
        files.edit(peer, "[broker]", f"{privacy}[broker]")
    return files


def run_with_a_death(files: TrialFiles, started: Processes, moment: str) -> dict[str, Process]:
    peers = {peer: started.start(*files.run_arguments(peer)) for peer in files.names}
    peers["anna"].wait_for(moment)
    peers["anna"].kill()
    peers["anna"] = started.start(*files.run_arguments("anna"))
    for process in peers.values():
        ended = process.wait(RECOVERY_S)
        assert ended.code == 0, ended.err
        assert not hidden_fault(process)
        assert "Differential privacy of each of 19 training rows: by its end this trial costs epsilon" in ended.err
    return peers


def cost(files: TrialFiles, peer: str) -> dict[str, float]:
    found: dict[str, float] = json.loads((files.state(peer) / "status.json").read_text())["privacy"]
    return found


def test_turns_in_private(tmp_path: Path, started: Processes) -> None:
    files = private_files(tmp_path, *LONG)
    run_with_a_death(files, started, "Turn 31 of 90")
    manifest, splits = files.manifest, files.splits()
    costs = {peer: cost(files, peer) for peer in files.names}
    for found in costs.values():
        whole = [Steps(count=75, batch_size=4, rows=19, noise=found["noise"])]  # 15 epochs of 5 batches
        assert found["steps"] == 75
        assert found["epsilon"] == epsilon(whole, DELTA)
        assert 59 < found["epsilon"] <= found["budget"] == 60
    workers = {
        peer: Worker(
            manifest,
            splits[peer],
            device=torch.device("cpu"),
            mechanism=Mechanism(clip=1.0, noise=costs[peer]["noise"]),
        )
        for peer in files.names
    }
    schedule = schedule_of(manifest)
    weights = workers[schedule.founder].initial()
    for number in range(1, schedule.turns + 1):
        turn = schedule.turn(number)
        weights = workers[turn.peer].train(turn, weights, rehearsal_seed(SAMPLE_SEED, turn.peer)).weights
    for peer in files.names:
        assert load_model(files.model(peer), workers[peer].layout)[0] == weights
    shown = started.start("peer", "status", "--config", str(files.settings_path("anna"))).wait()
    assert "differential privacy: epsilon 59." in shown.out or "differential privacy: epsilon 60" in shown.out
    assert "of 60 spent, at delta 0.01" in shown.out


def test_rounds_in_private(tmp_path: Path, started: Processes) -> None:
    shared = PRIVACY.replace("delta", "unprotected_holdout = true\ndelta")
    rounds = ("--protocol", "masked-average", "--epochs", "12", "--batch-size", "4")
    files = private_files(tmp_path, *rounds, privacy=shared)
    run_with_a_death(files, started, "Round 3 of 12")
    assert len({files.model(peer).read_bytes() for peer in files.names}) == 1
    for peer in files.names:
        assert cost(files, peer)["steps"] == 60


def test_what_cannot_be_private_is_said_before_anything_is_sent(tmp_path: Path, started: Processes) -> None:
    much_too_little = f"[privacy]\nepsilon = 1.0\ndelta = {DELTA}\nnoise = 0.3\n\n"
    files = private_files(tmp_path, "--epochs", "3", privacy=much_too_little)
    ended = started.start(*files.run_arguments("anna")).wait()
    assert ended.code == 3
    assert "error: By its end this trial would cost epsilon" in ended.err
    files.edit("anna", "epsilon = 1.0", "epsilon = 100.0")  # nothing was begun: the same trial takes other settings
    files.edit("bert", "epsilon = 1.0", "epsilon = 100.0")
    peers = [started.start(*files.run_arguments(peer)) for peer in files.names]
    assert [process.wait().code for process in peers] == [0, 0]
