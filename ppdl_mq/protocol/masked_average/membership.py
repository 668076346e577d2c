"""Who takes part: farewells, decisions of people, attempts that are given up.

Source: docs/PROTOCOL.md, section 13.3.
"""

from __future__ import annotations

from collections.abc import Mapping

from ppdl_mq.crypto.identity import verify
from ppdl_mq.errors import Dropped, Overflow, TooFewPeers
from ppdl_mq.protocol.effects import Discard, Effect, Record, Send, Withdraw
from ppdl_mq.protocol.events import Decided, LeaveAsked, Overflowed, Received
from ppdl_mq.protocol.masked_average.flow import Flow, Step
from ppdl_mq.protocol.masked_average.state import RoundState
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.session import added, message_as
from ppdl_mq.protocol.statements import abandon_statement, drop_statement, leave_statement
from ppdl_mq.wire.messages import Abandon, Drop, Leave


def remaining(
    viewer: str, members: tuple[str, ...], step: int, drops: Mapping[str, Mapping[str, int]], leaves: Mapping[str, int]
) -> tuple[str, ...]:
    """Return the members that take part in a step, as the statements look to one of them.

    Args:
        viewer: a member; it is not in the set that is dropped.
        members: of the attempt before.
        step: which.
        drops: by signer and name, from which step on.
        leaves: by name, from which step on.
    """
    present = {name for name in members if leaves.get(name, step + 1) > step}

    def has_dropped(signer: str, name: str) -> bool:
        return drops.get(signer, {}).get(name, step + 1) <= step

    gone = {name for name in present if name != viewer and has_dropped(viewer, name)}
    while True:  # a set is dropped when everyone outside of it has signed for each in it: shrink it until that holds
        kept = {name for name in gone if all(has_dropped(signer, name) for signer in present - gone)}
        if kept == gone:
            return tuple(sorted(present - gone))
        gone = kept


class MembershipSteps(Flow):
    """The handlers of ABANDON, DROP, LEAVE and of what people decide."""

    def _members_for(self, state: RoundState, step: int) -> tuple[str, ...]:
        """Return who takes part in a step, with this peer among them.

        Raises:
            Dropped: the others go on without this peer.
            TooFewPeers: fewer are left than the manifest wants.
        """
        me, minimum = self.terms.me, self.rules.min_peers
        for name in state.members:
            theirs = remaining(name, state.members, step, state.drops, state.leaves)
            if name in theirs and me not in theirs and len(theirs) >= minimum:
                raise Dropped(
                    f"{', '.join(theirs)} decided to go on without this peer.", hint="Ask these organisations why."
                )
        members = remaining(me, state.members, step, state.drops, state.leaves)
        if len(members) < minimum:
            raise TooFewPeers(
                f"Only {len(members)} peers are left, and the manifest wants at least {minimum}.",
                hint="The trial cannot go on; agree on a new manifest.",
            )
        return members

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
            phase=Phase.ABANDONING, abandons=added(state.abandons, terms.me, overflow), adding=frozenset()
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

    def _try_next_attempt(self, state: RoundState) -> Step | None:
        """Enter the next attempt, if everyone who will be in it has given this one up."""
        members = self._members_for(state, state.step)
        if self.terms.me in state.masks or any(name not in state.abandons for name in members):
            return None
        word = 64 if any(state.abandons[name] for name in members) else state.word
        gone = tuple(name for name in state.members if name not in members)
        fresh = state.of_attempt(attempt=state.attempt + 1, members=members, word=word)
        dropped: tuple[Effect, ...] = (Discard(step=state.step, attempt=state.attempt),)
        entered, effects = self._enter(fresh)
        return entered, (*dropped, *(Withdraw(reader=name) for name in gone), *effects)

    # --- members that go -----------------------------------------------------------------------------------------

    def _on_decided(self, state: RoundState, event: Decided) -> Step:
        terms, name = self.terms, event.name
        if name == terms.me or name not in state.members or name in state.drops.get(terms.me, {}):
            return state, ()
        has_released = terms.me in state.masks
        since = state.step + 1 if has_released else state.step
        signature = terms.sign(drop_statement(state.session_id, since, name))
        drop = Drop(name=name, signature=signature)
        about = {"session": state.session_id, "step": since, "name": name}
        effects: tuple[Effect, ...] = (
            Record(by=terms.me, says="drop", about=about, signature=signature),
            *(
                Send(recipient=to, reader=to, turn=since, message=drop, ordinal=self._index(state, name))
                for to in terms.others
                if to in state.members
            ),
        )
        decided = self._with_drop(state, terms.me, name, since)
        if not has_released:
            return self._reconsidered(decided, effects)
        decided = decided.replace(lost=decided.lost | {name})
        return self._advance(decided, (*effects, *self._instead_of(decided, name)))

    def _on_drop(self, state: RoundState, event: Received) -> Step:
        drop = message_as(Drop, event)
        verify(self.terms.peers[event.sender], drop.signature, drop_statement(state.session_id, event.turn, drop.name))
        if drop.name not in self.terms.peers or drop.name in state.drops.get(event.sender, {}):
            return state, ()
        about = {"session": state.session_id, "step": event.turn, "name": drop.name}
        record = Record(by=event.sender, says="drop", about=about, signature=drop.signature)
        return self._reconsidered(self._with_drop(state, event.sender, drop.name, event.turn), (record,))

    def _with_drop(self, state: RoundState, by: str, name: str, since: int) -> RoundState:
        return state.replace(drops=added(state.drops, by, added(state.drops.get(by, {}), name, since)))

    def _on_leave_asked(self, state: RoundState, _: LeaveAsked) -> Step:
        terms = self.terms
        if terms.me in state.leaves:
            return state, ()
        has_receipted = terms.me in state.receipts
        since = state.step + 1 if has_receipted else state.step
        signature = terms.sign(leave_statement(state.session_id, since))
        about = {"session": state.session_id, "step": since}
        effects: tuple[Effect, ...] = (
            Record(by=terms.me, says="leave", about=about, signature=signature),
            *(
                Send(recipient=to, reader=to, turn=since, message=Leave(signature=signature))
                for to in state.members
                if to != terms.me
            ),
        )
        leaving = state.replace(leaves=added(state.leaves, terms.me, since))
        if has_receipted:  # the attempt may yet be released: it is finished first
            return leaving, effects
        return leaving.of_attempt(phase=Phase.CLOSING), (*effects, Discard(step=state.step))

    def _on_leave(self, state: RoundState, event: Received) -> Step:
        leave = message_as(Leave, event)
        verify(self.terms.peers[event.sender], leave.signature, leave_statement(state.session_id, event.turn))
        if event.sender in state.leaves:
            return state, ()
        about = {"session": state.session_id, "step": event.turn}
        record = Record(by=event.sender, says="leave", about=about, signature=leave.signature)
        return self._reconsidered(state.replace(leaves=added(state.leaves, event.sender, event.turn)), (record,))

    def _reconsidered(self, state: RoundState, effects: tuple[Effect, ...]) -> Step:
        """Give the attempt up if its members have changed and nothing was released."""
        me = self.terms.me
        changed = self._members_for(state, state.step) != state.members
        if changed and me not in state.masks and me not in state.abandons:
            state, more = self._abandon(state)
            effects = (*effects, *more)
        return self._advance(state, effects)

    def _instead_of(self, state: RoundState, name: str) -> tuple[Effect, ...]:
        """Send what a lost member's deputy needs, and pass on that member's release."""
        raise NotImplementedError
