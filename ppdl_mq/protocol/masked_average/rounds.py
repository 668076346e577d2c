"""Rounds and evaluations of masked-average, one step after the other: what each begins with, and how it goes on.

Source: docs/PROTOCOL.md, sections 13 to 15.
"""

from __future__ import annotations

from types import MappingProxyType

from ppdl_mq.crypto.agreement import pair_seed, ratcheted
from ppdl_mq.errors import Equivocation, IllegalEvent, OutOfTurn
from ppdl_mq.protocol.effects import (
    Adopt,
    BuildInitial,
    Discard,
    DiscardLocal,
    Effect,
    Forget,
    KeepModel,
    MaskVector,
    Measure,
    NoteRound,
    PairMask,
    Send,
    Train,
)
from ppdl_mq.protocol.events import Measured, Received, Trained
from ppdl_mq.protocol.machine import NotYet
from ppdl_mq.protocol.masked_average.flow import NO_EXPONENTS, Step
from ppdl_mq.protocol.masked_average.membership import MembershipSteps
from ppdl_mq.protocol.masked_average.outcome import Outcome, outcome_of
from ppdl_mq.protocol.masked_average.state import RoundState
from ppdl_mq.protocol.masked_average.totals import TotalSteps
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.schedule import Turn
from ppdl_mq.protocol.slots import Cut, Slot
from ppdl_mq.wire.messages import InitialWeights


