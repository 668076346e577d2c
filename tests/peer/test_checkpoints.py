"""The peer's side of checkpoints: the file, when it goes, and a real peer that is killed in the middle of a turn."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import re
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ppdl_mq.config.reading import read_settings
from ppdl_mq.config.settings_text import settings_text
from ppdl_mq.errors import PeerFileError
from ppdl_mq.peer import checkpoints
from ppdl_mq.peer.checkpoints import Checkpoints
from ppdl_mq.peer.runner import Runner
from ppdl_mq.training import order
from ppdl_mq.training.order import rehearsal_seed
from ppdl_mq.training.worker import Worker
from ppdl_mq.transport.memory import MemoryRelay, MemoryTransport
from tests.chaos.undisturbed import undisturbed_state
from tests.processes import SOON_S, Process, Processes, processes
from tests.trial import TrialInProcess, manifest_for
from tests.trials.exact import SAMPLE_SEED, assert_equal_bits, expected_state, schedule_of
from tests.trials.files import TrialFiles
from tests.writes import noted_writes


@pytest.fixture
def shelf(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path, every_s=60.0)


def content(shelf: Checkpoints, number: int) -> bytes | None:
    with shelf.view(number) as view:
        return None if view is None else bytes(view)


# --- the file --------------------------------------------------------------------------------------------------------


def test_the_last_one_is_kept(shelf: Checkpoints, tmp_path: Path) -> None:
    assert content(shelf, 3) is None
    for text in (b"first", b"second"):
        assert shelf.save(3, [text, b"", bytearray(b", and "), memoryview(b"more")])
        assert content(shelf, 3) == text + b", and more"
    (path,) = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    shelf.discard(2)
    assert path.exists()
    shelf.discard(3)
    shelf.discard(3)
    assert not path.exists()


def test_those_of_other_turns_go_and_nothing_else(shelf: Checkpoints, tmp_path: Path) -> None:
    for name in (
        "turn-1.checkpoint",
        "turn-2.checkpoint.unfinished",
        "turn-3.checkpoint",
        "turn-3.checkpoint.unfinished",
    ):
        (tmp_path / name).write_bytes(b"x")
    others = ("journal.sqlite", "turn-x.checkpoint", "my turn-1.checkpoint", "turn-1.checkpoint.txt")
    for name in others:
        (tmp_path / name).write_bytes(b"x")
    assert content(shelf, 3) == b"x"
    assert {path.name for path in tmp_path.iterdir()} == {*others, "turn-3.checkpoint"}
    shelf.clear()
    assert {path.name for path in tmp_path.iterdir()} == set(others)


def test_a_folder_that_cannot_be_looked_into_is_said_once_and_ends_nothing(
    shelf: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "turn-1.checkpoint").write_bytes(b"old")
    (tmp_path / "turn-2.checkpoint").write_bytes(b"mine")

    def no_more_files(_: Path) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "iterdir", no_more_files)
        assert content(shelf, 2) == b"mine"
        shelf.clear()
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["Old checkpoints cannot be looked for, and stay for now: Too many open files."]
    assert content(shelf, 2) == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["turn-2.checkpoint"]


def test_what_is_no_plain_file_is_damaged(shelf: Checkpoints, tmp_path: Path) -> None:
    path = tmp_path / "turn-1.checkpoint"
    (tmp_path / "elsewhere").write_bytes(b"x")
    path.symlink_to(tmp_path / "elsewhere")
    assert content(shelf, 1) == b""
    path.unlink()
    os.mkfifo(path)
    assert content(shelf, 1) == b""
    path.unlink()
    path.touch()
    assert content(shelf, 1) == b""


def test_what_cannot_be_mapped_is_damaged(shelf: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "turn-1.checkpoint").write_bytes(b"x")

    def no_memory(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(checkpoints.mmap, "mmap", no_memory)
    assert content(shelf, 1) == b""


def test_it_is_on_disk_whole_before_it_has_its_name(
    shelf: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = noted_writes(monkeypatch, lambda path: "folder" if path == tmp_path else path.read_text())
    assert shelf.save(1, [b"whole ", b"thing"])
    assert done == ["fsync whole thing", "rename", "fsync folder"]


@pytest.mark.parametrize("fails", ["open", "fsync", "replace"])
def test_a_full_disk_is_said_once_and_leaves_the_old_one(
    shelf: Checkpoints,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fails: str,
) -> None:
    assert shelf.save(1, [b"old"])

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path if fails == "replace" else os, fails, full)
        assert not shelf.save(1, [b"new"])
        assert not shelf.save(1, [b"new"])
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["A checkpoint cannot be written, training goes on without: No space left on device."]
    assert content(shelf, 1) == b"old"
    assert len(list(tmp_path.iterdir())) == 1
    assert shelf.save(1, [b"new"])
    assert content(shelf, 1) == b"new"


# --- the setting -----------------------------------------------------------------------------------------------------


def settings_file(folder: Path, line: str = "") -> Path:
    text = settings_text(
        identity=Path("a.key"),
        state_dir=Path("state"),
        device="cpu",
        broker="embedded:relay.sqlite",
        login={},
        declare=True,
        data="company.data:rows",
        data_arguments={},
    )
    path = folder / "peer.toml"
    shown = "# checkpoint_s = 60.0"
    assert shown in text
    path.write_text(text.replace(shown, line) if line else text)
    return path


def test_the_setting(tmp_path: Path) -> None:
    assert read_settings(settings_file(tmp_path)).checkpoint_s == 60.0
    assert read_settings(settings_file(tmp_path, "checkpoint_s = 60.0")).checkpoint_s == 60.0
    assert read_settings(settings_file(tmp_path, "checkpoint_s = 0")).checkpoint_s == 0.0
    for wrong in ("-1", "inf", "nan", '"often"'):
        with pytest.raises(PeerFileError, match="checkpoint_s"):
            read_settings(settings_file(tmp_path, f"checkpoint_s = {wrong}"))


# --- when it goes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["server-aided", "masked-average"])
def test_it_goes_when_the_result_is_journalled_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    """Each turn ends with its checkpoint there: it must be there until the journal has the result."""
    manifest = manifest_for(("anna", "bert"), protocol=protocol)
    seen: list[tuple[str, int, bool]] = []

    class Watched(Checkpoints):
        def __init__(self, name: str) -> None:
            super().__init__(tmp_path / name, every_s=1e9)
            self.name = name

        def discard(self, number: int) -> None:
            runner = trial.runners[self.name]
            trained = runner.journal.db.execute("SELECT count(*) FROM slot WHERE step > 0").fetchone()[0]
            was_there = (tmp_path / self.name / f"turn-{number}.checkpoint").exists()
            super().discard(number)
            if number:
                assert trained, "the result is not in the journal yet"
                seen.append((self.name, number, was_there))

    plain_init, plain_train = Runner.__init__, Worker.train

    def init(runner: Runner, terms: Any, *arguments: Any, **options: Any) -> None:
        plain_init(runner, terms, *arguments, **options)
        runner.worker.checkpoints = Watched(terms.me)

    def train(worker: Worker, turn: Any, *arguments: Any, **options: Any) -> Any:
        result = plain_train(worker, turn, *arguments, **options)
        assert worker.checkpoints is not None
        assert worker.checkpoints.save(turn.number, [b"of this turn"])
        return result

    monkeypatch.setattr(Runner, "__init__", init)
    monkeypatch.setattr(Worker, "train", train)
    relay = MemoryRelay()
    trial = TrialInProcess(manifest, tmp_path, lambda _: MemoryTransport(relay))
    trial.run()
    assert seen
    assert all(was_there for _, _, was_there in seen)
    assert not list(tmp_path.rglob("turn-*"))


# --- real processes --------------------------------------------------------------------------------------------------

# Notes in a file which process has trained which batch. peer.toml has to allow it.
_MODEL = """
import hashlib, os
import torch
from ppdl_mq.training.models import mlp

