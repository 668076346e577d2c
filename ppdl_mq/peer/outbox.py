"""Messages of ours: journalled, published until the relay has confirmed them, always as the same bytes.

A message without a blob is sealed once. One with a blob is sealed whenever it is published, part by part, straight from
the slot that holds the blob: under the nonces that were drawn when it was journalled, so that the bytes are the same,
and no sealed copy of a model lies on disk.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from nacl.utils import random as system_random

from ppdl_mq.errors import JournalError, NotTaken, RelayLost, Unroutable
from ppdl_mq.peer.blobs import Blobs
from ppdl_mq.peer.delays import Delays
from ppdl_mq.peer.journal import Journal
from ppdl_mq.peer.slots import Slots
from ppdl_mq.protocol.effects import Send
from ppdl_mq.protocol.events import Sent
from ppdl_mq.protocol.keyring import Keyring
from ppdl_mq.protocol.session import SessionState
from ppdl_mq.protocol.slots import Cut
from ppdl_mq.protocol.terms import Terms
from ppdl_mq.transport.base import Transport
from ppdl_mq.wire.envelope import NONCE_BASE_BYTES, body_bytes, seal_parts
from ppdl_mq.wire.header import MESSAGE_ID_BYTES, NO_SESSION, Header, stride_for
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.meta import decode_meta, encode_meta

log = logging.getLogger("ppdl_mq.peer")

# What is published before any of it is marked as sent; one larger message goes alone. What breaks off begins with the
# first byte of these again, so they must pass in a time in which a connection lasts. And they are several times what is
# under way at once, so that waiting for the last confirms costs little: small messages still go all together.
_AT_ONCE_BYTES: Final = 128 * 1024 * 1024

_UNSENT: Final = 0  # what the journal says of a message
_SENT: Final = 1  # the relay has confirmed it; its reader may ask again
_HELD: Final = 2  # nobody has asked for it yet


class Fate(enum.Enum):
    """What became of an attempt to publish a message."""

    CONFIRMED = "the relay has it"
    NO_INBOX = "its recipient has no inbox, yet or any more"
    LATER = "the relay has no room"
    DROPPED = "its key is gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A message in the journal.

    Args:
        row: its number there.
        kind: as its header says.
        turn: as its header says.
        attempt: as its header says.
        recipient: whose inbox, or `weights`.
        message_id: 16 bytes.
    """

    row: int
    kind: Kind
    turn: int
    attempt: int
    recipient: str
    message_id: bytes

    @property
    def sent(self) -> Sent:
        """What the machine is to know when the relay has it."""
        return Sent(
            kind=self.kind,
            turn=self.turn,
            attempt=self.attempt,
            recipient=self.recipient,
            message_id=self.message_id,
        )


@dataclass(slots=True)
class _Try:
    """A message on its way to the relay.

    Args:
        letter: which.
        parts: sealed one by one, as the relay takes them.
        is_sealed: whether there was a key for it.
        messages: how many parts were taken.
        size_bytes: of these.
    """

    letter: Letter
    parts: Generator[bytes] | None = None
    is_sealed: bool = False
    messages: int = 0
    size_bytes: int = 0

    def close(self) -> None:
        """Let go of what the parts are made from; they may have been left in the middle."""
        if self.parts is not None:
            self.parts.close()


