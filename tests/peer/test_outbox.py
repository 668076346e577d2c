from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ppdl_mq.config import limits
from ppdl_mq.errors import Interrupted, JournalError, NotTaken, RelayLost, Unroutable
from ppdl_mq.peer.blobs import INLINE_BYTES, Blobs
from ppdl_mq.peer.journal import Journal
from ppdl_mq.peer.outbox import Fate, Outbox
from ppdl_mq.peer.slots import Slots
from ppdl_mq.protocol.effects import Send
from ppdl_mq.protocol.keyring import Keyring
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.session import SessionState
from ppdl_mq.protocol.slots import Cut, Slot
from ppdl_mq.transport.memory import MemoryRelay, MemoryTransport
from ppdl_mq.wire.envelope import open_part, read_body
from ppdl_mq.wire.header import split_part
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.messages import Confirm, Lineage, Resend, Statement, TurnWeights
from tests.protocol.world import World
from tests.trial import identity_of

CHUNK_BYTES = 4096
WORLD = World(protocol="fully-connected")
WORLD.run(until=lambda: WORLD.peers["anna"].state.phase is Phase.AWAITING_CONFIRMS)
STATE = WORLD.peers["anna"].state
TERMS = WORLD.peers["anna"].machine.terms


class Post:
    """Anna's outbox, its journal, and a relay that remembers what was published."""

    def __init__(self, folder: Path) -> None:
        self.journal = Journal(folder, trial_id=TERMS.trial_id, identity=identity_of("anna"))
        self.blobs = Blobs(self.journal)
        self.slots = Slots(self.journal, self.blobs)
        keyring = Keyring(TERMS, identity_of("anna"))
        self.outbox = Outbox(TERMS, keyring, self.journal, self.blobs, self.slots, chunk_bytes=CHUNK_BYTES)
        self.published: list[tuple[str, bytes]] = []
        relay = MemoryRelay(self._seen)
        self.transport = MemoryTransport(relay)
        self.transport.connect()
        for address in ("bert", "cleo"):
            self.transport.declare(address)

    def _seen(self, address: str, body: bytes) -> Iterable[tuple[str, bytes]]:
        self.published.append((address, body))
        return []

    def add(self, send: Send, state: Any = STATE) -> None:
        with self.journal.transaction():
            self.outbox.add(state, send)

    def publish(self, state: SessionState = STATE) -> list[tuple[str, bytes]]:
        """Publish what is due and mark it sent; return what passed the relay."""
        self.published = []
        letters = self.outbox.due()
        for letter, fate in zip(letters, self.outbox.publish_all(self.transport, state, letters), strict=True):
            if fate is Fate.CONFIRMED:
                self.outbox.mark_sent(letter)
        return self.published

    def close(self) -> None:
        self.transport.close()
        self.journal.close()


@pytest.fixture
def post(tmp_path: Path) -> Iterator[Post]:
    opened = Post(tmp_path)
    yield opened
    opened.close()


def confirm(to: str = "bert", **changes: Any) -> Send:
    return dataclasses.replace(Send(recipient=to, reader=to, turn=0, message=Confirm(contribution=b"")), **changes)


def turn(number: int, weights: bytes, to: str = "bert", *, start: int = 0, size: int | None = None) -> Send:
    statement = Statement(digest=bytes(32), signature=bytes(64))
    run = weights[start:] if size is None else weights[start : start + size]
    cut = Cut(Slot("turn", number), hashlib.sha256(run).digest(), start, size)
    message = TurnWeights(lineage=Lineage(anchor=bytes(32), chain=(statement,)))
    return Send(recipient=to, reader=to, turn=number, message=message, blob=cut)


def test_published_again_as_the_very_same_bytes(post: Post) -> None:
    post.add(confirm())
    first = post.publish()
    assert len(first) == 1
    assert post.publish() == []
    with post.journal.transaction():
        post.outbox.resend("bert")
    assert post.publish() == first


