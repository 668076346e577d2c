"""Whole trials of masked-average whose peers die at a chosen moment, and what their rounds have to come to."""

from __future__ import annotations

import importlib
import json
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from ppdl_mq.config.manifest import Manifest
from ppdl_mq.numeric.exponents import exponents
from ppdl_mq.numeric.fixed_point import FixedPoint
from ppdl_mq.numeric.flatten import Layout
from ppdl_mq.peer.driver import Driver
from ppdl_mq.peer.facts import Facts
from ppdl_mq.peer.orders import Order, give_order
from ppdl_mq.peer.vectors import Vectors
from ppdl_mq.protocol.effects import Average
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.schedule import Turn
from ppdl_mq.training import baselines
from ppdl_mq.training.data.samples import Split
from ppdl_mq.training.order import rehearsal_seed
from ppdl_mq.training.worker import Worker
from ppdl_mq.transport.base import Transport
from ppdl_mq.transport.memory import MemoryRelay, MemoryTransport
from ppdl_mq.wire.header import decode_header
from ppdl_mq.wire.kinds import Kind
from tests.training import oracle
from tests.trial import TrialInProcess, identity_of, manifest_for, split_for
from tests.trials.exact import SAMPLE_SEED

NAMES = ("anna", "bert", "cleo", "dora", "emil")
ROWS = {"anna": 22, "bert": 6, "cleo": 14, "dora": 30, "emil": 10}  # no batch of one row with batches of four
SOON_S = 30.0
HALF_ULP = 2.0**-24  # of a float32, relative

MODELS: dict[str, dict[str, Any]] = {
    "linear": {"inputs": 6, "hidden": [], "outputs": 3},
    "tanh": {"inputs": 6, "hidden": [8], "outputs": 3, "activation": "tanh"},
    "batch-norm": {"inputs": 6, "hidden": [8], "outputs": 3, "activation": "tanh", "batch_norm": True},
}


def agreed(peers: int = 3, *, model: str = "tanh", weighting: str = "equal", **changes: Any) -> Manifest:
    """A trial of masked-average; `changes` as for `manifest_for`, `averaging__...` among them."""
    names = NAMES[:peers]
    declared = {name: {"samples": ROWS[name]} if weighting == "declared" else {} for name in names}
    return manifest_for(
        names,
        protocol="masked-average",
        model__arguments=MODELS[model],
        averaging__weighting=weighting,
        peers=[{"name": name, "keys": identity_of(name).public.keys, **declared[name]} for name in names],
        **changes,
    )


def splits_of(manifest: Manifest) -> dict[str, Split]:
    """The samples of every peer."""
    return {name: split_for(name, manifest, rows=ROWS[name]) for name in manifest.peer_names}


def seeds_of(manifest: Manifest) -> dict[str, bytes]:
    """The sample seeds that peers have in these tests."""
    return {name: rehearsal_seed(SAMPLE_SEED, name) for name in manifest.peer_names}


def weights_of(manifest: Manifest) -> dict[str, float] | None:
    """What each peer counts for, as federated averaging takes it."""
    assert manifest.averaging is not None
    return None if manifest.averaging.weighting == "equal" else {name: float(rows) for name, rows in ROWS.items()}


def plain_average(manifest: Manifest, splits: Mapping[str, Split]) -> bytearray:
    """Return what federated averaging in plain PyTorch comes to."""
    workers = {name: Worker(manifest, splits[name], device=torch.device("cpu")) for name in manifest.peer_names}
    return baselines.federated_averaging(manifest, workers, seeds_of(manifest), weights=weights_of(manifest))


