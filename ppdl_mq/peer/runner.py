"""One peer in one trial: the relay, the journal, the worker and the machine, brought together by one loop.

Publish what is due, take what has come, journal it, acknowledge it, let the machine step, carry out what it asks for.
"""

from __future__ import annotations

import json
import logging
import queue
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any, Final

from ppdl_mq.config import limits
from ppdl_mq.config.manifest import Manifest
from ppdl_mq.crypto.agreement import new_secret
from ppdl_mq.crypto.identity import Identity
from ppdl_mq.errors import Interrupted, PpdlError, RelayLost, Unroutable
from ppdl_mq.numeric.flatten import check_finite
from ppdl_mq.peer.blobs import Blobs
from ppdl_mq.peer.driver import Driver
from ppdl_mq.peer.evidence import refuse_after_equivocation
from ppdl_mq.peer.fetcher import Fetcher
from ppdl_mq.peer.inputs import Delivered, Input, Inputs, LinkDown, StopAsked, TrainingFailed, TurnTrained
from ppdl_mq.peer.intake import Intake
from ppdl_mq.peer.journal import Journal
from ppdl_mq.peer.link import Link
from ppdl_mq.peer.mailroom import Mailroom
from ppdl_mq.peer.outbox import Letter, Outbox
from ppdl_mq.peer.progress import Progress
from ppdl_mq.peer.quarantine import Quarantine
from ppdl_mq.peer.trainer import Trainer
from ppdl_mq.peer.weights import Weights
from ppdl_mq.protocol.effects import BuildInitial, Effect, EmptyWeights, Fetch, KeepModel, Release, Train
from ppdl_mq.protocol.events import Overdue, Started, Trained
from ppdl_mq.protocol.keyring import Keyring
from ppdl_mq.protocol.sequential import SequentialMachine
from ppdl_mq.protocol.state import Phase, State
from ppdl_mq.protocol.terms import WEIGHTS, Terms
from ppdl_mq.training.saving import save_model
from ppdl_mq.training.worker import Worker
from ppdl_mq.transport.base import Transport
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.trial_id import short_id

log = logging.getLogger("ppdl_mq.peer")

MODEL_NAME: Final = "model.safetensors"
_LOOP_S: Final = 1.0
_LEFT_FACT: Final = "left the relay"


