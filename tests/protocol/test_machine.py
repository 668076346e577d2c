from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from ppdl_mq.crypto.identity import verify
from ppdl_mq.errors import Equivocation, IllegalEvent, Malformed, ManifestMismatch, OutOfTurn, RemoteError, Unauthentic
from ppdl_mq.protocol.effects import (
    Adopt,
    BuildInitial,
    Effect,
    EmptyWeights,
    Fetch,
    Forget,
    KeepModel,
    PublishAgain,
    Record,
    Release,
    Send,
    Train,
    Withdraw,
)
from ppdl_mq.protocol.events import Decided, Event, Overdue, Received, Sent, Trained
from ppdl_mq.protocol.machine import NotYet, row_of
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.schedule import Turn
from ppdl_mq.protocol.sequential import TABLE, SequentialMachine
from ppdl_mq.protocol.slots import Cut, Slot
from ppdl_mq.protocol.state import Chain, State
from ppdl_mq.protocol.statements import final_statement, session_key_bytes, turn_statement
from ppdl_mq.wire.kinds import Kind, kinds_of
from ppdl_mq.wire.messages import (
    Confirm,
    Done,
    FinalWeights,
    Hello,
    Lineage,
    Message,
    Notice,
    Resend,
    Statement,
    TurnWeights,
)
from tests.protocol.world import Letter, World, result_of, started, terms_of, trained
from tests.trial import identity_of
from tests.wire.samples import MESSAGES

ROWS = ("Started", "Trained", "Sent", "Overdue", "Decided", *(kind.name for kind in sorted(kinds_of("server-aided"))))
PHASES = [phase for phase in Phase if any(of is phase for of, _ in TABLE)]


def event_of(row: str, state: State) -> Event:
    """Some event of a row."""
    own: dict[str, Event] = {
        "Started": started("anna"),
        "Trained": Trained(turn=state.turn, digest=bytes(32)),
        "Sent": Sent(kind=Kind.HELLO, turn=0, recipient="bert", message_id=bytes(16)),
        "Overdue": Overdue(),
        "Decided": Decided(name="bert"),
    }
    return (
        own[row] if row in own else Received(sender="bert", turn=1, message=MESSAGES[Kind[row]], blob_digest=bytes(32))
    )


# --- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["fully-connected", "server-aided"])
@pytest.mark.parametrize(
    ("phase", "row"),
    [pair for pair in itertools.product(Phase, (*ROWS, "MASKED")) if pair not in TABLE],
    ids=lambda v: getattr(v, "name", v),
)
def test_what_the_table_lacks_is_refused_and_changes_nothing(phase: Phase, row: str, protocol: str) -> None:
    machine = SequentialMachine(terms_of("anna", protocol=protocol))
    state = State(phase=phase, turn=1)
    before = state.as_data()
    event = event_of(row, state)
    with pytest.raises(OutOfTurn if isinstance(event, Received) else IllegalEvent) as caught:
        machine.step(state, event)
    assert not isinstance(caught.value, NotYet)
    assert state.as_data() == before


def test_the_table_names_only_what_exists() -> None:
    assert {row for _, row in TABLE} == set(ROWS)
    assert len(PHASES) == 12
    for row in ROWS:
        assert row_of(event_of(row, State())) == row


def test_the_states_of_every_phase_wait_for_somebody_or_do_something() -> None:
    machine = SequentialMachine(terms_of("anna"))
    chain = Chain(first_turn=6, statements=(Statement(digest=bytes(32), signature=bytes(64)),))
    for phase in PHASES:
        state = State(phase=phase, turn=2, chain=chain)
        does = {Phase.NEW, Phase.HANDING_OVER} | {Phase.ANSWERING_FINAL, Phase.ENDED}  # start, or publish; or the end
        assert machine.waiting_for(state) or machine.unfinished(state) or phase in does


# --- the happy path --------------------------------------------------------------------------------------------------


class Pair:
    """Anna's machine, stepped by hand, against a world in which she and Bert are alone."""

    def __init__(self, protocol: str) -> None:
        self.world = World(2, protocol=protocol, training__epochs=1)
        self.anna, self.bert = (peer.machine for peer in self.world.peers.values())

    def state(self, name: str) -> State:
        return self.world.peers[name].state

    def letter(self, name: str, kind: Kind) -> Letter:
        """The newest letter of a kind that a peer keeps."""
        return [each for each in self.world.peers[name].letters if each.send.message.kind is kind][-1]

    def receive(self, name: str, letter: Letter) -> tuple[Any, ...]:
        return self.world.post(name, letter.received)


