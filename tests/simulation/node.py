"""One peer: the product's own parts around a stand-in for the worker, killed and started again as the story goes."""

from __future__ import annotations

import queue
import sqlite3
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ppdl_mq.config.settings import Privacy
from ppdl_mq.errors import Dropped, InboxTaken, Interrupted, LocalError, PpdlError, RelayError, TooFewPeers
from ppdl_mq.peer.inputs import Delivered, LinkDown, TrainingFailed, Worked
from ppdl_mq.peer.journal import Journal
from ppdl_mq.peer.runner import Runner
from ppdl_mq.peer.spending import Spending
from ppdl_mq.protocol.masked_average.state import RoundState
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.training.worker import Worker
from tests.simulation.disk import Unsynced
from tests.simulation.relay import Connection
from tests.simulation.watch import Watch
from tests.simulation.work import Work

if TYPE_CHECKING:
    from ppdl_mq.protocol.session import SessionState
    from ppdl_mq.protocol.terms import Terms
    from tests.simulation.disk import Connection as Database
    from tests.simulation.trial import Simulation


_MAX_SPINS = 100
_FOR_GOOD_S = 30 * 86_400.0
_BACK_AFTER_S = (0.0,) * 5 + (1.0, 30.0) * 5 + (3_600.0,) * 4 + (36_000.0,)


class Killed(BaseException):
    """The process is gone; only the interpreter still unwinds."""