class RoundSteps(TotalSteps, MembershipSteps):
    """Handlers of a step's beginning, its end, and everything that becomes possible in between."""

    # --- the beginning -------------------------------------------------------------------------------------------

    def _on_confirmed(self, state: RoundState) -> Step:
        if self.terms.me == self.terms.first:
            return state.replace(phase=Phase.BUILDING), (BuildInitial(into=Slot("agreed", 0)),)
        return state.replace(phase=Phase.AWAITING_INITIAL), ()

    def _on_built(self, state: RoundState, event: Trained) -> Step:
        sends = tuple(
            Send(
                recipient=name, reader=name, turn=0, message=InitialWeights(), blob=Cut(Slot("agreed", 0), event.digest)
            )
            for name in self.terms.others
        )
        begun, effects = self._begin_step(state.replace(base=event.digest, members=tuple(sorted(self.terms.peers))), 1)
        return begun, (*sends, *effects)

    def _on_initial(self, state: RoundState, event: Received) -> Step:
        if event.sender != self.terms.first:
            raise OutOfTurn(f"{event.sender} sent initial weights that are not its to send.")
        based = state.replace(base=event.blob_digest, members=tuple(sorted(self.terms.peers)))
        begun, effects = self._begin_step(based, 1)
        return begun, (Adopt(slot=Slot("agreed", 0)), *effects)

    def _on_early(self, state: RoundState, event: Received) -> Step:
        raise NotYet(f"A {event.message.kind.name} of {event.sender} came while {state.phase.value}.")

    def _on_initial_again(self, state: RoundState, event: Received) -> Step:
        if state.base_step == 0 and event.sender == self.terms.first and event.blob_digest != state.base:
            raise Equivocation(f"{event.sender} sent two different sets of initial weights.")
        return state, ()

    # --- rounds --------------------------------------------------------------------------------------------------

    def _begin_step(self, state: RoundState, step: int) -> Step:
        """Begin a step whose members are those of now."""
        if step % 2 and step > 1:  # a new round: the masks of the last one can no longer be derived
            keys = {name: ratcheted(key) for name, key in state.mask_keys.items() if name in state.members}
            state = state.replace(mask_keys=MappingProxyType(keys))
        drops = {of: signature for of, signature in state.drops.items() if of[2] >= step}  # each holds for one step
        fresh = state.of_attempt(
            step=step,
            attempt=0,
            members_since=0,
            drops=MappingProxyType(drops),
            word=64 if step % 2 == 0 else self.rules.word,
            exponents=NO_EXPONENTS if step % 2 == 0 else b"",
            local=b"",
            figures=(),
        )
        return self._enter(fresh)

    def _is_ready(self, state: RoundState) -> bool:
        """Tell whether this peer has its vector."""
        return bool(state.figures if state.is_evaluation else state.local)

    def _enter(self, state: RoundState) -> Step:
        ready = self._is_ready(state)
        waits = Phase.MEASURING if state.is_evaluation else Phase.TRAINING
        entered = state.replace(phase=Phase.MASKING if ready else waits)
        # A second attempt may begin while the training of the first still runs: it is not begun twice.
        return entered, (self._task(entered),) if ready or state.attempt == 0 else ()

    def _task(self, state: RoundState) -> Effect:
        """Return what this peer has to work out next for its vector."""
        if self._is_ready(state):
            return self._mask_vector(state)
        base = Slot("agreed", state.base_step)
        if state.is_evaluation:
            return Measure(step=state.step, base=base)
        epoch, cycle = divmod(state.round - 1, self.terms.schedule.turns_per_epoch)
        turn = Turn(number=state.round, epoch=epoch, cycle=cycle, ordinal=state.round - 1, peer=self.terms.me)
        return Train(turn=turn, base=base, into=Slot("local", state.step))

    def _mask_vector(self, state: RoundState) -> MaskVector:
        me, context = self.terms.me, self._context(state).digest()
        masks = tuple(
            PairMask(seed=pair_seed(state.mask_keys[name], context), sign=1 if me < name else -1)
            for name in self._others(state)
        )
        return MaskVector(
            step=state.step,
            attempt=state.attempt,
            word=state.word,
            members=state.members,
            masks=masks,
            base=None if state.is_evaluation else Slot("agreed", state.base_step),
            local=None if state.is_evaluation else Slot("local", state.step),
            figures=state.figures,
            into=self._masked(state),
        )

    def _on_trained(self, state: RoundState, event: Trained) -> Step:
        if event.turn != state.round or state.is_evaluation:
            raise IllegalEvent(f"Round {event.turn} was trained, round {state.round} was asked for.")
        if state.local:
            return state, ()
        return self._vector_ready(state.replace(local=event.digest, exponents=event.exponents))

    def _on_measured(self, state: RoundState, event: Measured) -> Step:
        if event.step != state.step or state.figures:
            return state, ()
        return self._vector_ready(state.replace(figures=event.figures))

    def _vector_ready(self, state: RoundState) -> Step:
        if state.phase is Phase.ABANDONING:  # it will be masked in the next attempt
            return state, ()
        masking = state.replace(phase=Phase.MASKING)
        return masking, (self._mask_vector(masking),)

    # --- what has become possible --------------------------------------------------------------------------------

    def _advance(self, state: RoundState, effects: tuple[Effect, ...] = ()) -> Step:
        while True:
            moved = self._moved(state)
            if moved is None:
                return state, effects
            state, more = moved
            effects = (*effects, *more)

    def _moved(self, state: RoundState) -> Step | None:
        """Return what follows from a state by itself, or None."""
        match state.phase:
            case Phase.COMMITTED if self._has_all_shards(state):
                return self._sign_receipt(state)
            case Phase.RECEIPTED if len(state.receipts) == len(state.members):
                return self._release(state)
            case Phase.RELEASED | Phase.ADDING | Phase.GATHERING if len(state.masks) == len(state.members):
                return self._moved_sums(state)
            case Phase.AUDITING if state.audit not in state.adding and not self._lacking_for(state, state.audit):
                comparing = state.replace(adding=state.adding | {state.audit})
                return comparing, (self._add_up(state, state.audit, into=None),)
            case Phase.AUDITING if state.audit not in state.adding and self._cannot_recompute(state):
                return self._agree(state.replace(audit=-1))
            case Phase.AGREEING if state.agreed | state.lost >= set(state.members):
                return self._finish_step(state)
            case Phase.ABANDONING:
                return self._after_abandon(state)
            case Phase.CLOSING if not self._awaited(state):
                return self._close(state)
        return None

    def _moved_sums(self, state: RoundState) -> Step | None:
        duties = self._duties(state)
        if duties:
            adding = state.replace(phase=Phase.ADDING, adding=state.adding | set(duties))
            return adding, tuple(self._add_up(state, shard, self._sum(state, shard)) for shard in duties)
        if len(state.sums) == len(self._shards(state).filled):
            return state.replace(phase=Phase.AVERAGING), (self._average(state),)
        phase = Phase.ADDING if state.adding else Phase.GATHERING
        return None if state.phase is phase else (state.replace(phase=phase), ())

    def _finish_step(self, state: RoundState) -> Step:
        """Everybody agrees: let go of what the step needed, and go on or end."""
        outcome = outcome_of(state.total) if state.is_evaluation else Outcome()
        note = NoteRound(
            step=state.step,
            members=state.members,
            attempts=state.attempt + 1,
            loss=outcome.loss,
            accuracy=outcome.accuracy,
        )
        lets_go: tuple[Effect, ...] = (Discard(step=state.step),)
        if state.lost:  # they may live: what they were sent is kept until the next step ends
            lets_go = (Discard(step=self._prior_step(state.step)), DiscardLocal(step=state.step))
            lets_go += self._for_the_lost(state)
        effects: tuple[Effect, ...] = (note, *lets_go)
        if not state.is_evaluation:
            state = state.replace(base=state.result, base_step=state.step)
            effects = (*effects, Forget(before_turn=state.step, keep_for=self._awaited(state)))
        else:
            state = state.replace(**outcome.remembered(state.lowest_loss, state.worse))
        following = self._following(state, outcome)
        if following is None or self.terms.me in state.leaves:
            return self._end_with(state, effects)
        members = self._seen_by(self.terms.me, state, following)
        if len(members) < self.rules.min_peers:
            return self._end_with(state.replace(too_few=True), effects)
        leavers = [name for name in state.members if name in state.leaves and name not in members]
        state, told = self._part(state, leavers, state.step, awaited=set(leavers) - state.lost)
        begun, more = self._begin_step(state.replace(members=members), following)
        return begun, (*effects, *told, *more)

    def _end_with(self, state: RoundState, effects: tuple[Effect, ...]) -> Step:
        """End with the step that this peer is in: keep what was agreed, and see the others off."""
        others = self._others(state)
        closing, told = self._part(self._closing(state), others, state.step, awaited=set(others) - state.lost)
        return closing, (*effects, self._keep_model(state), *told)

    def _keep_model(self, state: RoundState) -> KeepModel:
        return KeepModel(slot=Slot("agreed", state.base_step), digest=state.base)

    def _following(self, state: RoundState, outcome: Outcome) -> int | None:
        """Return the number of the next step, or None at the end."""
        is_last = state.round == self.terms.rounds
        if state.is_evaluation and (is_last or outcome.is_enough(self.rules, state.worse)):
            return None
        following = self._next_step(state)
        return None if following > self.terms.steps else following

    def _next_step(self, state: RoundState) -> int:
        """Return the number of the step after this one, unless the trial ends."""
        return state.step + (1 if state.is_evaluation or self._is_evaluated(state.round) else 2)