def said(effects: tuple[Effect, ...]) -> tuple[Effect, ...]:
    """The effects but for the transcript's, whose signatures the world checks."""
    return tuple(effect for effect in effects if not isinstance(effect, Record))


def training(turn: Turn) -> Train:
    return Train(turn=turn, base=Slot("turn", turn.number - 1), into=Slot("turn", turn.number))


def say(recipient: str, message: Message, turn: int = 0, **more: Any) -> Send:
    return Send(recipient=recipient, reader=more.pop("reader", recipient), turn=turn, message=message, **more)


def confirmed(protocol: str) -> Pair:
    """Both have confirmed the session; every effect on the way is checked."""
    pair = Pair(protocol)
    for name, other in (("anna", "bert"), ("bert", "anna")):
        (hello,) = pair.world.post(name, started(name))
        assert isinstance(hello, Send)
        message = hello.message
        assert isinstance(message, Hello)
        assert hello == say(other, message)
        terms = pair.world.peers[name].machine.terms
        assert (message.manifest, message.layout, message.software) == (terms.manifest, b"\x09" * 32, "tests")
        signed = session_key_bytes(terms.trial_id, name, message.session_key)
        verify(identity_of(name).public, message.session_signature, signed)
        assert pair.state(name).phase is Phase.AWAITING_HELLOS
    own = {
        name: started(name).contribution.reveal() if protocol == "server-aided" else b"" for name in ("anna", "bert")
    }
    for name, other in (("anna", "bert"), ("bert", "anna")):
        *records, confirm = pair.receive(name, pair.letter(other, Kind.HELLO))
        assert confirm == say(other, Confirm(contribution=own[name]))
        assert [(record.by, record.says) for record in records] == [("anna", "session key"), ("bert", "session key")]
        state = pair.state(name)
        assert state.session_secret is None
        assert set(state.pair_keys) == {other}
        assert not state.mask_keys
    assert pair.state("anna").session_id == pair.state("bert").session_id != b""
    assert pair.receive("anna", pair.letter("bert", Kind.CONFIRM)) == (BuildInitial(into=Slot("turn", 0)),)
    assert pair.receive("bert", pair.letter("anna", Kind.CONFIRM)) == ()
    assert pair.state("bert").phase is Phase.AWAITING_TURN
    return pair


def after_first_turn(protocol: str) -> tuple[Pair, Send]:
    """Anna has built turn 0 and trained turn 1."""
    pair = confirmed(protocol)
    first, schedule = trained(b"", 0), pair.world.schedule
    assert said(pair.world.post("anna", Trained(turn=0, digest=first))) == (training(schedule.turn(1)),)
    second = trained(first, 1)
    record, handed = pair.world.post("anna", Trained(turn=1, digest=second))
    assert isinstance(record, Record)
    assert (record.by, record.says) == ("anna", "turn")
    session = pair.state("anna").session_id
    assert record.about == {"session": session, "turn": 1, "before": first, "digest": second}
    assert isinstance(handed, Send)
    assert isinstance(handed.message, TurnWeights)
    lineage = handed.message.lineage
    assert lineage.anchor == bytes(32)
    assert [statement.digest for statement in lineage.chain] == [first, second]
    session, public = pair.state("anna").session_id, identity_of("anna").public
    verify(public, lineage.chain[0].signature, turn_statement(session, 0, bytes(32), first))
    verify(public, lineage.chain[1].signature, turn_statement(session, 1, first, second))
    return pair, handed


