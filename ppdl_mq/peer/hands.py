"""What the loop of a peer leaves to the protocol: the work of its effects, and what only it has at the relay."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ppdl_mq.config.manifest import Manifest
from ppdl_mq.config.writing import system_fault
from ppdl_mq.errors import ModelError
from ppdl_mq.peer.driver import Driver
from ppdl_mq.peer.durable import write_error
from ppdl_mq.peer.folders import MODEL_NAME
from ppdl_mq.peer.intake import Intake
from ppdl_mq.peer.journal import Journal
from ppdl_mq.peer.mailroom import Mailroom
from ppdl_mq.peer.progress import Progress, final_entry
from ppdl_mq.peer.slots import Slots
from ppdl_mq.peer.spending import Spending
from ppdl_mq.peer.trainer import Trainer
from ppdl_mq.protocol.effects import Effect, KeepModel
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.session import SessionState
from ppdl_mq.protocol.terms import Terms
from ppdl_mq.training.saving import load_model, save_model
from ppdl_mq.training.worker import Worker
from ppdl_mq.transport.base import Transport

log = logging.getLogger("ppdl_mq.peer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What hands may use; all of it is the runner's.

    Args:
        terms: of the trial.
        manifest: of the trial.
        journal: open; for transactions of one's own, and its folder.
        driver: `post` an event here, with what belongs to it in `also`.
        mailroom: `work` after something was put into the intake beside the inbox; `refuse_all` that is no good.
        intake: takes parts.
        slots: the byte strings of the machine.
        progress: `note` what people and programs want to follow.
        trainer: `submit` what takes long.
        spending: of the privacy budget; None without one. A turn is charged in `also`, with its result.
        worker: trains and measures; for jobs of the trainer only, but for `keep_model`.
        sample_seed: the peer's secret, 32 bytes.
        transport: to the relay; connected while the loop goes round.
        pulse: to be called now and then by what takes long in the runner's own thread: it keeps the status alive, and
            raises Interrupted when the peer is to stop.
    """

    terms: Terms
    manifest: Manifest
    journal: Journal
    driver: Driver
    mailroom: Mailroom
    intake: Intake
    slots: Slots
    progress: Progress
    trainer: Trainer
    worker: Worker
    spending: Spending | None
    sample_seed: bytes
    transport: Transport
    pulse: Callable[[], None]


