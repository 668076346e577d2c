"""The machine of masked-average: rounds and evaluations, one attempt after the other.

Source: docs/PROTOCOL.md, sections 13 to 15.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType
from typing import Any, Final

from ppdl_mq.crypto.agreement import pair_seed, ratcheted
from ppdl_mq.errors import Equivocation, IllegalEvent, OutOfTurn
from ppdl_mq.protocol.effects import (
    Adopt,
    BuildInitial,
    Discard,
    Effect,
    Forget,
    KeepModel,
    MaskVector,
    Measure,
    NoteRound,
    PairMask,
    PublishAgain,
    Send,
    Train,
)
from ppdl_mq.protocol.events import Measured, Overdue, Received, Sent, Trained
from ppdl_mq.protocol.machine import Handler, Machine, NotYet, Table
from ppdl_mq.protocol.masked_average.flow import NO_EXPONENTS, Step
from ppdl_mq.protocol.masked_average.membership import MembershipSteps
from ppdl_mq.protocol.masked_average.outcome import Outcome, outcome_of
from ppdl_mq.protocol.masked_average.state import RoundState
from ppdl_mq.protocol.masked_average.totals import TotalSteps
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.schedule import Turn
from ppdl_mq.protocol.session import SessionSteps
from ppdl_mq.protocol.slots import Cut, Slot
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.messages import InitialWeights, Resend


class MaskedAverageMachine(TotalSteps, MembershipSteps, SessionSteps, Machine[RoundState]):
    """One peer's part in a trial in which all train at once and learn the average only."""

    def initial(self) -> RoundState:
        """Return the state of a peer that has not begun."""
        return RoundState()

    def restored(self, data: dict[str, Any]) -> RoundState:
        """Return the state that `as_data` described."""
        return RoundState.from_data(data)

    def waiting_for(self, state: RoundState) -> tuple[str, ...]:
        """Return the names of the peers without whom this one cannot go on."""
        others = self._others(state)
        match state.phase:
            case Phase.AWAITING_HELLOS:
                return tuple(name for name in self.terms.others if name not in state.session_keys)
            case Phase.AWAITING_CONFIRMS:
                return tuple(name for name in self.terms.others if name not in state.contributions)
            case Phase.AWAITING_INITIAL:
                return (self.terms.first,)
            case Phase.COMMITTED:
                late = {name for name, _ in self._missing_shards(state)}
                return tuple(name for name in others if name not in state.commits or name in late)
            case Phase.RECEIPTED:
                return tuple(name for name in others if name not in state.receipts)
            case Phase.RELEASED:
                return tuple(name for name in others if name not in state.masks)
            case Phase.GATHERING:
                return self._makers_awaited(state)
            case Phase.AUDITING:
                return self._proofs_awaited(state)
            case Phase.AGREEING:
                return tuple(name for name in others if name not in state.agreed | state.lost)
            case Phase.ABANDONING:
                members = self._seen_by(self.terms.me, state, state.step)
                return tuple(name for name in members if name not in state.abandons)
        return ()

    def _makers_awaited(self, state: RoundState) -> tuple[str, ...]:
        awaited: set[str] = set()
        for shard in self._shards(state).filled:
            if shard in state.sums:
                continue
            owner = state.members[shard]
            maker = self._deputy(state, owner) if owner in state.lost else owner
            # As the deputy of a lost member this peer waits for those who have not sent it their shards.
            awaited |= set(self._lacking_for(state, shard)) if maker == self.terms.me else {maker}
        return tuple(sorted(awaited))

    def _proofs_awaited(self, state: RoundState) -> tuple[str, ...]:
        maker = state.sums[state.audit].maker
        if maker not in state.lost:
            return (maker,)
        lacking = self._lacking_for(state, state.audit)
        return tuple(sorted({self._deputy(state, name) if name in state.lost else name for name in lacking}))

    def unfinished(self, state: RoundState) -> tuple[Effect, ...]:
        """Return what a peer that was restarted in this state has to begin anew; what it sends is in its outbox."""
        match state.phase:
            case Phase.BUILDING:
                return (BuildInitial(into=Slot("agreed", 0)),)
            case Phase.TRAINING | Phase.MEASURING | Phase.MASKING:
                return (self._task(state),)
            case Phase.ABANDONING if not self._is_ready(state):
                return (self._task(state),)
            case Phase.RELEASED | Phase.ADDING | Phase.GATHERING:
                return tuple(self._add_up(state, shard, self._sum(state, shard)) for shard in sorted(state.adding))
            case Phase.AVERAGING:
                return (self._average(state),)
            case Phase.AUDITING if state.audit in state.adding:
                return (self._add_up(state, state.audit, into=None),)
            case Phase.CLOSING | Phase.ENDED | Phase.LEFT if state.base_step:
                return (self._keep_model(state),)
        return ()

    def may_be_gone(self, state: RoundState, kind: Kind) -> bool:  # noqa: ARG002 (of every kind alike)
        """Tell it once this peer has finished: the others had all they needed when they left."""
        return state.phase in (Phase.CLOSING, Phase.ENDED, Phase.LEFT)

    def progress(self, state: RoundState) -> dict[str, Any]:
        """Return round, step, attempt and who takes part."""
        return {
            "round": state.round,
            "rounds": self.terms.rounds,
            "step": state.step,
            "attempt": state.attempt,
            "members": list(state.members),
            "word": state.word,
            "dropped": sorted({name for by, name, _ in state.drops if by == self.terms.me}),
            "left": sorted(state.leaves),
            "going_on_without_this_peer": list(self.going_on_without(state)),
        }

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
            case Phase.AGREEING if state.agreed | state.lost >= set(state.members):
                return self._finish_step(state)
            case Phase.ABANDONING:
                return self._try_next_attempt(state)
            case Phase.CLOSING if state.confirmed >= set(self._others(state)):
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
        effects: tuple[Effect, ...] = (note, Discard(step=state.step))
        if not state.is_evaluation:
            state = state.replace(base=state.result, base_step=state.step)
            effects = (*effects, Forget(before_turn=state.step))
        else:
            state = state.replace(**outcome.remembered(state.lowest_loss, state.worse))
        following = self._following(state, outcome)
        if following is None or self.terms.me in state.leaves:
            closing = state.of_attempt(phase=Phase.CLOSING, confirmed=state.confirmed)
            return closing, (*effects, self._keep_model(state))
        members = self._members_for(state, following)
        begun, more = self._begin_step(state.replace(members=members), following)
        return begun, (*effects, *more)

    def _keep_model(self, state: RoundState) -> KeepModel:
        return KeepModel(slot=Slot("agreed", state.base_step), digest=state.base)

    def _on_sent(self, state: RoundState, event: Sent) -> Step:
        """Note who has this peer's last word; it goes when all do."""
        if event.kind not in (Kind.AGREE, Kind.LEAVE) or event.recipient in state.confirmed:
            return state, ()
        # Who leaves after its receipt says so for the next step, and finishes this one: its AGREE is its last word.
        if event.turn != state.step or (event.kind is Kind.AGREE and event.attempt != state.attempt):
            return state, ()
        return self._advance(state.replace(confirmed=state.confirmed | {event.recipient}))

    def _close(self, state: RoundState) -> Step:
        """End, or leave, without the session's secrets."""
        final = Phase.LEFT if self.terms.me in state.leaves else Phase.ENDED
        return state.of_attempt(phase=final).without_secrets(), ()

    def _following(self, state: RoundState, outcome: Outcome) -> int | None:
        """Return the number of the next step, or None at the end."""
        is_last = state.round == self.terms.rounds
        if state.is_evaluation and (is_last or outcome.is_enough(self.rules, state.worse)):
            return None
        following = self._next_step(state)
        return None if following > self.terms.steps else following

    def _next_step(self, state: RoundState) -> int:
        """Return the number of the step after this one, unless the trial ends."""
        every = self.rules.evaluate_every
        is_evaluated = every > 0 and (state.round == self.terms.rounds or state.round % every == 0)
        return state.step + (1 if state.is_evaluation or is_evaluated else 2)

    # --- messages of an attempt, while this peer trains or gives it up -------------------------------------------

    def _on_training(self, state: RoundState, event: Received) -> Step:
        """While training, the exponents and so the context are not known yet: keep what is of this attempt."""
        if not self._is_of_attempt(state, event):
            return state, ()
        return self._on_early(state, event)

    def _on_abandoning(self, state: RoundState, event: Received) -> Step:
        """Once this peer has given an attempt up, only a release in it counts, if it gave its receipt before."""
        if not self._is_of_attempt(state, event):
            return state, ()
        match event.message.kind:
            case Kind.RELEASE if self.terms.me in state.receipts:
                return self._on_release(state, event)
            case Kind.MASKED | Kind.SUM | Kind.AGREE if self.terms.me in state.receipts:
                return self._on_early(state, event)  # others finish the attempt: their release is on its way
        return state, ()

    # --- lost messages -------------------------------------------------------------------------------------------

    def _on_overdue(self, state: RoundState, _: Overdue) -> Step:
        waiting_for = self.waiting_for(state)
        asked: tuple[Effect, ...] = tuple(self._send(name, Resend(), ordinal=state.resends) for name in waiting_for)
        if state.step:
            asked = (*asked, *(told for name in waiting_for for told in self._tell_all(state, name)))
        if state.phase is Phase.AUDITING:  # the demand itself may be what was lost
            asked = (*asked, *(PublishAgain(reader=name) for name in waiting_for))
        return state.replace(resends=state.resends + 1), asked