def last_turn_and_end(pair: Pair, *, shared: bool) -> None:
    """Bert trains turn 2, the last, and both agree on the end."""
    final_digest = result_of(2)
    keep, final = said(pair.world.post("bert", Trained(turn=2, digest=final_digest)))
    kept_last = KeepModel(slot=Slot("turn", 2), digest=final_digest)
    assert keep == kept_last
    assert isinstance(final, Send)
    assert isinstance(final.message, FinalWeights)
    assert final == say("anna", final.message, turn=2, blob=Cut(Slot("turn", 2), final_digest))
    assert final.message.lineage.anchor == trained(trained(b"", 0), 1)
    assert [statement.digest for statement in final.message.lineage.chain] == [final_digest]
    emptied = (Release(), EmptyWeights()) if shared else ()
    assert pair.world.post("bert", pair.letter("bert", Kind.FINAL).sent) == emptied

    adopted, kept, forgotten, done = said(pair.receive("anna", pair.letter("bert", Kind.FINAL)))
    assert (adopted, kept, forgotten) == (Adopt(slot=Slot("turn", 2)), kept_last, Forget(before_turn=2))
    assert isinstance(done, Send)
    assert isinstance(done.message, Done)
    assert done == say("bert", done.message, turn=2)
    assert done.message.digest == final_digest
    session = pair.state("anna").session_id
    verify(identity_of("anna").public, done.message.signature, final_statement(session, 2, final_digest))
    letter = pair.letter("anna", Kind.DONE)
    assert pair.world.post("anna", letter.sent) == ()
    assert said(pair.receive("bert", letter)) == (Withdraw(reader="anna"),)
    finals = [record for record in pair.world.peers["bert"].records if record.says == "final"]
    assert [(record.by, record.about["digest"]) for record in finals] == [("anna", final_digest)]
    for name in ("anna", "bert"):
        state = pair.state(name)
        assert (state.phase, state.session_secret, dict(state.contributions)) == (Phase.ENDED, None, {})
        assert not state.pair_keys


def test_fully_connected_from_beginning_to_end() -> None:
    pair, handed = after_first_turn("fully-connected")
    assert handed == say("bert", handed.message, turn=1, blob=Cut(Slot("turn", 1), result_of(1)))
    letter = pair.letter("anna", Kind.TURN)
    assert pair.world.post("anna", letter.sent) == ()
    assert pair.state("anna").phase is Phase.AWAITING_FINAL
    mine = training(pair.world.schedule.turn(2))
    assert said(pair.receive("bert", letter)) == (Adopt(slot=Slot("turn", 1)), mine, Forget(before_turn=1))
    last_turn_and_end(pair, shared=False)


def test_server_aided_from_beginning_to_end() -> None:
    pair, handed = after_first_turn("server-aided")
    assert handed == say("weights", handed.message, turn=1, blob=Cut(Slot("turn", 1), result_of(1)), reader="bert")
    letter = pair.letter("anna", Kind.TURN)
    pair.world.at_weights[letter.message_id] = letter
    assert pair.world.post("anna", letter.sent) == (
        Release(),
        say("bert", Notice(message_id=letter.message_id), turn=1),
    )
    notice = pair.letter("anna", Kind.NOTICE)
    assert pair.receive("bert", notice) == (Fetch(turn=1, message_id=letter.message_id),)
    assert pair.state("bert").phase is Phase.FETCHING
    assert pair.bert.unfinished(pair.state("bert")) == (Fetch(turn=1, message_id=letter.message_id),)
    mine = training(pair.world.schedule.turn(2))
    assert said(pair.receive("bert", letter)) == (Adopt(slot=Slot("turn", 1)), mine, Forget(before_turn=1))
    last_turn_and_end(pair, shared=True)


def test_nothing_travels_between_two_turns_of_one_peer() -> None:
    for seed in range(16):
        world = World(2, protocol="fully-connected", order="shuffled", training__epochs=6, nonce=f"{seed:032x}")
        order = [world.schedule.turn(number).peer for number in range(1, 13)]
        doubles = [number for number in range(1, 12) if order[number - 1] == order[number]]
        if doubles:
            break
    world.run()
    for number in doubles:
        event = Trained(turn=number, digest=result_of(number))
        (effects,) = [effects for name, posted, effects in world.log if posted == event]
        assert said(effects) == (training(world.schedule.turn(number + 1)),)


def test_who_asks_again_is_given_what_is_kept() -> None:
    pair = confirmed("fully-connected")
    event = Received(sender="bert", turn=0, message=Resend(), blob_digest=bytes(32))
    assert pair.world.post("anna", event) == (PublishAgain(reader="bert"),)


