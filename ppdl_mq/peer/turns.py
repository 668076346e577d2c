"""The hands of the sequential protocols: train one's own turns, fetch weights that rest at the relay.

Source: docs/PROTOCOL.md, sections 8 and 9.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

from ppdl_mq.peer.fetcher import Fetcher
from ppdl_mq.peer.hands import Hands, Tools
from ppdl_mq.peer.trainer import ending
from ppdl_mq.protocol.effects import BuildInitial, Effect, EmptyWeights, Fetch, KeepModel, Release, Train
from ppdl_mq.protocol.events import Trained
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.schedule import Turn
from ppdl_mq.protocol.slots import Slot
from ppdl_mq.protocol.state import State
from ppdl_mq.protocol.terms import WEIGHTS
from ppdl_mq.training.worker import Evaluation, TurnResult

log = logging.getLogger("ppdl_mq.peer")


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnTrained:
    """The worker finished a turn.

    Args:
        turn: which; 0 for the initial weights.
        into: where the weights go.
        result: the weights, and how it went.
        digest: SHA-256 of the weights.
        evaluation: on the own hold-out, where the turn called for one.
        seconds: wall-clock time of the training.
    """

    turn: int
    into: Slot
    result: TurnResult = field(repr=False)
    digest: bytes
    evaluation: Evaluation | None
    seconds: float


class TurnHands(Hands):
    """What server-aided and fully-connected need.

    Args:
        tools: of the runner.
    """

    tells_waiting_in: ClassVar[frozenset[Phase]] = frozenset({Phase.AWAITING_HELLOS, Phase.AWAITING_DONES})

    def __init__(self, tools: Tools) -> None:
        super().__init__(tools)
        self.fetcher = Fetcher(tools.transport, tools.intake, tools.mailroom.refuse_all)

    def carry_out(self, effect: Effect) -> None:
        """Train, fetch, and tend the queue of the weights."""
        match effect:
            case BuildInitial(into=into):
                self.tools.trainer.submit(lambda _: self._built(into))
            case Train(turn=turn, base=base, into=into):
                self._train(turn, base, into)
            case Fetch():
                self.fetcher.want(effect)
            case Release():
                self.fetcher.release()
            case EmptyWeights():
                self.tools.transport.purge(WEIGHTS)
            case KeepModel():
                self.keep_model(effect, turn=effect.slot.step)

    def note(self, result: object) -> None:
        """Note a turn that was trained, and hand it to the machine."""
        assert isinstance(result, TurnTrained), "the trainer returned what these hands did not ask for"
        turns = self.tools.terms.schedule
        facts: dict[str, Any] = {"turn": result.turn, "digest": result.digest.hex()}
        if result.turn:
            went = result.result
            facts |= {"epoch": turns.turn(result.turn).epoch, "steps": went.steps}
            facts |= {"samples": went.samples, "loss": went.loss, "seconds": round(result.seconds, 6)}
        if result.evaluation:
            facts |= {"holdout_loss": result.evaluation.loss, "holdout_accuracy": result.evaluation.accuracy}
        self.tools.progress.note("turn", **facts)
        extra = {"turn": result.turn, "turns": turns.turns, "seconds": round(result.seconds, 3)}
        log.info("Turn %d of %d is done.", result.turn, turns.turns, extra=extra)

        def keep(_: object, __: object) -> None:
            self.tools.slots.put(result.into, result.result.weights, digest=result.digest)
            if result.turn:
                self.charge(turns.turn(result.turn).ordinal)

        self.tools.driver.post(Trained(turn=result.turn, digest=result.digest), also=keep)
        self.tools.worker.forget(result.turn)

    def shared_addresses(self) -> tuple[str, ...]:
        """Return what to declare beside the inbox; in the end `weights` may be gone already, and for good."""
        is_over = self.state.phase in (Phase.ANSWERING_FINAL, Phase.ENDED)
        return (WEIGHTS,) if self.tools.terms.uses_trial_key and not is_over else ()

    def before_round(self) -> None:
        """Take what rests at `weights`, if it is time to."""
        if self.fetcher.sweep(self.state):
            self.tools.mailroom.heard()

    def next_round_s(self) -> float | None:
        """Return in how many seconds to look into `weights` again."""
        return self.fetcher.next_sweep_s()

    def reconnecting(self) -> None:
        """Give up what was taken from `weights`: it is there again."""
        self.fetcher.forget_deliveries()

    def overdue(self) -> None:
        """Drop the parts there are of what is asked for again: a forged one may be among them."""
        self.tools.intake.forget_turns(cast("State", self.state).turn)
        self.fetcher.start_over()

    def facts(self) -> dict[str, Any]:
        """Return what was taken from `weights`, where the protocol uses it."""
        taken = {"fetched_messages": self.fetcher.messages, "fetched_bytes": self.fetcher.size_bytes}
        return taken if self.tools.terms.uses_trial_key else {}

    def leave(self) -> None:
        """Remove the queue of the weights, after everybody."""
        terms = self.tools.terms
        if terms.me == terms.finisher and terms.uses_trial_key:
            self.tools.transport.delete(WEIGHTS)

    def _train(self, turn: Turn, base: Slot, into: Slot) -> None:
        held = ExitStack()
        before = held.enter_context(self.tools.slots.view(base))
        self.tools.trainer.submit(lambda stop: self._trained(turn, before, into, stop), held)

    # --- in the trainer's thread ---------------------------------------------------------------------------------

    def _built(self, into: Slot) -> TurnTrained:
        started = time.monotonic()
        result = TurnResult(weights=self.tools.worker.initial(), steps=0, samples=0, loss=None)
        digest = hashlib.sha256(result.weights).digest()
        seconds = time.monotonic() - started
        return TurnTrained(turn=0, into=into, result=result, digest=digest, evaluation=None, seconds=seconds)

    def _trained(self, turn: Turn, before: memoryview, into: Slot, stop: threading.Event) -> TurnTrained:
        worker = self.tools.worker
        started = time.monotonic()
        result = worker.train(turn, before, self.tools.sample_seed, stop=stop)
        seconds = time.monotonic() - started
        is_last_of_epoch = turn.cycle == self.tools.terms.schedule.turns_per_epoch - 1
        return TurnTrained(
            turn=turn.number,
            into=into,
            result=result,
            digest=hashlib.sha256(result.weights).digest(),
            evaluation=worker.evaluate(result.weights, between=ending(stop)) if is_last_of_epoch else None,
            seconds=seconds,
        )
