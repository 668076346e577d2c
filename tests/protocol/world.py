"""All machines of a trial and a network between them, without journals, seals, clocks or threads."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ppdl_mq.config import limits
from ppdl_mq.crypto.identity import verify
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import OutOfTurn
from ppdl_mq.protocol.effects import (
    BuildInitial,
    Effect,
    Fetch,
    Forget,
    KeepModel,
    PublishAgain,
    Record,
    Send,
    Train,
    Withdraw,
)
from ppdl_mq.protocol.events import Event, Overdue, Received, Sent, Started, Trained
from ppdl_mq.protocol.machine import NotYet, row_of
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.sequential import SequentialMachine
from ppdl_mq.protocol.state import State
from ppdl_mq.protocol.statements import statement_bytes
from ppdl_mq.protocol.terms import WEIGHTS, Terms
from ppdl_mq.wire import canonical
from ppdl_mq.wire.kinds import Kind
from tests.trial import identity_of, manifest_for

NAMES = ("anna", "bert", "cleo", "dora", "egon", "fritz")


def terms_of(name: str, count: int = 3, **changes: Any) -> Terms:
    """One peer's terms of a trial of the first `count` names."""
    return Terms.of(manifest_for(NAMES[:count], **changes), identity_of(name), layout=b"\x09" * 32, software="tests")


def secret(*words: object) -> Secret:
    return Secret(hashlib.sha256(repr(words).encode()).digest())


def started(name: str, session: int = 0) -> Started:
    return Started(session_secret=secret(name, session), contribution=secret(name, session, "contribution"))


def trained(before: bytes, turn: int) -> bytes:
    """What training does to a digest."""
    return hashlib.sha256(before + turn.to_bytes(4, "big")).digest()


def result_of(turns: int) -> bytes:
    """The digest that a trial of so many turns ends with."""
    digest = trained(b"", 0)
    for turn in range(1, turns + 1):
        digest = trained(digest, turn)
    return digest


@dataclass(eq=False)
class Letter:
    """A message that one peer keeps for another."""

    sender: str
    send: Send
    message_id: bytes
    digest: bytes

    @property
    def received(self) -> Received:
        return Received(sender=self.sender, turn=self.send.turn, message=self.send.message, blob_digest=self.digest)

    @property
    def sent(self) -> Sent:
        return Sent(
            kind=self.send.message.kind,
            turn=self.send.turn,
            recipient=self.send.recipient,
            message_id=self.message_id,
        )


@dataclass(eq=False)
class Peer:
    """A machine, and what its runner would keep for it."""

    machine: SequentialMachine
    state: State = field(default_factory=State)
    letters: list[Letter] = field(default_factory=list)
    unsent: list[Letter] = field(default_factory=list)
    unconfirmed: list[Letter] = field(default_factory=list)
    working: list[Trained] = field(default_factory=list)
    inbox: list[Letter] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    kept: int | None = None
    records: list[Record] = field(default_factory=list)