class Noting(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp(inputs=4, hidden=[16], outputs=2, dropout=0.3, batch_norm=True)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        path = os.environ.get("NOTES")
        if path and self.training and torch.is_grad_enabled():
            line = f"{os.getpid()} {hashlib.sha256(inputs.numpy().tobytes()).hexdigest()}\\n"
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.write(handle, line.encode())
            os.close(handle)
        return self.inner(inputs)
"""

STEPS = 2500  # of a turn: about a second
NAMES = ("anna", "bert")


class Noted:
    """A trial of two turns, or one round, whose steps are noted.

    Args:
        folder: empty.
        monkeypatch: has this process find the model.
        protocol: of the trial.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, protocol: str) -> None:
        (folder / "noting.py").write_text(_MODEL)
        monkeypatch.syspath_prepend(str(folder))
        self.folder = folder
        new = ("--epochs", "1", "--batch-size", "5", "--turn-steps", str(STEPS), "--protocol", protocol)
        self.files = files = TrialFiles(folder, NAMES, new=(*new, "--model", "noting:Noting"))
        files.edit(None, "momentum = 0.0", "momentum = 0.9")
        files.edit(None, "learning_rate = 0.1", "learning_rate = 0.01")
        for peer in NAMES:
            files.edit(peer, '# models = ["ppdl_mq.training.models"]', 'models = ["noting"]')
            files.edit(peer, "# checkpoint_s = 60.0", "checkpoint_s = 0.05")

    def start(self, started: Processes, peer: str) -> Process:
        """Start a peer."""
        notes = {"NOTES": str(self.folder / f"{peer}.steps")}
        return started.start(*self.files.run_arguments(peer), environment=notes)

    def steps(self, peer: str, process: Process | None = None) -> list[str]:
        """Return the batches that a peer has trained, or one process of it, in order."""
        path = self.folder / f"{peer}.steps"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [batch for pid, batch in lines if process is None or int(pid) == process.pid]

    def all_steps(self, peer: str) -> list[str]:
        """Return what a peer has to train in its first turn."""
        manifest = self.files.manifest
        inputs = self.files.splits()[peer].train.inputs
        (turn,) = schedule_of(manifest).turns_of(peer)
        seed = rehearsal_seed(SAMPLE_SEED, peer)
        batches = order.turn_batches(manifest.training, turn, seed, rows=len(inputs))
        return [hashlib.sha256(inputs[batch].numpy().tobytes()).hexdigest() for batch in batches]

    def wait_for_steps(self, peer: str, process: Process, steps: int) -> None:
        """Wait until a process has trained so many, and something of its turn is kept."""
        deadline = time.monotonic() + SOON_S
        while len(self.steps(peer, process)) < steps or not list(self.files.state(peer).glob("turn-*.checkpoint")):
            assert time.monotonic() < deadline, process.err
            time.sleep(0.005)  # between two looks at another process, which tells in no other way

    def disturb(self, started: Processes, peer: str, ends: Sequence[Callable[[Process], None]], seed: int) -> Process:
        """End a peer in the middle of its turn several times, each time at a random step; return its last process."""
        draw = random.Random(seed)
        everything = self.all_steps(peer)
        assert len(everything) == STEPS
        begun = 0
        process = self.start(started, peer)
        for end in ends:
            self.wait_for_steps(peer, process, draw.randint(50, 250))
            end(process)
            done = self.steps(peer, process)
            assert done == everything[begun : begun + len(done)], seed
            assert begun + len(done) < STEPS, "too late: the turn was over"
            last, process = process, self.start(started, peer)
            process.wait_for("Going on in the middle of turn")
            found = re.search(r"Going on in the middle of turn \d+, after (\d+) batches", process.err)
            assert found, process.err
            again = int(found[1])
            assert max(begun, 1) <= again <= begun + len(done), (seed, last.err)
            if end is interrupt:  # what is stopped in good order has nothing to repeat
                assert again == begun + len(done), (seed, last.err)
            begun = again
        self.begun = begun
        return process

    def check_end(self, peer: str, process: Process) -> None:
        """Hold the last process to the steps that were left."""
        ended = process.wait()
        assert ended.code == 0, ended.err
        assert "Traceback" not in ended.err
        assert self.steps(peer, process) == self.all_steps(peer)[self.begun :]
        assert not list(self.folder.rglob("turn-*")), "a checkpoint was left over"