class Hands(ABC):
    """One kind of protocol's part of the runner. Every method is called in the runner's thread, none within a batch.

    A subclass must have `carry_out` and `note`; the others do nothing, or what every protocol needs.

    Args:
        tools: of the runner.
    """

    # In these phases the log says once for whom this peer waits; in the others waiting is the rule, and status tells.
    tells_waiting_in: ClassVar[frozenset[Phase]] = frozenset({Phase.AWAITING_HELLOS})

    def __init__(self, tools: Tools) -> None:
        self.tools = tools

    @property
    def state(self) -> SessionState:
        """Where the machine stands."""
        return self.tools.driver.state

    @property
    def model_path(self) -> Path:
        """Where the trial's result is written."""
        return self.tools.journal.folder / MODEL_NAME

    @abstractmethod
    def carry_out(self, effect: Effect) -> None:
        """Do what an effect asks for beyond the journal; pass over the effects that the journal has done.

        It is called with every effect, in order, once the step that asked for it is on disk. (The journal's part of
        Send, Adopt, Forget, Discard, DiscardLocal, PublishAgain, PublishHeld, Withdraw and Record is done then.) Later
        steps of the same batch may be on disk as well: the state may have moved on, and a slot that the effect names
        may be gone (`tools.slots.has`). After a crash in between, `machine.unfinished` names the effect again: twice
        must be harmless. What takes long goes to `tools.trainer.submit`, with the slots that it reads entered here into
        an ExitStack; its result comes to `note`.

        Raises:
            RelayLost: of the transport; the loop reconnects, and this effect is not carried out again.
            PpdlError: ends the run.
        """

    @abstractmethod
    def note(self, result: object) -> None:
        """Take the result of a job: post the event that it is, and put what goes into a slot there in `also`.

        Results come in the order of their jobs. The machine may have moved on meanwhile (an attempt was given up): a
        result that it no longer wants is the subclass's to tell and to drop.

        Args:
            result: what the job returned.
        """

    @property
    def wants_results(self) -> bool:
        """Whether the machine has a use for what jobs come to: a failure of one that nobody wants ends no peer."""
        return True

    def shared_addresses(self) -> tuple[str, ...]:
        """Return the addresses to declare beside the inbox, at each connecting."""
        return ()

    def before_round(self) -> None:  # noqa: B027 (most have nothing to do here)
        """Do what is due by itself, at the beginning of each round of the loop, before messages are worked on.

        A round takes a second at most when nothing happens. The place for deadlines and for queues that are polled.

        Raises:
            RelayLost, Unroutable: the loop reconnects.
        """

    def next_round_s(self) -> float | None:
        """Return in how many seconds `before_round` has something to do, or None when the loop's second will do."""
        return None

    def reconnecting(self) -> None:  # noqa: B027
        """Give up what belonged to the connection that broke: its deliveries come again."""

    def unheard(self) -> None:  # noqa: B027
        """Note that the relay was away, or took nothing: nobody could be heard. Called before `before_round`."""

    def overdue(self) -> None:  # noqa: B027
        """Prepare for asking again those who are waited for, before Overdue is posted."""

    def facts(self) -> dict[str, Any]:
        """Return what the status says beside what all protocols have and `machine.progress`; plain data for JSON."""
        return {}

    def check_end(self) -> None:  # noqa: B027 (most trials end in one way only)
        """Tell people, once the trial is over here, where it has ended before its time.

        Raises:
            TooFewPeers: it has.
        """

    def leave(self) -> None:  # noqa: B027
        """Remove from the relay what is no one's inbox. Called when the trial has ended here, while connected.

        Raises:
            RelayLost: it is called again after reconnecting.
            RelayError: said to people, and no reason not to leave.
        """

    def charge(self, ordinal: int) -> None:
        """Count a turn against the privacy budget, if there is one; in the transaction that journals its result.

        Args:
            ordinal: of the turn among all of this peer, from 0.
        """
        if self.tools.spending is not None:
            self.tools.spending.charge(ordinal)

    def keep_model(self, effect: KeepModel, **facts: Any) -> None:
        """Note how good the trial's result is, and write it, unless it is there already and whole.

        Args:
            effect: names it.
            facts: go into the file and the note: which turn or round it is of.

        Raises:
            JournalError: the weights that the journal keeps have changed on the disk, or the file cannot be written.
            ModelError: the weights cannot be stored in such a file.
        """
        tools = self.tools
        with tools.slots.view(effect.slot) as weights:
            if self._is_kept(weights):
                return
            tools.slots.check(tools.pulse)  # a trial that has ended is run again years later, perhaps
            if self.model_path.exists():
                log.warning("%s is damaged, or another model: it is written anew.", self.model_path)
            inside = {"trial": tools.manifest.name, "trial_id": tools.terms.trial_id.hex(), **facts}
            evaluation = tools.worker.evaluate(weights, between=tools.pulse)
            # One entry: safetensors writes several in any order, and equal models should be equal files.
            metadata = {"ppdl-mq": json.dumps(inside, sort_keys=True)}
            # Before the file, which the next run passes over: who dies in between must have this line.
            digest = effect.digest.hex()
            if (final_entry(tools.journal.folder) or {}).get("digest") != digest:
                tools.progress.note(
                    "final",
                    **facts,
                    digest=digest,
                    holdout_loss=evaluation.loss,
                    holdout_accuracy=evaluation.accuracy,
                    holdout_samples=evaluation.samples,
                )
            try:
                save_model(self.model_path, tools.worker.layout, weights, metadata)
            except ModelError as error:
                if (fault := system_fault(error.__cause__)) is None:
                    raise
                raise write_error(f"The model {self.model_path}", fault) from error

    def _is_kept(self, weights: memoryview) -> bool:
        """Tell whether the file of the result holds these weights: it may lie there for years before it is used."""
        try:
            return self.model_path.exists() and load_model(self.model_path, self.tools.worker.layout)[0] == weights
        except ModelError:
            return False
