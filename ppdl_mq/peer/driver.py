"""Drives the machine: one step, and everything that it changes in the journal, is one transaction."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from ppdl_mq.peer.intake import Intake
from ppdl_mq.peer.journal import Journal
from ppdl_mq.peer.outbox import Outbox
from ppdl_mq.peer.weights import Weights
from ppdl_mq.protocol.effects import Effect, Forget, PublishAgain, Send, Withdraw
from ppdl_mq.protocol.events import Event
from ppdl_mq.protocol.sequential import SequentialMachine
from ppdl_mq.protocol.state import State

log = logging.getLogger("ppdl_mq.peer")

_STATE_FACT = "state"


class Driver:
    """The machine with its memory.

    Args:
        machine: of this peer.
        journal: where its state is kept.
        outbox: takes what it sends.
        weights: of the turns.
        intake: is told which turns are of the past.
        carry_out: does what reaches beyond the journal; called after the step is on disk.
    """

    def __init__(
        self,
        machine: SequentialMachine,
        journal: Journal,
        outbox: Outbox,
        weights: Weights,
        intake: Intake,
        carry_out: Callable[[Effect], None],
    ) -> None:
        self.machine = machine
        self._journal = journal
        self._outbox = outbox
        self._weights = weights
        self._intake = intake
        self._carry_out = carry_out
        self.state = _stored_state(journal)
        self.moved_at = self.phase_since = time.monotonic()

    def post(self, event: Event, *, also: Callable[[State], None] | None = None) -> None:
        """Step the machine; journal the new state, what `also` does, and what is to be sent, all or nothing.

        Raises:
            RemoteError, IllegalEvent: of the machine; nothing is changed.
        """
        before = self.state
        with self._journal.transaction():
            state, effects = self.machine.step(before, event)
            if also is not None:
                also(state)
            for effect in effects:
                self._journal_effect(state, effect)
            if state != before:
                self._journal.keep_secret_fact(_STATE_FACT, state.as_data())
        self.state = state
        if state != before:
            self.moved_at = time.monotonic()
        if state.phase is not before.phase:
            self.phase_since = self.moved_at
            log.debug("Now %s.", state.phase.value)
        for effect in effects:
            self._carry_out(effect)

    def resume(self) -> None:
        """Begin anew what was under way when the journal was left."""
        for effect in self.machine.unfinished(self.state):
            self._carry_out(effect)

    def waiting_for(self) -> tuple[str, ...]:
        """Return the names of the peers without whom this one cannot go on."""
        return self.machine.waiting_for(self.state)

    def _journal_effect(self, state: State, effect: Effect) -> None:
        match effect:
            case Send():
                self._outbox.add(state, effect)
            case Forget(before_turn=turn):
                self._outbox.forget(turn)
                self._weights.forget(turn)
                self._intake.forget_turns(turn)
            case PublishAgain(reader=reader):
                self._outbox.resend(reader)
            case Withdraw(reader=reader):
                self._outbox.withdraw(reader)


def _stored_state(journal: Journal) -> State:
    data = journal.secret_fact(_STATE_FACT)
    return State() if data is None else State.from_data(data)
