from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ppdl_mq.config import limits
from ppdl_mq.errors import RelayLost, Unroutable
from ppdl_mq.peer.blobs import INLINE_BYTES, Blobs
from ppdl_mq.peer.journal import Journal
from ppdl_mq.peer.outbox import Outbox
from ppdl_mq.peer.weights import Weights
from ppdl_mq.protocol.effects import Send
from ppdl_mq.protocol.keyring import Keyring
from ppdl_mq.protocol.state import Phase
from ppdl_mq.transport.memory import MemoryRelay, MemoryTransport
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
        self.weights = Weights(self.journal, self.blobs)
        keyring = Keyring(TERMS, identity_of("anna"))
        self.outbox = Outbox(TERMS, keyring, self.journal, self.blobs, self.weights, chunk_bytes=CHUNK_BYTES)
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

    def publish(self) -> list[tuple[str, bytes]]:
        """Publish what is due and mark it sent; return what passed the relay."""
        self.published = []
        for letter in self.outbox.due():
            if self.outbox.publish(self.transport, letter):
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


def turn(number: int, to: str = "bert") -> Send:
    statement = Statement(digest=bytes(32), signature=bytes(64))
    message = TurnWeights(lineage=Lineage(anchor=bytes(32), chain=(statement,)))
    return Send(recipient=to, reader=to, turn=number, message=message, weights_of=number)


def stating(weights: bytes) -> Any:
    """A state whose newest statement is of these weights."""
    stated = Statement(digest=hashlib.sha256(weights).digest(), signature=bytes(64))
    return STATE.replace(chain=STATE.chain.extended((stated,), keep=6))


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
        assert post.outbox.publish(post.transport, letters[0])  # and dies before it notes that
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
    post.weights.put(1, weights)
    post.add(turn(1), stating(weights))
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
    for waiting in post.outbox._waiting.values():
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
        assert not post.outbox.publish(post.transport, letter)
        delays.append(post.outbox.next_due_s() or 0.0)
        for waiting in post.outbox._waiting.values():
            waiting.until = 0.0
    assert delays[0] == pytest.approx(limits.BACKOFF_FIRST_S, abs=0.05)
    assert delays[1] == pytest.approx(2 * limits.BACKOFF_FIRST_S, abs=0.05)
    assert delays[-1] == pytest.approx(limits.BACKOFF_LAST_S, abs=0.05)


@pytest.mark.parametrize("error", [RelayLost("gone"), Unroutable("bert")])
def test_what_was_not_confirmed_stays_unsent(post: Post, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    post.add(confirm())
    (letter,) = post.outbox.due()

    def refuse(address: str, bodies: Iterable[bytes]) -> None:
        raise error

    monkeypatch.setattr(post.transport, "publish", refuse)
    if isinstance(error, Unroutable):
        assert not post.outbox.publish(post.transport, letter)
    else:
        with pytest.raises(RelayLost):
            post.outbox.publish(post.transport, letter)
    assert post.outbox.unsent_to() == ("bert",)
    assert post.outbox.published_messages == 0


def test_withdraw_and_forget(post: Post) -> None:
    for number in (1, 2):
        post.weights.put(number, bytes(INLINE_BYTES))
        post.add(turn(number), stating(bytes(INLINE_BYTES)))
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


def test_a_call_for_a_message_is_not_kept(post: Post) -> None:
    post.add(Send(recipient="bert", reader="bert", turn=0, message=Resend(), ordinal=0))
    assert len(post.publish()) == 1
    with post.journal.transaction():
        post.outbox.resend("bert")
    assert post.publish() == []
    assert post.journal.db.execute("SELECT count(*) FROM blob").fetchone()[0] == 0