_M = MaskedAverageMachine
_SESSION: Final = (Phase.AWAITING_HELLOS, Phase.AWAITING_CONFIRMS)
_BEGINNING: Final = (Phase.BUILDING, Phase.AWAITING_INITIAL)
_KNOWN: Final = (  # the context of the attempt is known
    Phase.MEASURING,
    Phase.MASKING,
    Phase.COMMITTED,
    Phase.RECEIPTED,
    Phase.RELEASED,
    Phase.ADDING,
    Phase.GATHERING,
    Phase.AVERAGING,
    Phase.AUDITING,
    Phase.AGREEING,
)
_IN_STEP: Final = (Phase.TRAINING, *_KNOWN, Phase.ABANDONING)
_RUNNING: Final = (*_SESSION, *_BEGINNING, *_IN_STEP)
_OVER: Final = (Phase.CLOSING, Phase.ENDED, Phase.LEFT)
_OF_ATTEMPT: Final[dict[str, Handler]] = {
    "COMMIT": _M._on_commit,
    "MASKED": _M._on_shard,
    "RECEIPT": _M._on_receipt,
    "RELEASE": _M._on_release,
    "SUM": _M._on_sum,
    "AGREE": _M._on_agree,
    "DEMAND": _M._on_demand,
    "PROOF": _M._on_proof,
}
_OF_MEMBERS: Final[dict[str, Handler]] = {
    "ABANDON": _M._on_abandon,
    "DROP": _M._on_drop,
    "LEAVE": _M._on_leave,
}
_OWN: Final[dict[str, Handler]] = {
    "Masked": _M._on_masked,
    "Overflowed": _M._on_overflowed,
    "AddedUp": _M._on_added_up,
    "Averaged": _M._on_averaged,
    "Recomputed": _M._on_recomputed,
    "Measured": _M._on_measured,
    "Decided": _M._on_decided,
    "LeaveAsked": _M._on_leave_asked,
}


