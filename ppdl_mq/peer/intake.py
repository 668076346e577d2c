"""From parts, as the relay hands them out, to messages whose seal and signature hold.

Parts come in any order, twice, altered, invented. What is refused raises and leaves no trace but in the quarantine.
Source: docs/PROTOCOL.md, section 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from ppdl_mq.config import limits
from ppdl_mq.crypto.seal import open_sealed
from ppdl_mq.errors import Malformed, Misdirected, OutOfTurn, TooLarge
from ppdl_mq.peer.blobs import INLINE_BYTES, Blobs, BlobWriter
from ppdl_mq.peer.journal import Journal
from ppdl_mq.protocol.keyring import Keyring
from ppdl_mq.protocol.session import SessionState
from ppdl_mq.protocol.terms import WEIGHTS, Terms
from ppdl_mq.wire.envelope import BodyDigest, Opened, read_body
from ppdl_mq.wire.header import NO_SESSION, Header, split_part
from ppdl_mq.wire.kinds import Kind

_PAST_FACT: Final = "long past"
_RELEASING: Final = (Kind.CONFIRM, Kind.INITIAL)  # what came too early may wait for these


@dataclass(slots=True, kw_only=True)
class _Assembly:
    """A message of which some parts are here."""

    header: Header
    digest: BodyDigest
    row: int = 0  # in the journal; 0 until it has one
    writer: BlobWriter | None = None
    inline: bytes = b""  # a small message's only part, until it is journalled
    got: set[int] = field(default_factory=set)
    fresh: list[int] = field(default_factory=list)  # written, but not yet journalled

    @property
    def is_complete(self) -> bool:
        return len(self.got) == self.header.parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A complete message in the journal.

    Args:
        row: its number in the journal.
        blob: where its plaintext body is.
        opened: what it is.
    """

    row: int
    blob: int
    opened: Opened


