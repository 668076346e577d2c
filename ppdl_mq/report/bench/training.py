"""What a trial costs beside its training: the demo's steps through a relay, and the same steps without any."""

from __future__ import annotations

import json
import multiprocessing
import secrets
import time
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Final

import torch

from ppdl_mq.config.manifest import Manifest
from ppdl_mq.config.reading import manifest_from_data
from ppdl_mq.config.settings import Broker, OwnData, PeerSettings
from ppdl_mq.crypto.identity import SECRET_BYTES, Identity
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import PpdlError, TrainingError
from ppdl_mq.peer.progress import PROGRESS_NAME
from ppdl_mq.peer.running import run_peer
from ppdl_mq.protocol.schedule import Schedule
from ppdl_mq.report.bench.pair import portable
from ppdl_mq.training import baselines
from ppdl_mq.training.data.prepare import load_split
from ppdl_mq.training.data.samples import Samples
from ppdl_mq.training.order import rehearsal_seed
from ppdl_mq.training.worker import Worker
from ppdl_mq.wire.trial_id import trial_id

PEERS: Final = ("alder", "birch", "cedar")
_ROWS: Final = {"alder": 719, "birch": 479, "cedar": 239}  # as the demo deals the digits out
_PIXELS: Final = 64
_CLASSES: Final = 10
_SAMPLE_SEED: Final = 7
_PATIENCE_S: Final = 300.0
_LEAVING_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One trial to be timed.

    Args:
        name: drawn for this run; names the queues.
        protocol: how the weights move.
        broker: the relay, as in peer.toml.
        epochs: of the trial.
        secrets: by peer, the identity's; thrown away with the run.
    """

    name: str
    protocol: str
    broker: Broker
    epochs: int
    secrets: dict[str, bytes] = field(
        repr=False, default_factory=lambda: {name: secrets.token_bytes(SECRET_BYTES) for name in PEERS}
    )

    def identity(self, peer: str) -> Identity:
        """Return a peer's identity."""
        return Identity(name=peer, secret=Secret(self.secrets[peer]))

    def manifest(self) -> Manifest:
        """Return the demo's manifest, but for the data."""
        return manifest_from_data(
            {
                "version": 1,
                "name": self.name,
                "nonce": "00" * 16,
                "protocol": self.protocol,
                "model": {
                    "callable": "ppdl_mq.training.models:mlp",
                    "arguments": {"inputs": _PIXELS, "hidden": [64], "outputs": _CLASSES, "activation": "relu"},
                },
                "training": {"learning_rate": 0.1, "batch_size": 16, "epochs": self.epochs, "turns_per_epoch": 4},
                "data": {"shape": [_PIXELS], "classes": _CLASSES},
                "peers": [{"name": name, "keys": self.identity(name).public.keys} for name in PEERS],
            }
        )

    def data(self, peer: str) -> OwnData:
        """Return where a peer's rows come from."""
        return OwnData(callable=f"{__name__}:rows", arguments={"count": _ROWS[peer]}, holdout=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One trial through a relay, in seconds.

    Args:
        seconds: from the moment the initial weights are there to the end of the last turn.
        turns_s: from the end of each turn to the end of the next.
        training_s: of that, what each turn trained.
    """

    seconds: float
    turns_s: tuple[float, ...]
    training_s: tuple[float, ...]

    @property
    def overheads_s(self) -> tuple[float, ...]:
        """What each turn took beside its training: sealing, relay, journal."""
        return tuple(whole - trained for whole, trained in zip(self.turns_s, self.training_s, strict=True))


def rows(count: int) -> Samples:
    """Return random rows of the digits' shape: a data plug-in. What they mean is of no account for the time."""
    generator = torch.Generator().manual_seed(count)
    inputs = torch.randn((count, _PIXELS), generator=generator)
    return Samples(inputs, torch.randint(0, _CLASSES, (count,), generator=generator))


def without_relay(trial: Trial) -> float:
    """Take the same steps in the same order in this process; return the seconds, without building and loading."""
    manifest = trial.manifest()
    training = manifest.training
    schedule = Schedule(
        trial_id=trial_id(manifest),
        peers=manifest.peer_names,
        epochs=training.epochs,
        turns_per_epoch=training.turns_per_epoch,
        order=manifest.order,
    )
    seeds = {name: rehearsal_seed(_SAMPLE_SEED, name) for name in PEERS}
    splits = {name: load_split(trial.data(name), manifest, seeds[name], folder=Path()) for name in PEERS}
    workers = {name: Worker(manifest, split, device=torch.device("cpu")) for name, split in splits.items()}
    began = time.monotonic()
    baselines.pooled_same_order(schedule, workers, seeds)
    return time.monotonic() - began


def through_relay(trial: Trial, folder: Path) -> Timed:
    """Run the trial with one process a peer.

    Args:
        trial: what to run.
        folder: for the journals.

    Raises:
        PpdlError: what one of the processes raised.
    """
    context = multiprocessing.get_context("spawn")
    processes = []
    pipes: list[Connection] = []
    waiting: list[Connection] = []
    try:
        for peer in PEERS:
            pipe, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_process, args=(trial, peer, folder, theirs), name=peer, daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            pipes.append(pipe)
        waiting += pipes
        while waiting:
            ready = wait(waiting, _PATIENCE_S)
            if not ready:
                raise TrainingError("A trial of the benchmark does not end.", hint="Look at the relay's log.")
            for pipe in (pipe for pipe in pipes if pipe in ready):
                _check(pipe)
                waiting.remove(pipe)
    finally:
        for process in processes:
            process.join(0.0 if waiting else _LEAVING_S)  # where one failed, the others wait for it
            process.kill()
            process.join()
            process.close()
        for pipe in pipes:
            pipe.close()
    return _timed(folder)


def _check(pipe: Connection) -> None:
    try:
        answer = pipe.recv()
    except EOFError:
        raise TrainingError("A peer of the benchmark ended in the middle of its trial.") from None
    if isinstance(answer, PpdlError):
        raise answer


def _process(trial: Trial, peer: str, folder: Path, pipe: Connection) -> None:
    settings = PeerSettings(
        identity=Path(peer),
        state_dir=folder / peer,
        device="cpu",
        mode="rehearsal",
        sample_seed=_SAMPLE_SEED,
        broker=trial.broker,
        data=trial.data(peer),
    )
    with pipe:
        try:
            run_peer(trial.manifest(), settings, trial.identity(peer), folder=folder)
            pipe.send("done")
        except PpdlError as error:
            pipe.send(portable(error))


def _timed(folder: Path) -> Timed:
    """Read the peers' own accounts of when each turn ended."""
    turns: dict[int, tuple[float, float]] = {}
    for peer in PEERS:
        path = next((folder / peer).glob(f"*/{PROGRESS_NAME}"))
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            if entry["event"] == "turn":
                turns[entry["turn"]] = (entry["at"], entry.get("seconds", 0.0))
    ends = [turns[number][0] for number in sorted(turns)]
    return Timed(
        seconds=ends[-1] - ends[0],
        turns_s=tuple(later - earlier for earlier, later in pairwise(ends)),
        training_s=tuple(turns[number][1] for number in sorted(turns) if number),
    )
