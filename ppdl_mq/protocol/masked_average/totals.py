"""The second half of an attempt: sum shards, the result, agreement.

Source: docs/PROTOCOL.md, section 13.2, 5 and 6.
"""

from __future__ import annotations

from ppdl_mq.crypto.identity import verify
from ppdl_mq.errors import Equivocation, Malformed, OutOfTurn, SplitView, Unauthentic
from ppdl_mq.protocol.effects import AddUp, Adopt, Average, Effect, Record, Send
from ppdl_mq.protocol.events import AddedUp, Averaged, Received
from ppdl_mq.protocol.machine import NotYet
from ppdl_mq.protocol.masked_average.flow import Step
from ppdl_mq.protocol.masked_average.recomputing import RecomputingSteps
from ppdl_mq.protocol.masked_average.state import RoundState
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.session import message_as
from ppdl_mq.protocol.slots import Cut, Slot
from ppdl_mq.protocol.statements import agreement_statement, sum_statement
from ppdl_mq.wire.messages import Agree, SignedSum, SumShard


class TotalSteps(RecomputingSteps):
    """The handlers after the release."""

    # --- sums ----------------------------------------------------------------------------------------------------

    def _duties(self, state: RoundState) -> tuple[int, ...]:
        """Return the indices of the sum shards that this peer is to make and can make now."""
        me, shards = self.terms.me, self._shards(state)
        owners = [me, *(name for name in sorted(state.lost) if self._deputy(state, name) == me)]
        duties = (self._index(state, name) for name in owners)
        return tuple(
            shard
            for shard in duties
            if shards.size(shard)
            and shard not in state.sums
            and shard not in state.adding
            and not self._lacking_for(state, shard)
        )

    def _add_up(self, state: RoundState, shard: int, into: Slot | None) -> AddUp:
        sources = [
            self._own_cut(state, shard)
            if name == self.terms.me
            else Cut(self._slot(state, name, shard), state.commits[name].shards[shard])
            for name in state.members
        ]
        return AddUp(
            step=state.step,
            attempt=state.attempt,
            shard=shard,
            word=state.word,
            start=self._shards(state).start(shard),
            sources=tuple(sources),
            masks=tuple(state.masks[name] for name in state.members),
            into=into,
        )

    def _on_added_up(self, state: RoundState, event: AddedUp) -> Step:
        if not self._is_now(state, event) or event.shard not in state.adding:
            return state, ()
        context = self._context(state).digest()
        signature = self.terms.sign(sum_statement(context, event.shard, event.digest))
        made = SignedSum(shard=event.shard, maker=self.terms.me, digest=event.digest, signature=signature)
        sends = self._tell_sum(state, made)
        added_up = state.replace(adding=state.adding - {event.shard}, sums={**state.sums, event.shard: made})
        return self._advance(added_up, (self._record_sum(context, made), *sends))

    def _tell_sum(self, state: RoundState, made: SignedSum) -> tuple[Send, ...]:
        context = self._context(state).digest()
        message = SumShard(context=context, shard=made.shard, maker=made.maker, signature=made.signature)
        return tuple(
            Send(
                recipient=name,
                reader=name,
                turn=state.step,
                attempt=state.attempt,
                message=message,
                blob=Cut(self._sum(state, made.shard), made.digest),
                ordinal=made.shard,
            )
            for name in self._others(state)
            if name != made.maker
        )

    def _instead_of(self, state: RoundState, name: str) -> tuple[Effect, ...]:
        """Send what a lost member's deputy needs, and pass on what that member said last: not all may have it."""
        effects, made = super()._instead_of(state, name), state.sums.get(self._index(state, name))
        if made is None or made.maker != name or self._deputy(state, name) != self.terms.me:
            return effects
        return (*effects, *self._tell_sum(state, made))

    def _record_sum(self, context: bytes, made: SignedSum) -> Record:
        about = {"context": context, "shard": made.shard, "digest": made.digest}
        return Record(by=made.maker, says="sum", about=about, signature=made.signature)

    def _on_sum(self, state: RoundState, event: Received) -> Step:
        message = message_as(SumShard, event)
        if not self._is_of_attempt(state, event):
            return state, ()
        self._check_context(state, event, message.context)
        shard, sender = message.shard, event.sender
        if self.terms.me not in state.masks:
            raise OutOfTurn(f"{sender} sent a sum that it cannot have.")
        self._check_maker(state, message, sender)
        if event.blob_bytes != self._shards(state).size(shard):
            raise Malformed(f"A sum of {sender} has the wrong size.")
        statement = sum_statement(message.context, shard, event.blob_digest)
        verify(self.terms.peers[message.maker], message.signature, statement)
        theirs = SignedSum(shard=shard, maker=message.maker, digest=event.blob_digest, signature=message.signature)
        known = state.sums.get(shard)
        if known is not None:
            if known.digest == theirs.digest:
                return state, ()
            kind = Equivocation if known.maker == theirs.maker else SplitView
            raise kind(
                f"The sums that {known.maker} and {theirs.maker} signed for one shard differ.",
                records=(self._record_sum(message.context, theirs),),
            )
        taken = state.replace(sums={**state.sums, shard: theirs}, adding=state.adding - {shard})
        effects: list[Effect] = [Adopt(slot=self._sum(state, shard), are_weights=False)]
        effects.append(self._record_sum(message.context, theirs))
        if theirs.maker in state.lost:
            effects += self._instead_of(taken, theirs.maker)
        return self._advance(taken, tuple(effects))

    def _check_maker(self, state: RoundState, message: SumShard, sender: str) -> None:
        """Hold the maker of a sum shard to owner or, once that is lost, deputy, and its sender to one of them."""
        if message.shard not in self._shards(state).filled:
            raise Malformed(f"{sender} sent a shard that does not exist.")
        owner = state.members[message.shard]
        makers = (owner, self._deputy(state, owner))
        if sender not in makers or message.maker not in (owner, sender):
            raise OutOfTurn(f"{sender} sent a sum that is not its to make.")
        if message.maker != owner and owner not in state.lost:
            raise NotYet(f"{sender} holds {owner} for lost, and this peer does not.")

    # --- the result and what all sign ----------------------------------------------------------------------------

    def _average(self, state: RoundState) -> Average:
        filled = self._shards(state).filled
        is_evaluation = state.is_evaluation
        return Average(
            step=state.step,
            attempt=state.attempt,
            word=state.word,
            members=state.members,
            sums=tuple(self._sum(state, shard) for shard in filled),
            auditable=tuple(shard for shard in filled if state.sums[shard].maker != self.terms.me),
            base=None if is_evaluation else Slot("agreed", state.base_step),
            into=None if is_evaluation else Slot("agreed", state.step),
        )

    def _on_averaged(self, state: RoundState, event: Averaged) -> Step:
        if not self._is_now(state, event) or state.phase is not Phase.AVERAGING:
            return state, ()
        averaged = state.replace(result=event.digest, total=event.figures)
        shard = event.audit
        if shard is None or shard not in state.sums or state.sums[shard].maker == self.terms.me:
            return self._agree(averaged)
        auditing = averaged.replace(phase=Phase.AUDITING, audit=shard)
        # As the deputy of its owner, or of two members, this peer has all of it already.
        return self._advance(auditing, self._demands(auditing) if self._lacking_for(auditing, shard) else ())

    def _agree(self, state: RoundState) -> Step:
        context, commitments = self._context(state).digest(), self._commitments(state)
        signature = self.terms.sign(agreement_statement(context, state.result, commitments))
        sums = tuple(state.sums[shard] for shard in sorted(state.sums))
        message = Agree(context=context, digest=state.result, sums=sums, signature=signature)
        agreeing = state.replace(phase=Phase.AGREEING, agreed=state.agreed | {self.terms.me})
        record = self._record_agreement(self.terms.me, message, commitments)
        return self._advance(agreeing, (record, *self._broadcast(state, message)))

    def _record_agreement(self, by: str, agree: Agree, commitments: bytes) -> Record:
        about = {"context": agree.context, "digest": agree.digest, "commitments": commitments}
        return Record(by=by, says="agreement", about=about, signature=agree.signature)

    def _on_agree(self, state: RoundState, event: Received) -> Step:
        agree = message_as(Agree, event)
        if not self._is_of_attempt(state, event):
            return state, ()
        self._check_context(state, event, agree.context)
        if not state.result:
            raise NotYet(f"{event.sender} knows the result before this peer does.")
        commitments = self._commitments(state)
        statement = agreement_statement(agree.context, agree.digest, commitments)
        verify(self.terms.peers[event.sender], agree.signature, statement)
        self._compare_sums(state, event.sender, agree)
        if agree.digest != state.result:
            records = (self._record_agreement(event.sender, agree, commitments),)
            raise SplitView(f"{event.sender} computed another result from the same sums.", records=records)
        if event.sender in state.agreed:
            return state, ()
        noted = state.replace(agreed=state.agreed | {event.sender})
        return self._advance(noted, (self._record_agreement(event.sender, agree, commitments),))

    def _compare_sums(self, state: RoundState, sender: str, agree: Agree) -> None:
        """Hold the sums behind another's result to one's own.

        Raises:
            Malformed, Unauthentic: the list is not one of sums that their makers signed.
            Equivocation: it is, and a maker signed another sum for this peer.
        """
        if tuple(each.shard for each in agree.sums) != self._shards(state).filled:
            raise Malformed(f"{sender} agreed on something else than the sums of this attempt.")
        for theirs in agree.sums:
            ours = state.sums[theirs.shard]
            if ours.digest == theirs.digest:
                continue
            makers = (state.members[theirs.shard], self._deputy(state, state.members[theirs.shard]))
            if theirs.maker not in makers:
                raise Unauthentic(f"{sender} names a sum of {theirs.maker}, who is not to make it.")
            statement = sum_statement(agree.context, theirs.shard, theirs.digest)
            verify(self.terms.peers[theirs.maker], theirs.signature, statement)
            kind = Equivocation if theirs.maker == ours.maker else SplitView
            raise kind(
                f"{theirs.maker} signed a sum for {sender} that differs from that of {ours.maker}.",
                records=(self._record_sum(agree.context, theirs),),
            )
