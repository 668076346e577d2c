"""A simulated trial from its first HELLO to its end, and what must be true of it then."""

from __future__ import annotations

import contextlib
import functools
import logging
import random
import shutil
import tempfile
import threading
import time
import types
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from ppdl_mq.config import limits
from ppdl_mq.config.manifest import Manifest
from ppdl_mq.peer import assembly, blobs, fetcher, intake, link, outbox, progress, rounds, runner
from ppdl_mq.peer.protocols import vector_words
from ppdl_mq.protocol.terms import Terms
from ppdl_mq.training.saving import load_model
from ppdl_mq.wire import canonical
from tests.people import identity_of, manifest_for
from tests.simulation import node as nodes
from tests.simulation.disk import disks
from tests.simulation.node import Node
from tests.simulation.people import People
from tests.simulation.recomputing import check_rounds
from tests.simulation.relay import Relay
from tests.simulation.scheduler import Scheduler
from tests.simulation.story import Story, Trial
from tests.simulation.work import LAYOUT

_LIMIT_S = 10 * 86_400.0  # of virtual time; enough for every wait there is
_LIMIT_STEPS = 30_000
_SMALL_INLINE_BYTES = 512
_LOOP_S = 120.0  # an idle peer of a virtual clock needs no second of its own

identity = functools.lru_cache(maxsize=None)(identity_of)


@functools.lru_cache(maxsize=64)
def _manifest(protocol: str, names: tuple[str, ...], changes: tuple[tuple[str, Any], ...]) -> Manifest:
    return manifest_for(names, protocol=protocol, relay__chunk_bytes=4_096, **dict(changes))


