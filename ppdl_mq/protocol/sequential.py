"""The machine of both sequential protocols: events in, effects out.

`server-aided` and `fully-connected` differ only in the road that a turn's weights take: `_on_trained`, `_on_turn_sent`
and `_on_notice` know it.

Source: docs/PROTOCOL.md, sections 7 to 11; Phong and Phuong (arXiv 1809.03272), "SNT" and "FNT".
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Final

from ppdl_mq.crypto.identity import verify
from ppdl_mq.errors import Equivocation, IllegalEvent, OutOfTurn
from ppdl_mq.protocol.effects import (
    Adopt,
    BuildInitial,
    Effect,
    EmptyWeights,
    Fetch,
    Forget,
    KeepModel,
    Record,
    Release,
    Send,
    Train,
    Withdraw,
)
from ppdl_mq.protocol.events import Decided, Overdue, Received, Sent, Trained
from ppdl_mq.protocol.lineage import checked_chain, extended, lineage_for
from ppdl_mq.protocol.machine import Machine, NotYet, Table
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.schedule import Turn
from ppdl_mq.protocol.session import SessionSteps, message_as
from ppdl_mq.protocol.slots import Cut, Slot
from ppdl_mq.protocol.state import Chain, State
from ppdl_mq.protocol.statements import NO_TURN_BEFORE, final_statement, turn_statement
from ppdl_mq.protocol.terms import WEIGHTS, Terms
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.messages import Done, FinalWeights, Notice, Resend, Statement, TurnWeights

Step = tuple[State, tuple[Effect, ...]]


class SequentialMachine(SessionSteps, Machine[State]):
    """One peer's part in a sequential trial."""

    def initial(self) -> State:
        """Return the state of a peer that has not begun."""
        return State()

    def restored(self, data: dict[str, Any]) -> State:
        """Return the state that `as_data` described."""
        return State.from_data(data)

    def waiting_for(self, state: State) -> tuple[str, ...]:
        """Return the names of the peers without whom this one cannot go on."""
        terms = self.terms
        match state.phase:
            case Phase.AWAITING_HELLOS:
                return tuple(name for name in terms.others if name not in state.session_keys)
            case Phase.AWAITING_CONFIRMS:
                return tuple(name for name in terms.others if name not in state.contributions)
            case Phase.AWAITING_TURN | Phase.FETCHING:
                return (terms.schedule.turn(state.turn - 1).peer,)
            case Phase.AWAITING_FINAL:
                return (terms.finisher,)
            case Phase.AWAITING_DONES:
                return tuple(name for name in terms.others if name not in state.dones)
        return ()

    def unfinished(self, state: State) -> tuple[Effect, ...]:
        """Return what a peer that was restarted in this state has to begin anew; what it sends is in its outbox."""
        match state.phase:
            case Phase.BUILDING:
                return (BuildInitial(into=turn_slot(0)),)
            case Phase.FETCHING:
                return (Fetch(turn=state.turn - 1, message_id=state.notice),)
            case Phase.TRAINING:
                return (self._train(self.terms.schedule.turn(state.turn)),)
            case Phase.ANSWERING_FINAL | Phase.AWAITING_DONES | Phase.ENDED:
                return (self._keep_model(state),)
        return ()

    def may_be_gone(self, state: State, kind: Kind, name: str) -> bool:  # noqa: ARG002 (in every state alike)
        """Tell it of what a peer has to have before it removes its inbox: the TURN before its own, and of a DONE."""
        return kind is Kind.DONE or (kind is Kind.TURN and name != WEIGHTS)

    def progress(self, state: State) -> dict[str, Any]:
        """Return the turn and how many there are."""
        return {"turn": state.turn, "turns": self.terms.schedule.turns}

    def _on_confirmed(self, state: State) -> Step:
        if self.terms.me == self.terms.schedule.founder:
            return state.replace(phase=Phase.BUILDING, turn=0), (BuildInitial(into=turn_slot(0)),)
        return self._await_next(state, after=0), ()

    # --- turns ---------------------------------------------------------------------------------------------------

    def _on_notice(self, state: State, event: Received) -> Step:
        notice = message_as(Notice, event)
        if not self._is_for_my_turn(state, event):
            return state, ()
        if not self.terms.uses_trial_key or state.notice not in (b"", notice.message_id):
            raise OutOfTurn(f"{event.sender} sent a NOTICE that this trial has no place for.")
        fetching = state.replace(phase=Phase.FETCHING, notice=notice.message_id)
        return fetching, (Fetch(turn=event.turn, message_id=notice.message_id),)

    def _on_turn(self, state: State, event: Received) -> Step:
        if not self._is_for_my_turn(state, event):
            return state, ()
        lineage = message_as(TurnWeights, event).lineage
        chain = checked_chain(self.terms, state, event, lineage)
        mine = self.terms.schedule.turn(state.turn)
        trains = state.replace(phase=Phase.TRAINING, chain=chain, notice=b"")
        records = _records(self.terms, trains, lineage.chain, lineage.anchor)
        keeps = Adopt(slot=turn_slot(event.turn))
        return trains, (*records, keeps, self._train(mine), Forget(before_turn=event.turn))

    def _on_trained(self, state: State, event: Trained) -> Step:
        terms = self.terms
        if event.turn != state.turn:
            raise IllegalEvent(f"Turn {event.turn} was trained, turn {state.turn} was asked for.")
        before = state.chain.digest_of(event.turn - 1) if event.turn else NO_TURN_BEFORE
        statement = turn_statement(state.session_id, event.turn, before, event.digest)
        stated = Statement(digest=event.digest, signature=terms.sign(statement))
        state = state.replace(chain=extended(terms, state.chain, (stated,)))
        records = _records(terms, state, (stated,), before)
        if event.turn == terms.schedule.turns:
            return self._finish(state, records)
        following = terms.schedule.turn(event.turn + 1)
        if following.peer == terms.me:  # two turns in a row: nothing travels
            return state.replace(phase=Phase.TRAINING, turn=following.number), (*records, self._train(following))
        recipient = WEIGHTS if terms.uses_trial_key else following.peer
        handed = Send(
            recipient=recipient,
            reader=following.peer,
            turn=event.turn,
            message=TurnWeights(lineage=lineage_for(terms, state.chain, following.peer)),
            blob=_cut(state.chain, event.turn),
        )
        return state.replace(phase=Phase.HANDING_OVER), (*records, handed)

    def _on_turn_sent(self, state: State, event: Sent) -> Step:
        if event.kind is not Kind.TURN or event.turn != state.turn:
            return state, ()
        effects: tuple[Effect, ...] = ()
        if self.terms.uses_trial_key:
            reader = self.terms.schedule.turn(event.turn + 1).peer
            effects = (Release(), self._send(reader, Notice(message_id=event.message_id), turn=event.turn))
        return self._await_next(state, after=event.turn), effects

    def _await_next(self, state: State, *, after: int) -> State:
        mine = self.terms.my_next_turn(after)
        if mine is None:
            return state.replace(phase=Phase.AWAITING_FINAL)
        return state.replace(phase=Phase.AWAITING_TURN, turn=mine)

    def _is_for_my_turn(self, state: State, event: Received) -> bool:
        """Tell whether a TURN or NOTICE is the one that this peer awaits; False for one of the past."""
        if event.turn < state.turn - 1:
            self._compare_with_past(state, event)
            return False
        if event.turn > state.turn - 1 or event.sender != self.terms.schedule.turn(event.turn).peer:
            raise OutOfTurn(f"{event.sender} sent turn {event.turn}, not its own or not for this peer.")
        return True

    def _on_other_turn(self, state: State, event: Received) -> Step:
        """A TURN, NOTICE or FINAL while this peer is busy: of the past, or too early."""
        if event.turn < state.turn:
            self._compare_with_past(state, event)
            return state, ()
        raise NotYet(f"A {event.message.kind.name} of {event.sender} came while {state.phase.value}.")

    def _compare_with_past(self, state: State, event: Received) -> None:
        chain, turn = state.chain, event.turn
        if not isinstance(event.message, TurnWeights) or not chain.first_turn <= turn <= chain.last_turn:
            return
        if event.sender == self.terms.schedule.turn(max(turn, 1)).peer and event.blob_digest != chain.digest_of(turn):
            raise Equivocation(f"{event.sender} signed two different results of turn {turn}.")

    # --- the end -------------------------------------------------------------------------------------------------

    def _finish(self, state: State, records: tuple[Record, ...]) -> Step:
        terms = self.terms
        last = terms.schedule.turns
        finals = tuple(
            Send(
                recipient=name,
                reader=name,
                turn=last,
                message=FinalWeights(lineage=lineage_for(terms, state.chain, name)),
                blob=_cut(state.chain, last),
            )
            for name in terms.others
        )
        return state.replace(phase=Phase.AWAITING_DONES), (*records, self._keep_model(state), *finals)

    def _on_final(self, state: State, event: Received) -> Step:
        terms = self.terms
        if event.sender != terms.finisher or event.turn != terms.schedule.turns:
            raise OutOfTurn(f"{event.sender} sent a FINAL that is not its to send.")
        lineage = message_as(FinalWeights, event).lineage
        chain = checked_chain(terms, state, event, lineage)
        statement = final_statement(state.session_id, event.turn, event.blob_digest)
        done = Done(digest=event.blob_digest, signature=terms.sign(statement))
        answered = state.replace(phase=Phase.ANSWERING_FINAL, chain=chain)
        about = {"session": state.session_id, "turn": event.turn, "digest": event.blob_digest}
        return answered, (
            *_records(terms, answered, lineage.chain, lineage.anchor),
            Record(by=terms.me, says="final", about=about, signature=done.signature),
            Adopt(slot=turn_slot(event.turn)),
            self._keep_model(answered),
            Forget(before_turn=event.turn),
            self._send(event.sender, done, turn=event.turn),
        )

    def _on_done_sent(self, state: State, event: Sent) -> Step:
        return (_ended(state), ()) if event.kind is Kind.DONE else (state, ())

    def _on_final_sent(self, state: State, event: Sent) -> Step:
        if event.kind is not Kind.FINAL:
            return state, ()
        return self._note_finals(state, state.finals_confirmed | {event.recipient})

    def _on_done(self, state: State, event: Received) -> Step:
        terms, done = self.terms, message_as(Done, event)
        last = terms.schedule.turns
        verify(terms.peers[event.sender], done.signature, final_statement(state.session_id, last, done.digest))
        if done.digest != state.chain.digest_of(last):
            raise Equivocation(f"{event.sender} signed other final weights than those that it was sent.")
        if event.sender in state.dones:
            return state, ()
        about = {"session": state.session_id, "turn": last, "digest": done.digest}
        record = Record(by=event.sender, says="final", about=about, signature=done.signature)
        ended, effects = self._wait_no_longer(state, event.sender)
        return ended, (record, *effects)

    def _on_given_up(self, state: State, event: Decided) -> Step:
        """People decided to wait no longer for the last word of a peer: the relay may have lost it."""
        if event.name not in self.waiting_for(state):
            return state, ()
        return self._wait_no_longer(state, event.name)

    def _wait_no_longer(self, state: State, name: str) -> Step:
        noted, effects = self._note_finals(state.replace(dones=state.dones | {name}), state.finals_confirmed | {name})
        ended = _ended(noted) if len(noted.dones) == len(self.terms.others) else noted
        return ended, (Withdraw(reader=name), *effects)

    def _note_finals(self, state: State, confirmed: frozenset[str]) -> Step:
        """Note which FINALs have arrived; with the last of them `weights` is no longer needed by anyone."""
        all_now = len(confirmed) == len(self.terms.others) and confirmed != state.finals_confirmed
        emptied = (Release(), EmptyWeights()) if all_now and self.terms.uses_trial_key else ()
        return state.replace(finals_confirmed=confirmed), emptied

    # --- lost messages -------------------------------------------------------------------------------------------

    def _on_overdue(self, state: State, _: Overdue) -> Step:
        asked = tuple(self._send(name, Resend(), ordinal=state.resends) for name in self.waiting_for(state))
        return state.replace(resends=state.resends + 1), asked

    def _train(self, turn: Turn) -> Train:
        return Train(turn=turn, base=turn_slot(turn.number - 1), into=turn_slot(turn.number))

    def _keep_model(self, state: State) -> KeepModel:
        last = self.terms.schedule.turns
        return KeepModel(slot=turn_slot(last), digest=state.chain.digest_of(last))


