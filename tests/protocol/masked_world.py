"""All machines of a masked-average trial and a relay between them that loses, repeats, delays and replays.

The vectors, masks and sums are real, though small; there are no journals, seals, clocks or threads. Signatures may be
replaced by cheap ones, so that many thousand schedules can be tried.
"""

from __future__ import annotations

import hashlib
import hmac
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from ppdl_mq.config import limits
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import Dropped, LocalError, OutOfTurn, RemoteError, Unauthentic
from ppdl_mq.protocol import session
from ppdl_mq.protocol.effects import (
    AddUp,
    Adopt,
    Average,
    BuildInitial,
    Discard,
    DiscardLocal,
    Effect,
    Forget,
    KeepModel,
    MaskVector,
    Measure,
    NoteRound,
    PublishAgain,
    PublishHeld,
    Record,
    Send,
    Train,
    Withdraw,
)
from ppdl_mq.protocol.events import (
    AddedUp,
    Averaged,
    Decided,
    Event,
    LeaveAsked,
    Masked,
    Measured,
    Overdue,
    Overflowed,
    Received,
    Recomputed,
    Rested,
    Sent,
    Started,
    Trained,
)
from ppdl_mq.protocol.machine import NotYet
from ppdl_mq.protocol.masked_average import closing, exchange, membership, totals
from ppdl_mq.protocol.masked_average.machine import MaskedAverageMachine
from ppdl_mq.protocol.masked_average.shards import Shards
from ppdl_mq.protocol.masked_average.state import RoundState
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.slots import Slot
from ppdl_mq.protocol.terms import Terms
from ppdl_mq.wire import canonical
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.messages import Release
from tests.people import identity_of, manifest_for

NAMES = ("anna", "bert", "cleo", "dora", "egon", "fritz")
WORDS = 45  # not a multiple of a block, and more blocks than two members have

Stream = Callable[[Secret, int], bytes]


def stream(seed: Secret, size: int) -> bytes:
    """A key stream good enough for tests of the machine."""
    return hashlib.shake_128(seed.reveal()).digest(size)


def words_of(raw: bytes, word: int) -> list[int]:
    width = word // 8
    return [int.from_bytes(raw[at : at + width], "little") for at in range(0, len(raw), width)]


