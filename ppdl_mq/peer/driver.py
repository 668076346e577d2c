"""Drives the machine: one step, and everything that it changes in the journal, is all there or not at all."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from ppdl_mq.errors import JournalError
from ppdl_mq.peer.intake import Intake
from ppdl_mq.peer.journal import Journal
from ppdl_mq.peer.live import LiveMark, LiveSecrets
from ppdl_mq.peer.outbox import Outbox
from ppdl_mq.peer.slots import Slots
from ppdl_mq.peer.transcript import Transcript
from ppdl_mq.protocol.effects import (
    Discard,
    DiscardLocal,
    Effect,
    Forget,
    PublishAgain,
    PublishHeld,
    Record,
    Send,
    Withdraw,
)
from ppdl_mq.protocol.events import Event
from ppdl_mq.protocol.machine import Machine
from ppdl_mq.protocol.restoring import restored_state
from ppdl_mq.protocol.session import SessionState
from ppdl_mq.wire import canonical

log = logging.getLogger("ppdl_mq.peer")

Also = Callable[[SessionState, tuple[Effect, ...]], None]

_STATE_FACT: Final = "state"
_LIVE_FACT: Final = "live secrets"


def has_begun(journal: Journal) -> bool:
    """Tell whether an earlier process of this peer has begun the trial in this journal."""
    return journal.secret_fact(_LIVE_FACT) is not None


class Driver:
    """The machine with its memory.

    Args:
        machine: of this peer; its protocol does not matter here.
        journal: where its state is kept, but for ...
        live: ... its secrets, which must be erased in time.
        outbox: takes what it sends.
        slots: its byte strings.
        intake: is told which turns are of the past.
        transcript: takes what was signed.
        carry_out: does what reaches beyond the journal; called after the step is on disk, with every effect.

    Raises:
        JournalError: the journal and the live secrets do not belong together.
    """

    def __init__(
        self,
        machine: Machine[Any],
        journal: Journal,
        live: LiveSecrets,
        outbox: Outbox,
        slots: Slots,
        intake: Intake,
        transcript: Transcript,
        carry_out: Callable[[Effect], None],
    ) -> None:
        self.machine = machine
        self._journal = journal
        self._live = live
        self._outbox = outbox
        self._slots = slots
        self._intake = intake
        self._transcript = transcript
        self._carry_out = carry_out
        self._in_batch = False
        self._is_carrying = False
        self._posted: list[Effect] = []  # of the batch that is open
        self._pending: deque[Effect] = deque()  # of those on disk
        self._secrets_digest = b""
        self.state = self._stored_state()
        self._stored = self.state
        self.moves = 0
        self.moved_at = self.phase_since = time.monotonic()
        self._phase_seconds: dict[str, float] = {}  # of the phases that this process has left

    def post(self, event: Event, *, also: Also | None = None) -> None:
        """Step the machine; journal the new state, what `also` does, and what is to be sent, all or nothing.

        Args:
            event: for the machine.
            also: is given the new state and the effects, within the transaction and before they are journalled.

        Raises:
            RemoteError, IllegalEvent: of the machine; nothing is changed.
        """
        with self.batch():
            before = self.state
            with self._journal.savepoint():
                state, effects = self.machine.step(before, event)
                if also is not None:
                    also(state, effects)
                # The step that drops the session's keys may have last words, which they seal.
                has_keys = bool(state.pair_keys) or not before.pair_keys
                for effect in effects:
                    self._journal_effect(state if has_keys else before, effect)
            self._posted += effects
            self._move(before, state)

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Let several posts share one transaction; what reaches beyond the journal is carried out after it, in order.

        An exception that leaves the block undoes all of it. One that is caught inside, of a post, undoes that post.
        Batches nest; the outermost decides. `state` runs ahead of the disk inside, so tell nobody of it.
        """
        if self._in_batch:
            yield
            return
        before = self.state
        self._in_batch = True
        try:
            with self._journal.transaction():
                yield
                fresh = self._journal_state()
        except BaseException:
            self.state = before
            self._posted.clear()
            raise
        finally:
            self._in_batch = False
        self._stored = self.state
        if fresh is not None:
            mark, self._secrets_digest = fresh
            self._live.drop_others(mark)
        if any(isinstance(effect, Record) for effect in self._posted):
            self._transcript.flush()
        self._pending += self._posted
        self._posted.clear()
        self.catch_up()

    def catch_up(self) -> None:
        """Carry out what is on disk and not yet carried out; an error leaves what is behind it for the next call."""
        if self._is_carrying:  # an effect has posted an event: its turn comes, in order
            return
        self._is_carrying = True
        try:
            while self._pending:
                self._carry_out(self._pending.popleft())
        finally:
            self._is_carrying = False

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Only journal what is posted inside: what reaches beyond the journal waits for the next `catch_up`.

        For the time in which there is no relay. A process that ends before finds it again in its state.
        """
        was_carrying, self._is_carrying = self._is_carrying, True
        try:
            yield
        finally:
            self._is_carrying = was_carrying

    def record(self, records: tuple[object, ...]) -> None:
        """Add to the transcript what the machine refused to go on after. Call within a batch."""
        for each in records:
            assert isinstance(each, Record), "an Equivocation carries entries of the transcript"
            self._transcript.add(each)
            self._posted.append(each)

    def resume(self) -> None:
        """Begin anew what was under way when the journal was left."""
        self._transcript.flush()
        self._pending += self.machine.unfinished(self.state)
        self.catch_up()

    def waiting_for(self) -> tuple[str, ...]:
        """Return the names of the peers without whom this one cannot go on."""
        return self.machine.waiting_for(self.state)

    def seconds_by_phase(self) -> dict[str, float]:
        """Return how long this process has been in each phase, the present one included, by the phase's name."""
        present = self.state.phase.value
        seconds = self._phase_seconds.get(present, 0.0) + time.monotonic() - self.phase_since
        return {name: round(each, 3) for name, each in (self._phase_seconds | {present: seconds}).items()}

    def _move(self, before: SessionState, state: SessionState) -> None:
        self.state = state
        if state is before or state == before:
            return
        self.moves += 1
        self.moved_at = time.monotonic()
        if state.phase is not before.phase:
            left = before.phase.value
            self._phase_seconds[left] = self._phase_seconds.get(left, 0.0) + self.moved_at - self.phase_since
            self.phase_since = self.moved_at
            log.debug("Now %s.", state.phase.value)

    def _journal_effect(self, state: SessionState, effect: Effect) -> None:
        match effect:
            case Send():
                self._outbox.add(state, effect)
            case Forget(before_turn=turn, keep_for=readers):
                self._outbox.forget(turn, keep_for=readers)
                self._slots.forget(turn)
                self._intake.forget_turns(turn)
                self._intake.forget_seen(turn)
            case Discard(step=step, attempt=attempt):
                self._slots.discard(step, attempt)
                if attempt is not None:
                    self._intake.forget_attempts(step, attempt + 1)
            case DiscardLocal(step=step):
                self._slots.discard_local(step)
            case PublishAgain(reader=reader):
                self._outbox.resend(reader)
            case PublishHeld(reader=reader, turn=turn, ordinals=ordinals):
                self._outbox.let_go(reader, turn, ordinals)
            case Withdraw(reader=reader):
                self._outbox.withdraw(reader)
            case Record():
                self._transcript.add(effect)

    def _journal_state(self) -> tuple[LiveMark, bytes] | None:
        """Keep the state; return mark and digest of its secrets where they changed. Called last in a transaction."""
        if self.state is self._stored or self.state == self._stored:
            return None
        data = self.state.as_data()
        secrets = data.pop("secrets")
        self._journal.keep_secret_fact(_STATE_FACT, data)
        digest = _digest(secrets)
        if digest == self._secrets_digest:
            return None
        mark = self._live.write(secrets)  # on disk before the commit that names it, and beside the earlier one
        self._journal.keep_secret_fact(_LIVE_FACT, mark.as_data())
        return mark, digest

    def _stored_state(self) -> SessionState:
        noted = self._journal.secret_fact(_LIVE_FACT)
        try:
            mark = None if noted is None else LiveMark.from_data(noted)
        except TypeError:  # of another version of this program
            raise JournalError(
                f"The journal in {self._journal.folder} names its live secrets in another form."
            ) from None
        secrets = self._live.load(mark)
        data = self._journal.secret_fact(_STATE_FACT)
        if (data is None) is not (secrets is None):  # they are journalled together
            raise JournalError(
                f"The journal in {self._journal.folder} has lost a part of its state.",
                hint="Keep the folder for inspection and start a renewed trial.",
            )
        if data is None or secrets is None:
            initial: SessionState = self.machine.initial()
            return initial
        self._secrets_digest = _digest(secrets)
        restored: SessionState = restored_state(self.machine, data | {"secrets": secrets})
        return restored


def _digest(secrets: dict[str, Any]) -> bytes:
    """Tell apart what is kept, without keeping it a second time."""
    return hashlib.sha256(canonical.encode(secrets)).digest()