def entries(trial: TrialInProcess, name: str, event: str) -> list[dict[str, Any]]:
    """Return the lines of one kind in a peer's progress.jsonl."""
    lines = (trial.folder / name / "progress.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["event"] == event]


# --- rounds, watched -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Averaged:
    """One round as one peer averaged it."""

    peer: str
    task: Average
    base: bytes = field(repr=False)
    result: bytes = field(repr=False)

    @property
    def round(self) -> int:
        """Its number."""
        return (self.task.step + 1) // 2


def watch_rounds(monkeypatch: pytest.MonkeyPatch) -> list[Averaged]:
    """Collect every average that a peer in this process computes."""
    found: list[Averaged] = []
    plain = Vectors.average

    def average(vectors: Vectors, task: Average, sums: Any, base: Any) -> bytearray:
        result = plain(vectors, task, sums, base)
        found.append(Averaged(vectors._me, task, bytes(base), bytes(result)))
        return result

    monkeypatch.setattr(Vectors, "average", average)
    return found


def watch_training(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Collect who trained which round, in the order of time."""
    found: list[tuple[str, int]] = []
    plain = Worker.train

    def train(worker: Worker, turn: Turn, *arguments: Any, **options: Any) -> Any:
        result = plain(worker, turn, *arguments, **options)
        found.append((turn.peer, turn.number))
        return result

    monkeypatch.setattr(Worker, "train", train)
    return found


def trained_alone(
    manifest: Manifest, split: Split, name: str, number: int, layout: Layout, base: bytes
) -> dict[str, torch.Tensor]:
    """Return what a peer trains from `base` in a round, in plain PyTorch, from docs/TRAINING.md alone."""
    training = manifest.training
    epoch, cycle = divmod(number - 1, training.turns_per_epoch)
    turn = Turn(number=number, epoch=epoch, cycle=cycle, ordinal=number - 1, peer=name)
    module, _, attribute = manifest.model.callable.partition(":")
    seed = rehearsal_seed(SAMPLE_SEED, name)

    def build() -> torch.nn.Module:
        model: torch.nn.Module = getattr(importlib.import_module(module), attribute)(**manifest.model.arguments)
        model.load_state_dict(dict(layout.tensors(base)))
        return model

    data = {name: (split.train.inputs, split.train.targets)}
    state: dict[str, torch.Tensor] = oracle.pooled_sgd(build, training, [turn], data, {name: seed}).state_dict()
    return state


def encoding_of(manifest: Manifest, layout: Layout, seen: Averaged) -> FixedPoint:
    """Return the fixed point of a round, which knows its bounds."""
    assert manifest.averaging is not None
    rules = manifest.averaging
    powers = exponents(seen.base, layout, floor=rules.exponent_floor, head_room=rules.head_room)
    word: Literal[32, 64] = 32 if seen.task.word == 32 else 64
    return FixedPoint(layout, powers, word, len(seen.task.members), rules.weighting)


def assert_round(manifest: Manifest, splits: Mapping[str, Split], seen: Averaged) -> float:
    """Hold one round to the exact mean of what its members train in plain PyTorch; return the largest difference.

    The bound is that of docs/PROTOCOL.md, section 14.6, and half a unit in the last place of float32 for the last
    rounding. Both sides train the same bits, so it does not depend on the number of rounds before.
    """
    layout = Layout.of(_model(manifest))
    encoding = encoding_of(manifest, layout, seen)
    shares = weights_of(manifest) or dict.fromkeys(NAMES, 1.0)
    states = {
        name: trained_alone(manifest, splits[name], name, seen.round, layout, seen.base) for name in seen.task.members
    }
    total = sum(shares[name] for name in states)
    worst = 0.0
    for index, (key, found) in enumerate(layout.tensors(seen.result)):
        wide = {name: state[key].double() for name, state in states.items()}
        exact = torch.stack([shares[name] * wide[name] for name in states]).sum(dim=0) / total
        off = float((found.double() - exact).abs().max())
        if found.is_floating_point():
            largest = max(float(each.abs().max()) for each in wide.values())
            assert off <= encoding.error_bound(index, largest) + HALF_ULP * largest, (seen, key, off)
            worst = max(worst, off)
        else:
            assert off <= 0.5 + encoding.error_bound(index), (seen, key, off)
    return worst


def _model(manifest: Manifest) -> torch.nn.Module:
    module, _, attribute = manifest.model.callable.partition(":")
    model: torch.nn.Module = getattr(importlib.import_module(module), attribute)(**manifest.model.arguments)
    return model


# --- peers that die --------------------------------------------------------------------------------------------------


class Died(Exception):
    """The process ends here, with nothing said to anybody."""


@dataclass
class Moment:
    """When a peer dies, once.

    Args:
        victim: who.
        at: a kind of message that it publishes, or a phase that it has just journalled.
        when: of a message: before the first one is out, between the first and the second, after the last.
        step: of the message or phase; 0 for the session and the initial weights.
    """

    victim: str
    at: Kind | Phase
    when: Literal["before", "between", "after"] = "after"
    step: int = 0
    struck: threading.Event = field(default_factory=threading.Event)
    published: int = 0

    def __str__(self) -> str:
        where = f"{self.when} {self.at.name}" if isinstance(self.at, Kind) else self.at.value
        return f"{self.victim} {where} in step {self.step}".replace(" ", "-")

    def strike(self) -> None:
        """Die."""
        self.struck.set()
        raise Died(str(self))

    def is_now(self, kind: Kind, step: int) -> bool:
        """Tell whether a message of this thread is one to look at."""
        mine = threading.current_thread().name == self.victim and not self.struck.is_set()
        return mine and kind is self.at and step == self.step


class MortalTransport(MemoryTransport):
    """Dies before or after what it publishes."""

    def __init__(self, relay: MemoryRelay, moment: Moment | None, peers: int) -> None:
        super().__init__(relay)
        self._moment, self._peers = moment, peers

    def publish(self, address: str, bodies: Iterable[bytes]) -> None:
        copies = [bytes(body) for body in bodies]
        header, _ = decode_header(copies[0])
        moment = self._moment
        if moment is None or not moment.is_now(header.kind, header.turn):
            super().publish(address, copies)
            return
        if moment.when == "before":
            moment.strike()
        super().publish(address, copies)
        moment.published += 1
        # A shard goes to every other member, and this peer's own to its deputy.
        last = self._peers if header.kind is Kind.MASKED else self._peers - 1
        if moment.published >= (1 if moment.when == "between" else last):
            moment.strike()


class MortalTrial(TrialInProcess):
    """A trial in memory in which one peer dies, and may be started again.

    Args:
        manifest: of the trial.
        folder: empty.
        monkeypatch: makes peers die in a phase, and look at their orders without delay.
        moment: when somebody dies; nobody without it.
        restarts: start the dead one again at once.
        on_publish: of the relay.
        audit_rate: as in peer.toml.
        transport_for: to another relay than one in memory; no moments of messages then.
    """

    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        moment: Moment | None = None,
        *,
        restarts: bool = True,
        on_publish: Callable[[str, bytes], Iterable[tuple[str, bytes]]] | None = None,
        audit_rate: float = 0.0,
        transport_for: Callable[[str], Transport] | None = None,
    ) -> None:
        self.relay = MemoryRelay(on_publish)
        peers = len(manifest.peer_names)
        super().__init__(
            manifest,
            folder,
            transport_for or (lambda _: MortalTransport(self.relay, moment, peers)),
            splits=splits_of(manifest),
            audit_rate=audit_rate,
        )
        self.moment, self.restarts, self.starts = moment, restarts, dict.fromkeys(manifest.peer_names, 0)
        self._changed = threading.Condition()
        monkeypatch.setattr("ppdl_mq.peer.runner._LOOP_S", 0.05)
        self._tell(monkeypatch)
        if moment is not None and isinstance(moment.at, Phase):
            self._die_in_phase(monkeypatch, moment)

    def run_one(self, name: str) -> None:
        """Run one peer, and again after its death if it is to be."""
        while True:
            self.starts[name] += 1
            super().run_one(name)
            with self._changed:
                self._changed.notify_all()
            if not (self.restarts and isinstance(self.errors.get(name), Died)):
                return
            del self.errors[name]

    def begin(self) -> None:
        """Start every peer."""
        self.threads = dict(zip(self.manifest.peer_names, self.start(), strict=True))

    def again(self, name: str) -> None:
        """Start a dead peer."""
        self.threads[name].join(SOON_S)
        assert isinstance(self.errors.pop(name), Died)
        (self.threads[name],) = self.start(name)

    def until(self, what: Callable[[], object]) -> None:
        """Wait until something holds; it is looked at whenever a peer has gone round its loop."""
        with self._changed:
            assert self._changed.wait_for(lambda: what() or self._others_errors(), SOON_S), self.phases()
        for error in self._others_errors().values():
            raise error

    def until_waiting_for(self, victim: str) -> None:
        """Wait until one peer is dead and everybody else waits for it, perhaps among others."""
        assert self.moment is not None
        struck = self.moment.struck
        others = [name for name in self.manifest.peer_names if name != victim]
        self.until(
            lambda: struck.is_set() and all(victim in self.runners[name].driver.waiting_for() for name in others)
        )

    def end(self, *names: str) -> None:
        """Wait for the end of some peers, without an error."""
        for name in names:
            self.threads[name].join(SOON_S)
            assert not self.threads[name].is_alive(), (name, self.phases(), self.errors)
            if name in self.errors:
                raise self.errors[name]

    def order(self, name: str, drop: str | None = None) -> None:
        """Leave a peer an order of its people."""
        give_order(self.folder / name, Order(drop=drop))

    def phases(self) -> dict[str, str]:
        """Where everybody is."""
        return {
            name: f"{runner.state.phase.value}, waiting for {runner.driver.waiting_for()}"
            for name, runner in self.runners.items()
        }

    def stop(self) -> None:
        """Stop whoever still runs."""
        for name, thread in self.threads.items():
            if thread.is_alive():
                self.runners[name].stop()
                thread.join(SOON_S)

    def models(self, *names: str) -> set[bytes]:
        """Return the different models of some peers, or of all."""
        return {self.model(name) for name in names or self.manifest.peer_names}

    def _others_errors(self) -> dict[str, BaseException]:
        return {name: error for name, error in self.errors.items() if not isinstance(error, Died)}

    def _tell(self, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = Facts.show

        def show(facts: Facts, *, now: bool = False) -> None:
            plain(facts, now=now)
            with self._changed:
                self._changed.notify_all()

        monkeypatch.setattr(Facts, "show", show)

    def _die_in_phase(self, monkeypatch: pytest.MonkeyPatch, moment: Moment) -> None:
        plain = Driver.catch_up

        def catch_up(driver: Driver) -> None:
            """Die once the phase is on disk, and before anything that follows from it is done."""
            state: Any = driver.state
            in_step = getattr(state, "step", 0) == moment.step
            is_there = state.phase is moment.at or (moment.at is Phase.CLOSING and state.phase is Phase.ENDED)
            mine = threading.current_thread().name == moment.victim
            if mine and is_there and in_step and not moment.struck.is_set():
                moment.strike()
            plain(driver)

        monkeypatch.setattr(Driver, "catch_up", catch_up)


def is_close(found: float | None, exact: float, bound: float) -> bool:
    """Tell whether a figure is there and within a bound."""
    return found is not None and math.isclose(found, exact, rel_tol=0.0, abs_tol=bound)
