"""The machine of masked-average: whom it waits for, what a restart begins anew, and the table of its transitions.

Source: docs/PROTOCOL.md, sections 13 to 15.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType
from typing import Any, Final

from ppdl_mq.protocol.effects import (
    BuildInitial,
    Effect,
    PublishAgain,
)
from ppdl_mq.protocol.events import Overdue, Received
from ppdl_mq.protocol.machine import Handler, Machine, Table
from ppdl_mq.protocol.masked_average.flow import Step
from ppdl_mq.protocol.masked_average.rounds import RoundSteps
from ppdl_mq.protocol.masked_average.state import RoundState
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.session import SessionSteps
from ppdl_mq.protocol.slots import Slot
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.messages import Resend


class MaskedAverageMachine(RoundSteps, SessionSteps, Machine[RoundState]):
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
            case Phase.CLOSING:
                return tuple(sorted(self._awaited(state)))
        return ()

    def _makers_awaited(self, state: RoundState) -> tuple[str, ...]:
        awaited: set[str] = set()
        for shard in self._shards(state).filled:
            if shard in state.sums:
                continue
            owner = state.members[shard]
            maker = self._deputy(state, owner) if owner in state.lost else owner
            # As the deputy of a lost member this peer waits for those who have not sent it their shards. Of another
            # deputy it does not know whether that one can make the sum: the lost member can, if it comes back.
            awaited |= set(self._lacking_for(state, shard)) if maker == self.terms.me else {maker, owner}
        return tuple(sorted(awaited))

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
            case Phase.CLOSING | Phase.ENDED | Phase.LEFT | Phase.ENDED_EARLY if state.base_step:
                return (self._keep_model(state),)
        return ()

    def may_be_gone(self, state: RoundState, kind: Kind, name: str) -> bool:  # noqa: ARG002 (of every kind alike)
        """Tell it of those who part from this peer: they leave when they have all they need."""
        return name in state.parted or state.phase in _OVER

    def progress(self, state: RoundState) -> dict[str, Any]:
        """Return round, step, attempt and who takes part."""
        return {
            "round": state.round,
            "rounds": self.terms.rounds,
            "step": state.step,
            "attempt": state.attempt,
            "members": list(state.members),
            "word": state.word,
            "agreed_round": (state.base_step + 1) // 2,
            "dropped": sorted({name for by, name, _ in state.drops if by == self.terms.me}),
            "left": sorted(state.leaves),
            "going_on_without_this_peer": list(self.going_on_without(state)),
        }

    # --- messages of an attempt, while this peer trains or gives it up -------------------------------------------

    def _on_training(self, state: RoundState, event: Received) -> Step:
        """While training, the exponents and so the context are not known yet: keep what is of this attempt."""
        if not self._is_of_attempt(state, event):
            return self._on_earlier(state, event)
        return self._on_early(state, event)

    def _on_abandoning(self, state: RoundState, event: Received) -> Step:
        """Once this peer has given an attempt up, only a release in it counts, if it gave its receipt before."""
        if not self._is_of_attempt(state, event):
            return self._on_earlier(state, event)
        match event.message.kind:
            case Kind.RELEASE if self.terms.me in state.receipts:
                return self._on_release(state, event)
            case Kind.MASKED | Kind.SUM | Kind.AGREE if self.terms.me in state.receipts:
                return self._on_early(state, event)  # others finish the attempt: their release is on its way
        return state, ()

    # --- lost messages -------------------------------------------------------------------------------------------

    def _on_overdue(self, state: RoundState, _: Overdue) -> Step:
        # The lost may live, and have what their deputies, who have not given them up, need not make.
        waiting_for = sorted({*self.waiting_for(state), *self._undecided(state), *state.lost})
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
_OVER: Final = (Phase.CLOSING, Phase.ENDED, Phase.LEFT, Phase.ENDED_EARLY)
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
    "DONE": _M._on_done,
}
_OWN: Final[dict[str, Handler]] = {
    "Masked": _M._on_masked,
    "Overflowed": _M._on_overflowed,
    "AddedUp": _M._on_added_up,
    "Averaged": _M._on_averaged,
    "Recomputed": _M._on_recomputed,
    "Measured": _M._on_measured,
    "Decided": _M._on_decided,
    "Rested": _M._on_rested,
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
    | _rows(
        (Phase.CLOSING,),
        {
            "RESEND": _M._on_resend,
            "Overdue": _M._on_overdue,
            "DEMAND": _M._on_earlier,
            "DONE": _M._on_done,
            "Decided": _M._on_given_up,
        },
    )
    | _rows((Phase.NEW,), {"Started": _M._on_started})
    | _rows((Phase.BUILDING,), {"Trained": _M._on_built})
    | _rows((Phase.AWAITING_INITIAL,), {"INITIAL": _M._on_initial})
    | _rows((Phase.TRAINING, Phase.ABANDONING), {"Trained": _M._on_trained})
)
MaskedAverageMachine.table = TABLE