def test_every_call_for_a_message_is_a_new_one() -> None:
    machine = SequentialMachine(terms_of("anna"))
    state, _ = machine.step(State(), started("anna"))
    sent: list[Send] = []
    for _ in range(3):
        state, effects = machine.step(state, Overdue())
        assert [effect.reader for effect in effects if isinstance(effect, Send)] == ["bert", "cleo"]
        sent += [effect for effect in effects if isinstance(effect, Send)]
    assert len({(send.recipient, send.ordinal) for send in sent}) == 6


def test_a_worker_that_trained_another_turn_is_our_own_bug() -> None:
    pair = confirmed("fully-connected")
    with pytest.raises(IllegalEvent):
        pair.world.post("anna", Trained(turn=1, digest=bytes(32)))


# --- the session -----------------------------------------------------------------------------------------------------


def hello_of(name: str, session: int = 0, **changes: Any) -> Received:
    machine = SequentialMachine(terms_of(name))
    _, effects = machine.step(State(), started(name, session))
    (send, *_) = effects
    assert isinstance(send, Send)
    assert isinstance(send.message, Hello)
    return Received(sender=name, turn=0, message=dataclasses.replace(send.message, **changes), blob_digest=bytes(32))


LOW_ORDER = bytes(32)


def low_order_hello() -> Received:
    signature = identity_of("bert").sign(session_key_bytes(terms_of("bert").trial_id, "bert", LOW_ORDER))
    return hello_of("bert", session_key=LOW_ORDER, session_signature=signature)


@pytest.mark.parametrize(
    ("hello", "error"),
    [
        (hello_of("bert", manifest=b"another"), Malformed),
        (hello_of("bert", session_key=b"\x01" * 32), Unauthentic),
        (hello_of("bert", session_signature=bytes(64)), Unauthentic),
        (hello_of("bert", layout=bytes(32)), ManifestMismatch),
        (dataclasses.replace(hello_of("bert"), sender="cleo"), Unauthentic),
        (low_order_hello(), Unauthentic),
    ],
)
def test_hellos_that_are_refused(hello: Received, error: type[RemoteError]) -> None:
    machine = SequentialMachine(terms_of("anna"))
    state, _ = machine.step(State(), started("anna"))
    with pytest.raises(error):
        machine.step(state, hello)
    state, effects = machine.step(state, hello_of("bert"))
    assert set(state.session_keys) == {"anna", "bert"}
    assert effects == ()


@pytest.mark.parametrize("phase", [phase for phase, row in TABLE if row == "HELLO"])
def test_two_session_keys_are_an_equivocation_at_any_time(phase: Phase) -> None:
    machine = SequentialMachine(terms_of("anna"))
    state, _ = machine.step(State(), started("anna"))
    state, _ = machine.step(state, hello_of("bert"))
    state = state.replace(phase=phase)
    assert machine.step(state, hello_of("bert")) == (state, ())
    with pytest.raises(Equivocation):
        machine.step(state, hello_of("bert", session=1))


@pytest.mark.parametrize(("protocol", "size"), [("server-aided", 0), ("server-aided", 31), ("fully-connected", 32)])
def test_contributions_of_the_wrong_length(protocol: str, size: int) -> None:
    world = World(protocol=protocol)
    world.run(until=lambda: world.peers["anna"].state.phase is Phase.AWAITING_CONFIRMS)
    wrong = Received(sender="bert", turn=0, message=Confirm(contribution=bytes(size)), blob_digest=bytes(32))
    with pytest.raises(Malformed):
        world.post("anna", wrong)


def test_two_contributions_are_an_equivocation() -> None:
    world = World(protocol="server-aided")
    world.run(until=lambda: "bert" in world.peers["anna"].state.contributions)
    other = Received(sender="bert", turn=0, message=Confirm(contribution=bytes(32)), blob_digest=bytes(32))
    with pytest.raises(Equivocation):
        world.post("anna", other)


# --- turns that must be refused --------------------------------------------------------------------------------------


