"""The hands of masked-average: train, measure, mask, add up, average. Source: docs/PROTOCOL.md, sections 13 to 15."""

from __future__ import annotations

import hashlib
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, cast

from ppdl_mq.errors import Dropped, Overflow, PeerAbsent, TooFewPeers
from ppdl_mq.peer.hands import Hands, Tools
from ppdl_mq.peer.rest import Rest
from ppdl_mq.peer.trainer import ending
from ppdl_mq.peer.vectors import Vectors, figures_in
from ppdl_mq.protocol.effects import (
    AddUp,
    Average,
    BuildInitial,
    Effect,
    KeepModel,
    MaskVector,
    Measure,
    NoteRound,
    Record,
    Train,
)
from ppdl_mq.protocol.events import (
    AddedUp,
    Averaged,
    Decided,
    Event,
    Masked,
    Measured,
    Overflowed,
    Recomputed,
    Trained,
)
from ppdl_mq.protocol.masked_average.machine import MaskedAverageMachine
from ppdl_mq.protocol.masked_average.outcome import figures_of
from ppdl_mq.protocol.masked_average.state import RoundState
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.slots import Cut, Slot

log = logging.getLogger("ppdl_mq.peer")

_AUDIT_STEPS = 1 << 20  # resolution of the audit's probability

# A loop that took longer to come round was busy with what this peer sends, and has not looked at what came.
_DEAF_S: Final = 10.0

