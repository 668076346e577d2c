"""A trial of real processes over a real broker, whatever happens to either, and what has to be true at its end."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ppdl_mq.audit.verdict import verify_logs
from tests.chaos.undisturbed import undisturbed_state
from tests.processes import Process, Processes, processes
from tests.rabbit import RabbitNode
from tests.trials.exact import schedule_of
from tests.trials.files import TrialFiles, write_table

NAMES = ("anna", "bert", "cleo", "dora")
PROTOCOLS = ("server-aided", "fully-connected", "masked-average")
ROWS = 160  # so that a turn takes long enough to be hit in the middle
_LOOK_S = 0.02  # between two looks at other processes, which tell in no other way
_ARGUMENTS = ("--model-arg", "hidden=[48, 48]", "--batch-size", "4")
_CHUNK_BYTES = 4096  # the smallest: the weights then travel in several parts
CHECKPOINT_S = 0.02  # within a turn


@dataclass(frozen=True)
class Death:
    """A peer was killed.

    Args:
        at: when, seconds since 1970.
        journalled: turns or rounds of its own whose result was in its journal by then.
    """

    at: float
    journalled: frozenset[int]


@dataclass(frozen=True)
class Outcome:
    """What a trial came to.

    Args:
        differing_bits: between the peers' models and the undisturbed one, all peers together.
        lost: turns, or steps of masked-average, that the transcripts do not agree on.
        trained_again: turns that a peer died in so late that it had noted them, and so early that their result was not
            in its journal.
        asked_again: how often a peer lost patience and asked for a message again.
    """

    differing_bits: int
    lost: int
    trained_again: int
    asked_again: int


class ChaosTrial:
    """One trial of four peers.

    Args:
        folder: empty.
        name: of the trial; unique at the broker.
        protocol: of the trial.
        epochs: how long it is.
        urls: of the relay, as each peer reaches it.
        node: of the broker, to look at it directly.
        started: starts processes.
        queue_type: what the peers declare.
        names: of the peers.
        checkpoint_s: as in peer.toml.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        protocol: str,
        epochs: int,
        urls: Mapping[str, str],
        node: RabbitNode,
        started: Processes,
        *,
        queue_type: str = "classic",
        names: tuple[str, ...] = NAMES,
        checkpoint_s: float = CHECKPOINT_S,
    ) -> None:
        self.names = names
        self.is_masked = protocol == "masked-average"
        data = {}
        for peer in names:
            write_table(folder / f"{peer}.csv", seed=peer, rows=ROWS)
            data[peer] = ("--data", f"csv:{folder / peer}.csv", "--data-arg", "label=y")
        new = ("--protocol", protocol, "--epochs", str(epochs), *_ARGUMENTS)
        said = io.StringIO()  # of the commands that make the files
        with redirect_stdout(said), redirect_stderr(said):
            self.files = TrialFiles(folder, names, broker=urls, new=new, data=data, name=name)
        self.files.edit(None, "chunk_bytes = 900000", f"chunk_bytes = {_CHUNK_BYTES}")
        for peer in names:
            self.files.edit(peer, "# checkpoint_s = 60.0", f"checkpoint_s = {checkpoint_s}")
            self.files.edit(peer, "\n[data]\n", f'queue_type = "{queue_type}"\n\n[data]\n')
        self.manifest = self.files.manifest
        self.node = node
        self.expected = undisturbed_state(self.manifest, self.files.splits())
        self.steps = 2 * epochs if self.is_masked else schedule_of(self.manifest).turns
        self._started = started
        self._runs: list[tuple[str, Process]] = []
        self._now: dict[str, Process] = {}
        self._away: set[str] = set()
        self._deaths: dict[str, list[Death]] = {peer: [] for peer in names}
        for peer in names:
            self.run(peer)

    # --- what happens to peers -----------------------------------------------------------------------------------

    def run(self, peer: str) -> None:
        """Start a peer, or start it again."""
        process = self._started.start(*self.files.run_arguments(peer))
        self._runs.append((peer, process))
        self._now[peer] = process
        self._away.discard(peer)

    def kill(self, peer: str) -> None:
        """End a peer as a power cut would, and note what it had in its journal."""
        self._away.add(peer)
        self._now[peer].kill()
        self._deaths[peer].append(Death(time.time(), self._journalled(peer)))

    def terminate(self, peer: str) -> None:
        """Stop a peer as systemd does; it must end soon and say how to go on, unless the trial had just ended."""
        self._away.add(peer)
        process = self._now[peer]
        process.terminate()
        ended = process.wait()
        assert ended.code in (0, 130, -15), f"{peer} ended with {ended.code}:\n{ended.err}"
        if ended.code == -15:  # before it could listen to the signal: as if killed
            self._deaths[peer].append(Death(time.time(), self._journalled(peer)))

    def at_work(self) -> list[str]:
        """Return the peers whose process runs."""
        return [peer for peer in self.names if peer not in self._away and self._now[peer].code is None]

    def next_at_work(self) -> str | None:
        """Return whose turn it is, by what has been noted; None in masked-average, where all work at once."""
        if self.is_masked:
            return None
        newest = max((entry.get("turn", 0) for peer in self.names for entry in self.progress(peer)[-1:]), default=0)
        plan = schedule_of(self.manifest)
        return plan.turn(min(newest + 1, plan.turns)).peer

    @property
    def has_ended(self) -> bool:
        """Whether every peer has ended well."""
        return all(self._now[peer].code == 0 for peer in self.names)

    def process(self, peer: str) -> Process:
        """Return the process of a peer that was started last."""
        return self._now[peer]

    # --- waiting -------------------------------------------------------------------------------------------------

    def progress(self, peer: str) -> list[dict[str, Any]]:
        """Return what a peer has noted so far, whole lines."""
        path = self.files.state(peer) / "progress.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def newest_at(self) -> float:
        """Return when the trial last came further, seconds since 1970."""
        return max((entry["at"] for peer in self.names for entry in self.progress(peer)[-1:]), default=0.0)

    def pause(self, seconds: float) -> None:
        """Let time pass, unless the trial ends."""
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at and not self.has_ended:
            self.check()
            time.sleep(_LOOK_S)

    def until_further(self, since: float, limit_s: float) -> float:
        """Wait until the trial comes further, or ends; return after how many seconds from `since`."""
        deadline = time.monotonic() + limit_s
        while not self.has_ended:
            self.check()
            newest = self.newest_at()
            if newest > since:
                return newest - since
            assert time.monotonic() < deadline, f"no progress in {limit_s} s.\n{self.report()}"
            time.sleep(_LOOK_S)
        return max(0.0, time.time() - since)

    def check(self) -> None:
        """Raise if a peer has ended that nobody ended."""
        for peer, process in self._now.items():
            if peer not in self._away and process.code not in (None, 0):
                raise AssertionError(f"{peer} ended with {process.code} by itself.\n{self.report()}")

    def report(self) -> str:
        """Return where everybody is, for the text of a failure."""
        lines = [f"trial {self.manifest.name} in {self.files.folder}"]
        for peer, process in self._now.items():
            lines.append(f"--- {peer}, exit code {process.code}")
            status = self.files.state(peer) / "status.json"
            lines += [status.read_text()] if status.exists() else []
            lines += process.err.splitlines()[-15:]
        return "\n".join(lines)

    # --- the end -------------------------------------------------------------------------------------------------

    def finish(self, limit_s: float) -> Outcome:
        """Wait for the end of all, and check everything that has to hold but the weights, which the caller judges."""
        deadline = time.monotonic() + limit_s
        while not self.has_ended:
            self.check()
            assert time.monotonic() < deadline, f"no end in {limit_s} s.\n{self.report()}"
            time.sleep(_LOOK_S)
        for peer, process in self._runs:
            hidden = [line for line in process.err.splitlines() if "Traceback" in line or "bug" in line]
            assert not hidden, f"{peer}:\n{process.err}"
        verdict = verify_logs([self.files.state(peer) / "transcript.log" for peer in self.names])
        assert verdict.holds, f"{verdict.findings}\n{self.report()}"
        if self.is_masked:
            members = {
                tuple(each["members"]) for peer in self.names for each in self.progress(peer) if "members" in each
            }
            assert members == {self.names}, f"{members}\n{self.report()}"
        left = [
            line for line in self.node.ctl("list_queues", "--silent", "name").split() if line.startswith(self.queue(""))
        ]
        assert not left, f"{left} remain at the broker.\n{self.report()}"
        return Outcome(
            differing_bits=sum(differing_bits(self.files.model(peer), self.expected) for peer in self.names),
            lost=self.steps - verdict.agreed_steps,
            trained_again=sum(self._trained_again(peer) for peer in self.names),
            asked_again=sum(process.err.count("asking ") for _, process in self._runs),
        )

    def queue(self, address: str) -> str:
        """Return the name of a queue of the trial at the broker."""
        return f"{self.manifest.relay.prefix}.{self.manifest.name}.{address}"

    def _trained_again(self, peer: str) -> int:
        event, number = ("trained", "round") if self.is_masked else ("turn", "turn")
        noted = [entry for entry in self.progress(peer) if entry["event"] == event]
        if not self.is_masked:  # there the line comes after the commit, and a death between them loses it
            plan = schedule_of(self.manifest)
            own = {turn for turn in range(1, plan.turns + 1) if plan.turn(turn).peer == peer}
            missing = own - {entry["turn"] for entry in noted}
            assert not missing, f"{peer} has not noted the turns {sorted(missing)}"
        return trained_again(noted, self._deaths[peer], number)

    def _journalled(self, peer: str) -> frozenset[int]:
        """Return the turns or rounds whose result is in the journal of a dead peer for certain."""
        if self.is_masked:  # noted after the commit
            return frozenset(entry["round"] for entry in self.progress(peer) if entry["event"] == "trained")
        noted = [entry["turn"] for entry in self.progress(peer) if entry["event"] == "turn"]
        return frozenset(noted[:-1]) | {step for step in self._slots(peer) if step in noted}

    def _slots(self, peer: str) -> set[int]:
        """Return the turns whose weights stand in a dead peer's journal; a copy of it is read, itself is left alone."""
        with tempfile.TemporaryDirectory() as copies:
            for file in self.files.state(peer).glob("journal.sqlite*"):
                shutil.copy(file, copies)
            path = Path(copies) / "journal.sqlite"
            if not path.exists():
                return set()
            with closing(sqlite3.connect(path)) as journal:
                if not journal.execute("SELECT 1 FROM sqlite_master WHERE name = 'slot'").fetchone():
                    return set()
                return {step for (step,) in journal.execute("SELECT step FROM slot WHERE what = 'turn'")}


