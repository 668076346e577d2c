"""A peer's intake on a real journal, and others that seal messages to it, in a state that a real trial reaches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppdl_mq.errors import RemoteError
from ppdl_mq.peer.blobs import Blobs
from ppdl_mq.peer.intake import Intake
from ppdl_mq.peer.journal import Journal
from ppdl_mq.peer.quarantine import Quarantine
from ppdl_mq.protocol.events import Received
from ppdl_mq.protocol.keyring import Keyring
from ppdl_mq.protocol.sequential import SequentialMachine
from ppdl_mq.protocol.state import State
from ppdl_mq.protocol.terms import Terms
from ppdl_mq.wire.envelope import body_bytes, seal_parts
from ppdl_mq.wire.header import NO_SESSION, Header
from ppdl_mq.wire.kinds import Kind
from tests.protocol.world import Letter, World
from tests.trial import identity_of

WEIGHTS_BYTES = 36
CHUNK_BYTES = 4096


@dataclass(frozen=True)
class Moment:
    """A letter that has just arrived, with the states of both ends.

    `weights` are what the letter's digest is the digest of.
    """

    letter: Letter
    reader: str
    sender_terms: Terms
    sender_state: State
    reader_terms: Terms
    reader_state: State
    weights: bytes

    def header(self, **changes: Any) -> Header:
        send = self.letter.send
        kind = send.message.kind
        fields: dict[str, Any] = {
            "kind": kind,
            "trial_id": self.sender_terms.trial_id,
            "session_id": NO_SESSION if kind.before_session else self.sender_state.session_id,
            "message_id": self.letter.message_id,
            "turn": send.turn,
            "attempt": send.attempt,
            "body_bytes": body_bytes(send.message, len(self.weights)),
            "stride": 2_000,
            "sender": self.letter.sender,
            "recipient": send.recipient,
        }
        return Header(**fields | changes)

    def parts(self, *, weights: bytes | None = None, sign: Any = None, **changes: Any) -> list[bytes]:
        """The message as its sender would seal it, but for changes to the header."""
        blob = self.weights if weights is None else weights
        message = self.letter.send.message
        header = self.header(**{"body_bytes": body_bytes(message, len(blob))} | changes)
        keyring = Keyring(self.sender_terms, identity_of(self.letter.sender))
        key = keyring.key(self.sender_state, self.header())
        assert key is not None
        return list(seal_parts(header, message, key, sign or self.sender_terms.sign, blob=memoryview(blob)))


def weights_of(world: World, letter: Letter) -> bytes:
    """What the world's made-up training is the digest of: see `tests.protocol.world.trained`."""
    if letter.send.blob is None:
        return b""
    turn = letter.send.blob.slot.step
    chain = world.peers[letter.sender].state.chain
    return chain.digest_of(turn - 1) + turn.to_bytes(4, "big")


def moments(protocol: str) -> dict[Kind, Moment]:
    """The first letter of every kind that its reader has a use for, in the trial of three peers."""
    world = World(protocol=protocol, impatience=0.05, seed=5, training__epochs=2)
    found: dict[Kind, Moment] = {}
    world.start()
    while not world.has_ended:
        for reader, peer in world.peers.items():
            for letter in peer.inbox:
                kind = letter.send.message.kind
                if kind not in found and _is_of_use(peer.machine, peer.state, letter):
                    sender = world.peers[letter.sender]
                    if sender.state.session_secret is not None or sender.state.pair_keys:
                        found[kind] = Moment(
                            letter=letter,
                            reader=reader,
                            sender_terms=sender.machine.terms,
                            sender_state=sender.state,
                            reader_terms=peer.machine.terms,
                            reader_state=peer.state,
                            weights=weights_of(world, letter),
                        )
        world.step()
    return found


def _is_of_use(machine: SequentialMachine, state: State, letter: Letter) -> bool:
    if not letter.send.message.kind.before_session and not state.session_id:
        return False
    try:
        after, effects = machine.step(state, letter.received)
    except RemoteError:
        return False
    return after != state or bool(effects)


class Desk:
    """The intake of the reader of a moment."""

    def __init__(self, moment: Moment, journal: Journal) -> None:
        self.moment, self.journal = moment, journal
        self.state = moment.reader_state
        terms = moment.reader_terms
        self.blobs = Blobs(journal)
        self.quarantine = Quarantine(journal)
        self.intake = Intake(
            terms,
            Keyring(terms, identity_of(terms.me)),
            journal,
            self.blobs,
            weights_bytes=WEIGHTS_BYTES,
            blob_bytes=WEIGHTS_BYTES,
            chunk_bytes=CHUNK_BYTES,
        )

    def take(self, part: bytes) -> Header | None:
        """Take a part from where it was sent to, which a relay could not do otherwise."""
        return self.intake.take(self.state, part, came_to=self.moment.letter.send.recipient)

    def offer(self, part: bytes) -> RemoteError | None:
        """Take a part as a runner would; return why it was refused."""
        try:
            self.take(part)
            self.intake.flush()
            for row, header, blob in self.intake.complete():
                try:
                    self.intake.read(row, header, blob)
                except RemoteError:
                    self.intake.settle(row, header, remember=False)
                    raise
        except RemoteError as error:
            self.quarantine.add(error, part)
            return error
        return None

    def received(self) -> Received:
        """The one complete message, which is then settled."""
        ((row, header, blob),) = self.intake.complete()
        opened = self.intake.read(row, header, blob).opened
        self.intake.settle(row, header)
        return Received(sender=header.sender, turn=header.turn, message=opened.message, blob_digest=opened.blob_digest)

    def takes_the_original(self, parts: list[bytes]) -> None:
        """Check that the peer is unharmed: it takes the message, and its machine goes on."""
        for part in parts:
            assert self.offer(part) is None
        moment = self.moment
        received = self.received()
        assert received == moment.letter.received
        machine = SequentialMachine(moment.reader_terms)
        after, effects = machine.step(self.state, received)
        assert after != self.state or effects

    def traces(self) -> dict[str, int]:
        """How many rows the refused have left behind, outside of the quarantine."""
        tables = ("incoming", "incoming_part", "parked", "seen", "blob", "slot")
        return {table: self.journal.db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}


NO_TRACE = dict.fromkeys(("incoming", "incoming_part", "parked", "seen", "blob", "slot"), 0)


@contextmanager
def desk_for(moment: Moment, folder: Path) -> Iterator[Desk]:
    """Open a desk in a folder; opened again there, it goes on where it was."""
    terms = moment.reader_terms
    journal = Journal(folder, trial_id=terms.trial_id, identity=identity_of(terms.me))
    try:
        desk = Desk(moment, journal)
        try:
            yield desk
        finally:
            desk.intake.close()
    finally:
        journal.close()
