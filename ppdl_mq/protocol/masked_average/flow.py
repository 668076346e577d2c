"""What the handlers of masked-average share: where a state stands, and how it goes on."""

from __future__ import annotations

from typing import Protocol as Interface

from ppdl_mq.config.manifest import Averaging
from ppdl_mq.crypto import labels
from ppdl_mq.crypto.hashing import sha256
from ppdl_mq.errors import OutOfTurn
from ppdl_mq.protocol.effects import Effect, Send
from ppdl_mq.protocol.events import Received
from ppdl_mq.protocol.machine import NotYet
from ppdl_mq.protocol.masked_average.context import Context
from ppdl_mq.protocol.masked_average.shards import Shards
from ppdl_mq.protocol.masked_average.state import RoundState
from ppdl_mq.protocol.slots import Slot
from ppdl_mq.protocol.statements import commitment_statement
from ppdl_mq.protocol.terms import Terms
from ppdl_mq.wire.messages import Message

Step = tuple[RoundState, tuple[Effect, ...]]

EVALUATION_WORDS = 5
NO_EXPONENTS = bytes(32)


class OfAttempt(Interface):
    """An event of our own that belongs to an attempt."""

    @property
    def step(self) -> int:
        """Number of the step."""

    @property
    def attempt(self) -> int:
        """Of the step."""


class Flow:
    """Reads a state; the mixins of the machine build on it."""

    terms: Terms

    @property
    def rules(self) -> Averaging:
        """The manifest's rules."""
        assert self.terms.averaging is not None, "a manifest of masked-average has them"
        return self.terms.averaging

    def _advance(self, state: RoundState, effects: tuple[Effect, ...] = ()) -> Step:
        """Do everything that has become possible; the effects so far come first."""
        raise NotImplementedError

    def _enter(self, state: RoundState) -> Step:
        """Begin an attempt: train, measure or mask, whichever is next."""
        raise NotImplementedError

    def _abandon(self, state: RoundState, *, overflow: bool = False) -> Step:
        """Sign ABANDON of the attempt that this peer is in, in which it has released nothing."""
        raise NotImplementedError

    def _is_evaluated(self, number: int) -> bool:
        """Tell whether a round is followed by an evaluation."""
        every = self.rules.evaluate_every
        return every > 0 and (number == self.terms.rounds or number % every == 0)

    def _shards(self, state: RoundState) -> Shards:
        words = EVALUATION_WORDS if state.is_evaluation else self.terms.words
        return Shards(words * state.word // 8, len(state.members))

    def _context(self, state: RoundState) -> Context:
        return Context(
            session=state.session_id,
            step=state.step,
            attempt=state.attempt,
            members=state.members,
            base=state.base,
            word=state.word,
            exponents=state.exponents,
        )

    def _commitments(self, state: RoundState) -> bytes:
        """Return K, the digest of all commitments of the attempt."""
        context = self._context(state).digest()
        commits = [state.commits[name] for name in state.members]
        # Without the signatures: a signer can make a second valid one for the same statement.
        return sha256(labels.COMMITMENTS, *(commitment_statement(context, each.mask, each.shards) for each in commits))

    def _index(self, state: RoundState, name: str) -> int:
        return state.members.index(name)

    def _deputy(self, state: RoundState, name: str) -> str:
        """Return the member that stands in for another one: the next."""
        return state.members[(self._index(state, name) + 1) % len(state.members)]

    def _others(self, state: RoundState) -> tuple[str, ...]:
        return tuple(name for name in state.members if name != self.terms.me)

    def _slot(self, state: RoundState, member: str, shard: int) -> Slot:
        """Return where a masked shard of a member is kept."""
        return Slot("shard", state.step, state.attempt, member, shard)

    def _masked(self, state: RoundState) -> Slot:
        return Slot("masked", state.step, state.attempt)

    def _sum(self, state: RoundState, shard: int) -> Slot:
        return Slot("sum", state.step, state.attempt, shard=shard)

    def _to(self, state: RoundState, name: str, message: Message, *, ordinal: int = 0) -> Send:
        """Return the sending of a message of this attempt."""
        return Send(
            recipient=name, reader=name, turn=state.step, attempt=state.attempt, message=message, ordinal=ordinal
        )

    def _broadcast(self, state: RoundState, message: Message) -> tuple[Send, ...]:
        return tuple(self._to(state, name, message) for name in self._others(state))

    def _is_now(self, state: RoundState, event: OfAttempt) -> bool:
        """Tell whether a result of our own is of the attempt that stands; others came too late."""
        return (event.step, event.attempt) == (state.step, state.attempt)

    def _is_of_attempt(self, state: RoundState, event: Received) -> bool:
        """Tell whether a message is of the attempt that stands; False for one of the past.

        Raises:
            NotYet: of a later one.
            OutOfTurn: from a peer that takes no part.
        """
        theirs, ours = (event.turn, event.attempt), (state.step, state.attempt)
        if theirs < ours:
            return False
        if theirs > ours:
            raise NotYet(f"A {event.message.kind.name} of {event.sender} is of a later attempt.")
        if event.sender not in state.members:
            raise OutOfTurn(f"{event.sender} takes no part in this attempt.")
        return True