def bytes_of(words: list[int], word: int) -> bytes:
    return b"".join((each % 2**word).to_bytes(word // 8, "little") for each in words)


def combined(parts: list[tuple[int, bytes]], word: int) -> bytes:
    """Add signed vectors in the ring."""
    total = [0] * (len(parts[0][1]) * 8 // word)
    for sign, raw in parts:
        for at, each in enumerate(words_of(raw, word)):
            total[at] += sign * each
    return bytes_of(total, word)


def sha(raw: bytes) -> bytes:
    return hashlib.sha256(raw).digest()


def terms_of(name: str, names: tuple[str, ...], *, cheap: bool = False, **changes: Any) -> Terms:
    manifest = manifest_for(names, protocol="masked-average", **{"training__epochs": 2, **changes})
    terms = Terms.of(manifest, identity_of(name), layout=b"\x09" * 32, software="tests", words=WORDS)
    if cheap:
        object.__setattr__(terms, "sign", lambda message: _cheap(name, message))
    return terms


def _cheap(name: str, message: bytes) -> bytes:
    return hashlib.blake2b(message, key=name.encode(), digest_size=64).digest()


def _cheap_verify(public: Any, signature: bytes, message: bytes) -> None:
    if not hmac.compare_digest(signature, _cheap(public.name, message)):
        raise Unauthentic(f"The signature of {public.name} does not hold.")


@contextmanager
def cheap_signatures() -> Iterator[None]:
    with (
        mock.patch.object(session, "verify", _cheap_verify),
        mock.patch.object(exchange, "verify", _cheap_verify),
        mock.patch.object(totals, "verify", _cheap_verify),
        mock.patch.object(membership, "verify", _cheap_verify),
        mock.patch.object(closing, "verify", _cheap_verify),
    ):
        yield


@dataclass(eq=False)
class Letter:
    """A message with its blob, between two peers."""

    sender: str
    send: Send
    blob: bytes
    number: int

    @property
    def received(self) -> Received:
        return Received(
            sender=self.sender,
            turn=self.send.turn,
            attempt=self.send.attempt,
            message=self.send.message,
            blob_digest=sha(self.blob),
            blob_bytes=len(self.blob),
        )


OVER = (Phase.ENDED, Phase.ENDED_EARLY, Phase.LEFT)

Task = Callable[[], tuple[Event, bytes | None, Slot | None]]


@dataclass(eq=False)
class Peer:
    """A machine, and what its runner would keep for it."""

    machine: MaskedAverageMachine
    state: RoundState = field(default_factory=RoundState)
    slots: dict[Slot, bytes] = field(default_factory=dict)
    letters: dict[tuple[Any, ...], Letter] = field(default_factory=dict)
    unsent: list[Letter] = field(default_factory=list)
    inbox: list[Letter] = field(default_factory=list)
    tasks: list[Effect] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)
    held: set[int] = field(default_factory=set)
    too_early: dict[int, RoundState] = field(default_factory=dict)
    kept: bytes | None = None
    notes: list[NoteRound] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    failure: Exception | None = None
    is_dead: bool = False

    @property
    def is_over(self) -> bool:
        return self.state.phase in OVER or self.failure is not None


class World:
    """Drives the machines of one trial in a random, repeatable order.

    Args:
        count: of peers.
        seed: of everything that happens by chance.
        loss: probability that the relay destroys a message.
        duplicates: probability that it delivers one again.
        replay: probability that it delivers one that was delivered long ago.
        crash: probability, at each action, that a peer restarts.
        overflow: probability that a vector does not fit 32 bits.
        cheap: the terms sign with `cheap_signatures`, which the caller has switched on.
    """

    def __init__(
        self,
        count: int = 3,
        *,
        seed: int = 0,
        loss: float = 0.0,
        duplicates: float = 0.0,
        replay: float = 0.0,
        crash: float = 0.0,
        overflow: float = 0.0,
        audit: float = 0.0,
        cheap: bool = False,
        restores: bool = True,
        **changes: Any,
    ) -> None:
        self.random = random.Random(seed)
        self.loss, self.duplicates, self.replay, self.crash = loss, duplicates, replay, crash
        self.overflow, self.audit, self.restores = overflow, audit, restores
        names = NAMES[:count]
        self.peers = {name: Peer(MaskedAverageMachine(terms_of(name, names, cheap=cheap, **changes))) for name in names}
        self.everything: list[tuple[str, Letter]] = []
        self.results: dict[int, set[tuple[bytes, tuple[str, ...]]]] = defaultdict(set)
        self.released: dict[tuple[str, int], set[bytes]] = defaultdict(set)
        self.committed: dict[bytes, set[str]] = defaultdict(set)
        self.visited: set[tuple[Phase, str]] = set()
        self.tampers: Callable[[str, Letter], Letter | None] = lambda _, letter: letter
        self.partition: Callable[[str, str], bool] = lambda _, __: False
        self.ends_rests = True
        self._numbers = 0
        self._asked_in_vain = 0
        for index, (name, peer) in enumerate(self.peers.items()):
            secret = Secret(sha(f"session {name} {seed}".encode()))
            self.post(name, Started(session_secret=secret, contribution=Secret(bytes([index] * 32))))
            assert peer.state.phase is Phase.AWAITING_HELLOS

    # --- what happens ---------------------------------------------------------------------------------------------

    def post(self, name: str, event: Event, *, blob: bytes = b"", into: Slot | None = None) -> None:
        """Let one peer step, and keep what it asks for; a step that raises changes nothing."""
        peer = self.peers[name]
        before = peer.state
        row = event.message.kind.name if isinstance(event, Received) else type(event).__name__
        self.visited.add((before.phase, row))
        state, effects = peer.machine.step(before, event)
        if self.restores:
            encoded = canonical.encode(state.as_data())
            restored = peer.machine.restored(canonical.decode(encoded, limit_bytes=limits.MAX_STATE_BYTES))
            assert restored == state
            assert peer.machine.step(before, event) == (state, effects), "a step is a function"
            state = restored
        peer.state = state
        if state is not before and not isinstance(event, Overdue) and state != before:
            self._asked_in_vain = 0
        if into is not None and state != before:
            peer.slots[into] = blob
        for effect in effects:
            self._carry_out(name, peer, effect, blob)

    def restart(self, name: str) -> None:
        """What a peer was working out is lost; the rest was in its journal."""
        peer = self.peers[name]
        peer.tasks = list(peer.machine.unfinished(peer.state)) if peer.state.phase is not Phase.NEW else []
        peer.tasks = [task for task in peer.tasks if not isinstance(task, KeepModel)]

    def run(self, *, limit: int = 60_000) -> None:
        """Let things happen until everybody who can has ended, or everybody waits in vain."""
        for _ in range(limit):
            if all(peer.is_over or peer.is_dead for peer in self.peers.values()) and not self._undelivered():
                return
            self.step()
            if self._asked_in_vain > 30:
                return
        raise AssertionError({name: peer.state.phase for name, peer in self.peers.items()})

    def _undelivered(self) -> bool:
        return any(peer.unsent for peer in self.peers.values() if not peer.is_dead and peer.failure is None)

    def step(self) -> None:
        """Do one thing that can happen; ask again when there is nothing else."""
        if self.random.random() < self.crash:
            self.restart(self.random.choice([name for name, peer in self.peers.items() if not peer.is_dead]))
        if self.everything and self.random.random() < self.replay:
            name, letter = self.random.choice(self.everything)
            peer = self.peers[name]
            if not peer.is_dead and not peer.is_over:
                self._deliver(name, peer, letter)
        actions: list[tuple[str, str, Any]] = []
        for name, peer in self.peers.items():
            if peer.is_dead or peer.failure is not None:
                continue
            actions += [("publish", name, letter) for letter in peer.unsent[:3]]
            actions += [("work", name, task) for task in peer.tasks[:1]]
            if (
                self.ends_rests and peer.machine.rest_s(peer.state) is not None
            ):  # no clock here: every rest may be over at any time
                actions.append(("rested", name, Rested(step=peer.state.step, attempt=peer.state.attempt)))
            if not peer.is_over:
                actions += [("deliver", name, letter) for letter in self._deliverable(name, peer)]
        if not actions:
            self._ask_again()
            return
        action, name, what = self.random.choice(actions)
        peer = self.peers[name]
        if action == "publish":
            peer.unsent.remove(what)
            self._publish(name, what)
        elif action == "rested":
            self._post_own(name, what)
        elif action == "work":
            peer.tasks.remove(what)
            self._work(name, peer, what)
        else:
            peer.inbox.remove(what)
            self._deliver(name, peer, what)

    def _deliverable(self, name: str, peer: Peer) -> list[Letter]:
        found: list[Letter] = []
        for letter in peer.inbox:
            if peer.too_early.get(letter.number) is peer.state or self.partition(letter.sender, name):
                continue
            if peer.state.session_id or letter.send.message.kind.before_session:
                found.append(letter)
                if len(found) == 12:
                    break
        return found

    def _ask_again(self) -> None:
        self._asked_in_vain += 1
        waiting = [
            name
            for name, peer in self.peers.items()
            if not peer.is_dead and not peer.is_over and peer.machine.waiting_for(peer.state)
        ]
        for name in waiting:
            self.post(name, Overdue())

    def _publish(self, name: str, letter: Letter) -> None:
        send, recipient = letter.send, letter.send.recipient
        sent = Sent(
            kind=send.message.kind,
            turn=send.turn,
            attempt=send.attempt,
            recipient=recipient,
            message_id=letter.number.to_bytes(16, "big"),
            is_gone=self._is_gone(self.peers[name], letter),
        )
        self._post_own(name, sent)
        if sent.is_gone:
            return
        kept = self.tampers(name, letter)
        if kept is None or self.random.random() < self.loss:
            return
        self.peers[recipient].inbox.append(kept)
        self.everything.append((recipient, kept))
        if self.random.random() < self.duplicates:
            self.peers[recipient].inbox.append(kept)

    def _is_gone(self, peer: Peer, letter: Letter) -> bool:
        """Who has ended takes its inbox away once all is sent; the runner says so where the machine allows it."""
        reader = self.peers[letter.send.recipient]
        has_left = reader.state.phase in OVER and not reader.unsent
        return has_left and peer.machine.may_be_gone(peer.state, letter.send.message.kind, letter.send.recipient)

    def _deliver(self, name: str, peer: Peer, letter: Letter) -> None:
        if letter.number in peer.seen and letter.send.message.kind is not Kind.RESEND:
            return
        if not letter.send.message.kind.before_session and not peer.state.session_id:
            peer.inbox.append(letter)
            return
        try:
            self.post(name, letter.received, blob=letter.blob)
            peer.seen.add(letter.number)
        except NotYet:
            peer.inbox.append(letter)
            peer.too_early[letter.number] = peer.state
        except Dropped as error:
            peer.failure = error
        except RemoteError as error:
            self.refused(name, letter, error)

    def refused(self, name: str, letter: Letter, error: RemoteError) -> None:
        """Nobody lies unless a test says so; but one that was dropped may not know it yet."""
        if isinstance(error, OutOfTurn) and letter.sender not in self.peers[name].state.members:
            return
        raise AssertionError(f"{name} refused a {letter.send.message.kind.name} of {letter.sender}: {error}") from error

    # --- what machines ask for ------------------------------------------------------------------------------------

    def _carry_out(self, name: str, peer: Peer, effect: Effect, blob: bytes) -> None:
        match effect:
            case Send():
                self._send(name, peer, effect)
            case Adopt(slot=slot):
                peer.slots[slot] = blob
            case PublishAgain(reader=reader):
                again = [
                    each
                    for each in peer.letters.values()
                    if each.send.reader == reader and each.number not in peer.held
                ]
                peer.unsent += [each for each in again if each not in peer.unsent]
            case PublishHeld(reader=reader, turn=turn, ordinals=ordinals):
                for each in [each for each in peer.letters.values() if each.number in peer.held]:
                    if (each.send.reader, each.send.turn) == (reader, turn) and each.send.ordinal in ordinals:
                        peer.held.remove(each.number)
                        peer.unsent.append(each)
            case Withdraw(reader=reader):
                self._drop(peer, lambda each: each.send.reader == reader)
            case Forget(before_turn=turn, keep_for=readers):
                self._drop(peer, lambda each: 0 < each.send.turn < turn and each.send.reader not in readers)
                for slot in [slot for slot in peer.slots if slot.step < turn]:
                    self._drop_slot(peer, slot)
            case Discard(step=step, attempt=attempt):
                for slot in [slot for slot in peer.slots if slot.step <= step and slot.what != "agreed"]:
                    is_of_attempt = (slot.step, slot.attempt) == (step, attempt) and slot.what != "local"
                    if attempt is None or is_of_attempt:
                        self._drop_slot(peer, slot)
            case DiscardLocal(step=step):
                for slot in [slot for slot in peer.slots if (slot.what, slot.step) == ("local", step)]:
                    self._drop_slot(peer, slot)
            case NoteRound():
                peer.notes.append(effect)
                assert peer.state.phase is not Phase.NEW
            case KeepModel(slot=slot, digest=digest):
                peer.kept = peer.slots[slot]
                assert sha(peer.kept) == digest
            case Record():
                peer.records.append(effect)
            case _:
                peer.tasks.append(effect)

    def _send(self, name: str, peer: Peer, send: Send) -> None:
        key = (send.message.kind, send.turn, send.attempt, send.recipient, send.ordinal)
        if key in peer.letters:
            return
        blob = b""
        if send.blob is not None:
            whole = peer.slots[send.blob.slot]
            end = None if send.blob.size is None else send.blob.start + send.blob.size
            blob = whole[send.blob.start : end]
            assert sha(blob) == send.blob.digest, "what is sent is what was committed to"
        self._numbers += 1
        letter = Letter(name, send, blob, self._numbers)
        if send.message.kind is not Kind.RESEND:
            peer.letters[key] = letter
        if send.held:
            peer.held.add(letter.number)
            return
        peer.unsent.append(letter)
        self._note(name, peer, send)

    def _note(self, name: str, peer: Peer, send: Send) -> None:
        """Keep the books of who released what, and look at once whether a rule is broken."""
        message = send.message
        if message.kind is Kind.COMMIT:
            self.committed[peer.machine._context(peer.state).digest()].add(name)
        if isinstance(message, Release) and message.member == name:
            self.released[name, send.turn].add(message.context)
            assert len(self.released[name, send.turn]) == 1, f"{name} released step {send.turn} in two contexts"
            members = set(peer.state.members)
            assert self.committed[message.context] == members, "a release before everybody committed"

    def _drop(self, peer: Peer, condition: Callable[[Letter], bool]) -> None:
        peer.letters = {key: each for key, each in peer.letters.items() if not condition(each)}
        peer.unsent = [each for each in peer.unsent if not condition(each)]

    def _drop_slot(self, peer: Peer, slot: Slot) -> None:
        del peer.slots[slot]
        self._drop(peer, lambda each: each.send.blob is not None and each.send.blob.slot == slot)

    # --- work -----------------------------------------------------------------------------------------------------

    def vector(self, name: str, step: int) -> bytes:
        """What a peer trains in a step; small numbers, as 32-bit words."""
        raw = hashlib.shake_128(f"{name} {step}".encode()).digest(WORDS)
        return bytes_of(list(raw), 32)

    def _work(self, name: str, peer: Peer, task: Effect) -> None:
        try:
            event, blob, into = self._result(name, peer, task)
        except KeyError:
            if isinstance(task, Train | MaskVector | AddUp | Average) and self._is_stale(peer, task):
                return  # the attempt was given up while the work waited for its turn
            raise
        self._post_own(name, event, blob=blob or b"", into=into)

    def _post_own(self, name: str, event: Event, **given: Any) -> None:
        try:
            self.post(name, event, **given)
        except Dropped as error:
            self.peers[name].failure = error

    def _is_stale(self, peer: Peer, task: Any) -> bool:
        now = (peer.state.step, peer.state.attempt)
        return (
            peer.is_over
            or peer.state.phase is Phase.CLOSING
            or isinstance(task, Train)
            or (task.step, task.attempt) < now
        )

    def _result(self, name: str, peer: Peer, task: Effect) -> tuple[Event, bytes | None, Slot | None]:
        match task:
            case BuildInitial(into=into):
                raw = bytes_of([7] * WORDS, 32)
                return Trained(turn=0, digest=sha(raw)), raw, into
            case Train(turn=turn, base=base, into=into):
                raw = self.vector(name, into.step)
                return Trained(turn=turn.number, digest=sha(raw), exponents=sha(peer.slots[base])), raw, into
            case Measure(step=step):
                return Measured(step=step, figures=self.figures(name)), None, None
            case MaskVector():
                if task.word == 32 and self.random.random() < self.overflow:
                    return Overflowed(step=task.step, attempt=task.attempt), None, None
                return self._masked(name, peer, task)
            case AddUp():
                return self._added(peer, task)
            case Average():
                raw = b"".join(peer.slots[slot] for slot in task.sums)
                figures = tuple(words_of(raw, 64)) if task.into is None else ()
                is_audited = bool(task.auditable) and self.random.random() < self.audit
                audit = self.random.choice(task.auditable) if is_audited else None
                event = Averaged(step=task.step, attempt=task.attempt, digest=sha(raw), figures=figures, audit=audit)
                self.results[task.step].add((sha(raw), task.members))
                self._check_sum(task, raw)
                return event, raw, task.into
        raise AssertionError(task)

    def figures(self, name: str) -> tuple[int, ...]:
        index = NAMES.index(name)
        return ((2 + index) << 24, 10, 3 + index, 10, 0)

    def plain(self, name: str, task: MaskVector) -> bytes:
        if task.local is None:
            return bytes_of(list(task.figures), task.word)
        return bytes_of(words_of(self.peers[name].slots[task.local], 32), task.word)

    def _masked(self, name: str, peer: Peer, task: MaskVector) -> tuple[Event, bytes, Slot]:
        own = Secret(self.random.randbytes(32))
        plain = self.plain(name, task)
        parts = [(1, plain), (1, stream(own, len(plain)))]
        parts += [(mask.sign, stream(mask.seed, len(plain))) for mask in task.masks]
        masked = combined(parts, task.word)
        cuts = Shards(len(masked), len(task.members))
        digests = tuple(
            sha(masked[cuts.start(shard) : cuts.start(shard) + cuts.size(shard)]) for shard in range(cuts.count)
        )
        event = Masked(step=task.step, attempt=task.attempt, mask=own, shards=digests)
        return event, masked, task.into

    def _added(self, peer: Peer, task: AddUp) -> tuple[Event, bytes, Slot | None]:
        shards = []
        for cut in task.sources:
            whole = peer.slots[cut.slot]
            shards.append(whole[cut.start :] if cut.size is None else whole[cut.start : cut.start + cut.size])
        end = task.start + len(shards[0])
        parts = [(1, shard) for shard in shards]
        parts += [(-1, stream(mask, end)[task.start :]) for mask in task.masks]
        total = combined(parts, task.word)
        fields = {"step": task.step, "attempt": task.attempt, "shard": task.shard, "digest": sha(total)}
        return (AddedUp(**fields) if task.into is not None else Recomputed(**fields)), total, task.into

    def _check_sum(self, task: Average, raw: bytes) -> None:
        """The sum is that of the members' vectors, to the last bit."""
        if task.into is None:
            plains = [bytes_of(list(self.figures(name)), task.word) for name in task.members]
        else:
            plains = [bytes_of(words_of(self.vector(name, task.step), 32), task.word) for name in task.members]
        assert raw == combined([(1, plain) for plain in plains], task.word)

    # --- what must hold at the end --------------------------------------------------------------------------------

    def check(self) -> None:
        for step, results in self.results.items():
            assert len(results) == 1, f"step {step} came to {len(results)} results"
        models = {peer.kept for peer in self.peers.values() if peer.state.phase in (Phase.ENDED, Phase.ENDED_EARLY)}
        assert len(models) <= 1

    def decide(self, name: str, victim: str) -> None:
        self._human(name, Decided(name=victim))

    def leave(self, name: str) -> None:
        self._human(name, LeaveAsked())

    def _human(self, name: str, event: Event) -> None:
        peer = self.peers[name]
        if peer.is_dead or peer.is_over or (peer.state.phase, type(event).__name__) not in peer.machine.table:
            return
        try:
            self.post(name, event)
        except LocalError as error:
            peer.failure = error
