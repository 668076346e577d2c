"""One peer in one trial: the relay, the journal, the worker and the machine, brought together by one loop.

Publish what is due, take what has come, journal it, acknowledge it, let the machine step, carry out what it asks for.
What differs between the protocols is in their hands.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path
from typing import Final

from ppdl_mq.config import limits
from ppdl_mq.crypto.agreement import new_secret
from ppdl_mq.errors import IllegalEvent, Interrupted, PpdlError, RelayError, RelayLost, RelayUnreachable
from ppdl_mq.peer.assembly import Assembly
from ppdl_mq.peer.evidence import refuse_after_equivocation
from ppdl_mq.peer.inputs import Delivered, Input, LinkDown, StopAsked, TrainingFailed, Worked
from ppdl_mq.peer.link import STOPPED
from ppdl_mq.peer.orders import done, take_orders
from ppdl_mq.peer.outbox import Fate, Letter
from ppdl_mq.protocol.events import Decided, LeaveAsked, Started
from ppdl_mq.protocol.phases import Phase

log = logging.getLogger("ppdl_mq.peer")

_LOOP_S: Final = 1.0
_LEFT_FACT: Final = "left the relay"
_OVER: Final = (Phase.ENDED, Phase.LEFT, Phase.ENDED_EARLY)


class Runner(Assembly):
    """Runs one peer until the trial has ended; its parts are those of an `Assembly`."""

    def stop(self) -> None:
        """Ask the peer to stop soon; may be called from another thread, not from a signal handler: it takes locks."""
        self._stopped.set()
        self._inputs.put(StopAsked())
        threading.Thread(target=self._wake, name="waker", daemon=True).start()

    def _wake(self) -> None:
        """Hang up where the loop waits for a relay that takes nothing, its memory or disk being full."""
        if not self._has_ended.wait(limits.STOP_S):
            self.link.transport.close()

    def run(self) -> Path:
        """Take part until the trial has ended; return the path of the model.

        Raises:
            Interrupted: `stop` was called; a later run goes on.
            TooFewPeers: the trial has ended before its time.
            PpdlError: what keeps this peer from going on.
        """
        self._heartbeat.beat("beginning")
        try:
            if self.state.phase in _OVER:
                log.info("This trial has ended already.")
            refuse_after_equivocation(self.journal)
            if self._is_over():
                self.driver.resume()
            else:
                self.patience.has_lost_queue = self.link.up()
                self._begin()
                while not self._go_round():
                    pass
            if self.journal.fact(_LEFT_FACT) is None:
                self._leave()
            self.hands.check_end()
            return self.model_path
        except Interrupted:
            self.trainer.stop()
            self._keep_results()  # a job that failed may have failed because it was stopped
            raise
        except sqlite3.Error as fault:  # of a read; the journal's transactions say so themselves
            raise self.journal.damaged(fault) from None
        finally:
            self._stopped.set()
            self._has_ended.set()
            self.trainer.stop()
            self.link.close()
            self.intake.close()
            self._heartbeat.end()
            with contextlib.suppress(sqlite3.Error, PpdlError):  # what ended the run is to be told, not this
                self.facts.show(now=True)

    def _is_over(self) -> bool:
        """Tell whether nothing is left to say or to hear."""
        return self.state.phase in _OVER and not self.outbox.unsent_to()

    # --- the loop ------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self.state.phase is Phase.NEW:
            self.driver.post(Started(session_secret=new_secret(), contribution=new_secret()))
        else:
            log.info("Resuming while %s.", self.state.phase.value)
            self.slots.check(self._pulse)
            self.driver.resume()

    def _go_round(self) -> bool:
        """Go round the loop once; return whether the trial has ended."""
        try:
            self.driver.catch_up()
            if self.link.was_cut():
                self.hands.unheard()
            self.hands.before_round()
            self.mailroom.work()
            self._take_orders()
            self.patience.ask_for_what_was_lost()
            self._publish()
            self.facts.show()
            self.facts.look_at_inbox()
            if self._is_over():
                return True
            self._take(self._next_inputs())
            self.patience.ask_if_overdue()
            self.mailroom.check_manifests()
            self.link.watch()
        except RelayError as error:  # also Unroutable: somebody has removed a queue that all share
            if self._stopped.is_set():  # it may be `stop` that hung up
                raise Interrupted(STOPPED) from None
            self.hands.reconnecting()
            self.patience.has_lost_queue |= self.link.again(
                error, received=self.facts.received, published=self.outbox.published_messages
            )
        return False

    def _meanwhile(self) -> None:
        """Journal what this peer has done itself, and what people decided: the relay may be away for days.

        Raises:
            TrainingError: a job has failed.
        """
        if (error := self._keep_results()) is not None:
            raise error
        with self.driver.held_back():
            self._take_orders()

    def _keep_results(self) -> PpdlError | None:
        """Journal the results that are there, and return what a job failed with; all else comes again."""
        with self.driver.held_back():
            while True:
                try:
                    each = self._inputs.get_nowait()
                except queue.Empty:
                    return None
                match each:
                    case Worked(result=result):
                        self.hands.note(result)
                    case TrainingFailed(error=error) if self.hands.wants_results:
                        return error

    def _publish(self) -> None:
        refused: set[str] = set()  # they are tried again when the loop has gone round, lest they hold it up for good
        while letters := self.outbox.due(but_for=refused):  # what is sent may call for more
            fates = self.outbox.publish_all(self.link.transport, self.state, letters)
            pairs = list(zip(letters, fates, strict=True))
            refused |= {letter.recipient for letter, fate in pairs if fate in (Fate.NO_INBOX, Fate.LATER)}
            self._note_sent([pair for pair in pairs if self._is_settled(*pair)])
            missing = {letter.recipient for letter, fate in pairs if fate is Fate.NO_INBOX}
            if missing.intersection(self.hands.shared_addresses()):
                log.warning("The queue of the weights is gone from the relay. Seeing to it that there is one.")
                self.link.renew()

    def _is_settled(self, letter: Letter, fate: Fate) -> bool:
        """Tell whether the machine is to be told that a letter was sent."""
        if fate is not Fate.NO_INBOX:
            return fate is Fate.CONFIRMED
        # Who had an inbox and has none any more needs nothing: all keep theirs until they have all they need. But a
        # message comes back, too, from an inbox whose binding is gone, or that is on a node which is down.
        may_be_gone = self.driver.machine.may_be_gone(self.state, letter.kind, letter.recipient)
        if not (may_be_gone or self.state.phase is Phase.ENDED):
            return False
        try:
            return self.link.is_gone(letter.recipient)
        except RelayLost:  # what the relay has confirmed of the others is noted all the same; this one is tried again
            return False

    def _note_sent(self, settled: list[tuple[Letter, Fate]]) -> None:
        """Tell the machine what the relay has confirmed, or nobody needs any more, in one transaction."""
        if not settled:
            return
        with self.driver.batch():
            for letter, fate in settled:
                sent = replace(letter.sent, is_gone=fate is Fate.NO_INBOX)
                self.driver.post(sent, also=lambda _, __, letter=letter: self.outbox.mark_sent(letter))  # type: ignore[misc]

    def _take_orders(self) -> None:
        """Take up what people at this organisation decided."""
        for order in take_orders(self.journal.folder):
            event = LeaveAsked() if order.drop is None else Decided(name=order.drop)
            try:
                self.driver.post(event)
            except IllegalEvent:
                why = f"{self.terms.protocol} cannot go on without a peer while {self.state.phase.value}"
                log.warning(
                    "An order to %s is passed over: %s.",
                    "leave" if order.drop is None else f"drop {order.drop}",
                    "the trial has ended" if self.state.phase in _OVER else why,
                )
            done(order)

    def _next_inputs(self) -> list[Input]:
        """Wait for an input; return it with all that are there already, up to a batch."""
        delays = [_LOOP_S, self.outbox.next_due_s(), self.hands.next_round_s()]
        inputs: list[Input] = []
        size_bytes = 0
        try:
            inputs.append(self._inputs.get(timeout=min(delay for delay in delays if delay is not None)))
            while len(inputs) < limits.RECEIVE_BATCH_PARTS and size_bytes < limits.RECEIVE_BATCH_BYTES:
                newest = inputs[-1]
                size_bytes += len(newest.delivery.body) if isinstance(newest, Delivered) else 0
                inputs.append(self._inputs.get_nowait())
        except queue.Empty:
            pass
        return inputs

    def _take(self, inputs: list[Input]) -> None:
        for each in inputs:  # results of our own first: they would be lost, deliveries would come again
            if isinstance(each, Worked):
                self.hands.note(each.result)
        for each in inputs:
            match each:
                case TrainingFailed(error=error) if self.hands.wants_results:
                    raise error
                case StopAsked():
                    raise Interrupted(STOPPED)
        deliveries = [each.delivery for each in inputs if isinstance(each, Delivered) and self.link.is_current(each)]
        if deliveries:
            self.facts.received += len(deliveries)
            self.facts.received_bytes += sum(len(each.body) for each in deliveries)
            self.mailroom.take(delivery.body for delivery in deliveries)
            self.link.transport.ack(deliveries)
            self.mailroom.work()
        for each in inputs:
            if isinstance(each, LinkDown) and each.connection == self.link.connection:
                raise each.error

    def _leave(self) -> None:
        """Clean up at the relay. The trial has ended: what the relay refuses is its administrator's to remove."""
        try:
            self.link.leave(self._remove_queues)
        except (RelayLost, RelayUnreachable) as error:
            log.warning("The trial has ended, but its queues remain at the relay until this is run again: %s", error)
            return
        except RelayError as error:
            log.warning("The trial has ended, but its queues remain at the relay: %s", error)
        self.journal.keep_fact(_LEFT_FACT, b"")

    def _remove_queues(self) -> None:
        refused: RelayError | None = None
        try:
            self.hands.leave()
        except (RelayLost, RelayUnreachable):
            raise
        except RelayError as error:
            # What is nobody's inbox may be its administrator's to remove; ours goes all the same.
            refused = error
        self.link.transport.delete(self.terms.me)
        if refused is not None:
            raise refused