def turn_slot(turn: int) -> Slot:
    """Return the name of the weights that a turn ended with."""
    return Slot("turn", turn)


def _cut(chain: Chain, turn: int) -> Cut:
    return Cut(turn_slot(turn), chain.digest_of(turn))


def _records(terms: Terms, state: State, statements: tuple[Statement, ...], before: bytes) -> tuple[Record, ...]:
    """Return the transcript's entries of the newest statements of a state's chain."""
    records = []
    first = state.chain.last_turn + 1 - len(statements)
    for turn, stated in enumerate(statements, start=first):
        about = {"session": state.session_id, "turn": turn, "before": before, "digest": stated.digest}
        maker = terms.schedule.turn(max(turn, 1)).peer
        records.append(Record(by=maker, says="turn", about=about, signature=stated.signature))
        before = stated.digest
    return tuple(records)


def _ended(state: State) -> State:
    return state.without_secrets().replace(phase=Phase.ENDED)


_M = SequentialMachine
_AFTER_CONFIRMS: Final = (
    Phase.BUILDING,
    Phase.AWAITING_TURN,
    Phase.FETCHING,
    Phase.TRAINING,
    Phase.HANDING_OVER,
    Phase.AWAITING_FINAL,
    Phase.ANSWERING_FINAL,
    Phase.AWAITING_DONES,
)
_RUNNING: Final = (Phase.AWAITING_HELLOS, Phase.AWAITING_CONFIRMS, *_AFTER_CONFIRMS)
_BUSY: Final = (Phase.BUILDING, Phase.TRAINING)

