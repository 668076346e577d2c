"""A world of masked-average in which somebody lies: what is refused is noted, and whoever is lied to stops."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from ppdl_mq.errors import Equivocation, RemoteError
from ppdl_mq.protocol.effects import AddUp, Average, Effect, MaskVector
from ppdl_mq.protocol.events import AddedUp, Averaged, Event, Overflowed, Received
from ppdl_mq.protocol.masked_average.state import RoundState
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.slots import Slot
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.messages import Message
from tests.protocol.masked_world import Letter, Peer, World, bytes_of, sha, words_of

Judge = Callable[[Letter], bool]

PATIENCE = 4  # how often everybody asks in vain before a scene is over


class Scene(World):
    """One trial, of one round unless said otherwise, with hands on the relay and on every peer.

    Args:
        count: of peers.
        options: as of `World`.
    """

    def __init__(self, count: int = 3, **options: Any) -> None:
        short = {"training__epochs": 1, "averaging__evaluate_every": 0}
        self.refusals: list[tuple[str, str, Kind, type[RemoteError]]] = []  # by whom, of whom, what, why
        self.held: list[Letter] = []
        self.audits: int | None = None  # the shard that all who can have recomputed
        self.false_sums: set[str] = set()
        self.false_overflows: set[str] = set()
        self.garbage: set[str] = set()
        self.checks_sums = True  # those of weights are the sums of what was trained, as long as nobody lies about it
        super().__init__(count, **short | options)

    def run(self, *, limit: int = 60_000) -> None:
        """As `World.run`, but without its patience where nothing is lost by chance: what is missing is withheld."""
        if self.loss:
            super().run(limit=limit)
            return
        for _ in range(limit):
            is_over = all(peer.is_over or peer.is_dead for peer in self.peers.values())
            if (is_over and not self._undelivered()) or self._asked_in_vain > PATIENCE:
                return
            self.step()
        raise AssertionError(self.phases())

    # --- the relay ------------------------------------------------------------------------------------------------

    def hold(self, judge: Judge) -> None:
        """From now on, keep what the judge says."""

        def tampers(_: str, letter: Letter) -> Letter | None:
            if not judge(letter):
                return letter
            self.held.append(letter)
            return None

        self.tampers = tampers

    def let_go(self) -> None:
        """Deliver what was held, and hold nothing more."""
        self.tampers = lambda _, letter: letter
        self.deliver(self.held)
        self.held = []

    def deliver(self, letters: Iterable[Letter]) -> None:
        """Bring letters to their recipients' inboxes."""
        for letter in letters:
            self.peers[letter.send.recipient].inbox.append(letter)
            self._asked_in_vain = 0

    def replace(self, judge: Judge, instead: Callable[[Letter], Letter]) -> None:
        """From now on, replace what the judge says; letters that were seen honest are no longer seen."""
        self.tampers = lambda _, letter: instead(letter) if judge(letter) else letter

    def until(self, condition: Callable[[], bool], *, limit: int = 20_000) -> None:
        """Let things happen until something holds."""
        for _ in range(limit):
            if condition():
                return
            self.step()
        raise AssertionError({name: peer.state.phase for name, peer in self.peers.items()})

    def refused(self, name: str, letter: Letter, error: RemoteError) -> None:
        """A refusal is noted; an equivocation stops the peer, as its runner does."""
        self.refusals.append((name, letter.sender, letter.send.message.kind, type(error)))
        if isinstance(error, Equivocation):
            self.peers[name].failure = error

    # --- the peers ------------------------------------------------------------------------------------------------

    def state(self, name: str) -> RoundState:
        """Where a peer stands."""
        return self.peers[name].state

    def phases(self) -> dict[str, Phase]:
        """Where all stand."""
        return {name: peer.state.phase for name, peer in self.peers.items()}

    def waiting_for(self, name: str) -> tuple[str, ...]:
        """For whom a peer waits."""
        return self.peers[name].machine.waiting_for(self.state(name))

    def sign(self, name: str, statement: bytes) -> bytes:
        """What a liar signs with its own key."""
        return self.peers[name].machine.terms.sign(statement)

    def context(self, name: str) -> bytes:
        """Digest of the context in which a peer stands."""
        return self.peers[name].machine._context(self.state(name)).digest()

    def offer(self, to: str, sender: str, message: Message, *, blob: bytes = b"", **header: Any) -> Any:
        """Let a machine say what it would do with a message, of the attempt in which it stands."""
        return self.peers[to].machine.step(self.state(to), self.received(to, sender, message, blob=blob, **header))

    def received(self, to: str, sender: str, message: Message, *, blob: bytes = b"", **header: Any) -> Received:
        """The event of a message of the attempt in which the recipient stands, unless said otherwise."""
        state = self.state(to)
        where = {"turn": state.step, "attempt": state.attempt} | header
        return Received(sender=sender, message=message, blob_digest=sha(blob), blob_bytes=len(blob), **where)

    def _post_own(self, name: str, event: Event, **given: Any) -> None:
        try:
            super()._post_own(name, event, **given)
        except Equivocation as error:
            self.peers[name].failure = error

    def plain(self, name: str, task: MaskVector) -> bytes:
        honest = super().plain(name, task)
        if name not in self.garbage:
            return honest
        return bytes_of([each + 1_000_003 for each in words_of(honest, task.word)], task.word)

    def _result(self, name: str, peer: Peer, task: Effect) -> tuple[Event, bytes | None, Slot | None]:
        if isinstance(task, MaskVector) and task.word == 32 and name in self.false_overflows:
            return Overflowed(step=task.step, attempt=task.attempt), None, None
        event, raw, into = super()._result(name, peer, task)
        if isinstance(task, AddUp) and task.into is not None and name in self.false_sums:
            assert raw is not None
            raw = spoilt(raw)
            assert isinstance(event, AddedUp)
            event = dataclasses.replace(event, digest=sha(raw))
        if isinstance(event, Averaged) and self.audits is not None:
            event = dataclasses.replace(event, audit=self.audits)
        return event, raw, into

    def _check_sum(self, task: Average, raw: bytes) -> None:
        if self.checks_sums and not self.garbage | self.false_sums:
            super()._check_sum(task, raw)


def spoilt(raw: bytes) -> bytes:
    """Other bytes of the same length."""
    return bytes([raw[0] ^ 1]) + raw[1:]


def altered(letter: Letter, *, blob: bytes | None = None, **fields: Any) -> Letter:
    """The letter with other fields in its message, or another blob."""
    message = dataclasses.replace(letter.send.message, **fields)
    send = dataclasses.replace(letter.send, message=message)
    return Letter(letter.sender, send, letter.blob if blob is None else blob, letter.number)


def of(kind: Kind, sender: str | None = None, to: str | None = None) -> Judge:
    """Judge letters by what they are, and between whom."""
    return lambda letter: (
        letter.send.message.kind is kind and sender in (None, letter.sender) and to in (None, letter.send.recipient)
    )
