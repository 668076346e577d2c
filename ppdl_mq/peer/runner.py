"""One peer in one trial: drives the machine over the transport, with the journal and the worker.

The one loop: publish what is due, take what has come, journal it, acknowledge it, let the machine step, carry out
what it asks for.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ppdl_mq.config import limits
from ppdl_mq.config.differences import differences
from ppdl_mq.config.manifest import Manifest
from ppdl_mq.crypto.agreement import new_secret
from ppdl_mq.crypto.identity import Identity
from ppdl_mq.errors import Equivocation, Interrupted, ManifestMismatch, PpdlError, RelayLost, RemoteError
from ppdl_mq.peer.blobs import Blobs
from ppdl_mq.peer.fetcher import Fetcher
from ppdl_mq.peer.inputs import Delivered, Input, Inputs, LinkDown, StopAsked, TrainingFailed, TurnTrained
from ppdl_mq.peer.intake import Arrived, Intake
from ppdl_mq.peer.journal import Journal
from ppdl_mq.peer.link import Link
from ppdl_mq.peer.outbox import Letter, Outbox
from ppdl_mq.peer.progress import Progress
from ppdl_mq.peer.quarantine import Quarantine
from ppdl_mq.peer.trainer import Trainer
from ppdl_mq.peer.weights import Weights
from ppdl_mq.protocol.effects import (
    BuildInitial,
    Effect,
    EmptyWeights,
    Fetch,
    Forget,
    KeepModel,
    PublishAgain,
    Release,
    Send,
    Train,
    Withdraw,
)
from ppdl_mq.protocol.events import Event, Overdue, Received, Started, Trained
from ppdl_mq.protocol.keyring import Keyring
from ppdl_mq.protocol.sequential import NotYet, SequentialMachine
from ppdl_mq.protocol.state import Phase, State
from ppdl_mq.protocol.terms import WEIGHTS, Terms
from ppdl_mq.training.saving import save_model
from ppdl_mq.training.worker import Worker
from ppdl_mq.transport.base import Transport
from ppdl_mq.wire.header import Header
from ppdl_mq.wire.trial_id import manifest_from_bytes

log = logging.getLogger("ppdl_mq.peer")

_LOOP_S = 1.0
MODEL_NAME = "model.safetensors"


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
        self.machine = SequentialMachine(terms)
        self.journal = journal
        self.state = _stored_state(journal)
        chunk_bytes = manifest.relay.chunk_bytes
        blobs, keyring = Blobs(journal), Keyring(terms, identity)
        self.weights = Weights(journal, blobs)
        self.outbox = Outbox(terms, keyring, journal, blobs, self.weights, chunk_bytes=chunk_bytes)
        self.intake = Intake(
            terms, keyring, journal, blobs, weights_bytes=worker.layout.total_bytes, chunk_bytes=chunk_bytes
        )
        self.quarantine = Quarantine(journal)
        self.progress = Progress(journal.folder)
        self._inputs: Inputs = queue.SimpleQueue()
        self._stopped = threading.Event()
        self.trainer = Trainer(worker, sample_seed, self._inputs)
        self.fetcher = Fetcher(transport, self.intake, self.quarantine)
        self.link = Link(
            transport,
            inbox=terms.me,
            shared=(WEIGHTS,) if terms.uses_trial_key else (),
            inputs=self._inputs,
            wait_s=broker_wait_s,
            stopped=self._stopped,
            on_wait=lambda why: log.warning("%s Waiting for the relay.", why),
        )
        self._first_patience_s = self._patience_s = patience_s
        self._news_at = self._phase_since = time.monotonic()
        self._mismatches: dict[str, tuple[str, ...]] = {}
        self._received = 0

    @property
    def model_path(self) -> Path:
        """Where the trial's result is written."""
        return self.journal.folder / MODEL_NAME

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
            if self.state.phase is not Phase.ENDED:
                self.link.up()
                self._begin()
                while not self._go_round():
                    pass
                self._leave()
            elif not self.model_path.exists():
                self._carry_out_all(self.machine.unfinished(self.state))
            return self.model_path
        finally:
            self._stopped.set()
            self.trainer.stop()
            self.link.close()
            self.intake.close()
            self._show(now=True)

    # --- the loop ------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self.state.phase is Phase.NEW:
            self._post(Started(session_secret=new_secret(), contribution=new_secret()))
        else:
            log.info("Resuming while %s.", self.state.phase.value)
            self._carry_out_all(self.machine.unfinished(self.state))
            self._work()

    def _go_round(self) -> bool:
        """Go round the loop once; return whether the trial has ended."""
        try:
            self._publish()
            if self.fetcher.sweep(self.state):
                self._work()
            self._show()
            if self.state.phase is Phase.ENDED:
                return True
            self._take(self._next_inputs())
            self._ask_again_if_overdue()
            self._refuse_if_manifests_differ()
        except RelayLost as error:
            self._relink(error)
        return False

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
        deliveries = [each.delivery for each in inputs if isinstance(each, Delivered) and self.link.is_current(each)]
        for each in inputs:  # what must not be lost comes first: deliveries would come again
            match each:
                case TurnTrained():
                    self._note_trained(each)
                case TrainingFailed(error=error):
                    raise error
                case StopAsked():
                    raise Interrupted("Stopped; run the peer again and it goes on where it was.")
        for delivery in deliveries:
            self._received += 1
            try:
                if self.intake.take(self.state, delivery.body):
                    self._news_at = time.monotonic()
            except RemoteError as error:
                self._refuse(error, delivery.body)
        if deliveries:
            self.intake.flush()
            self.link.transport.ack(deliveries)
            self._work()
        for each in inputs:
            if isinstance(each, LinkDown) and each.connection == self.link.connection:
                raise each.error

    def _publish(self) -> None:
        while letters := self.outbox.due():  # what is sent may call for more; what has no inbox yet is no longer due
            for letter in letters:
                self._publish_one(letter)

    def _publish_one(self, letter: Letter) -> None:
        if self.outbox.publish(self.link.transport, letter):
            self._post(letter.sent, also=lambda _: self.outbox.mark_sent(letter))

    def _relink(self, error: RelayLost) -> None:
        log.warning("%s Reconnecting.", error.message)
        self.fetcher.forget_deliveries()
        self.link.again()
        log.info("Connected again.")

    # --- messages ------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        """Offer complete messages to the machine until none of them is of use any more."""
        while True:
            before = self.state
            for row, header, blob in self.intake.complete():
                self._offer(row, header, blob)
            if self.state.session_id and not before.session_id:
                self._unpark()
            elif self.state == before:
                return

    def _offer(self, row: int, header: Header, blob: int) -> None:
        try:
            arrived = self.intake.read(row, header, blob)
            opened = arrived.opened
            if header.trial_id != self.terms.trial_id:
                self._compare_manifests(arrived)
                with self.journal.transaction():
                    self.intake.settle(row, header)
                return
            received = Received(
                sender=header.sender, turn=header.turn, message=opened.message, blob_digest=opened.blob_digest
            )
            self._post(received, also=lambda state: self._settle(arrived, state))
            self._mismatches.pop(header.sender, None)
        except NotYet:
            return
        except RemoteError as error:
            with self.journal.transaction():
                self._refuse(error, header.encode())
                self.intake.settle(row, header, remember=False)
            if isinstance(error, Equivocation | ManifestMismatch):
                raise

    def _settle(self, arrived: Arrived, state: State) -> None:
        """Drop a message that the machine took; its weights, if it took these too, are kept."""
        opened = arrived.opened
        keeps = opened.blob_bytes > 0 and state != self.state and not self.weights.has(opened.header.turn)
        if keeps:
            self.weights.adopt(opened.header.turn, arrived.blob, start=opened.blob_offset, size_bytes=opened.blob_bytes)
        self.intake.settle(arrived.row, opened.header, keep_blob=keeps)

    def _unpark(self) -> None:
        for part in self.intake.unpark():
            try:
                self.intake.take(self.state, part)
            except RemoteError as error:
                self._refuse(error, part)
        self.intake.flush()

    def _refuse(self, error: RemoteError, message: bytes) -> None:
        log.warning("Refused a message: %s", error)
        self.quarantine.add(error, message)

    def _compare_manifests(self, arrived: Arrived) -> None:
        """Note in which fields a peer's manifest differs, until its matching HELLO arrives."""
        header, hello = arrived.opened.header, arrived.opened.message
        if header.sender in self.state.session_keys:
            return  # its matching HELLO is here: this one is of the past
        theirs = manifest_from_bytes(hello.manifest)  # type: ignore[union-attr]  # intake lets only HELLOs through
        fields = differences(self.manifest.as_data(), theirs.as_data())
        self._mismatches[header.sender] = fields
        log.warning("%s", ManifestMismatch(header.sender, fields).message)

    def _refuse_if_manifests_differ(self) -> None:
        if time.monotonic() - self._news_at < limits.MISMATCH_GRACE_S:
            return
        for name, fields in self._mismatches.items():
            if fields != ("nonce",):  # the nonce alone: left over from another run of this trial
                raise ManifestMismatch(name, fields)

    def _ask_again_if_overdue(self) -> None:
        if time.monotonic() - self._news_at < self._patience_s or not self.machine.waiting_for(self.state):
            return
        names = ", ".join(self.machine.waiting_for(self.state))
        log.info("Nothing has come for %d s; asking %s again.", self._patience_s, names)
        patience_s = min(limits.PATIENCE_LAST_S, self._patience_s * 2)
        self.intake.forget_turns(self.state.turn)
        self.fetcher.start_over()
        self._post(Overdue())
        self._news_at, self._patience_s = time.monotonic(), patience_s

    def _note_trained(self, trained: TurnTrained) -> None:
        self._post(
            Trained(turn=trained.turn, digest=trained.digest),
            also=lambda _: self.weights.put(trained.turn, trained.result.weights),
        )
        facts: dict[str, Any] = {"turn": trained.turn, "digest": trained.digest.hex()}
        if trained.turn:
            result = trained.result
            facts |= {"epoch": self.terms.schedule.turn(trained.turn).epoch, "steps": result.steps}
            facts |= {"samples": result.samples, "loss": result.loss, "seconds": round(trained.seconds, 6)}
        if trained.evaluation:
            facts |= {"holdout_loss": trained.evaluation.loss, "holdout_accuracy": trained.evaluation.accuracy}
        self.progress.note("turn", **facts)
        log.info("Turn %d of %d is done.", trained.turn, self.terms.schedule.turns)

    # --- the machine ---------------------------------------------------------------------------------------------

    def _post(self, event: Event, *, also: Callable[[State], None] | None = None) -> None:
        """Step the machine; journal the new state, what `also` does, and what is to be sent, all or nothing."""
        with self.journal.transaction():
            state, effects = self.machine.step(self.state, event)
            if also is not None:
                also(state)
            for effect in effects:
                self._journal_effect(state, effect)
            if state != self.state:
                self.journal.keep_secret_fact("state", state.as_data())
        if state.phase is not self.state.phase:
            self._phase_since = time.monotonic()
            log.debug("Now %s.", state.phase.value)
        if state != self.state:
            self._news_at, self._patience_s = time.monotonic(), self._first_patience_s
        self.state = state
        self._carry_out_all(effects)

    def _journal_effect(self, state: State, effect: Effect) -> None:
        match effect:
            case Send():
                self.outbox.add(state, effect)
            case Forget(before_turn=turn):
                self.outbox.forget(turn)
                self.weights.forget(turn)
                self.intake.forget_turns(turn)
            case PublishAgain(reader=reader):
                self.outbox.resend(reader)
            case Withdraw(reader=reader):
                self.outbox.withdraw(reader)

    def _carry_out_all(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
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

    def _keep_model(self, turn: int) -> None:
        if self.model_path.exists():
            return
        with self.weights.view(turn) as weights:
            facts = {"trial": self.manifest.name, "trial_id": self.terms.trial_id.hex(), "turn": turn}
            # One entry: safetensors writes several in any order, and equal models should be equal files.
            save_model(self.model_path, self.worker.layout, weights, {"ppdl-mq": json.dumps(facts, sort_keys=True)})
            evaluation = self.worker.evaluate(weights)
        self.progress.note(
            "final",
            turn=turn,
            digest=self.state.chain.digest_of(turn).hex(),
            holdout_loss=evaluation.loss,
            holdout_accuracy=evaluation.accuracy,
            holdout_samples=evaluation.samples,
        )

    def _leave(self) -> None:
        """Clean up at the relay. The trial has ended: what cannot be removed now is an administrator's to remove."""
        try:
            if self.terms.me == self.terms.finisher and self.terms.uses_trial_key:
                self.link.transport.delete(WEIGHTS)
            self.link.transport.delete(self.terms.me)
        except PpdlError as error:
            log.warning("The trial has ended, but its queues remain at the relay: %s", error)

    def _show(self, *, now: bool = False) -> None:
        schedule, machine = self.terms.schedule, self.machine
        without_inbox = self.outbox.without_inbox()
        self.progress.show(
            {
                "trial": self.manifest.name,
                "trial_id": self.terms.trial_id.hex(),
                "peer": self.terms.me,
                "phase": self.state.phase.value,
                "phase_s": round(time.monotonic() - self._phase_since),
                "turn": self.state.turn,
                "turns": schedule.turns,
                "waiting_for": list(machine.waiting_for(self.state)),
                "not_there_yet": list(without_inbox),
                "received": self._received,
                "published_messages": self.outbox.published_messages,
                "published_bytes": self.outbox.published_bytes,
                "reconnects": self.link.reconnects,
                "refused": self.quarantine.counts(),
            },
            now=now,
        )


def _stored_state(journal: Journal) -> State:
    data = journal.secret_fact("state")
    return State() if data is None else State.from_data(data)