# After the relay was away, or took nothing, nobody counts as absent before he had time to be heard again: others may
# still wait to try once more.
_HEARING_S: Final = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a job came to.

    Args:
        event: for the machine.
        content: a byte string that goes with it.
        into: where it goes.
        facts: for the progress file, with the event's name there under `event`.
    """

    event: Event
    content: bytes | bytearray | memoryview = field(default=b"", repr=False)
    into: Slot | None = None
    facts: dict[str, Any] | None = None


class RoundHands(Hands):
    """What masked-average needs.

    Args:
        tools: of the runner.
        audit_rate: how often this peer has a sum recomputed, 0 to 1.
    """

    tells_waiting_in: ClassVar[frozenset[Phase]] = frozenset({Phase.AWAITING_HELLOS, Phase.ABANDONING})

    def __init__(self, tools: Tools, *, audit_rate: float) -> None:
        super().__init__(tools)
        assert tools.manifest.averaging is not None, "a manifest of masked-average has its rules"
        self._rules = tools.manifest.averaging
        self._audit_rate = audit_rate
        self._vectors = Vectors(tools.manifest, tools.worker.layout, me=tools.terms.me, rows=tools.worker.rows)
        self._absent_s: dict[str, float] = {}  # for how long each has been waited for, while this peer listened
        self._listened_s = math.inf  # since the last break
        self._round_at = time.monotonic()
        self._rest = Rest(tools.driver)

    @property
    def rounds(self) -> RoundState:
        """Where the machine stands."""
        return cast("RoundState", self.state)

    def carry_out(self, effect: Effect) -> None:
        """Submit what takes long; a slot that is gone belongs to an attempt that was given up in the meantime."""
        match effect:
            case BuildInitial(into=into):
                self.tools.trainer.submit(lambda _: self._build(into))
            case Train(base=base):
                self._submit([base], lambda views, stop: self._train(effect, views[0], stop))
            case Measure(base=base):
                self._submit([base], lambda views, stop: self._measure(effect, views[0], stop))
            case MaskVector(base=base, local=local):
                slots = [slot for slot in (base, local) if slot is not None]
                self._submit(slots, lambda views, _: self._mask(effect, views))
            case AddUp(sources=sources):
                self._submit(sources, lambda views, _: self._add_up(effect, views))
            case Average(sums=sums, base=base):
                slots = [*sums, *((base,) if base is not None else ())]
                self._submit(slots, lambda views, _: self._average(effect, views))
            case NoteRound():
                self._note_round(effect)
            case Record():
                self._rest.heard(effect)
            case KeepModel(slot=slot):  # a peer that leaves early has the weights of an earlier round
                self.tools.trainer.clear(self.tools.pulse)  # and may still train: with the module that measures here
                self.keep_model(effect, round=(slot.step + 1) // 2)

    @property
    def wants_results(self) -> bool:
        """Not once this peer begins nothing any more: the machine passes over all of them then."""
        return self.state.phase not in (Phase.CLOSING, Phase.ENDED, Phase.LEFT, Phase.ENDED_EARLY)

    def note(self, result: object) -> None:
        """Hand a result to the machine, and keep its byte string if the machine still wants it."""
        assert isinstance(result, Result), "the trainer returned what these hands did not ask for"
        before = self.state

        def keep(state: Any, _: tuple[Effect, ...]) -> None:
            # What the machine passes over is of an attempt that was given up: its slots would never be discarded.
            if result.into is not None and state != before:
                self.tools.slots.put(result.into, result.content)
                if isinstance(result.event, Trained) and result.event.turn:
                    self.charge(result.event.turn - 1)

        self.tools.driver.post(result.event, also=keep)
        if isinstance(result.event, Trained):
            self.tools.worker.forget(result.event.turn)
        if result.facts is not None:
            self.tools.progress.note(**result.facts)

    def before_round(self) -> None:
        """Look whether the others go on without this peer, whether it has rested, and who is waited for too long.

        Raises:
            Dropped: everybody with whom this peer means to go on has decided to go on without it.
            PeerAbsent: with `on_absent = "abort"`, before this peer has the model.
        """
        self._check_dropped()
        self._rest.look()
        self._count_absence()
        if self._listened_s < _HEARING_S:
            return
        for name, absent_s in self._absent_s.items():
            if absent_s < self._rules.absent_after_s:
                continue
            if self.rounds.phase is Phase.CLOSING:  # the model is written: waiting is for the others only
                log.warning("%s has not said that it has what it needs; waiting for it no longer.", name)
                self.tools.driver.post(Decided(name=name))
                continue
            if self._rules.on_absent == "abort":
                raise PeerAbsent(
                    f"{name} has been waited for for {self._rules.absent_after_s:g} s, and the manifest says to stop "
                    "then.",
                    hint="Ask that organisation; run this peer again to go on waiting.",
                )
            if self.rounds.step:
                log.warning("%s has been waited for too long; going on without it, as the manifest says.", name)
                self.tools.driver.post(Decided(name=name))
                self._absent_s[name] = 0.0

    def unheard(self) -> None:
        """Give everybody time to be heard again."""
        self._listened_s, self._round_at = 0.0, time.monotonic()

    def _count_absence(self) -> None:
        """Count for how long each has been waited for; not the time in which nothing could have reached this peer."""
        now = time.monotonic()
        passed_s, self._round_at = now - self._round_at, now
        if passed_s > _DEAF_S:
            passed_s = 0.0
        self._listened_s += passed_s
        waiting_for = self.tools.driver.waiting_for() if self._rules.on_absent != "wait" else ()
        self._absent_s = {
            name: self._absent_s[name] + passed_s if name in self._absent_s else 0.0 for name in waiting_for
        }

    def check_end(self) -> None:
        """Tell people where the trial ended before its time.

        Raises:
            TooFewPeers: it did.
        """
        if self.state.phase is not Phase.ENDED_EARLY:
            return
        number = (self.rounds.base_step + 1) // 2
        when = f"after round {number}" if number else "before anything was agreed on"
        model = f"The model of that round is in {self.model_path}. " if number else ""
        raise TooFewPeers(
            f"The trial has ended early, {when}: the manifest wants {self._rules.min_peers} peers, and fewer are left.",
            hint=f"{model}To go on, agree on a new manifest.",
        )

    def next_round_s(self) -> float | None:
        """Return in how many seconds a rest ends."""
        return self._rest.next_s()

    def facts(self) -> dict[str, Any]:
        """Return for how long this peer rests before the next attempt, and because of whom."""
        return self._rest.facts()

    def _check_dropped(self) -> None:
        machine = cast("MaskedAverageMachine", self.tools.driver.machine)
        if machine.is_dropped(self.rounds):
            raise Dropped(
                f"{', '.join(machine.going_on_without(self.rounds))} decided to go on without this peer.",
                hint="Ask these organisations why.",
            )

    def _submit(
        self, sources: list[Slot] | tuple[Cut, ...], job: Callable[[list[memoryview], threading.Event], object]
    ) -> None:
        """Run a job on the contents of slots, unless one of them is gone."""
        slots = [source.slot if isinstance(source, Cut) else source for source in sources]
        if not all(self.tools.slots.has(slot) for slot in slots):
            return
        held = ExitStack()
        views = []
        for source, slot in zip(sources, slots, strict=True):
            view = held.enter_context(self.tools.slots.view(slot))
            if isinstance(source, Cut) and (source.start or source.size is not None):
                end = None if source.size is None else source.start + source.size
                view = held.enter_context(view[source.start : end])
            views.append(view)
        self.tools.trainer.submit(lambda stop: job(views, stop), held)

    def _note_round(self, effect: NoteRound) -> None:
        rounds, number = self.tools.terms.rounds, (effect.step + 1) // 2
        facts: dict[str, Any] = {"round": number, "members": list(effect.members), "attempts": effect.attempts}
        if effect.step % 2:
            self.tools.progress.note("round", **facts)
            extra = {"round": number, "rounds": rounds, "members": effect.members, "attempts": effect.attempts}
            log.info("Round %d of %d is done, by %d peers.", number, rounds, len(effect.members), extra=extra)
            return
        self.tools.progress.note("evaluation", **facts, loss=effect.loss, accuracy=effect.accuracy)
        shown = [f"loss {effect.loss:.4g}"] if effect.loss is not None else []
        shown += [f"accuracy {100 * effect.accuracy:.1f} %"] if effect.accuracy is not None else []
        log.info("Over all hold-outs after round %d: %s.", number, ", ".join(shown) or "nothing to measure")

    # --- in the trainer's thread ---------------------------------------------------------------------------------

    def _build(self, into: Slot) -> Result:
        weights = self.tools.worker.initial()
        return Result(event=Trained(turn=0, digest=_sha256(weights)), content=weights, into=into)

    def _train(self, task: Train, base: memoryview, stop: threading.Event) -> Result:
        started = time.monotonic()
        exponents = self._vectors.exponents_digest(base)
        trained = self.tools.worker.train(task.turn, base, self.tools.sample_seed, stop=stop)
        facts = {
            "event": "trained",
            "round": task.turn.number,
            "epoch": task.turn.epoch,
            "steps": trained.steps,
            "samples": trained.samples,
            "loss": trained.loss,
            "seconds": round(time.monotonic() - started, 6),
        }
        event = Trained(turn=task.turn.number, digest=_sha256(trained.weights), exponents=exponents)
        return Result(event=event, content=trained.weights, into=task.into, facts=facts)

    def _measure(self, task: Measure, base: memoryview, stop: threading.Event) -> Result:
        own = self.tools.worker.evaluate(base, between=ending(stop))
        figures = figures_of(own.loss, own.accuracy, own.samples)
        facts = {
            "event": "measured",
            "round": task.step // 2,
            "holdout_loss": own.loss,
            "holdout_accuracy": own.accuracy,
            "holdout_samples": own.samples,
        }
        return Result(event=Measured(step=task.step, figures=figures), facts=facts)

    def _mask(self, task: MaskVector, views: list[memoryview]) -> Result:
        base, local = views if views else (None, None)
        try:
            masked = self._vectors.mask(task, base, local)
        except Overflow:
            return Result(event=Overflowed(step=task.step, attempt=task.attempt))
        event = Masked(step=task.step, attempt=task.attempt, mask=masked.seed, shards=masked.digests)
        return Result(event=event, content=masked.words, into=task.into)

    def _add_up(self, task: AddUp, views: list[memoryview]) -> Result:
        total = self._vectors.add_up(task, views)
        kind = Recomputed if task.into is None else AddedUp
        event = kind(step=task.step, attempt=task.attempt, shard=task.shard, digest=_sha256(total))
        return Result(event=event, content=total, into=task.into)

    def _average(self, task: Average, views: list[memoryview]) -> Result:
        is_audited = secrets.randbelow(_AUDIT_STEPS) < self._audit_rate * _AUDIT_STEPS
        audit = secrets.choice(task.auditable) if is_audited and task.auditable else None
        if task.into is None:
            figures = figures_in(views)
            digest = hashlib.sha256(b"".join(views)).digest()
            event = Averaged(step=task.step, attempt=task.attempt, digest=digest, figures=figures, audit=audit)
            return Result(event=event)
        weights = self._vectors.average(task, views[:-1], views[-1])
        event = Averaged(step=task.step, attempt=task.attempt, digest=_sha256(weights), audit=audit)
        return Result(event=event, content=weights, into=task.into)


def _sha256(content: bytes | bytearray | memoryview) -> bytes:
    return hashlib.sha256(content).digest()