class Intake:
    """Assembles messages in the journal.

    Args:
        terms: of the trial.
        keyring: opens parts.
        journal: where parts are kept.
        blobs: its byte strings.
        weights_bytes: of the model.
        blob_bytes: of the largest blob of any kind.
        chunk_bytes: largest part that the manifest allows.
    """

    def __init__(
        self,
        terms: Terms,
        keyring: Keyring,
        journal: Journal,
        blobs: Blobs,
        *,
        weights_bytes: int,
        blob_bytes: int,
        chunk_bytes: int,
    ) -> None:
        self._terms = terms
        self._keyring = keyring
        self._journal = journal
        self._blobs = blobs
        self._weights_bytes = weights_bytes
        self._blob_bytes = blob_bytes
        self._chunk_bytes = chunk_bytes
        self._digests: dict[int, bytes] = {}  # of the weights of complete messages, by row
        self._past = int.from_bytes(journal.fact(_PAST_FACT) or b"", "big")
        self._offered: set[int] = set()  # rows that were offered and are still there: they came too early
        self._open: dict[tuple[str, bytes], _Assembly] = dict(self._reload())

    def take(self, state: SessionState, part: bytes, *, came_to: str) -> Header | None:
        """Check a part and keep its plaintext; `flush` makes that durable.

        Args:
            state: of the machine.
            part: as it came.
            came_to: the address it was taken from.

        Returns:
            Its header; None when it is here already, long past, or parked until the session is known.

        Raises:
            RemoteError: it is refused.
        """
        if len(part) > self._chunk_bytes:
            raise TooLarge("A message is larger than the manifest allows.")
        header, associated, sealed = split_part(part)
        self._check_address(state, header, came_to)
        if self._is_long_past(header) or self._is_here(header):
            return None
        key = self._keyring.key(state, header)
        if key is None:
            if header.kind is not Kind.CONFIRM or state.session_id:
                raise OutOfTurn(f"A {header.kind.name} of {header.sender} came before the session was agreed.")
            self._park(header, part)
            return None
        self._keep(header, open_sealed(key, sealed, associated))
        return header

    def has_whole(self, header: Header) -> bool:
        """Tell whether every part of a message that was begun is here."""
        assembly = self._open.get((header.sender, header.message_id))
        return assembly is not None and assembly.is_complete

    def flush(self) -> None:
        """Return when every part taken is on disk; only then may it be acknowledged."""
        dirty = [assembly for assembly in self._open.values() if assembly.fresh]
        if not dirty:
            return
        for assembly in dirty:
            if assembly.writer:
                assembly.writer.sync()
        with self._journal.transaction() as db:
            for assembly in dirty:
                if not assembly.row:
                    assembly.row = self._insert(assembly.header, self._blobs.put(assembly.inline))
                rows = [(assembly.row, part) for part in assembly.fresh]
                db.executemany("INSERT OR IGNORE INTO incoming_part VALUES (?, ?)", rows)
                if assembly.is_complete:
                    db.execute("UPDATE incoming SET complete = 1 WHERE id = ?", (assembly.row,))
        for assembly in dirty:
            assembly.fresh.clear()
            if assembly.is_complete:
                if assembly.writer:
                    assembly.writer.close()
                if digest := assembly.digest.value:
                    self._digests[assembly.row] = digest
                del self._open[assembly.header.sender, assembly.header.message_id]

    def complete(self) -> list[tuple[int, Header, int]]:
        """Return (row, header, blob) of every complete message that was not worked on yet, oldest first."""
        found = self._journal.db.execute(
            "SELECT id, header, blob FROM incoming WHERE complete = 1 ORDER BY id"
        ).fetchall()
        self._offered = {row for row, _, _ in found}
        names = self._terms.addresses
        return [(row, self._journal.header(header, names), blob) for row, header, blob in found]

    def read(self, row: int, header: Header, blob: int) -> Arrived:
        """Check the signature of a complete message and decode it.

        Raises:
            RemoteError: it is refused; the caller drops it.
        """
        with self._blobs.view(blob) as body:
            sender = self._terms.peers[header.sender]
            opened = read_body(header, body, sender, blob_digest=self._digests.get(row))
        if header.kind.carries_weights and opened.blob_bytes != self._weights_bytes:
            raise Malformed(
                f"The weights of {header.sender} have {opened.blob_bytes} bytes, not {self._weights_bytes}."
            )
        return Arrived(row=row, blob=blob, opened=opened)

    @contextmanager
    def blob_of(self, arrived: Arrived) -> Iterator[memoryview]:
        """Give read access to the blob of a complete message, without a copy."""
        start, size_bytes = arrived.opened.blob_offset, arrived.opened.blob_bytes
        with self._blobs.view(arrived.blob) as body, body[start : start + size_bytes] as blob:
            yield blob

    def settle(self, row: int, header: Header, *, keep_blob: bool = False, remember: bool = True) -> None:
        """Remove a message that was worked on or refused. Call within a transaction.

        Args:
            row: of the message.
            header: of the message.
            keep_blob: its body was taken over.
            remember: drop it silently when it comes again. Not for a refused one: its id may have been chosen by
                somebody who wants the right message dropped.
        """
        self._digests.pop(row, None)
        self._offered.discard(row)  # the next message may get this number
        with self._journal.transaction() as db:
            blob = db.execute("SELECT blob FROM incoming WHERE id = ?", (row,)).fetchone()[0]
            db.execute("DELETE FROM incoming WHERE id = ?", (row,))
            if not keep_blob:
                self._blobs.delete(blob)
            if remember and self._has_room_to_remember(header.sender):
                turn = header.turn if _ages(header.kind) else 0
                db.execute("INSERT OR IGNORE INTO seen VALUES (?, ?, ?)", (header.sender, header.message_id, turn))

    def _has_room_to_remember(self, sender: str) -> bool:
        """Tell whether one more message id of a sender may be kept: it can make as many as it likes."""
        count = "SELECT count(*) FROM seen WHERE sender = ?"
        return bool(self._journal.db.execute(count, (sender,)).fetchone()[0] < limits.MAX_SEEN_PER_SENDER)

    def unpark(self) -> Iterator[bytes]:
        """Take back the parts that were kept until the session is known."""
        with self._journal.transaction() as db:
            parts = [bytes(row[0]) for row in db.execute("SELECT part FROM parked ORDER BY id").fetchall()]
            db.execute("DELETE FROM parked")
        yield from parts

    def forget_turns(self, before_turn: int) -> None:
        """Give up unfinished messages of turns before this one: others have built on them, or they come again whole.

        In server-aided every peer can make parts in another's name (the signature over the whole tells), so that what
        was begun may never become complete.
        """
        with self._journal.transaction():
            for key, assembly in list(self._open.items()):
                if _ages(assembly.header.kind) and assembly.header.turn < before_turn:
                    self._discard(key, assembly)

    def forget_attempts(self, turn: int, before_attempt: int) -> None:
        """Give up unfinished messages of a step's attempts before this one: their senders may have nothing to send."""
        with self._journal.transaction():
            for key, assembly in list(self._open.items()):
                header = assembly.header
                if _ages(header.kind) and header.turn == turn and header.attempt < before_attempt:
                    self._discard(key, assembly)

    def forget_seen(self, before_turn: int) -> None:
        """Drop the message ids of turns long before this one, so that they do not grow with the trial.

        From then on messages of these turns are dropped for their turn alone. Call within a transaction.
        """
        past = before_turn - self._turns_remembered()
        if past <= max(self._past, 1):
            return
        with self._journal.transaction() as db:
            db.execute("DELETE FROM seen WHERE turn > 0 AND turn < ?", (past,))
            self._journal.keep_fact(_PAST_FACT, past.to_bytes(8, "big"))
        self._past = past

    def _turns_remembered(self) -> int:
        """A sequential machine compares what comes with the statements of two cycles, and must see it so long."""
        return 2 if self._terms.is_masked else 2 * len(self._terms.peers)

    def _is_long_past(self, header: Header) -> bool:
        return _ages(header.kind) and header.turn < self._past

    def _check_address(self, state: SessionState, header: Header, came_to: str) -> None:
        """Hold the header to section 3, rules 2 to 4, before any cryptography."""
        terms, kind = self._terms, header.kind
        if kind not in terms.kinds():
            raise Misdirected(f"A {kind.name} has no place in {terms.protocol}.")
        if header.sender not in terms.peers or header.sender == terms.me:
            raise Misdirected("A message is from somebody who is not another peer of this trial.")
        if not header.recipient == came_to == (WEIGHTS if terms.is_for_all(kind) else terms.me):
            raise Misdirected("A message is for somebody else.")
        if header.trial_id != terms.trial_id and kind is not Kind.HELLO:
            raise Misdirected(f"A {kind.name} of {header.sender} is of another trial.")
        expected = NO_SESSION if kind.before_session else state.session_id
        if header.session_id != expected and (kind.before_session or state.session_id):
            raise Misdirected(f"A {kind.name} of {header.sender} is of another session.")
        largest = self._weights_bytes if kind.carries_weights else self._blob_bytes
        if header.body_bytes > kind.max_body_bytes(largest):
            raise TooLarge(f"A {kind.name} of {header.sender} is larger than any can be.")
        if not terms.may_name(kind, header.sender, header.turn, header.attempt):
            raise OutOfTurn(
                f"{header.sender} sent a {kind.name} of turn {header.turn}, attempt {header.attempt}, "
                "which is not its own."
            )

    def _is_here(self, header: Header) -> bool:
        assembly = self._open.get((header.sender, header.message_id))
        if assembly is not None and assembly.header.of_part(header.part) == header and header.part in assembly.got:
            return True
        where = (header.sender, header.message_id)
        seen = "SELECT 1 FROM seen WHERE sender = ? AND message_id = ?"
        waiting = "SELECT 1 FROM incoming WHERE sender = ? AND message_id = ? AND complete = 1"
        return any(self._journal.db.execute(query, where).fetchone() for query in (seen, waiting))

    def _park(self, header: Header, part: bytes) -> None:
        with self._journal.transaction() as db:
            held = db.execute("SELECT count(*) FROM parked WHERE sender = ?", (header.sender,)).fetchone()[0]
            if held >= limits.MAX_PARKED_PER_SENDER:
                raise OutOfTurn(f"Too many messages of {header.sender} wait for the session to be agreed.")
            db.execute("INSERT OR IGNORE INTO parked (sender, part) VALUES (?, ?)", (header.sender, part))

    def _keep(self, header: Header, plaintext: bytes) -> None:
        key = (header.sender, header.message_id)
        assembly = self._open.get(key)
        if assembly is None:
            assembly = self._open[key] = self._begin(header, plaintext)
        elif assembly.header.of_part(0) != header.of_part(0):
            raise Malformed(f"Parts of one message of {header.sender} have different headers.")
        offset = header.part * header.stride
        if assembly.writer:
            assembly.writer.write(offset, plaintext)
        assembly.digest.add(offset, plaintext)
        assembly.got.add(header.part)
        assembly.fresh.append(header.part)

    def _begin(self, header: Header, plaintext: bytes) -> _Assembly:
        """Make room for a message; the only part of a small one waits for `flush` in memory."""
        if not self._has_room_for(header):
            raise OutOfTurn(f"Too many messages of {header.sender} miss parts, or came too early.")
        digest = BodyDigest(header)
        if header.parts == 1 and header.body_bytes <= INLINE_BYTES:  # one commit, that of `flush`, is enough for it
            return _Assembly(header=header, digest=digest, inline=plaintext)
        self.flush()  # what came before gets its row before
        with self._journal.transaction():
            blob = self._blobs.reserve(header.body_bytes)
            row = self._insert(header, blob)
        return _Assembly(header=header, digest=digest, row=row, writer=self._blobs.reopen(blob, header.body_bytes))

    def _has_room_for(self, header: Header) -> bool:
        """Tell whether one more message of a sender may be begun: eight, and one each of the releasing kinds."""
        # What is whole and was not offered yet is about to be: an honest peer may have many small ones on the way.
        found = self._journal.db.execute(
            "SELECT id, complete, header FROM incoming WHERE sender = ?", (header.sender,)
        ).fetchall()
        rows = [raw for row, is_whole, raw in found if not is_whole or row in self._offered]
        if len(rows) < limits.MAX_OPEN_MESSAGES_PER_SENDER:
            return True  # of whatever kinds they are: no header needs to be decoded for that
        pending = [self._journal.header(raw, self._terms.addresses).kind for raw in rows]
        counted = len(pending) - sum(kind in pending for kind in _RELEASING)
        is_first = header.kind in _RELEASING and header.kind not in pending
        return is_first or counted < limits.MAX_OPEN_MESSAGES_PER_SENDER

    def _insert(self, header: Header, blob: int) -> int:
        with self._journal.transaction() as db:
            row = db.execute(
                "INSERT INTO incoming (sender, message_id, header, blob) VALUES (?, ?, ?, ?)",
                (header.sender, header.message_id, header.of_part(0).encode(), blob),
            ).lastrowid
        assert row is not None
        return row

    def _discard(self, key: tuple[str, bytes], assembly: _Assembly) -> None:
        if assembly.writer:
            assembly.writer.close()
        del self._open[key]
        if assembly.row:
            self.settle(assembly.row, assembly.header, remember=False)

    def _reload(self) -> Iterator[tuple[tuple[str, bytes], _Assembly]]:
        rows = self._journal.db.execute("SELECT id, header, blob FROM incoming WHERE complete = 0").fetchall()
        for row, encoded, blob in rows:
            header = self._journal.header(encoded, self._terms.addresses)
            parts = self._journal.db.execute("SELECT part FROM incoming_part WHERE incoming = ?", (row,))
            got = {part for (part,) in parts}
            if header.parts == 1:  # its row was written, its part was not journalled: it will come again
                with self._journal.transaction():
                    self.settle(row, header, remember=False)
                continue
            writer = self._blobs.reopen(blob, header.body_bytes)
            yield (
                (header.sender, header.message_id),
                _Assembly(header=header, digest=BodyDigest(header), row=row, writer=writer, got=got),
            )

    def close(self) -> None:
        """Give the files of unfinished messages back to the system."""
        for assembly in self._open.values():
            if assembly.writer:
                assembly.writer.close()
        self._open.clear()


def _ages(kind: Kind) -> bool:
    """Tell whether messages of a kind are of no use once their turn is past. DROP and LEAVE hold from a step on."""
    return kind in (Kind.TURN, Kind.NOTICE) or kind.in_attempt