class Node:
    """One peer of the trial, over all its lives.

    Args:
        simulation: whose it is.
        name: of the peer.
    """

    db: Database

    def __init__(self, simulation: Simulation, name: str) -> None:
        self.simulation = simulation
        self.name = name
        self.folder: Path = simulation.folder / name
        self.terms: Terms = simulation.terms[name]
        self.watch = Watch(self)
        self.lives = 0
        self.is_dead = False
        self.has_ended = False
        self.has_been_lost = self.is_lost = False
        self.gave_up: PpdlError | None = None  # why it ended without the end of the trial
        self._state: SessionState | None = None  # where it stood when it ran last
        self.is_cut_off = False
        self.disk_full = False
        self.room = 0  # writes that still fit
        self.full_way = "statement"
        self.found_full = False  # in this life
        self.passed_over = 0
        self.changes = 0
        self.handles: dict[int, str] = {}
        self.unsynced = Unsynced()
        self.connection: object = None
        self.runner: Runner | None = None
        self.inputs: Inputs | None = None
        self.task = simulation.scheduler.task(name, self._live)

    # --- moments --------------------------------------------------------------------------------------------------

    def alive(self) -> None:
        if self.is_dead:
            raise Killed

    def boundary(self, what: str) -> None:
        """A moment at which the peer may die."""
        self.alive()
        self.simulation.moments[what] += 1
        if self.simulation.trace is not None:
            self.simulation.trace.append((round(self.simulation.scheduler.now, 3), self.name, what))
        if self.simulation.dies(self, what):
            self.simulation.injected("killed")
            self.simulation.kills[what] += 1
            self.is_dead = True
            raise Killed

    def finds_disk_full(self) -> bool:
        """Tell whether a write finds no room."""
        if self.disk_full and self.room:
            self.room -= 1
            return False
        is_full = self.disk_full
        if self.full_way == "for a moment":  # somebody made room
            self.disk_full = False
        return is_full

    def met_full_disk(self, where: str) -> None:
        self.found_full = True
        self.simulation.injected("disk full")
        self.simulation.full[where] += 1

    def committed(self, _: Database) -> None:
        self.watch.committed()

    def kill(self) -> None:
        """End the process while it waits."""
        if not self.is_dead and not self.has_ended and self.runner is not None:
            self.simulation.injected("killed")
            self.simulation.kills["while waiting"] += 1
            self.is_dead = True
            self.task.wake()

    def ask_to_stop(self) -> None:
        """Send SIGTERM."""
        if self.runner is not None and not self.is_dead and not self.has_ended:
            self.simulation.injected("stopped")
            self.runner.stop()

    @property
    def state(self) -> SessionState | None:
        """Where the machine stands, or stood when it ran last; None if it never did."""
        return self._state if self.runner is None else self.runner.state

    @property
    def has_result(self) -> bool:
        """Whether it has ended with a model: it has none where it was dropped, or left within the first round."""
        left_early = isinstance(self.state, RoundState) and not self.state.base_step
        return self.has_ended and not isinstance(self.gave_up, Dropped) and not left_early

    def where(self) -> object:
        """Return where the machine stands."""
        return None if self.runner is None else (self.runner.state.phase, self.waits_for())

    def waits_for(self) -> tuple[str, ...]:
        """Return for whom it waits, by name; for nobody while it is not running."""
        return () if self.runner is None else self.runner.driver.waiting_for()

    def come_back(self) -> None:
        """End its being lost: the machine is mended, or its disk was found."""
        self.is_lost = False
        self.task.wake()

    def end(self) -> None:
        """Unwind its thread, if it is still there: the simulation is over."""
        self.simulation.is_over = True
        while not self.task.is_over:
            self.is_dead = True
            self.task.resume_now()

    # --- lives ----------------------------------------------------------------------------------------------------

    def _live(self) -> None:
        simulation = self.simulation
        while not self.has_ended and not simulation.is_over:
            self.lives += 1
            self.is_dead = self.found_full = False
            self.changes = 0
            self.handles.clear()
            self.unsynced.begin_life()
            try:
                self._one_life()
                self.has_ended = True
                return
            except (Killed, Interrupted):
                pass
            except InboxTaken:  # a person, or systemd, starts it again
                pass
            except (Dropped, TooFewPeers) as error:
                self.gave_up = error
                self.has_ended = True
                return
            except PpdlError as error:
                if not (self.found_full and isinstance(error, LocalError)):
                    raise
            finally:
                self._is_gone()
            if simulation.is_over:
                return
            if self._died_for_good():
                self._be_lost()
            self.task.wait(simulation.chance.choice(_BACK_AFTER_S))
            while self.disk_full and simulation.chance.random() < 0.5:  # sometimes it is tried too early
                self.task.wait(300.0)
                if simulation.is_over:
                    return

    def _died_for_good(self) -> bool:
        is_in_a_round = isinstance(self.state, RoundState) and self.state.step > 0
        is_doomed = self.name in self.simulation.story.doomed and not self.has_been_lost
        return self.is_dead and is_doomed and is_in_a_round

    def _be_lost(self) -> None:
        self.has_been_lost = self.is_lost = True
        self.simulation.people.lose(self)
        while self.is_lost and not self.simulation.is_over:
            self.task.wait(_FOR_GOOD_S)

    def _one_life(self) -> None:
        simulation, manifest = self.simulation, self.simulation.manifest
        journal = Journal(self.folder, trial_id=self.terms.trial_id, identity=simulation.identities[self.name])
        try:
            self.runner = Runner(
                self.terms,
                manifest,
                simulation.identities[self.name],
                journal,
                cast(Worker, Work(self.name, self.watch.trains, simulation.story.grows_of(self.name))),
                b"\x05" * 32,
                Connection(simulation.relay, self),
                broker_wait_s=1e9,
                patience_s=simulation.story.patience_s,
                audit_rate=simulation.story.audit_rate,
                spending=self._spending(journal) if simulation.story.has_budget else None,
            )
            self.runner.run()
        except sqlite3.Error as fault:  # as `run_peer` does
            raise journal.damaged(fault) from None
        finally:
            journal.close()

    def _spending(self, journal: Journal) -> Spending:
        privacy = Privacy(epsilon=100.0, delta=1e-6, noise=5.0)
        return Spending(journal, privacy, self.simulation.manifest.training, rows=Work.rows)

    def _is_gone(self) -> None:
        """Let the relay notice, in its own time."""
        runner, self.runner = self.runner, None
        if runner is not None:
            self._state = runner.state
            runner.intake.close()
        if self.inputs is not None:
            self.inputs.close()
            self.inputs = None
        if self.connection is not None:
            connection, self.connection = self.connection, None
            relay = self.simulation.relay
            is_new = runner is None or runner.state.phase is Phase.NEW
            self.simulation.scheduler.at(
                0.0 if is_new else self.simulation.chance.choice((0.0, 5.0, 40.0)), relay.leave, connection
            )