@dataclasses.dataclass
class Reader:
    """Bert, three peers in, who awaits turn 5 and is about to be given turn 4."""

    world: World
    state: State
    good: Received

    def refuses(self, event: Received, error: type[RemoteError]) -> None:
        machine = self.world.peers["bert"].machine
        with pytest.raises(error) as caught:
            machine.step(self.state, event)
        assert type(caught.value) is error
        state, effects = machine.step(self.state, self.good)  # and the right one is taken all the same
        assert state.phase is Phase.TRAINING
        assert effects

    def with_lineage(self, **changes: Any) -> Received:
        assert isinstance(self.good.message, TurnWeights)
        lineage = dataclasses.replace(self.good.message.lineage, **changes)
        return dataclasses.replace(self.good, message=TurnWeights(lineage=lineage))

    @property
    def chain(self) -> tuple[Statement, ...]:
        assert isinstance(self.good.message, TurnWeights)
        return self.good.message.lineage.chain

    def state_by(self, maker: str, turn: int, before: bytes, digest: bytes, session: bytes | None = None) -> Statement:
        signed = turn_statement(session or self.state.session_id, turn, before, digest)
        return Statement(digest=digest, signature=identity_of(maker).sign(signed))


@pytest.fixture(scope="module")
def reader() -> Reader:
    world = World(protocol="fully-connected", training__epochs=3)

    def given() -> Letter | None:
        return next((letter for letter in world.peers["bert"].inbox if letter.send.turn == 4), None)

    world.run(until=given)
    letter = given()
    assert letter is not None
    state = world.peers["bert"].state
    assert (state.phase, state.turn) == (Phase.AWAITING_TURN, 5)
    return Reader(world, state, letter.received)


def test_the_reader_takes_what_is_right(reader: Reader) -> None:
    state, effects = reader.world.peers["bert"].machine.step(reader.state, reader.good)
    mine = training(reader.world.schedule.turn(5))
    assert said(effects) == (Adopt(slot=Slot("turn", 4)), mine, Forget(before_turn=4))
    records = [effect for effect in effects if isinstance(effect, Record)]
    assert [(record.by, record.about["turn"]) for record in records] == [("cleo", 3), ("anna", 4)]
    assert [record.about["before"] for record in records] == [result_of(2), result_of(3)]
    assert state.chain.last_turn == 4
    assert state.chain.digest_of(4) == result_of(4)
    assert [statement.digest for statement in reader.chain] == [result_of(3), result_of(4)]


def test_rolled_back(reader: Reader) -> None:
    """Turn 4 once more from the weights that the reader gave away a cycle ago: here, from none at all."""
    fork = [reader.state_by("anna", 0, bytes(32), result_of(0)), reader.state_by("anna", 1, result_of(0), result_of(1))]
    old = reader.with_lineage(anchor=bytes(32), chain=tuple(fork))
    reader.refuses(dataclasses.replace(old, blob_digest=result_of(1)), OutOfTurn)


def test_forked(reader: Reader) -> None:
    """Cleo and Anna together put another history in the place of the reader's own turn 2."""
    other = b"\x66" * 32
    third = reader.state_by("cleo", 3, other, b"\x77" * 32)
    fourth = reader.state_by("anna", 4, third.digest, b"\x88" * 32)
    forked = dataclasses.replace(reader.with_lineage(anchor=other, chain=(third, fourth)), blob_digest=fourth.digest)
    reader.refuses(forked, OutOfTurn)
    # The right anchor in the message does not help: the statement of turn 3 signs another one.
    lie = dataclasses.replace(reader.with_lineage(chain=(third, fourth)), blob_digest=fourth.digest)
    reader.refuses(lie, Unauthentic)


def test_an_honest_turn_between_cannot_be_skipped(reader: Reader) -> None:
    """Anna trains on Bert's turn 2 and leaves Cleo's turn 3 out."""
    alone = reader.state_by("anna", 4, result_of(2), b"\x88" * 32)
    short = dataclasses.replace(reader.with_lineage(chain=(alone,)), blob_digest=alone.digest)
    reader.refuses(short, OutOfTurn)
    in_her_name = reader.state_by("anna", 3, result_of(2), b"\x77" * 32)
    last = reader.state_by("anna", 4, in_her_name.digest, b"\x88" * 32)
    forged = dataclasses.replace(reader.with_lineage(chain=(in_her_name, last)), blob_digest=last.digest)
    reader.refuses(forged, Unauthentic)


def test_longer_and_shorter_chains(reader: Reader) -> None:
    for chain in (
        reader.chain[:1],
        reader.chain[1:],
        (*reader.chain, reader.chain[-1]),
        (reader.chain[0], *reader.chain),
    ):
        reader.refuses(reader.with_lineage(chain=chain), OutOfTurn)


