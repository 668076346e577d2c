"""A peer that dies or loses its relay anywhere, and is started again, ends with the same bits."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ppdl_mq.config import limits
from ppdl_mq.config.manifest import Manifest
from ppdl_mq.errors import Interrupted, JournalError, RelayLost
from ppdl_mq.peer.journal import Journal
from ppdl_mq.peer.slots import Slots
from ppdl_mq.peer.turns import TurnHands
from ppdl_mq.transport.base import Delivery
from ppdl_mq.transport.memory import MemoryRelay, MemoryTransport
from ppdl_mq.wire.header import decode_header
from ppdl_mq.wire.kinds import Kind
from tests.trial import TrialInProcess, manifest_for

PROTOCOLS = ("fully-connected", "server-aided")
NAMES = ("anna", "bert")
MODEL = {"inputs": 6, "hidden": [300], "outputs": 3, "activation": "tanh"}  # 12 KB: four parts of 4 KiB


class Crash(Exception):
    """The process dies here."""


class Faults:
    """Counts the points at which a peer can die or be cut off, and says where it does.

    Args:
        victim: name of the peer.
        strikes: given the number of a point, from 1, and where it is; tells whether it happens there.
    """

    def __init__(self, victim: str, strikes: Callable[[int, str], bool]) -> None:
        self.victim, self.strikes = victim, strikes
        self.points = 0
        self.struck: list[tuple[int, str]] = []

    def hit(self, where: str) -> bool:
        if threading.current_thread().name != self.victim:
            return False
        self.points += 1
        if not self.strikes(self.points, where):
            return False
        self.struck.append((self.points, where))
        return True

    def crash(self, where: str) -> None:
        if self.hit(where):
            raise Crash(where)


class FaultyTransport(MemoryTransport):
    """Dies, or loses its connection, before and after what changes something at the relay."""

    def __init__(self, relay: MemoryRelay, faults: Faults, *, cuts: bool) -> None:
        super().__init__(relay)
        self._faults, self._cuts = faults, cuts

    def publish(self, address: str, bodies: Iterable[bytes]) -> None:
        def each() -> Iterator[bytes]:
            for body in bodies:
                yield body
                self._point("publish, after a part")

        self._around("publish", lambda: super(FaultyTransport, self).publish(address, each()))

    def ack(self, deliveries: Iterable[Delivery]) -> None:
        self._around("ack", lambda: super(FaultyTransport, self).ack(deliveries))

    def get(self, address: str) -> Delivery | None:
        self._point("get, before")
        return super().get(address)

    def requeue(self, deliveries: Iterable[Delivery]) -> None:
        self._around("requeue", lambda: super(FaultyTransport, self).requeue(deliveries))

    def purge(self, address: str) -> int:
        self._point("purge, before")
        return super().purge(address)

    def _around(self, what: str, do: Callable[[], None]) -> None:
        self._point(f"{what}, before")
        do()
        self._point(f"{what}, after")

    def _point(self, where: str) -> None:
        if not self._cuts:
            self._faults.crash(where)
        elif self._faults.hit(where):
            self.close()
            raise RelayLost("The relay hung up.")


class Tap:
    """What the relay saw: it must never see one part in two forms, nor one message under two ids."""

    def __init__(self) -> None:
        self.parts: dict[tuple[bytes, int], bytes] = {}
        self.ids: dict[tuple[str, Kind, int, str], set[bytes]] = {}

    def __call__(self, address: str, body: bytes) -> Iterable[tuple[str, bytes]]:
        header, _ = decode_header(body)
        assert self.parts.setdefault((header.message_id, header.part), body) == body
        if header.kind is not Kind.RESEND:
            what = (header.sender, header.kind, header.turn, header.recipient)
            self.ids.setdefault(what, set()).add(header.message_id)
        return [(address, body)]


class RestartedTrial(TrialInProcess):
    """Every peer that dies or is stopped is started again on the same folder."""

    restarts = 0

    def run_one(self, name: str) -> None:
        while True:
            super().run_one(name)
            if not isinstance(self.errors.get(name), Crash | Interrupted):
                return
            del self.errors[name]
            self.restarts += 1


class Scene:
    """Runs trials of one protocol into folders of their own, with faults."""

    def __init__(self, protocol: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.manifest = self.manifest_of(NAMES, protocol)
        self.folder = folder
        self.monkeypatch = monkeypatch
        # Cut off hundreds of times, a peer would spend the test's time in pauses.
        monkeypatch.setattr(limits, "BACKOFF_FIRST_S", 0.002)
        monkeypatch.setattr(limits, "BACKOFF_LAST_S", 0.02)
        self.runs = 0

    @staticmethod
    def manifest_of(names: tuple[str, ...], protocol: str) -> Manifest:
        return manifest_for(
            names, protocol=protocol, training__epochs=2, model__arguments=MODEL, relay__chunk_bytes=4096
        )

    def run(
        self, faults: Faults, *, cuts: bool = False, on_publish: Any = None, arrange: Any = None
    ) -> tuple[bytes, RestartedTrial]:
        """Run a trial to its end and check what holds for every one."""
        self.runs += 1
        tap = Tap()

        def seen(address: str, body: bytes) -> Iterable[tuple[str, bytes]]:
            if on_publish is not None:
                on_publish(trial)
            arriving = tap(address, body)
            return arriving if arrange is None else arrange(address, body)

        relay = MemoryRelay(seen)
        trial = RestartedTrial(
            self.manifest, self.folder / str(self.runs), lambda _: FaultyTransport(relay, faults, cuts=cuts)
        )
        with self.monkeypatch.context() as patch:
            _crash_at_commits(patch, faults, cuts=cuts)
            _refuse_to_train_twice(patch, trial)
            trial.run(timeout_s=20)  # less than the peers' patience: no RESEND may be needed
        assert all(len(ids) == 1 for ids in tap.ids.values()), "a message was sealed a second time"
        models = {trial.model(name) for name in self.manifest.peer_names}
        assert len(models) == 1
        return models.pop(), trial


def _crash_at_commits(patch: pytest.MonkeyPatch, faults: Faults, *, cuts: bool) -> None:
    plain = Journal.transaction

    @contextmanager
    def transaction(journal: Journal) -> Iterator[Any]:
        if journal._depth or cuts:
            with plain(journal) as db:
                yield db
            return
        with plain(journal) as db:
            yield db
            faults.crash("commit, before")
        faults.crash("commit, after")

    patch.setattr(Journal, "transaction", transaction)


def _refuse_to_train_twice(patch: pytest.MonkeyPatch, trial: RestartedTrial) -> None:
    plain = TurnHands._train

    def train(hands: TurnHands, turn: Any, base: Any, into: Any) -> None:
        name = threading.current_thread().name
        assert not trial.runners[name].slots.has(into), f"turn {turn.number} is in the journal already"
        plain(hands, turn, base, into)

    patch.setattr(TurnHands, "_train", train)


def never(_: int, __: str) -> bool:
    return False


@pytest.fixture(params=PROTOCOLS)
def scene(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(request.param, tmp_path, monkeypatch)


def every_point(scene: Scene, victim: str, *, cuts: bool, step: int) -> None:
    counting = Faults(victim, never)
    expected, trial = scene.run(counting, cuts=cuts)
    assert trial.restarts == 0
    assert counting.points > 10
    for number in range(1, counting.points + 1, step):
        faults = Faults(victim, lambda point, _, number=number: point == number)  # type: ignore[misc]
        model, trial = scene.run(faults, cuts=cuts)
        assert model == expected, faults.struck
        assert trial.restarts == (0 if cuts else len(faults.struck)), faults.struck


@pytest.mark.slow
@pytest.mark.parametrize("victim", NAMES)
@pytest.mark.parametrize("cuts", [False, True], ids=["dies", "is cut off"])
def test_once_at_every_point(scene: Scene, victim: str, cuts: bool) -> None:
    every_point(scene, victim, cuts=cuts, step=1)


@pytest.mark.parametrize("victim", NAMES)
@pytest.mark.parametrize("cuts", [False, True], ids=["dies", "is cut off"])
def test_once_at_some_points(scene: Scene, victim: str, cuts: bool) -> None:
    every_point(scene, victim, cuts=cuts, step=17)


@pytest.mark.parametrize("victim", NAMES)
@pytest.mark.parametrize(
    "where", ["commit, after", "publish, after", "publish, after a part", "ack, before", "ack, after"]
)
def test_often_at_one_place(scene: Scene, victim: str, where: str) -> None:
    expected, _ = scene.run(Faults(victim, never))
    rate = random.Random(1)
    faults = Faults(victim, lambda _, at: at == where and rate.random() < 0.5)
    model, trial = scene.run(faults)
    assert model == expected
    assert trial.restarts == len(faults.struck) > 0


@pytest.mark.parametrize("cuts", [False, True], ids=["dies", "is cut off"])
@pytest.mark.parametrize("seed", [1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 20))])
def test_again_and_again(scene: Scene, seed: int, cuts: bool) -> None:
    expected, _ = scene.run(Faults("bert", never))
    rate = random.Random(seed)
    faults = Faults("bert", lambda _, __: rate.random() < 0.15)
    model, _ = scene.run(faults, cuts=cuts)
    assert model == expected, faults.struck
    assert faults.struck


class LateHello:
    """Holds Cleo's HELLO to Anna back until Bert's CONFIRM to her has passed, so that she has to park that."""

    def __init__(self) -> None:
        self.held: list[tuple[str, bytes]] = []
        self.passed = False

    def __call__(self, address: str, body: bytes) -> Iterable[tuple[str, bytes]]:
        header, _ = decode_header(body)
        what = (header.sender, address, header.kind)
        if what == ("cleo", "anna", Kind.HELLO) and not self.passed:
            self.held.append((address, body))
            return []
        if what != ("bert", "anna", Kind.CONFIRM) or self.passed:
            return [(address, body)]
        self.passed = True
        return [(address, body), *self.held]


def test_a_confirm_that_came_too_early_survives_a_crash(scene: Scene) -> None:
    scene.manifest = scene.manifest_of(("anna", "bert", "cleo"), scene.manifest.protocol)
    expected, _ = scene.run(Faults("anna", never), arrange=LateHello())
    for number in range(1, 9):  # she has unparked it by her eighth commit
        commits = itertools.count(1)
        faults = Faults(
            "anna",
            lambda _, where, number=number, commits=commits: where == "commit, after" and next(commits) == number,  # type: ignore[misc]
        )
        assert scene.run(faults, arrange=LateHello())[0] == expected


@pytest.mark.parametrize("victim", NAMES)
def test_stopped_and_run_again(scene: Scene, victim: str) -> None:
    expected, _ = scene.run(Faults(victim, never))
    published = 0

    def stop(trial: RestartedTrial) -> None:
        nonlocal published
        published += 1
        if published % 4 == 0 and victim in trial.runners:
            trial.runners[victim].stop()

    model, trial = scene.run(Faults(victim, never), on_publish=stop)
    assert model == expected
    assert trial.restarts > 0


def test_run_again_after_the_end(scene: Scene) -> None:
    """The model is written again where it was lost or damaged, without the relay."""
    model, trial = scene.run(Faults("anna", never))
    path = trial.runners["anna"].model_path
    unreachable = MemoryRelay()
    unreachable.reachable = False
    for fault in ("none", "removed", "a bit", "cut", "empty"):
        match fault:
            case "removed":
                path.unlink()
            case "a bit":
                path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
            case "cut" | "empty":
                path.write_bytes(path.read_bytes()[: 1_000 if fault == "cut" else 0])
        trial.transport_for = lambda _: MemoryTransport(unreachable)
        trial.run_one("anna")
        assert not trial.errors, fault
        assert trial.model("anna") == model, fault


def test_a_model_is_not_written_from_weights_that_changed(scene: Scene) -> None:
    """After the end, too: a flipped bit in what the journal keeps is no model."""
    _, trial = scene.run(Faults("anna", never))
    runner = trial.runners["anna"]
    runner.model_path.unlink()
    trial.transport_for = lambda _: MemoryTransport(MemoryRelay())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Slots, "check", changed)
        trial.run_one("anna")
    assert isinstance(trial.errors.get("anna"), JournalError)
    assert not runner.model_path.exists()


def changed(_: Slots, pulse: object) -> None:
    raise JournalError("the weights have changed on the disk")