class World:
    """Drives the machines of one trial.

    Args:
        seed: of the order in which things happen.
        duplicates: probability that a delivered message stays to be delivered again.
        impatience: probability of an Overdue in place of an action.
    """

    def __init__(
        self, count: int = 3, *, seed: int = 0, duplicates: float = 0.0, impatience: float = 0.0, **changes: Any
    ) -> None:
        self.random = random.Random(seed)
        self.duplicates, self.impatience = duplicates, impatience
        self.peers = {name: Peer(SequentialMachine(terms_of(name, count, **changes))) for name in NAMES[:count]}
        self.schedule = next(iter(self.peers.values())).machine.terms.schedule
        self.held_back: Callable[[Letter], bool] = lambda _: False
        self.at_weights: dict[bytes, Letter] = {}
        self.visited: set[tuple[Phase, str]] = set()
        self.log: list[tuple[str, Event, tuple[Effect, ...]]] = []
        self._drawn = 0

    def start(self) -> None:
        for name in self.peers:
            self.post(name, started(name))

    def post(self, name: str, event: Event) -> tuple[Effect, ...]:
        """Let one peer step, and do what it asks for."""
        peer = self.peers[name]
        before = canonical.encode(peer.state.as_data())
        self.visited.add((peer.state.phase, row_of(event)))
        try:
            state, effects = peer.machine.step(peer.state, event)
        finally:
            assert canonical.encode(peer.state.as_data()) == before, "a step changed the state that it was given"
        encoded = canonical.encode(state.as_data())
        restored = State.from_data(canonical.decode(encoded, limit_bytes=limits.MAX_STATE_BYTES))
        assert restored == state
        assert peer.machine.step(peer.state, event) == (state, effects), "a step is a function"
        peer.state = restored  # as after a restart at every step
        self.log.append((name, event, effects))
        for effect in effects:
            self._carry_out(name, peer, effect)
        return effects

    def run(self, *, until: Any = None, limit: int = 20_000) -> None:
        """Let things happen in random order until the trial has ended, or `until` holds."""
        if all(peer.state.phase is Phase.NEW for peer in self.peers.values()):
            self.start()
        for _ in range(limit):
            if until() if until is not None else self.has_ended:
                return
            self.step()
        raise AssertionError({name: peer.state.phase for name, peer in self.peers.items()})

    @property
    def has_ended(self) -> bool:
        return all(peer.state.phase is Phase.ENDED for peer in self.peers.values())

    def step(self) -> None:
        """Do one thing that can happen."""
        actions: list[tuple[str, str, Any]] = []
        for name, peer in self.peers.items():
            actions += [("publish", name, letter) for letter in peer.unsent]
            actions += [("confirm", name, letter) for letter in peer.unconfirmed]
            actions += [("train", name, result) for result in peer.working]
            actions += [("deliver", name, letter) for letter in peer.inbox if not self.held_back(letter)]
        waiting = [name for name, peer in self.peers.items() if peer.machine.waiting_for(peer.state)]
        if waiting and (not actions or self.random.random() < self.impatience):
            self.post(self.random.choice(waiting), Overdue())
            return
        action, name, what = self.random.choice(actions)
        peer = self.peers[name]
        match action:
            case "publish":
                peer.unsent.remove(what)
                peer.unconfirmed.append(what)
                if what.send.recipient == WEIGHTS:
                    self.at_weights[what.message_id] = what
                else:
                    self.peers[what.send.recipient].inbox.append(what)
            case "confirm":
                peer.unconfirmed.remove(what)
                self.post(name, what.sent)
            case "train":
                peer.working.remove(what)
                self.post(name, what)
            case "deliver":
                self.deliver(name, what)

    def deliver(self, name: str, letter: Letter) -> None:
        peer = self.peers[name]
        kind = letter.send.message.kind
        if not kind.before_session and not peer.state.session_id:
            return  # parked: it cannot be opened yet
        again = self.random.random() < self.duplicates and peer.state.phase is not Phase.ENDED
        try:
            self.post(name, letter.received)
        except NotYet:
            return
        except OutOfTurn:
            # Nobody lies here: all that is refused is a copy of what was taken, or a call for what is no longer needed.
            if peer.state.phase not in (Phase.ENDED, Phase.AWAITING_DONES):
                raise
        if not again:
            peer.inbox.remove(letter)

    def _carry_out(self, name: str, peer: Peer, effect: Effect) -> None:
        match effect:
            case Send():
                digest = hashlib.sha256(b"").digest()
                if effect.blob is not None:
                    assert (effect.blob.slot.what, effect.blob.slot.step) == ("turn", effect.turn)
                    digest = effect.blob.digest
                self._drawn += 1
                letter = Letter(name, effect, self._drawn.to_bytes(16, "big"), digest)
                peer.unsent.append(letter)
                if effect.message.kind is not Kind.RESEND:
                    peer.letters.append(letter)
            case BuildInitial():
                peer.working.append(Trained(turn=0, digest=trained(b"", 0)))
            case Train(turn=turn):
                peer.turns.append(turn.number)
                before = peer.state.chain.digest_of(turn.number - 1)
                peer.working.append(Trained(turn=turn.number, digest=trained(before, turn.number)))
            case Fetch(message_id=message_id):
                peer.inbox.append(self.at_weights[message_id])
            case PublishAgain(reader=reader):
                peer.unsent += [letter for letter in peer.letters if letter.send.reader == reader]
            case Forget(before_turn=turn):
                self._drop(peer, lambda letter: 0 < letter.send.turn < turn)
            case Withdraw(reader=reader):
                self._drop(peer, lambda letter: letter.send.reader == reader)
            case KeepModel(slot=slot, digest=digest):
                assert digest == peer.state.chain.digest_of(slot.step)
                peer.kept = slot.step
            case Record():
                signed = statement_bytes(effect.says, effect.about)
                verify(peer.machine.terms.peers[effect.by], effect.signature, signed)
                peer.records.append(effect)

    def _drop(self, peer: Peer, condition: Any) -> None:
        for kept in (peer.letters, peer.unsent, peer.unconfirmed):
            kept[:] = [letter for letter in kept if not condition(letter)]