TABLE: Final[Table] = MappingProxyType(
    {(phase, "Sent"): _M._ignore for phase in (*_RUNNING, Phase.ENDED)}
    | {(phase, "Overdue"): _M._on_overdue for phase in _RUNNING}
    | {(phase, "RESEND"): _M._on_resend for phase in _RUNNING}
    | {(phase, "HELLO"): _M._on_hello for phase in _RUNNING}
    | {(phase, "CONFIRM"): _M._on_confirm for phase in _AFTER_CONFIRMS}
    | {(phase, kind): _M._on_other_turn for phase in (Phase.AWAITING_CONFIRMS, *_BUSY) for kind in ("TURN", "NOTICE")}
    | {(phase, kind): _M._on_other_turn for phase in (Phase.HANDING_OVER,) for kind in ("TURN", "NOTICE", "FINAL")}
    | {(phase, kind): _M._ignore for phase in (Phase.ANSWERING_FINAL,) for kind in ("TURN", "NOTICE", "FINAL")}
    | {(phase, kind): _M._ignore for phase in (Phase.AWAITING_FINAL,) for kind in ("TURN", "NOTICE")}
    | {
        (Phase.NEW, "Started"): _M._on_started,
        (Phase.AWAITING_CONFIRMS, "CONFIRM"): _M._on_confirm,
        (Phase.BUILDING, "Trained"): _M._on_trained,
        (Phase.AWAITING_TURN, "TURN"): _M._on_turn,
        (Phase.AWAITING_TURN, "NOTICE"): _M._on_notice,
        (Phase.FETCHING, "TURN"): _M._on_turn,
        (Phase.FETCHING, "NOTICE"): _M._on_notice,
        (Phase.TRAINING, "Trained"): _M._on_trained,
        (Phase.HANDING_OVER, "Sent"): _M._on_turn_sent,
        (Phase.AWAITING_FINAL, "FINAL"): _M._on_final,
        (Phase.ANSWERING_FINAL, "Sent"): _M._on_done_sent,
        (Phase.AWAITING_DONES, "Sent"): _M._on_final_sent,
        (Phase.AWAITING_DONES, "DONE"): _M._on_done,
        (Phase.AWAITING_DONES, "Decided"): _M._on_given_up,
    }
)

SequentialMachine.table = TABLE