class Simulation:
    """One trial.

    Args:
        story: what goes wrong in it.
        folder: an empty one, for the state of the peers.
    """

    def __init__(self, story: Story, folder: Path, *, trace: bool = False) -> None:
        self.story = story
        self.folder = folder
        self.chance = random.Random(story.seed + 1_000_000_007)
        self.scheduler = Scheduler()
        self.begun_at = self.scheduler.now
        self.trace: list[tuple[Any, ...]] | None = [] if trace else None
        self.is_over = False
        self.people = People(self)
        self._look_again_at = story.calm_after_s
        self._look_every_s = 3_600.0 if story.doomed else 3 * 3_600.0
        self._stood: tuple[Any, ...] = ()
        self.broken: list[AssertionError] = []
        self.faults: Counter[str] = Counter()
        self.kills: Counter[str] = Counter()
        self.full: Counter[str] = Counter()
        self.moments: Counter[str] = Counter()
        self.trained: Counter[tuple[str, int]] = Counter()
        self.released: defaultdict[tuple[str, int], set[bytes]] = defaultdict(set)
        self.contexts: dict[bytes, bytes] = {}  # of attempts, by digest
        self.agreed: defaultdict[int, set[tuple[bytes, bytes]]] = defaultdict(set)  # context and result, by step
        self.manifest = _manifest(story.protocol, story.names, tuple(sorted(story.changes.items())))
        self.identities = {name: identity(name) for name in story.names}
        words = vector_words(self.manifest, LAYOUT)
        self.terms = {
            name: Terms.of(self.manifest, self.identities[name], layout=LAYOUT.digest(), software="tests", words=words)
            for name in story.names
        }
        self.deaths = list(story.deaths)
        self.relay = Relay(self)
        self.nodes = {name: Node(self, name) for name in story.names}
        for when, what, whose in story.events:
            self.scheduler.at(when, self._happen, what, self.nodes[whose])

    @property
    def elapsed_s(self) -> float:
        return self.scheduler.now - self.begun_at

    def current(self) -> Node | None:
        """Return the peer that runs, to whoever asks in its thread."""
        running = self.scheduler.running
        if running is None or running.ident != threading.get_ident():
            return None
        return self.nodes[running.name]

    def injected(self, fault: str) -> None:
        self.faults[fault] += 1

    def happens(self, fault: str) -> bool:
        """Tell whether a fault that has a rate happens now."""
        rate = getattr(self.story, fault)
        if not rate or not self.story.is_hostile(self) or self.chance.random() >= rate:
            return False
        self.injected(fault)
        return True

    def dies(self, node: Node, what: str) -> bool:
        """Tell whether a peer dies at this moment."""
        if not self.story.is_hostile(self):
            return False
        for number, (name, moment, survives) in enumerate(self.deaths):
            if name == node.name and moment == what:
                if survives == 0:
                    del self.deaths[number]
                    return True
                self.deaths[number] = (name, moment, survives - 1)
                break
        return bool(self.story.death) and self.chance.random() < self.story.death

    def work_s(self) -> float:
        """How long a job takes."""
        return self.chance.choice((0.1, 3.0, 60.0)) if self.story.seed else 1.0

    def wake(self, address: str) -> None:
        for name in [address] if address in self.nodes else self.nodes:
            self.nodes[name].task.wake()

    def _happen(self, what: str, node: Node) -> None:
        lasts_s = self.chance.choice((20.0, 600.0, 7_200.0))
        match what:
            case "kill":
                node.kill()
            case "stop":
                node.ask_to_stop()
            case "leave":
                self.people.leave(node)
            case "break":
                self.injected("connection broken")
                self.relay.leave(node.connection)
                node.task.wake()
            case "cut off":
                self.injected("cut off")
                node.is_cut_off = True
                self.relay.leave(node.connection)
                node.task.wake()
                self.scheduler.at(lasts_s, setattr, node, "is_cut_off", False)
            case "disk full":
                node.full_way = self.chance.choice(("statement", "rolled back", "commit", "for a moment"))
                node.disk_full, node.room = True, self.chance.randrange(40)
                self.scheduler.at(lasts_s, setattr, node, "disk_full", False)
            case "empty queue":
                self.relay.purge_all(self.chance.choice((*self.story.names, "weights")))
            case "roll back":
                self.relay.roll_back()
                self.wake("weights")

    # --- from beginning to end ------------------------------------------------------------------------------------

    def run(self) -> dict[str, bytes]:
        """Run the trial; return the final weights of each peer.

        Raises:
            AssertionError: a promise was broken.
        """
        with self._in_place():
            while not all(node.task.is_over or self._is_lost(node) for node in self.nodes.values()):
                if self._waits_for_those_who_left():
                    break
                if not self.scheduler.step() or self.elapsed_s > _LIMIT_S or self.scheduler.steps > _LIMIT_STEPS:
                    self._stuck()
                if self.broken:
                    raise self.broken[0]
                for node in self.nodes.values():
                    if node.task.error is not None:
                        raise AssertionError(f"{node.name} ended with {node.task.error!r}") from node.task.error
        return {name: self._model(node) for name, node in self.nodes.items() if node.has_result}

    def _is_lost(self, node: Node) -> bool:
        return node.is_lost and self.story.returns_after_s is None

    def _waits_for_those_who_left(self) -> bool:
        """Tell whether all who have not ended wait, by name, for one who has, and whether that may be the end of it.

        It may in masked-average, for a peer that was lost and comes back when the others have gone. Where the relay
        has lost a last word people decide to wait for it no longer.
        """
        if self.elapsed_s < self._look_again_at:
            return False
        self._look_again_at = max(self.elapsed_s, self.story.calm_after_s) + self._look_every_s
        stood = tuple(node.where() for node in self.nodes.values())
        is_standing, self._stood = stood == self._stood and self.elapsed_s > self.story.calm_after_s, stood
        waiting = [node for node in self.nodes.values() if not node.has_ended and not node.is_lost]
        if not is_standing or not waiting or not all(node.waits_for() for node in waiting):
            return False
        left = {name for name, node in self.nodes.items() if node.has_ended}
        is_for_the_left = all(left.issuperset(node.waits_for()) for node in waiting)
        if self.story.protocol == "masked-average":
            were_lost = all(node.has_been_lost for node in waiting)
            is_decided = self.people.bring_back(waiting) or self.people.let_go(waiting)
            return not is_decided and is_for_the_left and were_lost
        if left and is_for_the_left and self.faults["lost"] + self.faults["queue emptied"]:
            self.faults["last word lost"] += self.people.let_go(waiting)
        return False

    def _stuck(self) -> None:
        told = []
        for node in self.nodes.values():
            if node.has_ended:
                continue
            if node.runner is None:
                told.append(f"{node.name} is not running")
            else:
                waiting_for = node.runner.driver.waiting_for()
                told.append(f"{node.name} waits for {waiting_for} while {node.runner.state.phase.value}")
        raise AssertionError(f"After {self.elapsed_s:.0f} s, {self.scheduler.steps} steps: {'; '.join(told)}")

    def _model(self, node: Node) -> bytes:
        weights, _ = load_model(node.folder / "model.safetensors", LAYOUT)
        return bytes(weights)

    @contextlib.contextmanager
    def _in_place(self) -> Iterator[None]:
        """Put the scheduler, the clock and the disks in the place of the system's."""

        def of_current(make: Any) -> Any:
            def made() -> Any:
                node = self.current()
                assert node is not None, "only peers make these"
                return make(node)

            return made

        real_seal = outbox.seal_parts

        def sealed(header: Any, message: Any, *given: Any, **named: Any) -> Any:
            node = self.current()
            assert node is not None, "only peers seal"
            node.watch.sealed(header, message)
            return real_seal(header, message, *given, **named)

        real_settle = intake.Intake.settle

        def settled(of: Any, row: int, header: Any, **named: Any) -> None:
            real_settle(of, row, header, **named)
            node = self.current()
            assert node is not None, "only peers work on messages"
            if named.get("remember", True):
                node.watch.settles(header)

        small = _SMALL_INLINE_BYTES if self.story.small_inline else blobs.INLINE_BYTES
        log = logging.getLogger("ppdl_mq")
        state, level = random.getstate(), log.level
        random.seed(self.story.seed)
        log.setLevel(logging.CRITICAL)
        with contextlib.ExitStack() as stack:
            for owner, name, value in (
                (time, "monotonic", self.scheduler.monotonic),
                (assembly, "queue", types.SimpleNamespace(SimpleQueue=of_current(nodes.Inputs))),
                (assembly, "threading", types.SimpleNamespace(Event=of_current(nodes.Stopped))),
                (assembly, "Trainer", nodes.Jobs),
                (runner, "threading", types.SimpleNamespace(Thread=nodes.Thread)),
                (runner, "_LOOP_S", _LOOP_S),
                (limits, "LOOK_S", _LOOP_S),
                (link, "Receiver", nodes.Receiver),
                (outbox, "seal_parts", sealed),
                (intake.Intake, "settle", settled),
                (blobs, "INLINE_BYTES", small),
                (intake, "INLINE_BYTES", small),
                (fetcher, "_LAST_DELAY_S", 60.0),
                (limits, "BACKOFF_LAST_S", 600.0),
                (progress, "_STATUS_EVERY_S", 3_600.0),
                (rounds, "secrets", types.SimpleNamespace(randbelow=self.chance.randrange, choice=self.chance.choice)),
            ):
                stack.enter_context(mock.patch.object(owner, name, value))
            stack.enter_context(disks(self.current))
            try:
                yield
            finally:
                for node in self.nodes.values():
                    node.end()
                random.setstate(state)
                log.setLevel(level)


