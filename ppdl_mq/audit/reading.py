"""One log, read entry by entry in constant memory: its chain, its owner's signatures, and those of all statements."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ppdl_mq.audit.forms import check_form
from ppdl_mq.config import limits
from ppdl_mq.crypto import labels
from ppdl_mq.crypto.hashing import sha256
from ppdl_mq.crypto.identity import PublicIdentity, verify
from ppdl_mq.errors import JournalError, Malformed, Misdirected, OutOfTurn, PpdlError
from ppdl_mq.protocol.masked_average.context import Context
from ppdl_mq.protocol.schedule import Schedule
from ppdl_mq.protocol.statements import NO_TURN_BEFORE, statement_bytes
from ppdl_mq.wire.entries import BEGINNING, LOG_NAME, MAX_LINE_BYTES, NOTHING_BEFORE, Entry, digest_of, read_line
from ppdl_mq.wire.trial_id import manifest_from_bytes, trial_id

_OF_PROGRESS = b'{"event":'  # how each line of progress.jsonl begins, and none of a transcript


class Log:
    """A peer's log. Iterating yields the entries that hold, with their digests.

    Args:
        path: of the file, or of the state folder that it lies in.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.owner = ""
        self.first = ""
        self.trial = b""
        self.protocol = ""
        self.entries = 0
        self.is_unfinished = False
        self._schedule: Schedule
        self._peers: dict[str, PublicIdentity] = {}
        self._keys: dict[str, tuple[bytes, bytes]] = {}
        self._session = b""
        self._last_turn = -1
        self._last_digest = NO_TURN_BEFORE

    def read(self) -> Iterator[tuple[Entry, bytes]]:
        """Yield each entry with its digest, up to the end or to the first that does not hold.

        Raises:
            RemoteError: entry number `entries` does not hold.
            JournalError: the file cannot be read.
        """
        path = self.path / LOG_NAME if self.path.is_dir() else self.path
        try:
            with path.open("rb") as file:
                if file.peek(1).startswith(_OF_PROGRESS):
                    raise JournalError(
                        f"{path} tells of progress, and is no signed log.", hint=f"Name the {LOG_NAME} beside it."
                    )
                yield from self._entries(file)
        except OSError as fault:
            raise JournalError(f"{path}: cannot be read: {fault.strerror}.") from None

    def _entries(self, file: BinaryIO) -> Iterator[tuple[Entry, bytes]]:
        previous = NOTHING_BEFORE
        while line := file.readline(MAX_LINE_BYTES + 1):
            if not line.endswith(b"\n") and len(line) <= MAX_LINE_BYTES:
                self.is_unfinished = True  # the file was copied while its peer wrote it
                break
            entry, log_signature = read_line(line)
            if entry.number != self.entries or entry.previous != previous:
                raise OutOfTurn("It does not follow the entry before it.")
            check_form(entry.says, entry.about)
            if (entry.number == 0) != (entry.says == BEGINNING):
                raise OutOfTurn("The trial stands in entry 0, and nowhere else.")
            if entry.number == 0:
                self._begin(entry)
            if entry.logged_by != self.owner:
                raise Misdirected("It was logged by somebody else than the owner of the log.")
            signed = entry.signed_bytes()
            verify(self._peers[self.owner], log_signature, signed)
            if entry.number:
                self._check_statement(entry)
            previous = digest_of(signed)
            self.entries += 1
            yield entry, previous
        if not self.entries:
            raise Malformed("It is missing: the log is empty.")

    def _begin(self, entry: Entry) -> None:
        manifest = manifest_from_bytes(entry.about["manifest"])
        if entry.about["trial"] != trial_id(manifest):
            raise Misdirected("Its manifest is not that of its trial.")
        try:
            self._peers = {peer.name: PublicIdentity.from_keys(peer.name, peer.keys) for peer in manifest.peers}
        except PpdlError as fault:
            raise Malformed(fault.message) from None
        if entry.by not in self._peers or entry.by != entry.logged_by or entry.signature:
            raise Misdirected("It is not by a peer of the trial.")
        self.first = min(self._peers)
        self.owner, self.trial, self.protocol = entry.by, entry.about["trial"], manifest.protocol
        self._schedule = Schedule(
            trial_id=self.trial,
            peers=manifest.peer_names,
            epochs=manifest.training.epochs,
            turns_per_epoch=manifest.training.turns_per_epoch,
            order=manifest.order,
        )

    def _check_statement(self, entry: Entry) -> None:
        signer = self._peers.get(entry.by)
        if signer is None:
            raise Misdirected("Its signer is not a peer of the trial.")
        verify(signer, entry.signature, statement_bytes(entry.says, entry.about))
        about = entry.about
        if entry.says == "session key":
            self._note_key(entry)
            return
        if not self._session:
            raise OutOfTurn("It comes before all session keys are known.")
        context = Context.decode(about["context"]) if entry.says == "commitment" else None
        session = about.get("session") if context is None else context.session
        if session is not None and session != self._session:
            raise Misdirected("It is of another session than the one whose keys the log holds.")
        is_masked = self.protocol == "masked-average"
        if entry.says != "final" and (entry.says == "turn") == is_masked:
            raise OutOfTurn("Its protocol has no such statement.")
        if entry.says == "turn":
            self._check_turn(entry)
        elif entry.says == "final" and is_masked:
            self._check_step(about["turn"], first=0)
        elif entry.says == "final" and (about["turn"], about["digest"]) != (self._schedule.turns, self._last_digest):
            raise OutOfTurn("It names another end than the last turn in the log.")
        elif context is not None:
            self._check_commitment(entry, context)

    def _note_key(self, entry: Entry) -> None:
        about = entry.about
        if about["trial"] != self.trial or about["name"] != entry.by:
            raise Misdirected("It is a session key of another trial or peer.")
        self._keys.setdefault(entry.by, (about["key"], entry.signature))
        if not self._session and len(self._keys) == len(self._peers):
            held = sorted(self._keys.items())
            parts = [part for name, (key, signature) in held for part in (name.encode(), key, signature)]
            self._session = sha256(labels.SESSION_ID, self.trial, *parts)

    def _check_turn(self, entry: Entry) -> None:
        turn = entry.about["turn"]
        if turn > self._schedule.turns or entry.by != self._schedule.turn(max(turn, 1)).peer:
            raise OutOfTurn("It was not its signer's turn.")
        if turn <= self._last_turn:
            return  # another result of a known turn: a contradiction, which the ledger finds
        if turn != self._last_turn + 1 or entry.about["before"] != self._last_digest:
            raise OutOfTurn("Its weights do not descend from those of the turn before it.")
        self._last_turn, self._last_digest = turn, entry.about["digest"]

    def _check_step(self, step: int, *, first: int = 1) -> None:
        if not first <= step <= 2 * self._schedule.epochs * self._schedule.turns_per_epoch:
            raise OutOfTurn("The trial has no such step.")

    def _check_commitment(self, entry: Entry, context: Context) -> None:
        context.check_commitment(entry.by, len(entry.about["shards"]), self._peers)
        self._check_step(context.step)
        if context.attempt > limits.MAX_ATTEMPTS:
            raise OutOfTurn("The trial has no such step.")
