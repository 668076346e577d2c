"""Messages of ours: sealed once, journalled, published until the relay has confirmed them, always as the same bytes."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

from nacl.utils import random as system_random

from ppdl_mq.config import limits
from ppdl_mq.errors import NotTaken, Unroutable
from ppdl_mq.peer.blobs import Blobs
from ppdl_mq.peer.journal import Journal
from ppdl_mq.peer.weights import Weights
from ppdl_mq.protocol.effects import Send
from ppdl_mq.protocol.events import Sent
from ppdl_mq.protocol.keyring import Keyring
from ppdl_mq.protocol.state import State
from ppdl_mq.protocol.terms import Terms
from ppdl_mq.transport.base import Transport
from ppdl_mq.wire.envelope import NO_BLOB, body_bytes, seal_parts
from ppdl_mq.wire.header import MESSAGE_ID_BYTES, NO_SESSION, Header, stride_for
from ppdl_mq.wire.kinds import Kind

log = logging.getLogger("ppdl_mq.peer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A sealed message in the journal.

    Args:
        row: its number there.
        kind: as its header says.
        turn: as its header says.
        recipient: whose inbox, or `weights`.
        message_id: 16 bytes.
        blob: where its parts are, end to end.
        part_bytes: size of every part but the last.
    """

    row: int
    kind: Kind
    turn: int
    recipient: str
    message_id: bytes
    blob: int
    part_bytes: int

    @property
    def sent(self) -> Sent:
        """What the machine is to know when the relay has it."""
        return Sent(kind=self.kind, turn=self.turn, recipient=self.recipient, message_id=self.message_id)


@dataclass(slots=True)
class _Waiting:
    """How long to leave a recipient alone whose inbox does not exist yet."""

    until: float
    delay_s: float