@functools.lru_cache(maxsize=256)
def undisturbed(trial: Trial) -> bytes:
    """Return the weights with which a trial ends when nothing goes wrong."""
    calm = Story(seed=0, **trial._asdict() | {"changes": dict(trial.changes)})
    with simulated(calm) as simulation:
        (weights,) = set(simulation.run().values())
    return weights


@contextlib.contextmanager
def simulated(story: Story, *, trace: bool = False) -> Iterator[Simulation]:
    """Give a simulation, in a folder of its own that lies in memory where there is one."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="ppdl-mq-simulation-", dir=memory if memory.is_dir() else None))
    try:
        yield Simulation(story, folder, trace=trace)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check(story: Story, *, trace: bool = False) -> Simulation:
    """Run a story and hold its end to that of the undisturbed trial.

    Raises:
        AssertionError: a promise was broken.
    """
    with simulated(story, trace=trace) as simulation:
        models = simulation.run()
        if not simulation.people.missing:
            expected = undisturbed(story.trial)
            assert set(models.values()) == {expected}, "the weights are not those of the undisturbed trial"
        if story.protocol == "masked-average":
            check_rounds(simulation, models)
        for (name, step), contexts in simulation.released.items():
            assert len(contexts) == 1, f"{name} released step {step} in two contexts"
    return simulation


def tried(simulation: Simulation) -> set[tuple[int, int]]:
    """Return the steps in which somebody committed itself to a vector, with the bits of its words."""
    found = [canonical.decode(context, limit_bytes=4_096) for context in simulation.contexts.values()]
    return {(each["step"], each["word"]) for each in found}