def test_added_twice_is_sealed_once(post: Post) -> None:
    post.add(confirm())
    first = post.publish()
    post.add(confirm())
    assert post.publish() == []
    with post.journal.transaction():
        post.outbox.resend("bert")
    assert post.publish() == first


def test_the_same_after_a_restart(tmp_path: Path) -> None:
    bodies = []
    for _ in range(3):
        post = Post(tmp_path)
        post.add(confirm())
        letters = post.outbox.due()
        assert len(letters) == 1
        # ... and dies before it notes that:
        assert post.outbox.publish_all(post.transport, STATE, letters) == [Fate.CONFIRMED]
        bodies.append(post.published)
        post.close()
    assert bodies[0] == bodies[1] == bodies[2] != []


def test_no_two_messages_share_id_or_nonce(post: Post) -> None:
    for number in range(20):
        post.add(confirm(("bert", "cleo")[number % 2], ordinal=number))
    split = [split_part(body) for _, body in post.publish()]
    assert len(split) == 20
    assert len({header.message_id for header, _, _ in split}) == 20
    assert len({sealed[:24] for _, _, sealed in split}) == 20


@pytest.mark.parametrize("size_bytes", [1, 3_000, 50_000, INLINE_BYTES + 10])
def test_long_messages_go_in_parts_of_one_chunk(post: Post, size_bytes: int) -> None:
    weights = bytes(at % 251 for at in range(size_bytes))
    post.slots.put(Slot("turn", 1), weights)
    post.add(turn(1, weights))
    published = post.publish()
    headers = [split_part(body)[0] for _, body in published]
    assert [header.part for header in headers] == list(range(headers[0].parts))
    assert len({header.of_part(0) for header in headers}) == 1
    assert all(len(body) == CHUNK_BYTES for _, body in published[:-1])
    assert len(published[-1][1]) <= CHUNK_BYTES
    assert post.outbox.published_messages == len(published)
    assert post.outbox.published_bytes == sum(len(body) for _, body in published)
    with post.journal.transaction():
        post.outbox.resend("bert")
    assert post.publish() == published


