"""The machine of both sequential protocols: events in, effects out.

`server-aided` and `fully-connected` differ only in the road that a turn's weights take: `_on_trained`, `_on_turn_sent`
and `_on_notice` know it.

Source: docs/PROTOCOL.md, sections 7 to 11; Phong and Phuong (arXiv 1809.03272), "SNT" and "FNT".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from ppdl_mq.crypto import labels
from ppdl_mq.crypto.agreement import check_public, public_half
from ppdl_mq.crypto.hashing import sha256
from ppdl_mq.crypto.identity import verify
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import Equivocation, IllegalEvent, Malformed, ManifestMismatch, OutOfTurn
from ppdl_mq.protocol.effects import (
    BuildInitial,
    Effect,
    EmptyWeights,
    Fetch,
    Forget,
    KeepModel,
    PublishAgain,
    Release,
    Send,
    Train,
    Withdraw,
)
from ppdl_mq.protocol.events import Event, Overdue, Received, Sent, Started, Trained
from ppdl_mq.protocol.lineage import checked_chain, extended, lineage_for
from ppdl_mq.protocol.state import Phase, SessionKey, State
from ppdl_mq.protocol.statements import NO_TURN_BEFORE, final_statement, session_key_bytes, turn_statement
from ppdl_mq.protocol.terms import WEIGHTS, Terms
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.messages import (
    Confirm,
    Done,
    FinalWeights,
    Hello,
    Message,
    Notice,
    Resend,
    Statement,
    TurnWeights,
)

Step = tuple[State, tuple[Effect, ...]]
Handler = Callable[["SequentialMachine", State, Any], Step]


class NotYet(OutOfTurn):
    """Legal in a state that this peer will reach: keep the message and offer it again."""


class SequentialMachine:
    """One peer's part in a sequential trial. Holds the terms and no state: `step` is a pure function.

    Args:
        terms: of the trial, from this peer's point of view.
    """

    def __init__(self, terms: Terms) -> None:
        self.terms = terms

    def step(self, state: State, event: Event) -> Step:
        """Return the next state and what is to be done.

        Raises:
            NotYet: the message is to be kept and offered again.
            RemoteError: the message is refused; `state` still holds.
            IllegalEvent: an event of our own that the state does not allow.
        """
        handler = TABLE.get((state.phase, row_of(event)))
        if handler is not None:
            return handler(self, state, event)
        if isinstance(event, Received):
            raise OutOfTurn(f"A {event.message.kind.name} of {event.sender} has no place while {state.phase.value}.")
        raise IllegalEvent(f"{row_of(event)} while {state.phase.value}.")

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
                return (BuildInitial(),)
            case Phase.FETCHING:
                return (Fetch(turn=state.turn - 1, message_id=state.notice),)
            case Phase.TRAINING:
                return (Train(turn=self.terms.schedule.turn(state.turn)),)
            case Phase.ANSWERING_FINAL | Phase.AWAITING_DONES | Phase.ENDED:
                return (KeepModel(turn=self.terms.schedule.turns),)
        return ()

    # --- the session ---------------------------------------------------------------------------------------------

    def _on_started(self, state: State, event: Started) -> Step:
        terms = self.terms
        public = public_half(event.session_secret)
        own_key = SessionKey(key=public, signature=terms.sign(session_key_bytes(terms.trial_id, terms.me, public)))
        hello = Hello(
            manifest=terms.manifest,
            session_key=own_key.key,
            session_signature=own_key.signature,
            layout=terms.layout,
            software=terms.software,
        )
        started = state.replace(
            phase=Phase.AWAITING_HELLOS,
            session_secret=event.session_secret,
            session_keys=_with(state.session_keys, terms.me, own_key),
            contributions=_with(state.contributions, terms.me, event.contribution),
        )
        return started, tuple(self._send(name, hello) for name in terms.others)

    def _on_hello(self, state: State, event: Received) -> Step:
        terms, hello = self.terms, _as(Hello, event)
        if hello.manifest != terms.manifest:  # the header named our trial id: the runner compares other manifests
            raise Malformed(f"A HELLO of {event.sender} names one trial and holds another.")
        signed = session_key_bytes(terms.trial_id, event.sender, hello.session_key)
        verify(terms.peers[event.sender], hello.session_signature, signed)
        check_public(hello.session_key)  # here, where its sender is refused; later it would be whoever came last
        if hello.layout != terms.layout:
            raise ManifestMismatch(event.sender, ("the installed build of the model",))
        theirs = SessionKey(key=hello.session_key, signature=hello.session_signature)
        known = state.session_keys.get(event.sender)
        if known is not None:
            if known.key == theirs.key:
                return state, ()
            raise Equivocation(
                f"{event.sender} sent two session keys for this trial: it lost its state, or its identity runs twice.",
                hint="Ask that organisation; then start again with `ppdl-mq trial renew`.",
            )
        keys = _with(state.session_keys, event.sender, theirs)
        if len(keys) < len(terms.peers):
            return state.replace(session_keys=keys), ()
        parts = [part for name in sorted(keys) for part in (name.encode(), keys[name].key, keys[name].signature)]
        session_id = sha256(labels.SESSION_ID, terms.trial_id, *parts)
        contribution = state.contributions[terms.me].reveal() if terms.uses_trial_key else b""
        agreed = state.replace(phase=Phase.AWAITING_CONFIRMS, session_keys=keys, session_id=session_id)
        return agreed, tuple(self._send(name, Confirm(contribution=contribution)) for name in terms.others)

    def _on_confirm(self, state: State, event: Received) -> Step:
        terms, confirm = self.terms, _as(Confirm, event)
        if len(confirm.contribution) != (32 if terms.uses_trial_key else 0):
            raise Malformed(f"The CONFIRM of {event.sender} has a contribution of the wrong length.")
        theirs = Secret(confirm.contribution)
        if event.sender in state.contributions:
            if state.contributions[event.sender] == theirs:
                return state, ()
            raise Equivocation(f"{event.sender} confirmed the session twice, differently.")
        contributions = _with(state.contributions, event.sender, theirs)
        confirmed = state.replace(contributions=contributions)
        if len(contributions) < len(terms.peers):
            return confirmed, ()
        if terms.me == terms.schedule.founder:
            return confirmed.replace(phase=Phase.BUILDING, turn=0), (BuildInitial(),)
        return self._await_next(confirmed, after=0), ()

    # --- turns ---------------------------------------------------------------------------------------------------

    def _on_notice(self, state: State, event: Received) -> Step:
        notice = _as(Notice, event)
        if not self._is_for_my_turn(state, event):
            return state, ()
        if not self.terms.uses_trial_key or state.notice not in (b"", notice.message_id):
            raise OutOfTurn(f"{event.sender} sent a NOTICE that this trial has no place for.")
        fetching = state.replace(phase=Phase.FETCHING, notice=notice.message_id)
        return fetching, (Fetch(turn=event.turn, message_id=notice.message_id),)

    def _on_turn(self, state: State, event: Received) -> Step:
        if not self._is_for_my_turn(state, event):
            return state, ()
        chain = checked_chain(self.terms, state, event, _as(TurnWeights, event).lineage)
        mine = self.terms.schedule.turn(state.turn)
        trains = state.replace(phase=Phase.TRAINING, chain=chain, notice=b"")
        return trains, (Train(turn=mine), Forget(before_turn=event.turn))

    def _on_trained(self, state: State, event: Trained) -> Step:
        terms = self.terms
        if event.turn != state.turn:
            raise IllegalEvent(f"Turn {event.turn} was trained, turn {state.turn} was asked for.")
        before = state.chain.digest_of(event.turn - 1) if event.turn else NO_TURN_BEFORE
        statement = turn_statement(state.session_id, event.turn, before, event.digest)
        stated = Statement(digest=event.digest, signature=terms.sign(statement))
        state = state.replace(chain=extended(terms, state.chain, (stated,)))
        if event.turn == terms.schedule.turns:
            return self._finish(state)
        following = terms.schedule.turn(event.turn + 1)
        if following.peer == terms.me:  # two turns in a row: nothing travels
            return state.replace(phase=Phase.TRAINING, turn=following.number), (Train(turn=following),)
        recipient = WEIGHTS if terms.uses_trial_key else following.peer
        handed = Send(
            recipient=recipient,
            reader=following.peer,
            turn=event.turn,
            message=TurnWeights(lineage=lineage_for(terms, state.chain, following.peer)),
            weights_of=event.turn,
        )
        return state.replace(phase=Phase.HANDING_OVER), (handed,)

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

    def _finish(self, state: State) -> Step:
        terms = self.terms
        last = terms.schedule.turns
        finals = tuple(
            Send(
                recipient=name,
                reader=name,
                turn=last,
                message=FinalWeights(lineage=lineage_for(terms, state.chain, name)),
                weights_of=last,
            )
            for name in terms.others
        )
        return state.replace(phase=Phase.AWAITING_DONES), (KeepModel(turn=last), *finals)

    def _on_final(self, state: State, event: Received) -> Step:
        terms = self.terms
        if event.sender != terms.finisher or event.turn != terms.schedule.turns:
            raise OutOfTurn(f"{event.sender} sent a FINAL that is not its to send.")
        chain = checked_chain(terms, state, event, _as(FinalWeights, event).lineage)
        statement = final_statement(state.session_id, event.turn, event.blob_digest)
        done = Done(digest=event.blob_digest, signature=terms.sign(statement))
        answered = state.replace(phase=Phase.ANSWERING_FINAL, chain=chain)
        return answered, (
            KeepModel(turn=event.turn),
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
        terms, done = self.terms, _as(Done, event)
        last = terms.schedule.turns
        verify(terms.peers[event.sender], done.signature, final_statement(state.session_id, last, done.digest))
        if done.digest != state.chain.digest_of(last):
            raise Equivocation(f"{event.sender} signed other final weights than those that it was sent.")
        if event.sender in state.dones:
            return state, ()
        answered = state.replace(dones=state.dones | {event.sender})
        noted, effects = self._note_finals(answered, state.finals_confirmed | {event.sender})
        ended = _ended(noted) if len(noted.dones) == len(terms.others) else noted
        return ended, (Withdraw(reader=event.sender), *effects)

    def _note_finals(self, state: State, confirmed: frozenset[str]) -> Step:
        """Note which FINALs have arrived; with the last of them `weights` is no longer needed by anyone."""
        all_now = len(confirmed) == len(self.terms.others) and confirmed != state.finals_confirmed
        emptied = (Release(), EmptyWeights()) if all_now and self.terms.uses_trial_key else ()
        return state.replace(finals_confirmed=confirmed), emptied

    # --- lost messages -------------------------------------------------------------------------------------------

    def _on_resend(self, state: State, event: Received) -> Step:
        return state, (PublishAgain(reader=event.sender),)

    def _on_overdue(self, state: State, _: Overdue) -> Step:
        asked = tuple(self._send(name, Resend(), ordinal=state.resends) for name in self.waiting_for(state))
        return state.replace(resends=state.resends + 1), asked

    def _ignore(self, state: State, _: Event) -> Step:
        return state, ()

    def _send(self, recipient: str, message: Message, *, turn: int = 0, ordinal: int = 0) -> Send:
        return Send(recipient=recipient, reader=recipient, turn=turn, message=message, ordinal=ordinal)


def row_of(event: Event) -> str:
    """Return the name of the event's row in the table: a message's kind, or the event itself."""
    return event.message.kind.name if isinstance(event, Received) else type(event).__name__


def _ended(state: State) -> State:
    """Return the last state, in which no secret of the session is left."""
    return state.replace(phase=Phase.ENDED, session_secret=None, contributions=MappingProxyType({}))


def _with(mapping: Mapping[str, Any], name: str, value: Any) -> Mapping[str, Any]:
    return MappingProxyType({**mapping, name: value})


def _as(wanted: type[Any], event: Received) -> Any:
    assert isinstance(event.message, wanted), "the table sent an event to the wrong handler"
    return event.message


_M = SequentialMachine
_IN_SESSION: Final = tuple(phase for phase in Phase if phase not in (Phase.NEW, Phase.AWAITING_HELLOS))
_RUNNING: Final = tuple(phase for phase in Phase if phase not in (Phase.NEW, Phase.ENDED))
_AFTER_CONFIRMS: Final = tuple(phase for phase in _IN_SESSION if phase not in (Phase.AWAITING_CONFIRMS, Phase.ENDED))
_BUSY: Final = (Phase.BUILDING, Phase.TRAINING)

TABLE: Final[Mapping[tuple[Phase, str], Handler]] = MappingProxyType(
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
    }
)