def test_statements_that_do_not_hold(reader: Reader) -> None:
    third, fourth = reader.chain
    for chain in (
        (dataclasses.replace(third, signature=bytes(64)), fourth),
        (third, dataclasses.replace(fourth, signature=third.signature)),
        (dataclasses.replace(third, digest=bytes(32)), fourth),
        (fourth, third),
        (third, reader.state_by("cleo", 4, third.digest, fourth.digest)),
        (third, reader.state_by("anna", 7, third.digest, fourth.digest)),
        (third, reader.state_by("anna", 4, result_of(2), fourth.digest)),
        (third, reader.state_by("anna", 4, third.digest, fourth.digest, session=bytes(32))),
    ):
        reader.refuses(reader.with_lineage(chain=chain), Unauthentic)


def test_weights_other_than_the_last_statement_s(reader: Reader) -> None:
    for digest in (bytes(32), result_of(2), result_of(3), result_of(5)):
        reader.refuses(dataclasses.replace(reader.good, blob_digest=digest), Unauthentic)


@pytest.mark.parametrize("turn", [5, 6, 7, 2**32 - 1])
def test_turns_of_the_future(reader: Reader, turn: int) -> None:
    reader.refuses(dataclasses.replace(reader.good, turn=turn), OutOfTurn)
    notice = Received(sender="anna", turn=turn, message=Notice(message_id=bytes(16)), blob_digest=bytes(32))
    reader.refuses(notice, OutOfTurn)


def test_the_right_turn_of_the_wrong_peer(reader: Reader) -> None:
    reader.refuses(dataclasses.replace(reader.good, sender="cleo"), OutOfTurn)


def test_turns_of_the_past_are_passed_over(reader: Reader) -> None:
    machine = reader.world.peers["bert"].machine
    past = [letter.received for letter in reader.world.peers["anna"].letters if letter.send.turn == 1]
    past.append(Received(sender="anna", turn=1, message=reader.good.message, blob_digest=result_of(1)))
    for event in past:
        assert machine.step(reader.state, event) == (reader.state, ())
        for phase in (Phase.TRAINING, Phase.HANDING_OVER):
            busy = reader.state.replace(phase=phase)
            assert machine.step(busy, event) == (busy, ())


@pytest.mark.parametrize("phase", [Phase.AWAITING_TURN, Phase.TRAINING, Phase.HANDING_OVER])
def test_two_results_of_one_turn_are_an_equivocation(reader: Reader, phase: Phase) -> None:
    other = Received(sender="anna", turn=1, message=reader.good.message, blob_digest=b"\x66" * 32)
    with pytest.raises(Equivocation):
        reader.world.peers["bert"].machine.step(reader.state.replace(phase=phase), other)
    stranger = dataclasses.replace(other, sender="cleo")  # not the maker of turn 1: proves nothing against Anna
    assert reader.world.peers["bert"].machine.step(reader.state, stranger) == (reader.state, ())


def test_a_second_result_of_the_turn_just_taken(reader: Reader) -> None:
    machine = reader.world.peers["bert"].machine
    training, _ = machine.step(reader.state, reader.good)
    with pytest.raises(Equivocation):
        machine.step(training, dataclasses.replace(reader.good, blob_digest=b"\x66" * 32))


def test_too_early_is_kept(reader: Reader) -> None:
    machine = reader.world.peers["bert"].machine
    for phase in (Phase.AWAITING_CONFIRMS, Phase.TRAINING, Phase.HANDING_OVER):
        early = dataclasses.replace(reader.good, turn=7)
        with pytest.raises(NotYet):
            machine.step(reader.state.replace(phase=phase), early)


def test_a_second_notice_for_another_message() -> None:
    world = World(protocol="server-aided")
    world.run(until=lambda: world.peers["bert"].state.phase is Phase.FETCHING)
    first = Received(
        sender="anna", turn=1, message=Notice(message_id=world.peers["bert"].state.notice), blob_digest=bytes(32)
    )
    assert world.peers["bert"].machine.step(world.peers["bert"].state, first)[0] == world.peers["bert"].state
    with pytest.raises(OutOfTurn):
        world.post("bert", dataclasses.replace(first, message=Notice(message_id=b"\x66" * 16)))


