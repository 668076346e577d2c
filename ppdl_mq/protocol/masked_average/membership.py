"""Who takes part: farewells, decisions of people, attempts that are given up.

Source: docs/PROTOCOL.md, section 13.3.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from ppdl_mq.config import limits
from ppdl_mq.crypto.identity import verify
from ppdl_mq.errors import Malformed, OutOfTurn, Overflow
from ppdl_mq.protocol.effects import Discard, DiscardLocal, Effect, KeepModel, Record, Send
from ppdl_mq.protocol.events import Decided, LeaveAsked, Overflowed, Received, Rested
from ppdl_mq.protocol.machine import NotYet
from ppdl_mq.protocol.masked_average.closing import ClosingSteps
from ppdl_mq.protocol.masked_average.flow import Step
from ppdl_mq.protocol.masked_average.state import RoundState
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.session import added, message_as
from ppdl_mq.protocol.statements import abandon_statement, drop_statement, leave_statement
from ppdl_mq.wire.messages import Abandon, Drop, Leave

_MAX_DOUBLINGS: Final = 32  # of a rest: longer than any


def remaining(
    viewer: str,
    members: tuple[str, ...],
    step: int,
    drops: Collection[tuple[str, str, int]],
    leaves: Mapping[str, tuple[int, bytes]],
    *,
    parted: Collection[str] = (),
    needs_majority: bool = False,
) -> tuple[str, ...]:
    """Return the members that take part in a step, as the statements look to one of them.

    Args:
        viewer: a member; it is not in the set that is dropped.
        members: of the attempt before.
        step: which.
        drops: signer, name and step of each.
        leaves: by name, from which step on, and the signature.
        parted: from these: they have left or ended, and sign nothing more.
        needs_majority: nobody is dropped unless more than half of the members remain, those who ended included.
    """
    present = {name for name in members if name not in leaves or leaves[name][0] > step}
    gone = {name for name in present if name != viewer and (viewer, name, step) in drops}
    while True:  # a set is dropped when everyone outside of it has signed for each in it: shrink it until that holds
        signers = present - gone - set(parted)
        kept = {name for name in gone if all((signer, name, step) in drops for signer in signers)}
        if kept == gone:
            break
        gone = kept
    if needs_majority and 2 * len(present - gone) <= len(members):
        gone = set()
    return tuple(sorted(present - gone - set(parted)))


class MembershipSteps(ClosingSteps):
    """The handlers of ABANDON, DROP, LEAVE and of what people decide."""

    def _seen_by(self, viewer: str, state: RoundState, step: int) -> tuple[str, ...]:
        needs_majority = self.rules.on_absent == "drop"
        drops, leaves = state.drops, state.leaves
        return remaining(viewer, state.members, step, drops, leaves, parted=state.parted, needs_majority=needs_majority)

    def members_seen(self, state: RoundState) -> tuple[str, ...]:
        """Return with whom this peer means to go on in this step, itself included."""
        return self._seen_by(self.terms.me, state, state.step)

    def going_on_without(self, state: RoundState) -> tuple[str, ...]:
        """Return the members with whom this peer means to go on, and who have decided to go on without it."""
        if not state.members or self.terms.me in state.leaves or state.phase is Phase.CLOSING:
            return ()
        ours = self._seen_by(self.terms.me, state, state.step)
        return tuple(name for name in ours if self.terms.me not in self._seen_by(name, state, state.step))

    def is_dropped(self, state: RoundState) -> bool:
        """Tell whether everybody with whom this peer means to go on goes on without it, and cannot but do so.

        Once this peer has signed a receipt, one that decided against it may release all the same, which nobody does
        after an ABANDON of everybody: the step is finished with this peer in it, and waits for it.
        """
        me, without_me = self.terms.me, self.going_on_without(state)
        is_settled = me not in state.receipts or state.abandons.keys() >= set(without_me)
        return bool(without_me) and is_settled and {me, *without_me} >= set(self.members_seen(state))

    # --- attempts that are given up ------------------------------------------------------------------------------

    def _on_overflowed(self, state: RoundState, event: Overflowed) -> Step:
        if not self._is_now(state, event) or state.phase is not Phase.MASKING:
            return state, ()
        if state.word == 64:
            raise Overflow(
                "A weight has grown too much in one round even for 64 bits.",
                hint="Agree on a lower learning_rate, or a larger head_room.",
            )
        return self._advance(*self._abandon(state, overflow=True))

    def _on_abandon(self, state: RoundState, event: Received) -> Step:
        abandon = message_as(Abandon, event)
        if not self._is_of_attempt(state, event):
            return state, ()
        statement = abandon_statement(state.session_id, state.step, state.attempt, abandon.overflow)
        verify(self.terms.peers[event.sender], abandon.signature, statement)
        if event.sender in state.abandons:
            return state, ()
        record = self._record_abandon(state, event.sender, abandon)
        noted = state.replace(abandons=added(state.abandons, event.sender, abandon.overflow))
        if self.terms.me in state.masks or self.terms.me in noted.abandons:
            return self._advance(noted, (record,))
        state, effects = self._abandon(noted)
        return self._advance(state, (record, *effects))

    def _abandon(self, state: RoundState, *, overflow: bool = False) -> Step:
        """Sign ABANDON of the attempt that this peer is in, in which it has released nothing."""
        terms = self.terms
        assert terms.me not in state.masks, "what was released is finished"
        signature = terms.sign(abandon_statement(state.session_id, state.step, state.attempt, overflow))
        abandon = Abandon(overflow=overflow, signature=signature)
        given_up = state.replace(
            phase=Phase.ABANDONING,
            abandons=added(state.abandons, terms.me, overflow),
            adding=frozenset(),
            vows=state.vows + 1,
        )
        return given_up, (self._record_abandon(state, terms.me, abandon), *self._broadcast(state, abandon))

    def _record_abandon(self, state: RoundState, by: str, abandon: Abandon) -> Record:
        about = {
            "session": state.session_id,
            "step": state.step,
            "attempt": state.attempt,
            "overflow": abandon.overflow,
        }
        return Record(by=by, says="abandon", about=about, signature=abandon.signature)

    def _after_abandon(self, state: RoundState) -> Step | None:
        """Return what follows once those who are left have given this attempt up: the next one, or the end."""
        members = self.members_seen(state)
        is_given_up = state.abandons.keys() >= set(members)
        if len(members) < self.rules.min_peers:
            # Without this peer's receipt nobody can release, and those who stop at once say no ABANDON.
            may_stop = is_given_up or self.terms.me not in state.receipts
            return self._end_before(state.replace(too_few=True)) if may_stop else None
        is_last = state.attempt >= limits.MAX_ATTEMPTS  # no receiver would take a message of another one
        if not is_given_up or is_last or self.rest_s(state) is not None:
            return None
        return self._next_attempt(state, members)

    def rest_s(self, state: RoundState) -> float | None:
        """Return how long to rest before the next attempt, once it could begin; None where nothing holds it up.

        Whoever keeps abandoning would else use up the attempts of the step in minutes. Members that changed begin at
        once. Time is the hands': they post Rested, and what a restart has forgotten of a rest is rested again.
        """
        members, tried = self.members_seen(state), state.attempt + 1 - state.members_since
        if state.phase is not Phase.ABANDONING or members != state.members or tried < limits.ATTEMPTS_AT_ONCE:
            return None
        if state.attempt >= limits.MAX_ATTEMPTS or not state.abandons.keys() >= set(members):
            return None
        longest_s = limits.REST_LAST_S
        if self.rules.on_absent != "wait":  # the others may have begun: they are not to take this peer for absent
            longest_s = min(longest_s, self.rules.absent_after_s / 2)
        doublings = min(tried - limits.ATTEMPTS_AT_ONCE, _MAX_DOUBLINGS)
        return min(longest_s, limits.REST_FIRST_S * float(2**doublings))

    def _on_rested(self, state: RoundState, event: Rested) -> Step:
        if not self._is_now(state, event) or self.rest_s(state) is None:
            return state, ()  # it has begun already, or will by itself
        return self._advance(*self._next_attempt(state, state.members))

    def _next_attempt(self, state: RoundState, members: tuple[str, ...]) -> Step:
        word = 64 if any(state.abandons[name] for name in members) else state.word
        attempt = state.attempt + 1
        since = state.members_since if members == state.members else attempt
        fresh = state.of_attempt(attempt=attempt, members=members, members_since=since, word=word)
        dropped: tuple[Effect, ...] = (Discard(step=state.step, attempt=state.attempt),)
        entered, effects = self._enter(fresh)
        return entered, (*dropped, *effects)

    # --- members that go -----------------------------------------------------------------------------------------

    def _on_decided(self, state: RoundState, event: Decided) -> Step:
        terms, name = self.terms, event.name
        if name in self._awaited(state):
            if name not in state.members or name in state.lost:  # it takes part in nothing any more
                return self._on_given_up(state, event)
            state = state.replace(done=state.done | {name})  # it said farewell, and still owes what the attempt needs
        has_released = terms.me in state.masks
        step = self._next_step(state) if has_released else state.step
        if name == terms.me or name not in terms.peers or (terms.me, name, step) in state.drops:
            return state, ()
        signature = terms.sign(drop_statement(state.session_id, step, name))
        told = tuple(self._tell_drop(to, terms.me, name, step, signature) for to in terms.others)
        effects: tuple[Effect, ...] = (self._record_drop(state, terms.me, name, step, signature), *told)
        decided = state.replace(drops=added(state.drops, (terms.me, name, step), signature), vows=state.vows + 1)
        if not has_released or name not in state.members:
            return self._reconsidered(decided, effects)
        decided = decided.replace(lost=decided.lost | {name})
        asked = self._demands(decided) if decided.audit >= 0 and decided.sums[decided.audit].maker == name else ()
        return self._advance(decided, (*effects, *self._instead_of(decided, name), *asked))

    def _undecided(self, state: RoundState) -> set[str]:
        """Return the members of whom no DROP is here of somebody whom this peer has dropped from this step."""
        if self.terms.me in state.masks or state.phase is Phase.CLOSING:  # they count for nothing any more
            return set()
        dropped = {name for by, name, step in state.drops if (by, step) == (self.terms.me, state.step)}
        others = set(self._others(state)) - dropped
        return {by for by in others if any((by, name, state.step) not in state.drops for name in dropped)}

    def _tell_drop(self, to: str, by: str, name: str, step: int, signature: bytes, *, again: int = 0) -> Send:
        drop = Drop(by=by, name=name, signature=signature)
        names = sorted(self.terms.peers)
        ordinal = (again * len(names) + names.index(by)) * len(names) + names.index(name)
        return Send(recipient=to, reader=to, turn=step, message=drop, ordinal=ordinal)

    def _record_drop(self, state: RoundState, by: str, name: str, step: int, signature: bytes) -> Record:
        about = {"session": state.session_id, "step": step, "name": name}
        return Record(by=by, says="drop", about=about, signature=signature)

    def _on_drop(self, state: RoundState, event: Received) -> Step:
        drop, step = message_as(Drop, event), event.turn
        if drop.by not in self.terms.peers or drop.name not in self.terms.peers:
            raise Malformed(f"A DROP of {event.sender} names somebody who is no peer of this trial.")
        if step < state.step or (drop.by, drop.name, step) in state.drops:
            return state, ()
        if state.step < step < self._next_step(state):  # nobody needs it, and what a state holds is bounded
            raise OutOfTurn(f"A DROP of {event.sender} is of step {step}, which the trial passes over.")
        statement = drop_statement(state.session_id, step, drop.name)
        verify(self.terms.peers[drop.by], drop.signature, statement)
        if step > self._next_step(state):
            raise NotYet(f"{drop.by} decided for a step that is far ahead.")
        noted = state.replace(drops=added(state.drops, (drop.by, drop.name, step), drop.signature))
        return self._reconsidered(noted, (self._record_drop(state, drop.by, drop.name, step, drop.signature),))

    def _on_leave_asked(self, state: RoundState, _: LeaveAsked) -> Step:
        terms = self.terms
        if terms.me in state.leaves:
            return state, ()
        has_receipted = terms.me in state.receipts
        step = self._next_step(state) if has_receipted else state.step
        signature = terms.sign(leave_statement(state.session_id, step))
        # Who left before may wait for those who stop because of this one.
        readers = sorted({*self._others(state), *state.parted})
        told = tuple(self._tell_leave(to, terms.me, step, signature) for to in readers)
        effects: tuple[Effect, ...] = (self._record_leave(state, terms.me, step, signature), *told)
        leaving = state.replace(leaves=added(state.leaves, terms.me, (step, signature)), vows=state.vows + 1)
        if has_receipted:  # the attempt may yet be released: it is finished first
            return leaving, effects
        closing, more = self._end_before(leaving)
        return self._advance(closing, (*effects, *more))

    def _end_before(self, state: RoundState) -> Step:
        """End without the step that this peer is in: keep what was agreed last, and see the others off."""
        step, others = state.step, self._others(state)
        awaited = {name for name in others if (self.terms.me, name, step) not in state.drops}
        closing, told = self._part(self._closing(state), others, self._prior_step(step), awaited=awaited)
        kept = (self._keep_model(state),) if state.base_step else ()
        return closing, (*kept, Discard(step=step, attempt=state.attempt), DiscardLocal(step=step), *told)

    def _tell_leave(self, to: str, name: str, step: int, signature: bytes, *, again: int = 0) -> Send:
        names = sorted(self.terms.peers)
        ordinal = again * len(names) + names.index(name)
        return Send(recipient=to, reader=to, turn=step, message=Leave(name=name, signature=signature), ordinal=ordinal)

    def _record_leave(self, state: RoundState, name: str, step: int, signature: bytes) -> Record:
        about = {"session": state.session_id, "step": step}
        return Record(by=name, says="leave", about=about, signature=signature)

    def _on_leave(self, state: RoundState, event: Received) -> Step:
        leave, step = message_as(Leave, event), event.turn
        if leave.name not in self.terms.peers or leave.name == self.terms.me:
            raise Malformed(f"A LEAVE of {event.sender} names somebody who is no other peer of this trial.")
        verify(self.terms.peers[leave.name], leave.signature, leave_statement(state.session_id, step))
        known = state.leaves.get(leave.name)
        record = self._record_leave(state, leave.name, step, leave.signature)
        if known is not None and known[0] <= step:  # of two, the earlier one holds: so all come to the same
            return state, () if known[0] == step else (record,)
        noted = state.replace(leaves=added(state.leaves, leave.name, (step, leave.signature)))
        if step > state.step:  # it finishes this step first, and so does this peer
            return self._reconsidered(noted, (record,))
        is_member = leave.name in state.members and leave.name not in state.lost
        is_awaited = is_member and (self.terms.me, leave.name, state.step) not in state.drops
        awaited = (leave.name,) if is_awaited else ()
        noted, told = self._part(noted, (leave.name,), self._prior_step(state.step), awaited=awaited)
        return self._reconsidered(noted, (record, *told))

    def _on_done(self, state: RoundState, event: Received) -> Step:
        """Where too few are left for this step, a DONE of the one before it parts its sender from this peer, too.

        The sender has ended, or leaves: it signs no ABANDON, DROP or RELEASE any more, and nobody is to wait for one.
        """
        sender, told = event.sender, tuple[Effect, ...]()
        is_member = sender in state.members and sender not in state.parted
        is_prior = state.phase is Phase.ABANDONING and event.turn == self._prior_step(state.step)
        if is_member and is_prior and len(self.members_seen(state)) < self.rules.min_peers:
            state, told = self._part(state, (sender,), event.turn, awaited=(sender,))
        after, effects = super()._on_done(state, event)
        return after, (*told, *effects)

    def _tell_all(self, state: RoundState, to: str) -> tuple[Send, ...]:
        """Pass on who has left and who is dropped, in case that is what keeps another one waiting."""
        again = state.resends + 1
        drops = [self._tell_drop(to, *of, signature, again=again) for of, signature in state.drops.items()]
        leaves = [self._tell_leave(to, name, *said, again=again) for name, said in state.leaves.items() if name != to]
        return (*drops, *leaves)

    def _reconsidered(self, state: RoundState, effects: tuple[Effect, ...]) -> Step:
        """Give the attempt up if its members have changed and nothing was released."""
        me = self.terms.me
        changed = self.members_seen(state) != state.members
        if changed and me not in state.masks and me not in state.abandons:
            state, more = self._abandon(state)
            effects = (*effects, *more)
        return self._advance(state, effects)

    def _demands(self, state: RoundState) -> tuple[Send, ...]:
        """Ask for the shards behind the sum that is recomputed."""
        raise NotImplementedError

    def _next_step(self, state: RoundState) -> int:
        """Return the number of the step after this one, unless the trial ends."""
        raise NotImplementedError

    def _keep_model(self, state: RoundState) -> KeepModel:
        """Keep what was agreed last."""
        raise NotImplementedError

    def _instead_of(self, state: RoundState, name: str) -> tuple[Effect, ...]:
        """Send what a lost member's deputy needs, and pass on that member's release."""
        raise NotImplementedError