def trained_again(noted: Sequence[Mapping[str, Any]], deaths: Sequence[Death], number: str) -> int:
    """Count turns that a peer trained again because it died; it must not have had their result in its journal.

    Args:
        noted: lines of its progress.jsonl, one for each turn that it trained, and the same again.
        deaths: of the peer.
        number: where a line has the number of its turn or round.

    Raises:
        AssertionError: a turn was trained again without need, or came to something else.
    """
    seen: dict[int, Mapping[str, Any]] = {}
    again = 0
    for entry in noted:
        before = seen.get(entry[number])
        seen[entry[number]] = entry
        if before is None:
            continue
        again += 1
        between = [death for death in deaths if before["at"] <= death.at <= entry["at"]]
        is_excused = between and not any(entry[number] in death.journalled for death in between)
        assert is_excused, f"{number} {entry[number]} was trained twice: {before}, {entry}, {between}"
        for figure in ("digest", "loss"):
            assert before.get(figure) == entry.get(figure), f"{before} and {entry} differ"
    return again


def differing_bits(model: Path, expected: Mapping[str, torch.Tensor]) -> int:
    """Count the bits by which a written model differs from the expected one."""
    found = safetensors.torch.load_file(model)
    assert set(found) == set(expected)
    differing = 0
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        mine, other = (each.contiguous().numpy().tobytes() for each in (found[name], tensor))
        differing += (int.from_bytes(mine) ^ int.from_bytes(other)).bit_count()
    return differing


@contextmanager
def peers_of(folder: Path) -> Iterator[Processes]:
    """Give a way to start peers in a folder; none outlives the block."""
    folder.mkdir(parents=True, exist_ok=True)
    with processes(folder) as started:
        yield started
