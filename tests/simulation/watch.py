"""What must hold at every moment, looked at from outside: at the relay, and in what is on disk."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ppdl_mq.errors import Malformed, NotTaken, Unroutable
from ppdl_mq.protocol.statements import context_digest
from ppdl_mq.training.order import turn_run
from ppdl_mq.transport.base import Delivery
from ppdl_mq.wire.header import Header, decode_header, split_part
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.messages import Agree, Commit, Message, Release
from tests.simulation.work import Work

if TYPE_CHECKING:
    from tests.simulation.node import Node

_NONCE_BYTES = 24
_FULL = 2  # of PRAGMA synchronous
_NAMING_BLOBS = {
    "weights": "SELECT blob FROM slot JOIN blob ON blob.id = blob WHERE inline IS NULL",
    "a letter": "SELECT sealed FROM outgoing JOIN blob ON blob.id = sealed WHERE inline IS NULL",
    "a message": "SELECT blob FROM incoming JOIN blob ON blob.id = blob WHERE complete = 1 AND inline IS NULL",
}
_PARTS = "SELECT blob, header, part FROM incoming JOIN incoming_part ON incoming.id = incoming WHERE complete = 0"


class Broken(AssertionError):
    """A promise was broken."""


class Watch:
    """Watches one peer over all its lives.

    Args:
        node: the peer.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._parts: dict[tuple[bytes, int], bytes] = {}  # what was published, by message id and part
        self._nonces: dict[bytes, bytes] = {}
        self._by_place: dict[tuple[Any, ...], bytes] = {}  # message ids
        self._confirmed: set[bytes] = set()
        self._sets: list[set[bytes]] = []
        self._sent_rows: set[bytes] = set()  # headers that were seen as sent, and looked at
        self._trained: set[int] = set()  # own turns whose weights are on disk
        self._messages: dict[bytes, Message] = {}  # by message id, as they were sealed
        self._released: defaultdict[int, set[bytes]] = defaultdict(set)
        self._settling: list[Header] = []  # in the transaction that is open
        self._settled: set[tuple[str, bytes]] = set()
        self.lost_parts = 0
        self.refused = 0

    # --- training -------------------------------------------------------------------------------------------------

    def trains(self, number: int) -> None:
        """A turn is about to be trained."""
        self._node.simulation.trained[self._node.name, number] += 1
        self.holds(number not in self._trained, f"trains turn {number} again, whose result was journalled")

    # --- at the relay ---------------------------------------------------------------------------------------------

    def sealed(self, header: Header, message: Message) -> None:
        """Note what a message says, before it is opaque."""
        self._messages[header.message_id] = message

    def begins_publishing(self) -> None:
        self._sets = []

    def begins_set(self) -> None:
        self._sets.append(set())

    def published(self, part: bytes) -> None:
        """A part is about to reach the relay."""
        node = self._node
        self.holds(not node.db.in_transaction, "publishes within a transaction")
        header, associated, sealed = split_part(part)
        first = self._parts.setdefault((header.message_id, header.part), part)
        self.holds(first == part, f"sends other bytes as the {header.kind.name} that it sent before")
        nonce = bytes(sealed[:_NONCE_BYTES])
        self.holds(self._nonces.setdefault(nonce, part) == part, f"uses a nonce twice, in a {header.kind.name}")
        self._sets[-1].add(header.message_id)
        if header.part == 0:
            found = node.db.read("SELECT 1 FROM outgoing WHERE header = ?", (associated,))
            self.holds(bool(found), f"publishes a {header.kind.name} that is not in its journal")
            self._look_into(header)

    def _look_into(self, header: Header) -> None:
        simulation, step = self._node.simulation, header.turn
        match self._messages.get(header.message_id):
            case Commit(context=context):
                simulation.contexts[context_digest(context)] = context
            case Release(member=self._node.name, context=context):
                contexts = self._released[step]
                contexts.add(context)
                self.holds(len(contexts) == 1, f"releases the masks of step {step} in two contexts")
                simulation.released[self._node.name, step].add(context)
            case Agree(context=context, digest=digest):
                simulation.agreed[step].add((context, digest))

    def confirmed(self, results: Sequence[Unroutable | NotTaken | None]) -> None:
        """The relay has said what it has."""
        for ids, result in zip(self._sets, results, strict=False):
            if result is None:
                self._confirmed |= ids

    def acknowledges(self, deliveries: Sequence[Delivery]) -> None:
        """Some deliveries are about to be acknowledged. What rests at `weights` is its maker's to keep."""
        db = self._node.db
        self.holds(not db.in_transaction, "acknowledges within a transaction")
        for delivery in deliveries:
            if delivery.tag[1] != self._node.name or self._is_kept(delivery.body):  # type: ignore[index]
                continue
            # Not in the journal: then it was refused, or is of long ago. Honest messages are refused rarely.
            self.lost_parts += 1
            self.holds(
                self.refused > 0 or self._is_past(delivery.body),
                f"acknowledges what it neither journalled nor refused: {delivery.body[:150]!r}",
            )
            allowed = self.refused + self._node.passed_over
            self.holds(self.lost_parts <= allowed, "acknowledges more than it journalled or refused")

    def _is_kept(self, part: bytes) -> bool:
        db = self._node.db
        try:
            header, _, _ = split_part(part)
        except Malformed:
            return False
        who = (header.sender, header.message_id)
        return any(
            db.read(query, given)
            for query, given in (
                ("SELECT 1 FROM seen WHERE sender = ? AND message_id = ?", who),
                (
                    "SELECT 1 FROM incoming JOIN incoming_part ON incoming.id = incoming WHERE sender = ?"
                    " AND message_id = ? AND part = ?",
                    (*who, header.part),
                ),
                ("SELECT 1 FROM parked WHERE sender = ? AND part = ?", (header.sender, part)),
            )
        )

    def _is_past(self, part: bytes) -> bool:
        found = self._node.db.read("SELECT value FROM fact WHERE name = 'long past'")
        if not found:
            return False
        header, _ = decode_header(part)
        past = int.from_bytes(found[0][0], "big")
        is_past = header.turn < past and (header.kind in (Kind.TURN, Kind.NOTICE) or header.kind.in_attempt)
        self._node.passed_over += is_past
        return is_past

    # --- on disk --------------------------------------------------------------------------------------------------

    def committed(self) -> None:
        """A transaction has come to the disk."""
        node = self._node
        self._outlives_a_power_cut()
        self._note_settled()
        for what, step in node.db.read("SELECT what, step FROM slot WHERE what IN ('turn', 'local')"):
            number = (step + 1) // 2 if what == "local" else step  # a round has two steps
            if (node.name, number) in node.simulation.trained:
                self._trained.add(number)
        self._counts_the_budget()
        for (header,) in node.db.read("SELECT header FROM outgoing WHERE sent = 1"):
            if header not in self._sent_rows:
                self._sent_rows.add(header)
                decoded, _ = decode_header(header)
                self.holds(
                    decoded.message_id in self._confirmed or decoded.recipient not in node.simulation.relay.queues,
                    f"marks a {decoded.kind.name} to {decoded.recipient} as sent that the relay did not confirm",
                )
        self.refused = sum(count for (count,) in node.db.read("SELECT count FROM refused_count"))
        twice = node.db.read("SELECT count(*) FROM incoming JOIN seen USING (sender, message_id)")
        self.holds(twice == [(0,)], "takes a message in again that it has worked on")

    def _counts_the_budget(self) -> None:
        """Hold what is charged to what is trained: with its result, and once."""
        node = self._node
        if not node.simulation.story.has_budget or node.runner is None:
            return
        charged = node.runner.journal.secret_fact("privacy")["spent"]
        steps = sum(count for count, *_ in charged)
        kept = {turn for turn in self._trained if turn}
        begun = {turn for name, turn in node.simulation.trained if turn and name == node.name}
        self.holds(steps >= sum(map(self._steps, kept)), "keeps the result of a turn that is not charged")
        self.holds(steps <= sum(map(self._steps, begun)), "charges more than it has trained")

    def _steps(self, turn: int) -> int:
        """Return how many steps a turn has."""
        terms, manifest = self._node.terms, self._node.simulation.manifest
        ordinal = turn - 1 if terms.is_masked else terms.schedule.turn(turn).ordinal
        first, last = turn_run(manifest.training, ordinal, rows=Work.rows)
        return last - first

    def _outlives_a_power_cut(self) -> None:
        """Hold what is committed to what is on disk: it is acknowledged and published from now on."""
        db, unsynced = self._node.db, self._node.unsynced
        self.holds(db.read("PRAGMA synchronous") == [(_FULL,)], "commits without a sync of the journal")
        for what, query in _NAMING_BLOBS.items():
            for (blob,) in db.read(query):
                self.holds(not unsynced.has(blob), f"commits {what} whose file is not synced")
        for blob, header, number in db.read(_PARTS):
            decoded, _ = decode_header(header)
            offset = number * decoded.stride
            self.holds(not unsynced.has(blob, offset), f"commits a part of a {decoded.kind.name} that is not synced")

    def begins_transaction(self) -> None:
        self._settling.clear()

    def settles(self, header: Header) -> None:
        """The machine takes a message; it counts once it is on disk."""
        self._settling.append(header)

    def _note_settled(self) -> None:
        for header in self._settling:
            key = (header.sender, header.message_id)
            self.holds(key not in self._settled, f"works on a {header.kind.name} of {header.sender} twice")
            self._settled.add(key)
        self._settling.clear()

    def holds(self, is_so: bool, what: str) -> None:
        """Remember that a promise was broken, and raise, which the product may swallow."""
        if not is_so:
            error = Broken(f"{self._node.name} {what}")
            self._node.simulation.broken.append(error)
            raise error