def test_in_order_and_a_missing_inbox_holds_up_nobody_else(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    post.transport.delete("cleo")
    for number in range(3):
        post.add(confirm("cleo", ordinal=number))
        post.add(confirm("bert", ordinal=number))
    assert [address for address, _ in post.publish()] == ["bert"] * 3
    assert post.outbox.without_inbox() == post.outbox.unsent_to() == ("cleo",)
    assert 0 < (post.outbox.next_due_s() or 0) <= limits.BACKOFF_FIRST_S
    assert post.outbox.due() == []

    post.transport.declare("cleo")
    assert post.publish() == []  # not before its time
    for waiting in post.outbox._delays._waiting.values():
        waiting.until = 0.0
    assert [address for address, _ in post.publish()] == ["cleo"] * 3
    assert post.outbox.without_inbox() == ()
    assert post.outbox.next_due_s() is None


def test_the_wait_for_an_inbox_grows_and_is_bounded(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    post.transport.delete("bert")
    post.add(confirm())
    delays = []
    for _ in range(12):
        (letter,) = post.outbox.due()
        assert post.outbox.publish_all(post.transport, STATE, [letter]) == [Fate.NO_INBOX]
        delays.append(post.outbox.next_due_s() or 0.0)
        for waiting in post.outbox._delays._waiting.values():
            waiting.until = 0.0
    assert delays[0] == pytest.approx(limits.BACKOFF_FIRST_S, abs=0.05)
    assert delays[1] == pytest.approx(2 * limits.BACKOFF_FIRST_S, abs=0.05)
    assert delays[-1] == pytest.approx(limits.BACKOFF_LAST_S, abs=0.05)


def test_nobody_waits_for_an_inbox_that_no_letter_is_for_any_more(post: Post) -> None:
    post.transport.delete("bert")
    post.add(confirm())
    assert post.outbox.publish_all(post.transport, STATE, post.outbox.due()) == [Fate.NO_INBOX]
    with post.journal.transaction():
        post.outbox.withdraw("bert")
    assert post.outbox.due() == []
    assert post.outbox.next_due_s() is None  # once its time had come, the loop would have gone round without a pause
    assert post.outbox.without_inbox() == ()


@pytest.mark.parametrize("error", [RelayLost("gone"), Unroutable("bert")])
def test_what_was_not_confirmed_stays_unsent(post: Post, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    post.add(confirm())
    (letter,) = post.outbox.due()

    def refuse(address: str, bodies: Iterable[bytes]) -> None:
        raise error

    monkeypatch.setattr(post.transport, "publish", refuse)
    if isinstance(error, Unroutable):
        assert post.outbox.publish_all(post.transport, STATE, [letter]) == [Fate.NO_INBOX]
    else:
        with pytest.raises(RelayLost):
            post.outbox.publish_all(post.transport, STATE, [letter])
    assert post.outbox.unsent_to() == ("bert",)
    assert post.outbox.published_messages == 0


class Breaking(MemoryTransport):
    """Breaks after some publications."""

    left = 0

    def publish_all(self, sets: Iterable[tuple[str, Iterable[bytes]]]) -> list[Unroutable | NotTaken | None]:
        results = super().publish_all(sets)
        self.left -= 1
        if self.left < 0:
            raise RelayLost("broke")
        return results


def test_what_is_much_is_published_and_marked_bit_by_bit(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a peer that dies, or a line that breaks, does not begin with the first byte every time."""
    monkeypatch.setattr("ppdl_mq.peer.outbox._AT_ONCE_BYTES", 2 * len(WEIGHTS) + 4096, raising=False)
    transport = post.transport = Breaking(post.transport._relay)
    transport.connect()
    for number in range(1, 6):
        post.slots.put(Slot("turn", number), WEIGHTS)
        post.add(turn(number, WEIGHTS))
    transport.left = 1
    first = post.publish()
    with pytest.raises(RelayLost):
        post.publish()
    broken_off = post.published
    assert [letter.turn for letter in post.outbox.due()] == [3, 4], "the first two were confirmed"
    transport.left = 2
    assert post.publish() == broken_off, "the same bytes"
    assert [split_part(body)[0].turn for _, body in post.publish()][-1] == 5
    assert {split_part(body)[0].turn for _, body in first} == {1, 2}
    assert post.outbox.due() == []


def test_a_message_larger_than_that_goes_alone(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppdl_mq.peer.outbox._AT_ONCE_BYTES", 1000, raising=False)
    post.slots.put(Slot("turn", 1), WEIGHTS)
    post.add(confirm())
    post.add(turn(1, WEIGHTS))
    for number in range(1, 4):
        post.add(confirm(ordinal=number))
    rounds = []
    while letters := post.outbox.due():
        rounds.append([letter.kind for letter in letters])
        post.publish()
    assert rounds == [[Kind.CONFIRM], [Kind.TURN], [Kind.CONFIRM] * 3]


class Withholding(MemoryTransport):
    """Takes everything, confirms nothing for one inbox, and gives the connection up for that."""

    is_withholding = True

    @property
    def withheld(self) -> tuple[str, ...]:
        return ("bert",) if self.is_withholding else ()

    def publish(self, address: str, bodies: Iterable[bytes]) -> None:
        super().publish(address, bodies)
        if address in self.withheld:
            raise RelayLost("it confirms nothing")


def test_whose_messages_are_not_confirmed_is_left_alone_for_a_while(post: Post) -> None:
    """So that the loop goes round meanwhile, and the others get theirs."""
    transport = post.transport = Withholding(post.transport._relay)
    transport.connect()
    for number in range(2):
        post.add(confirm("bert", ordinal=number))
        post.add(confirm("cleo", ordinal=number))
    with pytest.raises(RelayLost):
        post.publish()
    to_bert = post.published
    assert [letter.recipient for letter in post.outbox.due()] == ["cleo"] * 2
    assert limits.BACKOFF_LAST_S / 2 - 1 < (post.outbox.next_due_s() or 0) <= limits.BACKOFF_LAST_S
    assert [address for address, _ in post.publish()] == ["cleo"] * 2
    assert post.outbox.without_inbox() == ()
    assert post.outbox.unsent_to() == ("bert",)

    transport.is_withholding = False
    for waiting in post.outbox._delays._waiting.values():
        waiting.until = 0.0
    assert post.publish()[:1] == to_bert, "the same bytes"
    assert post.outbox.unsent_to() == ()


def test_whose_queue_hangs_again_and_again_rests_for_longer_and_from_the_next_connection_on(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop stands while it hangs: most of the time it must not."""
    now = 1000.0
    monkeypatch.setattr("ppdl_mq.peer.delays.time.monotonic", lambda: now)
    transport = post.transport = Withholding(post.transport._relay)
    transport.connect()
    post.add(confirm("bert"))
    rests = []
    for _ in range(9):
        with pytest.raises(RelayLost):
            post.publish()
        now += 1000.0  # until there is a connection again
        assert post.outbox.due() == []
        rests.append(post.outbox.next_due_s() or 0.0)
        now += rests[-1]
    bounds = [min(600.0, limits.BACKOFF_LAST_S * 2**number) for number in range(9)]
    assert all(bound / 2 <= rest <= bound for rest, bound in zip(rests, bounds, strict=True)), rests
    transport.is_withholding = False
    post.publish()
    post.add(confirm("bert", ordinal=1))
    transport.is_withholding = True
    with pytest.raises(RelayLost):
        post.publish()
    assert post.outbox.due() == []
    assert (post.outbox.next_due_s() or 0.0) <= limits.BACKOFF_LAST_S, "it was well in between"


def test_who_has_had_his_turn_is_passed_over(post: Post) -> None:
    for name in ("bert", "cleo"):
        post.add(confirm(name))
    assert [letter.recipient for letter in post.outbox.due(but_for={"bert"})] == ["cleo"]


def test_withdraw_and_forget(post: Post) -> None:
    for number in (1, 2):
        post.slots.put(Slot("turn", number), bytes(INLINE_BYTES))
        post.add(turn(number, bytes(INLINE_BYTES)))
    post.add(confirm())
    post.add(confirm("cleo"))
    with post.journal.transaction():
        post.outbox.forget(2)
    assert [(letter.kind, letter.turn) for letter in post.outbox.due()] == [
        (Kind.TURN, 2),
        (Kind.CONFIRM, 0),
        (Kind.CONFIRM, 0),
    ]
    with post.journal.transaction():
        post.outbox.withdraw("bert")
    assert [letter.recipient for letter in post.outbox.due()] == ["cleo"]
    count = post.journal.db.execute("SELECT count(*) FROM blob").fetchone()[0]
    assert count == 1 + 2  # Cleo's letter, and the weights of both turns, which are not the outbox's to drop


def test_what_is_held_goes_to_whom_and_for_what_it_was_asked(post: Post) -> None:
    for to, number, ordinal in itertools.product(("bert", "cleo"), (1, 3), range(9)):
        post.add(confirm(to, turn=number, ordinal=ordinal, held=True))
    assert post.publish() == []
    post.outbox.resend("bert")
    assert post.publish() == []
    post.outbox.let_go("bert", 1, range(3, 6))
    assert [(letter.recipient, letter.turn) for letter in post.outbox.due()] == [("bert", 1)] * 3
    first = post.publish()
    assert len(first) == 3
    post.outbox.let_go("bert", 1, range(3, 6))
    assert post.publish() == [], "it was published"
    post.outbox.resend("bert")
    assert post.publish() == first


def test_a_call_for_a_message_is_not_kept(post: Post) -> None:
    post.add(Send(recipient="bert", reader="bert", turn=0, message=Resend(), ordinal=0))
    assert len(post.publish()) == 1
    with post.journal.transaction():
        post.outbox.resend("bert")
    assert post.publish() == []
    assert post.journal.db.execute("SELECT count(*) FROM blob").fetchone()[0] == 0


WEIGHTS = bytes(at % 251 for at in range(50_000))


def test_a_blob_is_sealed_anew_as_the_very_same_bytes(tmp_path: Path) -> None:
    """After a restart too, and whatever else was sealed meanwhile: receivers and the relay see one message."""
    post = Post(tmp_path)
    post.slots.put(Slot("turn", 1), WEIGHTS)
    post.add(turn(1, WEIGHTS))
    first = post.publish()
    assert len(first) > 10
    post.close()
    again = Post(tmp_path)
    again.add(confirm())
    again.publish()
    for _ in range(2):
        with again.journal.transaction():
            again.outbox.resend("bert")
        assert [entry for entry in again.publish() if len(entry[1]) == len(first[0][1])] == first[:-1]
    again.close()


def test_no_sealed_copy_of_a_blob_lies_on_disk(post: Post) -> None:
    post.slots.put(Slot("turn", 1), WEIGHTS)
    before = post.journal.db.execute("SELECT sum(bytes) FROM blob").fetchone()
    for to in ("bert", "cleo"):
        post.add(turn(1, WEIGHTS, to))
    assert post.journal.db.execute("SELECT sum(bytes) FROM blob").fetchone() == before
    assert {address for address, _ in post.publish()} == {"bert", "cleo"}


@pytest.mark.parametrize(("start", "size"), [(0, None), (0, 1), (64, 640), (49_984, 16), (49_999, None)])
def test_a_cut_is_what_arrives(post: Post, start: int, size: int | None) -> None:
    post.slots.put(Slot("turn", 1), WEIGHTS)
    send = turn(1, WEIGHTS, start=start, size=size)
    post.add(send)
    published = [body for _, body in post.publish()]
    header = split_part(published[0])[0]
    key = Keyring(TERMS, identity_of("anna")).key(STATE, header)
    assert key is not None
    body = b"".join(open_part(key, part) for part in published)
    opened = read_body(header, memoryview(body), TERMS.peers["anna"])
    end = len(WEIGHTS) if size is None else start + size
    assert body[opened.blob_offset :][: opened.blob_bytes] == WEIGHTS[start:end]
    assert opened.message == send.message


def test_one_part_stands_in_memory_at_a_time(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = bytes(8 * INLINE_BYTES)
    post.slots.put(Slot("turn", 1), weights)
    post.add(turn(1, weights))
    most = 0

    def publish(_: str, bodies: Iterable[bytes]) -> None:
        nonlocal most
        for _body in bodies:
            most = max(most, tracemalloc.get_traced_memory()[0])

    monkeypatch.setattr(post.transport, "publish", publish)
    (letter,) = post.outbox.due()
    tracemalloc.start()
    try:
        assert post.outbox.publish_all(post.transport, STATE, [letter]) == [Fate.CONFIRMED]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0 < most < 300_000
    assert peak < 300_000


def test_a_letter_goes_with_its_slot(post: Post) -> None:
    for number in (1, 2):
        post.slots.put(Slot("turn", number), WEIGHTS)
        post.add(turn(number, WEIGHTS))
    post.add(confirm())
    post.slots.forget(2)
    assert [(letter.kind, letter.turn) for letter in post.outbox.due()] == [(Kind.TURN, 2), (Kind.CONFIRM, 0)]


def test_discarding_a_step_leaves_what_was_agreed(post: Post) -> None:
    what = ("agreed", "local", "masked", "shard", "sum")
    for step, attempt, name in itertools.product((1, 3), (0, 1), what):
        post.slots.put(Slot(name, step, attempt, "bert", 1), b"x")  # type: ignore[arg-type]

    def left(step: int) -> set[tuple[str, int]]:
        found = itertools.product(what, (0, 1))
        return {(name, of) for name, of in found if post.slots.has(Slot(name, step, of, "bert", 1))}  # type: ignore[arg-type]

    post.slots.discard(1, 0)
    assert left(1) == set(itertools.product(what, (0, 1))) - {("masked", 0), ("shard", 0), ("sum", 0)}
    post.slots.discard_local(3)
    assert ("local", 0) not in left(3)
    assert ("local", 0) in left(1)
    post.slots.discard(2)  # and those before it
    assert left(1) == {("agreed", 0), ("agreed", 1)}
    assert left(3) == set(itertools.product(what, (0, 1))) - {("local", 0), ("local", 1)}
    post.slots.forget(3)
    assert left(1) == set()
    assert post.journal.db.execute("SELECT count(*) FROM blob").fetchone()[0] == 8


def test_what_a_slot_holds_never_changes(post: Post) -> None:
    """The nonces of a letter are drawn once: other bytes under them would give both away."""
    for content in (b"first", b"other"):
        post.slots.put(Slot("turn", 1), content)
    with post.slots.view(Slot("turn", 1)) as view:
        assert bytes(view) == b"first"


@pytest.mark.parametrize("size_bytes", [0, 1, 50_000, INLINE_BYTES + 10])
def test_a_check_of_the_slots_tells_that_it_goes_on(
    post: Post, monkeypatch: pytest.MonkeyPatch, size_bytes: int
) -> None:
    monkeypatch.setattr("ppdl_mq.peer.slots._PIECE_BYTES", 20_000)
    for number in (1, 2):
        post.slots.put(Slot("turn", number), bytes(at % 251 for at in range(size_bytes)))
    pulses = []
    post.slots.check(lambda: pulses.append(1))
    assert len(pulses) == 2 * math.ceil(size_bytes / 20_000)
    post.slots.check()


def test_a_check_of_the_slots_can_be_stopped(post: Post) -> None:
    def stop() -> None:
        raise Interrupted("stop")

    post.slots.put(Slot("turn", 1), bytes(INLINE_BYTES + 10))
    with pytest.raises(Interrupted):
        post.slots.check(stop)
    post.slots.forget(2)  # nothing holds its file


@pytest.mark.parametrize("size_bytes", [1, 50_000])
def test_a_slot_that_has_changed_is_found(post: Post, monkeypatch: pytest.MonkeyPatch, size_bytes: int) -> None:
    monkeypatch.setattr("ppdl_mq.peer.slots._PIECE_BYTES", 20_000)
    post.slots.put(Slot("turn", 1), bytes(size_bytes), digest=hashlib.sha256(bytes(size_bytes - 1) + b"x").digest())
    with pytest.raises(JournalError):
        post.slots.check()


def test_a_letter_whose_key_is_gone_is_dropped(post: Post) -> None:
    post.slots.put(Slot("turn", 1), WEIGHTS)
    post.add(turn(1, WEIGHTS))
    post.add(confirm())
    assert [split_part(body)[0].kind for _, body in post.publish(STATE.without_secrets())] == [Kind.CONFIRM]
    assert post.outbox.unsent_to() == ()
    assert post.journal.db.execute("SELECT count(*) FROM outgoing").fetchone()[0] == 1


def test_one_letter_for_each_attempt(post: Post) -> None:
    for attempt in (0, 1, 1):
        post.add(confirm(attempt=attempt))
    letters = post.outbox.due()
    assert [letter.attempt for letter in letters] == [letter.sent.attempt for letter in letters] == [0, 1]
    assert [split_part(body)[0].attempt for _, body in post.publish()] == [0, 1]