def kill(process: Process) -> None:
    process.kill()


def interrupt(process: Process) -> None:
    began = time.monotonic()
    process.interrupt()
    ended = process.wait()
    assert ended.code == 130, ended.err
    assert "Kept turn" in ended.err
    assert time.monotonic() - began < 20, "it did not stop in seconds"


@pytest.mark.slow
def test_a_peer_killed_in_a_turn_goes_on_in_its_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Noted(tmp_path, monkeypatch, "server-aided")
    with processes(tmp_path) as started:
        other = trial.start(started, "bert")
        process = trial.disturb(started, "anna", (kill, interrupt), seed=1)
        trial.check_end("anna", process)
        assert other.wait().code == 0, other.err
    assert trial.steps("bert") == trial.all_steps("bert")
    expected = expected_state(trial.files.manifest, trial.files.splits())
    for peer in NAMES:
        assert_equal_bits(trial.files.model(peer), expected)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["masked-average", "fully-connected"])
def test_the_others_of_a_peer_killed_in_its_middle_end_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    trial = Noted(tmp_path, monkeypatch, protocol)
    with processes(tmp_path) as started:
        other = trial.start(started, "anna")
        process = trial.disturb(started, "bert", (kill,), seed=2)
        trial.check_end("bert", process)
        assert other.wait().code == 0, other.err
    expected = undisturbed_state(trial.files.manifest, trial.files.splits())
    for peer in NAMES:
        assert_equal_bits(trial.files.model(peer), expected)
