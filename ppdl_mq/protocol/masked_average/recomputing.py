"""Recomputation on demand: a sum is added up again by whoever asks for the shards behind it.

Source: docs/PROTOCOL.md, section 13.4.
"""

from __future__ import annotations

from dataclasses import replace

from ppdl_mq.errors import FalseSum, IllegalEvent, OutOfTurn
from ppdl_mq.protocol.effects import Adopt, PublishHeld, Send
from ppdl_mq.protocol.events import Received, Recomputed
from ppdl_mq.protocol.masked_average.exchange import ExchangeSteps
from ppdl_mq.protocol.masked_average.flow import Step
from ppdl_mq.protocol.masked_average.state import RoundState
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.session import message_as
from ppdl_mq.protocol.slots import Cut
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.messages import Demand, Proof


class RecomputingSteps(ExchangeSteps):
    """The handlers of DEMAND and PROOF."""

    # --- asking --------------------------------------------------------------------------------------------------

    def _demands(self, state: RoundState) -> tuple[Send, ...]:
        """Ask the maker of the audited sum for what it added up; when it is lost, everybody for what they sent it."""
        demand = Demand(context=self._context(state).digest(), shard=state.audit)
        maker = state.sums[state.audit].maker
        asked = self._others(state) if maker in state.lost else (maker,)
        return tuple(self._to(state, to, demand, ordinal=state.audit) for to in asked if to not in state.lost)

    def _proofs_awaited(self, state: RoundState) -> tuple[str, ...]:
        maker = state.sums[state.audit].maker
        if maker not in state.lost:
            return (maker,)
        lacking = self._lacking_for(state, state.audit)
        return tuple(sorted({self._deputy(state, name) if name in state.lost else name for name in lacking}))

    def _cannot_recompute(self, state: RoundState) -> bool:
        """Tell whether a shard behind the audited sum is with lost members only."""
        owner = state.members[state.audit]
        deputy = self._deputy(state, owner)
        has_deputy = deputy != self.terms.me and deputy not in state.lost  # who shows the owner's own shard
        return state.sums[state.audit].maker in state.lost and any(
            name in state.lost and not (name == owner and has_deputy) for name in self._lacking_for(state, state.audit)
        )

    def _on_proof(self, state: RoundState, event: Received) -> Step:
        proof = message_as(Proof, event)
        if not self._is_of_attempt(state, event):
            return state, ()
        self._check_context(state, event, proof.context)
        if state.audit < 0:  # no longer of interest
            return state, ()
        if proof.shard != state.audit or proof.member not in self._others(state):
            raise OutOfTurn(f"{event.sender} sent a proof that was not asked for.")
        if (proof.member, proof.shard) in state.shards:
            return state, ()
        self._check_blob(state, event, proof.shard, state.commits[proof.member].shards[proof.shard])
        taken = state.replace(shards=state.shards | {(proof.member, proof.shard)})
        keeps = Adopt(slot=self._slot(state, proof.member, proof.shard), are_weights=False)
        return self._advance(taken, (keeps,))

    def _on_recomputed(self, state: RoundState, event: Recomputed) -> Step:
        if not self._is_now(state, event) or state.audit < 0:
            return state, ()
        if event.shard != state.audit:
            raise IllegalEvent("A sum was recomputed that nobody asked for.")
        made = state.sums[event.shard]
        if event.digest != made.digest:
            raise FalseSum(
                f"{made.maker} signed a sum that the shards behind it do not add up to.",
                hint="Its signature is in the transcript; ask that organisation.",
            )
        return self._agree(state.replace(audit=-1))

    # --- answering -----------------------------------------------------------------------------------------------

    def _on_demand(self, state: RoundState, event: Received) -> Step:
        demand = message_as(Demand, event)
        if not self._is_of_attempt(state, event):
            return self._on_earlier(state, event)
        self._check_context(state, event, demand.context)
        if self.terms.me not in state.masks or demand.shard not in self._shards(state).filled:
            raise OutOfTurn(f"{event.sender} asks for a sum that cannot be there.")
        return state, self._proofs(state, event.sender, demand.shard)

    def _on_earlier(self, state: RoundState, event: Received) -> Step:
        """Answer a demand of a step that this peer has finished: with what it holds for those it took for lost."""
        is_finished = event.turn < state.step or state.phase is Phase.CLOSING
        if event.message.kind is not Kind.DEMAND or not is_finished:
            return state, ()
        first = self._ordinal(message_as(Demand, event).shard, 0)
        ordinals = range(first, first + len(self.terms.peers))
        return state, (PublishHeld(reader=event.sender, turn=event.turn, ordinals=ordinals),)

    def _proofs(self, state: RoundState, to: str, shard: int) -> tuple[Send, ...]:
        """Answer a demand: the maker of the sum with every member's shard, others with their own.

        The deputy of the shard's owner has the owner's, too.
        """
        me = self.terms.me
        is_maker = shard in state.sums and state.sums[shard].maker == me
        held = (name for name in self._others(state) if (name, shard) in state.shards)
        owner = state.members[shard]
        shown = [me, *(name for name in held if is_maker or name == owner)]
        return tuple(self._proof(state, to, name, shard) for name in shown if name != to)

    def _for_the_lost(self, state: RoundState) -> tuple[Send, ...]:
        """Hold what members that this peer goes on without may demand of it, should they live and audit this step."""
        shards = self._shards(state).filled
        proofs = (each for name in sorted(state.lost) for shard in shards for each in self._proofs(state, name, shard))
        return tuple(replace(each, held=True) for each in proofs)

    def _proof(self, state: RoundState, to: str, member: str, shard: int) -> Send:
        is_own = member == self.terms.me
        theirs = Cut(self._slot(state, member, shard), state.commits[member].shards[shard])
        return Send(
            recipient=to,
            reader=to,
            turn=state.step,
            attempt=state.attempt,
            message=Proof(context=self._context(state).digest(), shard=shard, member=member),
            blob=self._own_cut(state, shard) if is_own else theirs,
            ordinal=self._ordinal(shard, self._index(state, member)),
        )

    def _ordinal(self, shard: int, member: int) -> int:
        """Return the ordinal of a PROOF; one of an earlier step, with other members, is found by it."""
        return shard * len(self.terms.peers) + member

    def _agree(self, state: RoundState) -> Step:
        """Sign what the step came to."""
        raise NotImplementedError