# --- the end ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def ending() -> World:
    """Everybody but the finisher, Cleo, awaits the end; Cleo has the last weights."""
    world = World(protocol="fully-connected", training__epochs=1)
    world.run(until=lambda: world.peers["cleo"].state.phase is Phase.AWAITING_DONES)
    return world


def final_for(world: World, name: str) -> Received:
    (letter,) = [each for each in world.peers["cleo"].letters if each.send.recipient == name and each.send.turn]
    return letter.received


def test_finals_that_are_refused(ending: World) -> None:
    state, machine = ending.peers["anna"].state, ending.peers["anna"].machine
    state = state.replace(phase=Phase.AWAITING_FINAL)
    good = final_for(ending, "anna")
    assert isinstance(good.message, FinalWeights)
    lineage = good.message.lineage
    for wrong, error in (
        (dataclasses.replace(good, sender="bert"), OutOfTurn),
        (dataclasses.replace(good, turn=2), OutOfTurn),
        (dataclasses.replace(good, turn=4), OutOfTurn),
        (dataclasses.replace(good, blob_digest=bytes(32)), Unauthentic),
        (
            dataclasses.replace(good, message=FinalWeights(lineage=Lineage(anchor=bytes(32), chain=lineage.chain))),
            OutOfTurn,
        ),
        (final_for(ending, "bert"), OutOfTurn),
    ):
        with pytest.raises(error):
            machine.step(state, wrong)
    assert machine.step(state, good)[0].phase is Phase.ANSWERING_FINAL


def done_of(world: World, name: str, digest: bytes, *, turn: int = 3, signer: str | None = None) -> Received:
    session = world.peers["cleo"].state.session_id
    signature = identity_of(signer or name).sign(final_statement(session, turn, digest))
    return Received(sender=name, turn=3, message=Done(digest=digest, signature=signature), blob_digest=bytes(32))


def test_dones(ending: World) -> None:
    cleo = ending.peers["cleo"]
    for wrong in (
        done_of(ending, "anna", result_of(3), signer="bert"),
        done_of(ending, "anna", result_of(3), turn=2),
    ):
        with pytest.raises(Unauthentic):
            ending.post("cleo", wrong)
    with pytest.raises(Equivocation):
        ending.post("cleo", done_of(ending, "anna", bytes(32)))
    assert not cleo.state.dones
    assert said(ending.post("cleo", done_of(ending, "anna", result_of(3)))) == (Withdraw(reader="anna"),)
    before = cleo.state
    assert ending.post("cleo", done_of(ending, "anna", result_of(3))) == ()
    assert cleo.state == before
    ending.post("cleo", done_of(ending, "bert", result_of(3)))
    assert cleo.state.phase is Phase.ENDED


def test_people_can_wait_no_longer_for_a_last_word_that_the_relay_lost(ending: World) -> None:
    cleo = ending.peers["cleo"]
    ending.post("cleo", done_of(ending, "anna", result_of(3)))
    before = cleo.state
    for nobody_awaited in ("anna", "cleo", "dora"):
        assert ending.post("cleo", Decided(name=nobody_awaited)) == ()
        assert cleo.state == before
    assert ending.post("cleo", Decided(name="bert")) == (Withdraw(reader="bert"),)
    assert cleo.state.phase is Phase.ENDED


def test_weights_are_emptied_when_nobody_is_waited_for_any_more() -> None:
    world = World(protocol="server-aided", training__epochs=1)
    world.run(until=lambda: world.peers["cleo"].state.phase is Phase.AWAITING_DONES)
    assert EmptyWeights() not in world.post("cleo", done_of(world, "anna", result_of(3)))
    assert said(world.post("cleo", Decided(name="bert"))) == (Withdraw(reader="bert"), Release(), EmptyWeights())
    assert world.peers["cleo"].state.phase is Phase.ENDED


def test_weights_are_emptied_once_when_everyone_has_the_final() -> None:
    world = World(protocol="server-aided", training__epochs=1, seed=3)
    world.run()
    emptied = [(name, effects) for name, _, effects in world.log if EmptyWeights() in effects]
    assert len(emptied) == 1
    assert emptied[0][0] == world.peers["anna"].machine.terms.finisher