class Runner:
    """Runs one peer until the trial has ended.

    Args:
        terms: of the trial.
        manifest: of the trial.
        identity: this peer's own.
        journal: open; the caller closes it.
        worker: trains.
        sample_seed: the peer's secret, 32 bytes.
        transport: to the relay, not yet connected.
        broker_wait_s: how long to wait for a relay that does not answer at the start.
        patience_s: how long to wait for a message before asking for it again, the first time.
    """

    def __init__(
        self,
        terms: Terms,
        manifest: Manifest,
        identity: Identity,
        journal: Journal,
        worker: Worker,
        sample_seed: bytes,
        transport: Transport,
        *,
        broker_wait_s: float = limits.BROKER_WAIT_S,
        patience_s: float = limits.PATIENCE_FIRST_S,
    ) -> None:
        self.terms = terms
        self.manifest = manifest
        self.worker = worker
        self.journal = journal
        chunk_bytes = manifest.relay.chunk_bytes
        blobs, keyring = Blobs(journal), Keyring(terms, identity)
        self.weights = Weights(journal, blobs)
        self.quarantine = Quarantine(journal)
        self.outbox = Outbox(terms, keyring, journal, blobs, self.weights, chunk_bytes=chunk_bytes)
        self.intake = Intake(
            terms, keyring, journal, blobs, weights_bytes=worker.layout.total_bytes, chunk_bytes=chunk_bytes
        )
        machine = SequentialMachine(terms)
        self.driver = Driver(machine, journal, self.outbox, self.weights, self.intake, self._carry_out)
        self.mailroom = Mailroom(
            manifest,
            self.driver,
            self.intake,
            journal,
            self.weights,
            self.quarantine,
            check_weights=lambda weights: check_finite(weights, worker.layout),
            resend_every_s=patience_s / 2,
        )
        self.fetcher = Fetcher(transport, self.intake, self.quarantine)
        self._inputs: Inputs = queue.SimpleQueue()
        self._stopped = threading.Event()
        self.trainer = Trainer(worker, sample_seed, self._inputs)
        self.link = Link(
            transport,
            inbox=terms.me,
            shared=self._shared_addresses,
            inputs=self._inputs,
            resumes=self.state.phase is not Phase.NEW,
            wait_s=broker_wait_s,
            stopped=self._stopped,
            on_wait=lambda why: log.warning("%s Waiting for the relay.", why),
        )
        self.progress = Progress(journal.folder)
        self._first_patience_s = self._patience_s = patience_s
        self._asked_at = time.monotonic()
        self._received = 0
        self._said = ""

    @property
    def state(self) -> State:
        """Where the machine stands."""
        return self.driver.state

    @property
    def model_path(self) -> Path:
        """Where the trial's result is written."""
        return self.journal.folder / MODEL_NAME

    def _shared_addresses(self) -> tuple[str, ...]:
        """Return what to declare beside the inbox; in the end `weights` may be gone already, and for good."""
        is_over = self.state.phase in (Phase.ANSWERING_FINAL, Phase.ENDED)
        return (WEIGHTS,) if self.terms.uses_trial_key and not is_over else ()

    def stop(self) -> None:
        """Ask the peer to stop soon; may be called from a signal handler or another thread."""
        self._stopped.set()
        self._inputs.put(StopAsked())

    def run(self) -> Path:
        """Take part until the trial has ended; return the path of the model.

        Raises:
            Interrupted: `stop` was called; a later run goes on.
            PpdlError: what keeps this peer from going on.
        """
        try:
            if self.state.phase is Phase.ENDED:
                log.info("This trial has ended already.")
            refuse_after_equivocation(self.journal)
            if self.journal.fact(_LEFT_FACT) is not None:
                self.driver.resume()
            else:
                self.link.up()
                self._begin()
                while not self._go_round():
                    pass
                self._leave()
            return self.model_path
        except sqlite3.Error as fault:  # of a read; the journal's transactions say so themselves
            raise self.journal.damaged(fault) from None
        finally:
            self._stopped.set()
            self.trainer.stop()
            self.link.close()
            self.intake.close()
            self._show(now=True)

    # --- the loop ------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self.state.phase is Phase.NEW:
            self.driver.post(Started(session_secret=new_secret(), contribution=new_secret()))
        else:
            log.info("Resuming while %s.", self.state.phase.value)
            self.driver.resume()

    def _go_round(self) -> bool:
        """Go round the loop once; return whether the trial has ended."""
        try:
            if self.fetcher.sweep(self.state):
                self.mailroom.heard()
            self.mailroom.work()
            self._publish()
            self._show()
            if self.state.phase is Phase.ENDED:
                return True
            self._take(self._next_inputs())
            self._ask_again_if_overdue()
            self.mailroom.check_manifests()
        except (RelayLost, Unroutable) as error:  # Unroutable: somebody has removed the queue of the weights
            log.warning("%s Reconnecting.", error.message)
            self.fetcher.forget_deliveries()
            self.link.again()
            log.info("Connected again.")
        return False

    def _publish(self) -> None:
        while letters := self.outbox.due():  # what is sent may call for more; what has no inbox yet is no longer due
            for letter in letters:
                self._publish_one(letter)

    def _publish_one(self, letter: Letter) -> None:
        is_sent = self.outbox.publish(self.link.transport, letter)
        # The last peer removes its inbox once it has every DONE: one that finds no inbox any more got there before.
        if is_sent or letter.kind is Kind.DONE:
            self.driver.post(letter.sent, also=lambda _: self.outbox.mark_sent(letter))

    def _next_inputs(self) -> list[Input]:
        """Wait for an input; return it with all that are there already, up to a batch."""
        delays = [_LOOP_S, self.outbox.next_due_s(), self.fetcher.next_sweep_s()]
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
            match each:
                case TurnTrained():
                    self._note_trained(each)
                case TrainingFailed(error=error):
                    raise error
                case StopAsked():
                    raise Interrupted("Stopped; run the peer again and it goes on where it was.")
        deliveries = [each.delivery for each in inputs if isinstance(each, Delivered) and self.link.is_current(each)]
        if deliveries:
            self._received += len(deliveries)
            self.mailroom.take(delivery.body for delivery in deliveries)
            self.link.transport.ack(deliveries)
            self.mailroom.work()
        for each in inputs:
            if isinstance(each, LinkDown) and each.connection == self.link.connection:
                raise each.error

    def _ask_again_if_overdue(self) -> None:
        waiting_for = self.driver.waiting_for()
        news_at = max(self.driver.moved_at, self.mailroom.last_at)
        if news_at > self._asked_at:
            self._patience_s = self._first_patience_s
        if not waiting_for or time.monotonic() - max(news_at, self._asked_at) < self._patience_s:
            return
        log.info("Nothing has come for %d s; asking %s again.", self._patience_s, ", ".join(waiting_for))
        self.intake.forget_turns(self.state.turn)
        self.fetcher.start_over()
        self.driver.post(Overdue())
        self._asked_at = time.monotonic()
        self._patience_s = min(limits.PATIENCE_LAST_S, self._patience_s * 2)

    def _leave(self) -> None:
        """Clean up at the relay. The trial has ended: what cannot be removed now is an administrator's to remove."""
        try:
            if self.terms.me == self.terms.finisher and self.terms.uses_trial_key:
                self.link.transport.delete(WEIGHTS)
            self.link.transport.delete(self.terms.me)
        except PpdlError as error:
            log.warning("The trial has ended, but its queues remain at the relay: %s", error)
        self.journal.keep_fact(_LEFT_FACT, b"")

    # --- what the machine asks for -------------------------------------------------------------------------------

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case BuildInitial():
                self.trainer.build_initial()
            case Train(turn=turn):
                last_of_epoch = turn.cycle == self.terms.schedule.turns_per_epoch - 1
                self.trainer.train(turn, self.weights.view(turn.number - 1), evaluate=last_of_epoch)
            case Fetch():
                self.fetcher.want(effect)
            case Release():
                self.fetcher.release()
            case EmptyWeights():
                self.link.transport.purge(WEIGHTS)
            case KeepModel(turn=turn):
                self._keep_model(turn)

    def _note_trained(self, trained: TurnTrained) -> None:
        facts: dict[str, Any] = {"turn": trained.turn, "digest": trained.digest.hex()}
        if trained.turn:
            result = trained.result
            facts |= {"epoch": self.terms.schedule.turn(trained.turn).epoch, "steps": result.steps}
            facts |= {"samples": result.samples, "loss": result.loss, "seconds": round(trained.seconds, 6)}
        if trained.evaluation:
            facts |= {"holdout_loss": trained.evaluation.loss, "holdout_accuracy": trained.evaluation.accuracy}
        self.progress.note("turn", **facts)
        log.info("Turn %d of %d is done.", trained.turn, self.terms.schedule.turns)
        self.driver.post(
            Trained(turn=trained.turn, digest=trained.digest),
            also=lambda _: self.weights.put(trained.turn, trained.result.weights),
        )

    def _keep_model(self, turn: int) -> None:
        if self.model_path.exists():
            return
        with self.weights.view(turn) as weights:
            facts = {"trial": self.manifest.name, "trial_id": self.terms.trial_id.hex(), "turn": turn}
            evaluation = self.worker.evaluate(weights)
            # One entry: safetensors writes several in any order, and equal models should be equal files.
            save_model(self.model_path, self.worker.layout, weights, {"ppdl-mq": json.dumps(facts, sort_keys=True)})
        self.progress.note(
            "final",
            turn=turn,
            digest=self.state.chain.digest_of(turn).hex(),
            holdout_loss=evaluation.loss,
            holdout_accuracy=evaluation.accuracy,
            holdout_samples=evaluation.samples,
        )

    # --- what people see -----------------------------------------------------------------------------------------

    def _show(self, *, now: bool = False) -> None:
        waiting_for, without_inbox = self.driver.waiting_for(), self.outbox.without_inbox()
        self._say(waiting_for, without_inbox)
        self.progress.show(
            {
                "trial": self.manifest.name,
                "trial_id": self.terms.trial_id.hex(),
                "peer": self.terms.me,
                "phase": self.state.phase.value,
                "phase_s": round(time.monotonic() - self.driver.phase_since),
                "turn": self.state.turn,
                "turns": self.terms.schedule.turns,
                "waiting_for": list(waiting_for),
                "not_there_yet": list(without_inbox),
                "received": self._received,
                "published_messages": self.outbox.published_messages,
                "published_bytes": self.outbox.published_bytes,
                "reconnects": self.link.reconnects,
                "refused": self.quarantine.counts(),
            },
            now=now,
        )

    def _say(self, waiting_for: tuple[str, ...], without_inbox: tuple[str, ...]) -> None:
        """Log once for whom the session waits; in the turns that follow waiting is the rule."""
        if self.state.phase not in (Phase.AWAITING_HELLOS, Phase.AWAITING_DONES) or not waiting_for:
            return
        absent = [f"{name} (has not opened its inbox)" if name in without_inbox else name for name in waiting_for]
        agreed = f"All need the same relay and the trial id {short_id(self.terms.trial_id)}."
        said = f"Waiting for {', '.join(absent)}. {agreed}"
        if said != self._said:
            self._said = said
            log.info("%s", said)