class Outbox:
    """The sent and unsent messages of one journal.

    Args:
        terms: of the trial.
        keyring: seals.
        journal: where messages are kept.
        blobs: its byte strings.
        slots: what the blobs of messages are cut from.
        chunk_bytes: largest part.
    """

    def __init__(
        self, terms: Terms, keyring: Keyring, journal: Journal, blobs: Blobs, slots: Slots, *, chunk_bytes: int
    ) -> None:
        self._terms = terms
        self._keyring = keyring
        self._journal = journal
        self._blobs = blobs
        self._slots = slots
        self._chunk_bytes = chunk_bytes
        self._delays = Delays()
        self.published_messages = 0
        self.published_bytes = 0

    def add(self, state: SessionState, send: Send) -> None:
        """Journal a message; one that is there already is left as it is. Call within a transaction."""
        found = self._journal.db.execute(
            "SELECT 1 FROM outgoing WHERE kind = ? AND turn = ? AND attempt = ? AND recipient = ? AND ordinal = ?",
            (send.message.kind, send.turn, send.attempt, send.recipient, send.ordinal),
        ).fetchone()
        if found:
            return
        if send.blob is None:
            self._add_sealed(state, send)
        else:
            self._add_cut(state, send, send.blob)

    def due(self, *, but_for: Collection[str] = ()) -> list[Letter]:
        """Return the next unsent messages in order, but for those whose recipient is to be left alone for a while.

        They are as many as are to be published at once: where more is due, ask again when these are marked as sent.

        Args:
            but_for: recipients whose turn has been.
        """
        rows = self._journal.db.execute("SELECT id, header FROM outgoing WHERE sent = 0 ORDER BY id")
        headers = [(row, self._journal.header(encoded, self._terms.addresses)) for row, encoded in rows.fetchall()]
        # Looked at once for all messages of one, or a later one could overtake.
        served = self._delays.served({header.recipient for _, header in headers}).difference(but_for)
        letters: list[Letter] = []
        left_bytes = _AT_ONCE_BYTES
        for row, header in headers:
            if header.recipient not in served:
                continue
            left_bytes -= header.body_bytes
            if letters and left_bytes < 0:
                break
            letters.append(
                Letter(
                    row=row,
                    kind=header.kind,
                    turn=header.turn,
                    attempt=header.attempt,
                    recipient=header.recipient,
                    message_id=header.message_id,
                )
            )
        return letters

    def publish_all(self, transport: Transport, state: SessionState, letters: Sequence[Letter]) -> list[Fate]:
        """Publish every part of some messages, in order, and wait for the relay once.

        Args:
            transport: connected.
            state: of the machine; has the keys.
            letters: unsent.

        Raises:
            RelayLost: the connection broke; nothing is forgotten. Whose messages the relay does not confirm is left
                alone for a while, so that others are served first.
            MessageTooLarge: the relay refuses parts of this size.
        """
        tries = [_Try(letter) for letter in letters]
        try:
            refusals = transport.publish_all((each.letter.recipient, self._sealed(state, each)) for each in tries)
        except RelayLost:
            for recipient in transport.withheld:
                self._delays.hung(recipient)
            raise
        finally:
            for each in tries:
                each.close()
        fates = []
        delayed: dict[str, Fate] = {}  # several refusals at once are one reason to wait
        for tried, refusal in zip(tries, refusals, strict=True):
            recipient = tried.letter.recipient
            if refusal is not None and recipient not in delayed:
                delayed[recipient] = self._refused(recipient, refusal)
            fates.append(self._taken(tried) if refusal is None else delayed[recipient])
        return fates

    def _sealed(self, state: SessionState, tried: _Try) -> Generator[bytes]:
        tried.parts = self._counted(state, tried)
        return tried.parts

    def _counted(self, state: SessionState, tried: _Try) -> Generator[bytes]:
        with self._parts(state, tried.letter) as parts:
            if parts is None:
                return
            tried.is_sealed = True
            for part in parts:
                tried.messages += 1
                tried.size_bytes += len(part)
                yield part

    def _refused(self, recipient: str, refusal: Unroutable | NotTaken) -> Fate:
        has_inbox = not isinstance(refusal, Unroutable)
        if has_inbox:
            log.warning("%s Trying again.", refusal)
        self._delays.refused(recipient, has_inbox=has_inbox)
        return Fate.LATER if has_inbox else Fate.NO_INBOX

    def _taken(self, tried: _Try) -> Fate:
        letter = tried.letter
        if not tried.is_sealed:
            log.debug("A %s to %s is dropped with its key.", letter.kind.name, letter.recipient)
            self._drop("id = ?", letter.row)
            return Fate.DROPPED
        self.published_messages += tried.messages
        self.published_bytes += tried.size_bytes
        self._delays.taken(letter.recipient)
        return Fate.CONFIRMED

    def mark_sent(self, letter: Letter) -> None:
        """Note that the relay has confirmed a message. It is kept, in case its reader asks again."""
        if letter.kind is Kind.RESEND:
            self._drop("id = ?", letter.row)
        else:
            with self._journal.transaction() as db:
                db.execute("UPDATE outgoing SET sent = ? WHERE id = ?", (_SENT, letter.row))

    def resend(self, reader: str) -> None:
        """Make everything that was sent to a reader and is kept unsent again."""
        with self._journal.transaction() as db:
            db.execute("UPDATE outgoing SET sent = ? WHERE reader = ? AND sent = ?", (_UNSENT, reader, _SENT))

    def let_go(self, reader: str, turn: int, ordinals: range) -> None:
        """Make what is held for a reader unsent: of a turn, with these ordinals."""
        query = "UPDATE outgoing SET sent = ? WHERE sent = ? AND reader = ? AND turn = ? AND ordinal BETWEEN ? AND ?"
        with self._journal.transaction() as db:
            db.execute(query, (_UNSENT, _HELD, reader, turn, ordinals[0], ordinals[-1]))

    def withdraw(self, reader: str) -> None:
        """Drop everything for a reader. Call within a transaction."""
        self._drop("reader = ?", reader)

    def forget(self, before_turn: int, *, keep_for: Collection[str] = ()) -> None:
        """Drop messages of turns before this one; those of the session stay. Call within a transaction.

        Args:
            before_turn: this one.
            keep_for: readers of whose messages none is dropped.
        """
        marks = ", ".join("?" * len(keep_for))
        self._drop(f"turn > 0 AND turn < ? AND reader NOT IN ({marks})", before_turn, *sorted(keep_for))

    def unsent_to(self) -> tuple[str, ...]:
        """Return the recipients of unsent messages, sorted."""
        rows = self._journal.db.execute("SELECT DISTINCT recipient FROM outgoing WHERE sent = 0 ORDER BY recipient")
        return tuple(recipient for (recipient,) in rows)

    def unsent(self) -> dict[str, int]:
        """Return how many messages the relay has not confirmed, by recipient, sorted."""
        query = "SELECT recipient, count(*) FROM outgoing WHERE sent = 0 GROUP BY recipient ORDER BY recipient"
        return dict(self._journal.db.execute(query).fetchall())

    def without_inbox(self) -> tuple[str, ...]:
        """Return the recipients whose inbox does not exist yet, sorted."""
        return self._delays.without_inbox()

    def next_due_s(self) -> float | None:
        """Return in how many seconds a delayed message may be tried again, or None when none is delayed."""
        return self._delays.next_due_s()

    def _header(self, state: SessionState, send: Send, blob_bytes: int) -> Header:
        kind, terms = send.message.kind, self._terms
        return Header(
            kind=kind,
            trial_id=terms.trial_id,
            session_id=NO_SESSION if kind.before_session else state.session_id,
            message_id=system_random(MESSAGE_ID_BYTES),
            turn=send.turn,
            attempt=send.attempt,
            body_bytes=body_bytes(send.message, blob_bytes),
            stride=stride_for(self._chunk_bytes, terms.me, send.recipient),
            sender=terms.me,
            recipient=send.recipient,
        )

    def _add_sealed(self, state: SessionState, send: Send) -> None:
        header = self._header(state, send, 0)
        key = self._keyring.key(state, header)
        assert key is not None, "the machine sends before the session is agreed"
        parts = list(seal_parts(header, send.message, key, self._terms.sign))
        self._insert(send, header, sealed=self._blobs.put(b"".join(parts)), part_bytes=len(parts[0]))

    def _add_cut(self, state: SessionState, send: Send, cut: Cut) -> None:
        slot, slot_bytes = self._slots.row(cut.slot)
        size_bytes = slot_bytes - cut.start if cut.size is None else cut.size
        assert 0 <= cut.start <= cut.start + size_bytes <= slot_bytes, "a cut reaches beyond its slot"
        self._insert(
            send,
            self._header(state, send, size_bytes),
            slot=slot,
            start=cut.start,
            bytes=size_bytes,
            digest=cut.digest,
            meta=encode_meta(send.message),
            nonce=system_random(NONCE_BASE_BYTES),
        )

    def _insert(self, send: Send, header: Header, **more: int | bytes) -> None:
        columns: dict[str, int | str | bytes] = {
            "kind": int(header.kind),
            "turn": header.turn,
            "attempt": header.attempt,
            "recipient": header.recipient,
            "ordinal": send.ordinal,
            "reader": send.reader,
            "header": header.encode(),
            "sent": _HELD if send.held else _UNSENT,
            **more,
        }
        marks = ", ".join("?" * len(columns))
        with self._journal.transaction() as db:
            db.execute(
                f"INSERT INTO outgoing ({', '.join(columns)}) VALUES ({marks})",  # noqa: S608 (names of this module)
                tuple(columns.values()),
            )

    @contextmanager
    def _parts(self, state: SessionState, letter: Letter) -> Iterator[Iterator[bytes] | None]:
        """Give the sealed parts of a message one by one; None where the key to seal them is gone."""
        sealed, part_bytes, slot, start, size_bytes, digest, meta, nonce, encoded = self._journal.db.execute(
            "SELECT sealed, part_bytes, slot, start, bytes, digest, meta, nonce, header FROM outgoing WHERE id = ?",
            (letter.row,),
        ).fetchone()
        if sealed is not None:
            with self._blobs.view(sealed) as whole:
                yield _split(whole, part_bytes)
            return
        header = self._journal.header(encoded, self._terms.addresses)
        key = self._keyring.key(state, header)
        if key is None:
            yield None
            return
        with self._slots.view_row(slot) as content, content[start : start + size_bytes] as blob:
            message = decode_meta(header.kind, meta)
            parts = seal_parts(header, message, key, self._terms.sign, blob=blob, blob_digest=digest, nonce_base=nonce)
            try:
                yield parts
            finally:
                parts.close()  # it may have been left in the middle, and holds the mapped file

    def _drop(self, condition: str, *values: str | int) -> None:
        with self._journal.transaction() as db:
            rows = db.execute(f"SELECT id, sealed FROM outgoing WHERE {condition}", values).fetchall()  # noqa: S608
            for row, sealed in rows:
                db.execute("DELETE FROM outgoing WHERE id = ?", (row,))
                if sealed is not None:
                    self._blobs.delete(sealed)


def _split(sealed: memoryview, part_bytes: int) -> Iterator[bytes]:
    if part_bytes < 1:
        raise JournalError("The journal holds a message in parts of no size.")
    for start in range(0, len(sealed), part_bytes):
        yield bytes(sealed[start : start + part_bytes])
