"""The parts of one peer, put together: what each of them is given, and whom it may call."""

from __future__ import annotations

import queue
import threading
from pathlib import Path

from ppdl_mq.config import limits
from ppdl_mq.config.manifest import Manifest
from ppdl_mq.crypto.identity import Identity
from ppdl_mq.errors import Interrupted
from ppdl_mq.numeric.flatten import check_finite
from ppdl_mq.peer.blobs import Blobs
from ppdl_mq.peer.driver import Driver
from ppdl_mq.peer.facts import Facts
from ppdl_mq.peer.hands import Tools
from ppdl_mq.peer.heartbeat import Heartbeat
from ppdl_mq.peer.inputs import Inputs
from ppdl_mq.peer.intake import Intake
from ppdl_mq.peer.journal import Journal
from ppdl_mq.peer.link import STOPPED, Link
from ppdl_mq.peer.live import LiveSecrets, live_key
from ppdl_mq.peer.mailroom import Mailroom
from ppdl_mq.peer.outbox import Outbox
from ppdl_mq.peer.patience import Patience
from ppdl_mq.peer.progress import Progress
from ppdl_mq.peer.protocols import hands_of, largest_blob_bytes, machine_of
from ppdl_mq.peer.quarantine import Quarantine
from ppdl_mq.peer.slots import Slots
from ppdl_mq.peer.spending import Spending
from ppdl_mq.peer.trainer import Trainer
from ppdl_mq.peer.transcript import Transcript
from ppdl_mq.protocol.keyring import Keyring
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.session import SessionState
from ppdl_mq.protocol.terms import Terms
from ppdl_mq.training.worker import Worker
from ppdl_mq.transport.base import Transport


class Assembly:
    """One peer in one trial: its parts, which know one another and nothing of the loop.

    Args:
        terms: of the trial.
        manifest: of the trial.
        identity: this peer's own.
        journal: open; the caller closes it.
        worker: trains.
        sample_seed: the peer's secret, 32 bytes.
        transport: to the relay, not yet connected.
        broker_wait_s: how long to wait for a relay that does not answer at the start; see `Link`.
        patience_s: how long to wait for a message before asking for it again, the first time.
        audit_rate: in masked-average, how often this peer has a sum recomputed, 0 to 1.
        heartbeat: tells a service manager that the loop goes round.
        spending: of the privacy budget; None without one.
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
        broker_wait_s: float | None = None,
        patience_s: float = limits.PATIENCE_FIRST_S,
        audit_rate: float = 0.0,
        heartbeat: Heartbeat | None = None,
        spending: Spending | None = None,
    ) -> None:
        self.terms = terms
        self.manifest = manifest
        self.worker = worker
        self.journal = journal
        # First of all: it finds a journal that was put back, before anything in the folder is changed.
        transcript = Transcript(
            journal, me=terms.me, sign=identity.sign, trial_id=terms.trial_id, manifest=terms.manifest
        )
        chunk_bytes, weights_bytes = manifest.relay.chunk_bytes, worker.layout.total_bytes
        blobs, keyring = Blobs(journal), Keyring(terms, identity)
        self.slots = Slots(journal, blobs)
        self.quarantine = Quarantine(journal)
        self.outbox = Outbox(terms, keyring, journal, blobs, self.slots, chunk_bytes=chunk_bytes)
        self.intake = Intake(
            terms,
            keyring,
            journal,
            blobs,
            weights_bytes=weights_bytes,
            blob_bytes=largest_blob_bytes(terms, weights_bytes),
            chunk_bytes=chunk_bytes,
        )
        self.driver = Driver(
            machine_of(terms),
            journal,
            LiveSecrets(journal.folder, live_key(identity, terms.trial_id)),
            self.outbox,
            self.slots,
            self.intake,
            transcript,
            lambda effect: self.hands.carry_out(effect),
        )
        self.mailroom = Mailroom(
            manifest,
            self.driver,
            self.intake,
            journal,
            self.slots,
            self.quarantine,
            check_weights=lambda weights: check_finite(weights, worker.layout),
            resend_every_s=patience_s / 2,
        )
        self._heartbeat = heartbeat or Heartbeat({})
        self._inputs: Inputs = queue.SimpleQueue()
        self._stopped, self._has_ended = threading.Event(), threading.Event()
        self.trainer = Trainer(self._inputs)
        self.progress = Progress(journal.folder)
        self.hands = hands_of(
            Tools(
                terms=terms,
                manifest=manifest,
                journal=journal,
                driver=self.driver,
                mailroom=self.mailroom,
                intake=self.intake,
                slots=self.slots,
                progress=self.progress,
                trainer=self.trainer,
                worker=worker,
                spending=spending,
                sample_seed=sample_seed,
                transport=transport,
                pulse=self._pulse,
            ),
            audit_rate=audit_rate,
        )
        self.link = Link(
            transport,
            inbox=terms.me,
            shared=self.hands.shared_addresses,
            inputs=self._inputs,
            resumes=self.state.phase is not Phase.NEW,
            wait_s=broker_wait_s,
            stopped=self._stopped,
            show=lambda: self.facts.show(),
            meanwhile=self._meanwhile,
        )
        self.facts = Facts(
            terms,
            manifest,
            self.driver,
            self.outbox,
            self.quarantine,
            self.link,
            self.hands,
            self.progress,
            self.mailroom,
            self._heartbeat,
            spending,
        )
        self.patience = Patience(self.driver, self.mailroom, self.hands, self.link, self.facts, first_s=patience_s)

    @property
    def state(self) -> SessionState:
        """Where the machine stands."""
        return self.driver.state

    @property
    def model_path(self) -> Path:
        """Where the trial's result is written."""
        return self.hands.model_path

    def _meanwhile(self) -> None:
        """Do what can be done without the relay."""
        raise NotImplementedError

    def _pulse(self) -> None:
        if self._stopped.is_set():
            raise Interrupted(STOPPED)
        self.facts.show()