class Outbox:
    """The sent and unsent messages of one journal.

    Args:
        terms: of the trial.
        keyring: seals.
        journal: where messages are kept.
        blobs: its byte strings.
        weights: what TURN and FINAL carry.
        chunk_bytes: largest part.
    """

    def __init__(
        self, terms: Terms, keyring: Keyring, journal: Journal, blobs: Blobs, weights: Weights, *, chunk_bytes: int
    ) -> None:
        self._terms = terms
        self._keyring = keyring
        self._journal = journal
        self._blobs = blobs
        self._weights = weights
        self._chunk_bytes = chunk_bytes
        self._waiting: dict[str, _Waiting] = {}
        self.published_messages = 0
        self.published_bytes = 0

    def add(self, state: State, send: Send) -> None:
        """Seal a message and journal it; one that is there already is left as it is. Call within a transaction."""
        kind = send.message.kind
        found = self._journal.db.execute(
            "SELECT 1 FROM outgoing WHERE kind = ? AND turn = ? AND recipient = ? AND ordinal = ?",
            (kind, send.turn, send.recipient, send.ordinal),
        ).fetchone()
        if found:
            return
        if send.weights_of is None:
            self._insert(state, send, NO_BLOB)
        else:
            with self._weights.view(send.weights_of) as weights:
                self._insert(state, send, weights)

    def due(self) -> list[Letter]:
        """Return the unsent messages in order, but for those whose recipient is to be left alone for a while."""
        rows = self._journal.db.execute(
            "SELECT id, kind, turn, recipient, message_id, blob, part_bytes FROM outgoing WHERE sent = 0 ORDER BY id"
        )
        letters = [
            Letter(
                row=row, kind=Kind(kind), turn=turn, recipient=to, message_id=bytes(name), blob=blob, part_bytes=size
            )
            for row, kind, turn, to, name, blob, size in rows.fetchall()
        ]
        return [letter for letter in letters if self._is_due(letter.recipient)]

    def publish(self, transport: Transport, letter: Letter) -> bool:
        """Publish every part of a message; False when its recipient has no inbox yet, or the relay has no room.

        Raises:
            RelayLost: the connection broke; nothing is forgotten.
            MessageTooLarge: the relay refuses parts of this size.
        """
        if not self._is_due(letter.recipient):  # an earlier message of this round found no inbox: keep the order
            return False
        try:
            with self._blobs.view(letter.blob) as sealed:
                transport.publish(letter.recipient, _parts(sealed, letter.part_bytes))
                self.published_messages += -(-len(sealed) // letter.part_bytes)
                self.published_bytes += len(sealed)
        except (Unroutable, NotTaken) as error:
            if isinstance(error, NotTaken):
                log.warning("%s Trying again.", error)
            self._delay(letter.recipient)
            return False
        self._waiting.pop(letter.recipient, None)
        return True

    def mark_sent(self, letter: Letter) -> None:
        """Note that the relay has confirmed a message. It is kept, in case its reader asks again."""
        if letter.kind is Kind.RESEND:
            self._drop("id = ?", letter.row)
        else:
            self._journal.db.execute("UPDATE outgoing SET sent = 1 WHERE id = ?", (letter.row,))

    def resend(self, reader: str) -> None:
        """Make everything that is kept for a reader unsent again. Call within a transaction."""
        self._journal.db.execute("UPDATE outgoing SET sent = 0 WHERE reader = ?", (reader,))

    def withdraw(self, reader: str) -> None:
        """Drop everything for a reader. Call within a transaction."""
        self._drop("reader = ?", reader)

    def forget(self, before_turn: int) -> None:
        """Drop sent messages of turns before this one; those of the session stay. Call within a transaction."""
        self._drop("turn > 0 AND turn < ?", before_turn)

    def unsent_to(self) -> tuple[str, ...]:
        """Return the recipients of unsent messages, sorted."""
        rows = self._journal.db.execute("SELECT DISTINCT recipient FROM outgoing WHERE sent = 0 ORDER BY recipient")
        return tuple(recipient for (recipient,) in rows)

    def without_inbox(self) -> tuple[str, ...]:
        """Return the recipients whose inbox does not exist yet, sorted."""
        return tuple(sorted(self._waiting))

    def next_due_s(self) -> float | None:
        """Return in how many seconds a delayed message may be tried again, or None when none is delayed."""
        now = time.monotonic()
        return min((max(0.0, waiting.until - now) for waiting in self._waiting.values()), default=None)

    def _insert(self, state: State, send: Send, weights: memoryview) -> None:
        kind, terms = send.message.kind, self._terms
        header = Header(
            kind=kind,
            trial_id=terms.trial_id,
            session_id=NO_SESSION if kind.before_session else state.session_id,
            message_id=system_random(MESSAGE_ID_BYTES),
            turn=send.turn,
            body_bytes=body_bytes(send.message, len(weights)),
            stride=stride_for(self._chunk_bytes, terms.me, send.recipient),
            sender=terms.me,
            recipient=send.recipient,
        )
        key = self._keyring.key(state, header)
        assert key is not None, "the machine sends before the session is agreed"
        # The weights' digest stands in the chain already; nothing is hashed twice.
        digest = state.chain.statements[-1].digest if send.weights_of is not None else None
        parts = seal_parts(header, send.message, key, terms.sign, blob=weights, blob_digest=digest)
        overhead = self._chunk_bytes - header.stride
        if header.parts == 1:
            sealed = next(parts)
            blob, part_bytes = self._blobs.put(sealed), len(sealed)
        else:
            part_bytes = self._chunk_bytes
            with self._blobs.writer(header.body_bytes + header.parts * overhead) as writer:
                for number, part in enumerate(parts):
                    writer.write(number * part_bytes, part)
            blob = writer.blob
        self._journal.db.execute(
            "INSERT INTO outgoing (kind, turn, recipient, ordinal, reader, message_id, blob, part_bytes)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (kind, send.turn, send.recipient, send.ordinal, send.reader, header.message_id, blob, part_bytes),
        )

    def _drop(self, condition: str, value: str | int) -> None:
        with self._journal.transaction() as db:
            rows = db.execute(f"SELECT id, blob FROM outgoing WHERE {condition}", (value,)).fetchall()  # noqa: S608
            for row, blob in rows:
                db.execute("DELETE FROM outgoing WHERE id = ?", (row,))
                self._blobs.delete(blob)

    def _is_due(self, recipient: str) -> bool:
        waiting = self._waiting.get(recipient)
        return waiting is None or time.monotonic() >= waiting.until

    def _delay(self, recipient: str) -> None:
        before = self._waiting.get(recipient)
        delay_s = min(limits.BACKOFF_LAST_S, before.delay_s * 2) if before else limits.BACKOFF_FIRST_S
        jitter = random.uniform(0.5, 1.0)  # noqa: S311 (spreads retries; nothing secret)
        self._waiting[recipient] = _Waiting(until=time.monotonic() + delay_s * jitter, delay_s=delay_s)


def _parts(sealed: memoryview, part_bytes: int) -> Iterator[bytes]:
    for start in range(0, len(sealed), part_bytes):
        yield bytes(sealed[start : start + part_bytes])