class Inputs:
    """Stands in for the queue of a runner: whoever waits at it lets the others run."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._items: deque[object] = deque()
        self.receiver: Receiver | None = None
        self.jobs: Jobs | None = None
        self._spins = 0
        node.inputs = self

    def put(self, item: object) -> None:
        self._items.append(item)
        self._node.task.wake()

    def qsize(self) -> int:
        return len(self._items)

    def get(self, timeout: float) -> object:
        scheduler = self._node.simulation.scheduler
        until = scheduler.now + timeout
        while True:
            self._node.alive()
            if self.receiver is not None:
                self.receiver.pump()
            if self._items:
                return self._items.popleft()
            if scheduler.now >= until:
                self._spins += 1
                self._node.watch.holds(self._spins < _MAX_SPINS, "goes round and round without waiting for anything")
                raise queue.Empty
            self._spins = 0
            self._node.task.wait(until - scheduler.now)

    def get_nowait(self) -> object:
        if not self._items:
            raise queue.Empty
        return self._items.popleft()

    def close(self) -> None:
        if self.jobs is not None:
            self.jobs.drop()


class Receiver:
    """Stands in for the thread that takes deliveries off the connection."""

    def __init__(self, transport: Connection, inputs: Inputs, connection: int) -> None:
        self._transport, self._inputs, self._connection = transport, inputs, connection
        self._is_over = False
        inputs.receiver = self

    def pump(self) -> None:
        while not self._is_over and self._inputs.qsize() < 64:
            try:
                delivery = self._transport.receive(0.0)
            except RelayError as error:
                self._inputs.put(LinkDown(error, self._connection))
                self._is_over = True
                return
            if delivery is None:
                return
            self._inputs.put(Delivered(delivery, self._connection))

    def stop(self) -> None:
        self._is_over = True
        self._inputs.receiver = None


class Stopped:
    """Stands in for the event by which a peer is asked to stop."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._is_set = False

    def set(self) -> None:
        self._is_set = True
        if self._node.simulation.current() is not self._node:
            self._node.task.wake()

    def is_set(self) -> bool:
        return self._is_set

    def wait(self, timeout: float) -> bool:
        until = self._node.simulation.scheduler.now + timeout
        while not self._is_set and self._node.simulation.scheduler.now < until:
            self._node.task.wait(until - self._node.simulation.scheduler.now)
            self._node.alive()
        return self._is_set


class Thread:
    """Stands in for what the runner starts beside the loop: nothing here needs it, as nothing here blocks."""

    def __init__(self, **_: object) -> None: ...

    def start(self) -> None: ...


class Jobs:
    """Stands in for the trainer's thread: a job takes its time on the virtual clock."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._node = inputs._node
        self._waiting: deque[tuple[Callable[..., object], ExitStack]] = deque()
        self._is_over = self._is_busy = False
        self._batch = 0  # those submitted since all were dropped last
        inputs.jobs = self

    def submit(self, job: Callable[..., object], held: ExitStack | None = None) -> None:
        self._waiting.append((job, held or ExitStack()))
        self._begin()

    def clear(self, pulse: Callable[[], None]) -> None:
        pulse()
        self._batch += 1
        self._is_busy = False
        self._let_go()

    def stop(self) -> None:
        self.drop()

    def drop(self) -> None:
        self._is_over = True
        self._let_go()

    def _let_go(self) -> None:
        while self._waiting:
            self._waiting.popleft()[1].close()

    def _begin(self) -> None:
        if self._waiting and not self._is_busy and not self._is_over:
            self._is_busy = True
            self._node.simulation.scheduler.at(self._node.simulation.work_s(), self._do, self._batch)

    def _do(self, batch: int) -> None:
        if batch != self._batch:  # it was ended early
            return
        self._is_busy = False
        if self._is_over:
            return
        job, held = self._waiting.popleft()
        result: Any
        with held:
            try:
                result = Worked(job(None))
            except PpdlError as error:
                result = TrainingFailed(error)
        self._inputs.put(result)
        self._begin()