def _rows(phases: tuple[Phase, ...], handlers: dict[str, Handler]) -> dict[tuple[Phase, str], Handler]:
    return {(phase, event): handler for phase in phases for event, handler in handlers.items()}


def _all(handler: Handler, events: Iterable[str]) -> dict[str, Handler]:
    return dict.fromkeys(events, handler)


TABLE: Final[Table] = MappingProxyType(
    _rows((*_RUNNING, *_OVER), {"Sent": _M._ignore})
    | _rows(_RUNNING, {"Overdue": _M._on_overdue, "RESEND": _M._on_resend, "HELLO": _M._on_hello})
    | _rows((Phase.AWAITING_CONFIRMS, *_BEGINNING, *_IN_STEP), {"CONFIRM": _M._on_confirm})
    | _rows((Phase.AWAITING_CONFIRMS,), _all(_M._on_early, ("INITIAL", *_OF_ATTEMPT, *_OF_MEMBERS)))
    | _rows(_BEGINNING, _all(_M._on_early, (*_OF_ATTEMPT, *_OF_MEMBERS)))
    | _rows(_IN_STEP, {"INITIAL": _M._on_initial_again, **_OF_MEMBERS, **_OWN})
    | _rows(_KNOWN, _OF_ATTEMPT)
    | _rows((Phase.TRAINING,), _all(_M._on_training, _OF_ATTEMPT))
    | _rows((Phase.ABANDONING,), _all(_M._on_abandoning, _OF_ATTEMPT))
    | _rows(_OVER, _all(_M._ignore, ("INITIAL", "RESEND", "Trained", *_OF_ATTEMPT, *_OF_MEMBERS, *_OWN)))
    | _rows((*_IN_STEP, Phase.CLOSING), {"Sent": _M._on_sent})
    | _rows((Phase.CLOSING,), {"RESEND": _M._on_resend})
    | _rows((Phase.NEW,), {"Started": _M._on_started})
    | _rows((Phase.BUILDING,), {"Trained": _M._on_built})
    | _rows((Phase.AWAITING_INITIAL,), {"INITIAL": _M._on_initial})
    | _rows((Phase.TRAINING, Phase.ABANDONING), {"Trained": _M._on_trained})
)
MaskedAverageMachine.table = TABLE
