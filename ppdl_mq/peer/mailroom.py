"""What happens to a message between the relay and the machine: taken in, offered, kept, set aside."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from ppdl_mq.config import limits
from ppdl_mq.config.differences import differences
from ppdl_mq.config.manifest import Manifest
from ppdl_mq.errors import Equivocation, LocalError, Malformed, ManifestMismatch, RelayError, RemoteError
from ppdl_mq.peer.driver import Driver
from ppdl_mq.peer.evidence import keep_evidence
from ppdl_mq.peer.intake import Arrived, Intake
from ppdl_mq.peer.journal import Journal
from ppdl_mq.peer.quarantine import Quarantine
from ppdl_mq.peer.slots import Slots
from ppdl_mq.protocol.effects import Adopt, Effect
from ppdl_mq.protocol.events import Received
from ppdl_mq.protocol.machine import NotYet
from ppdl_mq.wire.header import Header
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.messages import Hello
from ppdl_mq.wire.trial_id import manifest_from_bytes, trial_id

log = logging.getLogger("ppdl_mq.peer")

_MANIFESTS_FACT: Final = "manifests that differ"


@dataclass(frozen=True, slots=True)
class _Early:
    """A message that came before its time: checked once, and offered when the machine has moved.

    Args:
        moves: of the machine, when it was offered last.
        arrived: what it is.
    """

    moves: int
    arrived: Arrived


class Mailroom:
    """Offers what arrives to the machine.

    Args:
        manifest: of the trial; compared with those of HELLOs that name another.
        driver: of the machine.
        intake: assembles parts.
        journal: where everything is kept.
        slots: take over the blobs that the machine adopts.
        quarantine: takes what is refused.
        check_weights: raises where flat weights hold what no training can use.
        resend_every_s: how often one peer may have everything published again.
    """

    def __init__(
        self,
        manifest: Manifest,
        driver: Driver,
        intake: Intake,
        journal: Journal,
        slots: Slots,
        quarantine: Quarantine,
        *,
        check_weights: Callable[[memoryview], None],
        resend_every_s: float,
    ) -> None:
        self._manifest = manifest
        self._trial_id = trial_id(manifest)
        self._inbox = driver.machine.terms.me
        self._driver = driver
        self._intake = intake
        self._journal = journal
        self._slots = slots
        self._quarantine = quarantine
        self._check_weights = check_weights
        self._resend_every_s = resend_every_s
        self._resent_at: dict[str, float] = {}
        self._mismatches: dict[str, tuple[str, ...]] = {}  # of those whose HELLO this process has read
        told = journal.secret_fact(_MANIFESTS_FACT) or {}
        # In which fields a peer's manifest differed from ours when it was last heard, also by an earlier process: its
        # HELLO comes once.
        self.manifests: dict[str, tuple[str, ...]] = {name: tuple(fields) for name, fields in told.items()}
        self._early: dict[int, _Early] = {}  # by row
        self._has_unparked = False  # by this process; one before may have died right before it did
        self.last_at = time.monotonic()
        self.contacts: dict[str, float] = {}  # when a message of each peer was last taken whose signature held
        self.resent = 0  # how often somebody asked for everything again, and got it

    def take(self, parts: Iterable[bytes]) -> None:
        """Keep parts; when this returns they are on disk, or refused, and may be acknowledged."""
        with self._journal.transaction():  # one for all: what is refused must not cost a sync of the disk each
            for part in parts:
                try:
                    header = self._intake.take(self._driver.state, part, came_to=self._inbox)
                    if header is not None and header.sender in self._driver.waiting_for():
                        self.heard()
                except RemoteError as error:
                    self._refuse(error, part)
            self._intake.flush()

    def heard(self) -> None:
        """Note that something came from a peer that is waited for."""
        self.last_at = time.monotonic()

    def work(self) -> None:
        """Offer complete messages to the machine until none of them is of use any more, in one transaction.

        Raises:
            Equivocation, ManifestMismatch: a peer does what ends the trial for this one; the evidence is on disk.
            JournalError: it is not.
        """
        fatal: RemoteError | None = None
        try:
            with self._driver.batch():
                fatal = self._offer_all()
        except RelayError:  # of an effect, and so after the commit
            if fatal is None:
                raise
        if fatal is not None:
            raise fatal

    def _offer_all(self) -> RemoteError | None:
        """Offer what is complete; return what ends the trial, instead of raising it: what led to it is to be kept."""
        while True:
            moves = self._driver.moves
            for row, header, blob in self._intake.complete():
                if (fatal := self._offer(row, header, blob)) is not None:
                    return fatal
            if self._driver.state.session_id and not self._has_unparked:
                self.take(self._intake.unpark())  # the relay has dropped them: within the transaction that removes them
                self._has_unparked = True
            elif self._driver.moves == moves:
                return None

    def check_manifests(self) -> None:
        """Give up when a peer's manifest differs and its matching HELLO did not follow within a few seconds.

        Raises:
            ManifestMismatch: it says in which fields.
        """
        if time.monotonic() - self.last_at < limits.MISMATCH_GRACE_S:
            return
        for name, fields in self._mismatches.items():
            if "nonce" not in fields:  # another nonce: of another run, left over, or played again by the relay
                raise ManifestMismatch(name, fields)

    def _offer(self, row: int, header: Header, blob: int) -> RemoteError | None:
        early = self._early.get(row)
        if early is not None and early.moves == self._driver.moves:
            return None  # the machine would say the same as before
        try:
            arrived = self._intake.read(row, header, blob) if early is None else early.arrived
            opened = arrived.opened
            if header.trial_id != self._trial_id:
                self._compare_manifests(arrived)
                self._intake.settle(row, header)
                return None
            if header.kind is Kind.RESEND and not self._may_have_again(header.sender):
                self._intake.settle(row, header)
                return None
            received = Received(
                sender=header.sender,
                turn=header.turn,
                attempt=header.attempt,
                message=opened.message,
                blob_digest=opened.blob_digest,
                blob_bytes=opened.blob_bytes,
            )
            self._driver.post(received, also=lambda _, effects: self._settle(arrived, effects))
            self._note_contact(header.sender)
            self.resent += header.kind is Kind.RESEND
            self._note_manifest(header.sender, ())
        except NotYet:
            self._note_contact(header.sender)
            if self._is_kept_already(arrived):
                self._intake.settle(row, header)
                self._early.pop(row, None)
                return None
            self._early[row] = _Early(self._driver.moves, arrived)
            return None
        except Equivocation as error:
            keep_evidence(self._journal, error, arrived.opened)
            self._driver.record(error.records)
            self._intake.settle(row, header)
            return error
        except RemoteError as error:
            self._refuse(error, header.encode())
            self._intake.settle(row, header, remember=False)
            if isinstance(error, ManifestMismatch):
                return error
        self._early.pop(row, None)
        return None

    def _is_kept_already(self, arrived: Arrived) -> bool:
        """Tell whether an equal LEAVE or DROP waits before this one: each is told again and again, as a new message."""
        if arrived.opened.header.kind not in (Kind.LEAVE, Kind.DROP):
            return False
        said = _said(arrived)
        return any(row < arrived.row and _said(early.arrived) == said for row, early in self._early.items())

    def _note_contact(self, name: str) -> None:
        """Note that a peer was heard. What was refused does not count: the relay could play it again and again."""
        self.contacts[name] = round(time.time(), 3)

    def _may_have_again(self, name: str) -> bool:
        """Tell whether a peer may have everything again: a small request must not make much traffic at will."""
        now = time.monotonic()
        if now - self._resent_at.get(name, -math.inf) < self._resend_every_s:
            return False
        self._resent_at[name] = now
        return True

    def _settle(self, arrived: Arrived, effects: tuple[Effect, ...]) -> None:
        """Drop a message that the machine took; its blob, if the machine adopts it, is kept."""
        opened = arrived.opened
        keeps = False
        for effect in effects:
            if isinstance(effect, Adopt) and not self._slots.has(effect.slot):
                assert not keeps, "the machine adopts one blob twice"
                if effect.are_weights:
                    self._check(arrived)
                start, size_bytes = opened.blob_offset, opened.blob_bytes
                self._slots.adopt(
                    effect.slot, arrived.blob, start=start, size_bytes=size_bytes, digest=opened.blob_digest
                )
                keeps = True
        self._intake.settle(arrived.row, opened.header, keep_blob=keeps)

    def _check(self, arrived: Arrived) -> None:
        """Refuse weights that no training can use, before this peer makes them its own."""
        with self._intake.blob_of(arrived) as weights:
            try:
                self._check_weights(weights)
            except LocalError as fault:  # it is the sender's fault here
                sender = arrived.opened.header.sender
                raise Malformed(f"{sender} sent weights that cannot be used: {fault.message}") from None

    def _compare_manifests(self, arrived: Arrived) -> None:
        """Note in which fields a peer's manifest differs, until its matching HELLO arrives."""
        sender, hello = arrived.opened.header.sender, arrived.opened.message
        assert isinstance(hello, Hello), "intake lets only HELLOs of other trials through"
        theirs = manifest_from_bytes(hello.manifest)
        if trial_id(theirs) != arrived.opened.header.trial_id:
            raise Malformed(f"A HELLO of {sender} names one trial and holds another.")
        if sender in self._driver.state.session_keys:
            return  # its matching HELLO is here: this one is of the past
        fields = differences(self._manifest.as_data(), theirs.as_data())
        if self._mismatches.get(sender) != fields:  # said once, however often it comes
            log.warning("%s", ManifestMismatch(sender, fields).message)
        self._note_manifest(sender, fields)

    def _note_manifest(self, name: str, fields: tuple[str, ...]) -> None:
        """Keep in which fields a peer's manifest differs; none where it is the same."""
        if fields:
            self._mismatches[name] = fields
        else:
            self._mismatches.pop(name, None)
        if "nonce" in fields or self.manifests.get(name, ()) == fields:
            return  # another nonce: see `check_manifests`
        others = {other: known for other, known in self.manifests.items() if other != name}
        self.manifests = others | ({name: fields} if fields else {})
        self._journal.keep_secret_fact(_MANIFESTS_FACT, {other: list(known) for other, known in self.manifests.items()})

    def refuse_all(self, refused: Iterable[tuple[RemoteError, bytes]]) -> None:
        """Refuse several messages with one sync of the disk."""
        with self._journal.transaction():
            for error, message in refused:
                self._refuse(error, message)

    def _refuse(self, error: RemoteError, message: bytes) -> None:
        """Count what is refused, set it aside while there is room, and say so now and then."""
        count = self._quarantine.add(error, message)
        if count & (count - 1) == 0:  # 1, 2, 4, 8, ...: a flood must not fill the log as well
            extra = {"reason": type(error).__name__, "count": count}
            log.warning("Refused a message (%d of this sort so far): %s", count, error, extra=extra)


def _said(arrived: Arrived) -> tuple[object, ...]:
    """Return what a message says, by whom and for when, without what differs each time that it is told."""
    header = arrived.opened.header
    return header.kind, header.sender, header.turn, header.attempt, arrived.opened.message
