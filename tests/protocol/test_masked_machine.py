"""Transitions of the machine of masked-average: what each state does with each message, and single steps of note."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import Counter, defaultdict
from typing import Any

import pytest

from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import IllegalEvent, OutOfTurn, RemoteError
from ppdl_mq.protocol.effects import AddUp, KeepModel, MaskVector, PublishAgain, Send, Train
from ppdl_mq.protocol.events import (
    AddedUp,
    Averaged,
    Decided,
    Event,
    LeaveAsked,
    Masked,
    Measured,
    Overdue,
    Overflowed,
    Received,
    Recomputed,
    Rested,
    Sent,
    Started,
    Trained,
)
from ppdl_mq.protocol.machine import NotYet, row_of
from ppdl_mq.protocol.masked_average.machine import TABLE, MaskedAverageMachine
from ppdl_mq.protocol.masked_average.shards import BLOCK_BYTES, Shards
from ppdl_mq.protocol.masked_average.state import RoundState
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.statements import abandon_statement
from ppdl_mq.wire import canonical
from ppdl_mq.wire.kinds import Kind, kinds_of
from ppdl_mq.wire.messages import Abandon, MaskedShard, Release
from tests.protocol import masked_world
from tests.protocol.masked_scene import Scene, of
from tests.protocol.masked_world import Letter, cheap_signatures
from tests.wire.samples import MESSAGES

KINDS = tuple(sorted(kinds_of("masked-average")))
PHASES = [phase for phase in Phase if any(each is phase for each, _ in TABLE)]
THREE = ("anna", "bert", "cleo")


# --- the table -------------------------------------------------------------------------------------------------------


class Chronicle(Scene):
    """Dora is dropped in the first round; in each round cleo says overflow; keeps a state of every phase after that."""

    def __init__(self) -> None:
        self.found: dict[Phase, tuple[MaskedAverageMachine, RoundState]] = {}
        self.heard: defaultdict[tuple[Phase, Kind], list[tuple[MaskedAverageMachine, RoundState, Letter]]] = (
            defaultdict(list)
        )
        super().__init__(4, training__epochs=2, averaging__evaluate_every=1)
        self.false_overflows, self.audits = {"cleo"}, 0

    def post(self, name: str, event: Event, **given: Any) -> None:
        super().post(name, event, **given)
        peer = self.peers[name]
        state = peer.state
        if name != "dora" and (state.step >= 3 or not state.step or state.phase in (Phase.CLOSING, Phase.ENDED)):
            kept = self.found.get(state.phase)
            if kept is None or len(state.receipts) > len(kept[1].receipts):
                self.found[state.phase] = (peer.machine, state)

    def _deliver(self, name: str, peer: masked_world.Peer, letter: Letter) -> None:
        state = peer.state
        key = (state.phase, letter.send.message.kind)
        if letter.send.turn == state.step >= 3 and letter.send.attempt == state.attempt:
            self.heard[key].append((peer.machine, state, letter))
        super()._deliver(name, peer, letter)


@functools.cache
def chronicle() -> Chronicle:
    scene = Chronicle()
    scene.until(lambda: all(peer.state.step for peer in scene.peers.values()))
    scene.peers["dora"].is_dead = True
    for name in THREE:
        scene.decide(name, "dora")
    scene.run()
    scene.check()
    return scene


@functools.cache
def states() -> dict[Phase, tuple[MaskedAverageMachine, RoundState]]:
    """A machine and a state of every phase; from the first step on, dora is no member."""
    found = dict(chronicle().found)
    machine, ended = found[Phase.ENDED]
    found[Phase.NEW] = (machine, machine.initial())
    for phase in (Phase.LEFT, Phase.ENDED_EARLY):
        found[phase] = (machine, ended.replace(phase=phase))
    return found


def test_there_is_a_state_of_every_phase() -> None:
    assert set(states()) == set(PHASES)
    for phase, (machine, state) in states().items():
        assert state.phase is phase
        if state.step:
            assert state.members == THREE
        assert machine.waiting_for(state) or machine.unfinished(state) or phase in (Phase.NEW, Phase.ADDING, Phase.LEFT)


def word(phase: Phase, kind: Kind) -> str:
    """As scripts/protocol-states has it, with `back` worked out."""
    handler = TABLE.get((phase, kind.name))
    if handler is None:
        return "refused"
    return {"_ignore": "passed over", "_on_early": "later", "_on_training": "later", "_on_abandoning": "back"}.get(
        handler.__name__, "taken"
    )


def expected(phase: Phase, kind: Kind, member: bool, when: int) -> set[str]:
    """What the page allows for a message that nobody honest would send."""
    says = word(phase, kind)
    if says == "refused":
        return {"refused"}
    if says == "passed over":
        return {"passed over"}
    if (phase, kind) == (Phase.CLOSING, Kind.DEMAND):
        return {"taken"}
    if phase in (Phase.AWAITING_CONFIRMS, Phase.BUILDING, Phase.AWAITING_INITIAL) and says == "later":
        return {"later"}
    if not kind.in_attempt:
        return {"refused", "passed over", "taken"}
    if when:
        earlier = {"passed over", "taken"} if kind is Kind.DEMAND else {"passed over"}
        return {"later"} if when > 0 else earlier
    if not member:
        return {"refused"}
    if says == "back":
        return {
            Kind.RELEASE: {"refused", "later", "passed over"},
            Kind.SUM: {"later", "passed over"},
            Kind.AGREE: {"later", "passed over"},
            Kind.MASKED: {"later", "passed over"},
        }.get(kind, {"passed over"})
    return {"later"} if says == "later" else {"refused", "passed over", "later"}


def outcome(machine: MaskedAverageMachine, state: RoundState, event: Received) -> str:
    before = canonical.encode(state.as_data())
    try:
        after, effects = machine.step(state, event)
    except NotYet:
        result = "later"
    except RemoteError:
        result = "refused"
    else:
        result = "passed over" if (after, effects) == (state, ()) else "taken"
    assert canonical.encode(state.as_data()) == before, "a step changes no state that was given to it"
    return result


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_what_a_state_does_with_a_message_is_what_the_page_says(phase: Phase, kind: Kind) -> None:
    machine, state = states()[phase]
    member = next(name for name in THREE if name != machine.terms.me)
    for sender, when, by_step in itertools.product((member, "dora"), (-1, 0, 1), (True, False)):
        turn, attempt = state.step + when * by_step, state.attempt + when * (not by_step)
        if not when and not by_step:
            continue
        if turn < 0 or attempt < 0:
            continue
        event = Received(
            sender=sender, turn=turn, attempt=attempt, message=MESSAGES[kind], blob_digest=bytes(32), blob_bytes=7
        )
        allowed = expected(phase, kind, sender == member, when)
        assert outcome(machine, state, event) in allowed, (sender, when, by_step)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.in_attempt], ids=lambda kind: kind.name)
def test_honest_messages_are_taken_or_kept_or_known_in_every_phase_and_never_refused(kind: Kind) -> None:
    heard = [(phase, *each) for (phase, heard), found in chronicle().heard.items() if heard is kind for each in found]
    outcomes = set()
    for phase, machine, state, letter in heard:
        result = outcome(machine, state, letter.received)
        assert result != "refused", phase
        outcomes.add(result)
        moved = dataclasses.replace(letter.received, sender="dora")
        if phase not in (Phase.CLOSING, Phase.ENDED):
            assert outcome(machine, state, moved) == "refused"
    assert "taken" in outcomes


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
def test_what_the_table_lacks_is_refused_and_changes_nothing(phase: Phase) -> None:
    machine, state = states()[phase]
    own: list[Event] = [
        Started(session_secret=Secret(bytes(32)), contribution=Secret(bytes(32))),
        Trained(turn=state.round, digest=bytes(32)),
        Sent(kind=Kind.HELLO, turn=0, recipient="bert", message_id=bytes(16)),
        Overdue(),
        Measured(step=state.step, figures=(0, 0, 0, 0, 0)),
        Masked(step=state.step, attempt=state.attempt, mask=Secret(bytes(32)), shards=(bytes(32),) * 3),
        Overflowed(step=state.step, attempt=state.attempt),
        AddedUp(step=state.step, attempt=state.attempt, shard=0, digest=bytes(32)),
        Recomputed(step=state.step, attempt=state.attempt, shard=0, digest=bytes(32)),
        Averaged(step=state.step, attempt=state.attempt, digest=bytes(32)),
        Decided(name="cleo"),
        Rested(step=state.step, attempt=state.attempt),
        LeaveAsked(),
    ]
    kinds = [Received(sender="bert", turn=1, message=MESSAGES[kind], blob_digest=bytes(32)) for kind in Kind]
    for event in (*own, *kinds):
        if (phase, row_of(event)) in TABLE:
            continue
        with pytest.raises(OutOfTurn if isinstance(event, Received) else IllegalEvent) as caught:
            machine.step(state, event)
        assert not isinstance(caught.value, NotYet)
    assert {row for _, row in TABLE} == {row_of(event) for event in own} | {kind.name for kind in KINDS}


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
def test_results_of_an_attempt_that_was_given_up_change_nothing(phase: Phase) -> None:
    machine, state = states()[phase]
    where: dict[str, Any] = {"step": state.step, "attempt": state.attempt + 1}
    late: list[Event] = [
        Masked(**where, mask=Secret(bytes(32)), shards=(bytes(32),) * 3),
        Overflowed(**where),
        AddedUp(**where, shard=0, digest=bytes(32)),
        Recomputed(**where, shard=0, digest=bytes(32)),
        Averaged(**where, digest=bytes(32)),
        Rested(**where),
        Measured(step=state.step + 2, figures=(0,) * 5),
    ]
    for event in late:
        if (phase, row_of(event)) in TABLE:
            assert machine.step(state, event) == (state, ())


def test_overdue_asks_exactly_those_who_are_waited_for() -> None:
    for phase, (machine, state) in states().items():
        if (phase, "Overdue") not in TABLE:
            continue
        after, effects = machine.step(state, Overdue())
        assert after == state.replace(resends=state.resends + 1)
        asked = [each.recipient for each in effects if isinstance(each, Send)]
        assert tuple(asked) == machine.waiting_for(state)
        again = [each.reader for each in effects if isinstance(each, PublishAgain)]
        assert again == (asked if phase is Phase.AUDITING else [])


def test_secrets_end_with_their_use() -> None:
    scene = chronicle()
    for name in THREE:
        state = scene.state(name)
        secrets = state.as_data()["secrets"]
        assert not any(held for what, held in secrets.items() if what != "vows"), "of an ended trial no secret is left"
    machine, state = states()[Phase.COMMITTED]
    assert state.own_mask is not None
    assert machine.terms.me not in state.masks
    _, abandoning = states()[Phase.ABANDONING]
    masking = next(found for phase, found in states().items() if phase is Phase.MASKING)[1]
    assert masking.own_mask is None, "erased before anything of the next attempt"
    assert abandoning.session_secret is None


# --- peers that were given up, and what they said last ---------------------------------------------------------------


def ended(scene: Scene) -> set[str]:
    return {name for name, phase in scene.phases().items() if phase is Phase.ENDED}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("again", [False, True], ids=["decided once", "decided twice"])
def test_who_was_given_up_before_one_s_own_release_is_lost_after_it(again: bool, seed: int) -> None:
    """Cleo releases before bert and dies; anna, its deputy, has given it up by then; bert's release brings her on."""
    scene = Scene(3, seed=seed)
    scene.hold(
        lambda letter: letter.send.recipient == "anna" and letter.send.message.kind in (Kind.RECEIPT, Kind.RELEASE)
    )
    scene.until(lambda: "cleo" in scene.state("bert").masks and len(scene.state("anna").commits) == 3)
    scene.until(lambda: scene.state("anna").phase is Phase.RECEIPTED and ("bert", 1) in scene.released)
    scene.peers["cleo"].is_dead = True
    scene.decide("anna", "cleo")
    scene.decide("bert", "cleo")
    scene.tampers = lambda _, letter: letter
    scene.deliver(letter for letter in scene.held if letter.sender != "cleo")
    scene.run()
    if again:
        scene.decide("anna", "cleo")
        scene.run()
    scene.check()
    assert ended(scene) == {"anna", "bert"}
    assert scene.state("anna").step == 1


@pytest.mark.parametrize("seed", range(4))
def test_a_lost_member_s_release_that_comes_late_is_passed_on(seed: int) -> None:
    scene = Scene(4, seed=seed)
    scene.hold(of(Kind.RELEASE, "cleo"))
    others = ("anna", "bert", "dora")
    scene.until(lambda: len(scene.held) == 3 and all(len(scene.state(name).masks) == 3 for name in others))
    scene.peers["cleo"].is_dead = True
    for name in others:
        scene.decide(name, "cleo")
    scene.deliver(letter for letter in scene.held if letter.send.recipient == "bert")
    scene.run()
    scene.check()
    assert ended(scene) == set(others)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("late", [False, True], ids=["before it is lost", "after"])
def test_a_lost_member_s_sum_that_only_its_deputy_has_is_passed_on(late: bool, seed: int) -> None:
    scene = Scene(4, seed=seed)
    scene.hold(of(Kind.SUM, "cleo"))
    others = ("anna", "bert", "dora")
    scene.until(lambda: len(scene.held) == 3 and all(scene.state(name).phase is Phase.GATHERING for name in others))
    scene.peers["cleo"].is_dead = True
    (to_dora,) = [letter for letter in scene.held if letter.send.recipient == "dora"]
    shards = of(Kind.MASKED, to="dora")  # so that dora cannot make the sum herself
    scene.tampers = lambda _, letter: None if shards(letter) else letter
    if late:
        for name in others:
            scene.decide(name, "cleo")
        scene.deliver([to_dora])
    else:
        scene.deliver([to_dora])
        for name in others:
            scene.decide(name, "cleo")
    scene.run()
    scene.check()
    assert ended(scene) == set(others)


@pytest.mark.parametrize("seed", range(4))
def test_lost_before_its_release_stops_the_step_until_it_is_back(seed: int) -> None:
    scene = Scene(3, seed=seed)
    scene.hold(of(Kind.RELEASE, "cleo"))
    scene.until(lambda: all(len(scene.state(name).masks) == 2 for name in ("anna", "bert")))
    for name in ("anna", "bert"):
        scene.decide(name, "cleo")
    scene.run()
    assert scene.waiting_for("anna") == scene.waiting_for("bert") == ("cleo",)
    scene.let_go()
    scene.run()
    scene.check()
    assert ended(scene) >= {"anna", "bert"}


def test_an_audit_goes_on_when_its_maker_is_given_up() -> None:
    scene = Scene(3)
    scene.audits = 2

    def compares() -> bool:
        return any(isinstance(task, AddUp) and task.into is None for task in scene.peers["anna"].tasks)

    scene.until(compares)
    scene.decide("anna", "cleo")
    assert scene.state("anna").phase is Phase.AUDITING
    scene.run()
    scene.check()
    assert ended(scene) == set(THREE)


def test_a_shard_for_the_deputy_that_outruns_the_release_is_kept() -> None:
    """Anna has given the attempt up; bert, who has released, sends her the shard of cleo before his release arrives."""
    machine, state = _gone_back()
    sender = next(name for name in state.members if name != machine.terms.me)
    message = MaskedShard(context=machine._context(state).digest(), shard=2)
    event = Received(
        sender=sender, turn=state.step, attempt=state.attempt, message=message, blob_digest=bytes(32), blob_bytes=64
    )
    with pytest.raises(NotYet):
        machine.step(state, event)


def _gone_back() -> tuple[MaskedAverageMachine, RoundState]:
    scene = Scene(3)
    scene.hold(of(Kind.RECEIPT))
    scene.until(lambda: scene.state("anna").phase is Phase.RECEIPTED)
    signature = scene.sign("cleo", abandon_statement(scene.state("anna").session_id, 1, 0, False))
    scene.post("anna", scene.received("anna", "cleo", Abandon(overflow=False, signature=signature)))
    assert scene.state("anna").phase is Phase.ABANDONING
    return scene.peers["anna"].machine, scene.state("anna")


def test_receipts_that_came_with_a_release_are_in_the_transcript() -> None:
    scene = Scene(3)
    scene.hold(of(Kind.RECEIPT, "cleo", "anna"))
    scene.run()
    assert ended(scene) == set(THREE)
    for peer in scene.peers.values():
        signers = [record.by for record in peer.records if record.says == "receipt"]
        assert sorted(signers) == list(THREE)


# --- leaving ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [Phase.TRAINING, Phase.MASKING, Phase.COMMITTED])
def test_who_leaves_before_its_receipt_is_gone_at_once_and_keeps_what_was_agreed(phase: Phase) -> None:
    scene = Scene(3, training__epochs=2)
    scene.until(lambda: scene.state("cleo").step == 3 and scene.state("cleo").phase is phase)
    scene.leave("cleo")
    assert scene.state("cleo").phase is Phase.CLOSING
    assert scene.peers["cleo"].kept is not None
    scene.run()
    scene.check()
    assert scene.state("cleo").phase is Phase.LEFT
    assert ended(scene) == {"anna", "bert"}
    assert [note.members for note in scene.peers["anna"].notes] == [THREE, ("anna", "bert")]


@pytest.mark.parametrize(
    ("phase", "late"),
    [
        (Phase.RECEIPTED, Kind.RECEIPT),
        (Phase.RELEASED, Kind.RELEASE),
        (Phase.GATHERING, Kind.SUM),
        (Phase.AGREEING, Kind.AGREE),
    ],
)
def test_who_leaves_after_its_receipt_finishes_the_step_and_goes_when_all_have_its_agreement(
    phase: Phase, late: Kind
) -> None:
    scene = Scene(3, training__epochs=2)
    others = (Kind.RECEIPT, Kind.RELEASE) if late is Kind.RECEIPT else (late,)
    scene.hold(lambda letter: letter.send.message.kind in others and letter.send.recipient == "cleo")
    scene.until(lambda: scene.state("cleo").step == 1 and scene.state("cleo").phase is phase)
    scene.leave("cleo")
    assert scene.state("cleo").phase is phase
    scene.let_go()
    while scene.state("cleo").phase is not Phase.LEFT:
        scene.step()
    agreements = [letter for letter in scene.peers["cleo"].unsent if of(Kind.AGREE)(letter)]
    assert not agreements, "its last word is with the relay"
    scene.run()
    scene.check()
    assert ended(scene) == {"anna", "bert"}
    assert [note.members for note in scene.peers["anna"].notes] == [THREE, ("anna", "bert")]


def test_a_farewell_that_is_sent_does_not_stand_for_the_agreement() -> None:
    scene = Scene(3)
    scene.until(lambda: scene.state("cleo").phase is Phase.RECEIPTED)
    scene.leave("cleo")
    machine, state = scene.peers["cleo"].machine, scene.state("cleo")
    step, _ = state.leaves["cleo"]
    assert step > state.step
    for name in ("anna", "bert"):
        event = Sent(kind=Kind.LEAVE, turn=step, recipient=name, message_id=bytes(16))
        assert machine.step(state, event) == (state, ())


@pytest.mark.parametrize("seed", range(3))
def test_a_trial_of_too_few_ends_early(seed: int) -> None:
    scene = Scene(3, seed=seed, training__epochs=2, averaging__min_peers=3)
    scene.until(lambda: scene.state("cleo").step == 1 and scene.state("cleo").phase is Phase.TRAINING)
    scene.leave("cleo")
    scene.run()
    assert scene.state("cleo").phase is Phase.LEFT
    for name in ("anna", "bert"):
        assert scene.state(name).phase is Phase.ENDED_EARLY
        assert scene.peers[name].kept is None, "nothing was agreed on"


# --- other sizes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [1, 3, 15, 16, 17, 31, 33, 100, 257])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_vectors_of_any_length(count: int, words: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Down to one word: of five members, four have no shard to add up."""
    monkeypatch.setattr(masked_world, "WORDS", words)
    scene = Scene(count, seed=words, averaging__evaluate_every=1, audit=0.5)
    scene.run()
    scene.check()
    assert ended(scene) == set(scene.peers)
    assert len(scene.peers["anna"].kept or b"") == 4 * words
    blocks = -(-4 * words // BLOCK_BYTES)
    makers = {record.by for record in scene.peers["anna"].records if record.says == "sum"}
    assert len(makers) == min(count, blocks)
    empty = [each for _, each in scene.everything if each.send.blob is not None and not each.blob]
    assert not empty


@pytest.mark.parametrize("words", [1, 17, 45])
@pytest.mark.parametrize("seed", range(6))
def test_small_vectors_under_loss(words: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masked_world, "WORDS", words)
    with cheap_signatures():
        scene = Scene(
            4, seed=seed, cheap=True, restores=False, loss=0.05, duplicates=0.1, replay=0.05, crash=0.02, audit=0.5
        )
        scene.run()
        scene.check()
        for name, peer in scene.peers.items():
            assert peer.is_over or peer.machine.waiting_for(peer.state), name


@pytest.mark.parametrize("words", [1, 17])
def test_a_lost_member_without_a_shard_leaves_nothing_to_add_up(words: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masked_world, "WORDS", words)
    scene = Scene(4)
    others = ("anna", "bert", "cleo")
    scene.until(lambda: all(len(scene.state(name).masks) == 4 for name in others))
    scene.peers["dora"].is_dead = True
    for name in others:
        scene.decide(name, "dora")
    scene.run()
    scene.check()
    assert ended(scene) == set(others)
    assert len({peer.kept for name, peer in scene.peers.items() if name in others}) == 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("words", [1, 17, 45])
def test_two_peers_of_whom_one_is_lost_after_its_release(
    words: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is the other's deputy."""
    monkeypatch.setattr(masked_world, "WORDS", words)
    scene = Scene(2, seed=seed)
    scene.until(lambda: len(scene.state("anna").masks) == 2)
    scene.peers["bert"].is_dead = True
    scene.decide("anna", "bert")
    scene.run()
    scene.check()
    assert ended(scene) >= {"anna"}
    assert scene.peers["anna"].kept is not None


@pytest.mark.parametrize("count", range(1, 9))
def test_shards_are_a_cut_of_the_vector(count: int) -> None:
    for total in (0, 1, 63, 64, 65, 127, 128, 129, 64 * count - 1, 64 * count, 64 * count + 1, 64 * count * 7 + 36):
        shards = Shards(total, count)
        starts = [shards.start(shard) for shard in range(count + 1)]
        assert starts[0] == 0
        assert starts[-1] == total
        assert all(start % BLOCK_BYTES == 0 or start == total for start in starts)
        blocks = -(-total // BLOCK_BYTES)
        in_blocks = [-(-shards.size(shard) // BLOCK_BYTES) for shard in range(count)]
        assert in_blocks == [blocks // count + (shard < blocks % count) for shard in range(count)]
        assert shards.filled == tuple(range(min(count, blocks)))


# --- keys and contexts -----------------------------------------------------------------------------------------------


def test_masks_of_every_attempt_and_step_are_of_their_own() -> None:
    """No seed of a pair mask serves twice, and both of a pair have the same, with opposite signs."""
    tasks: list[tuple[str, MaskVector]] = []

    class Noted(Scene):
        def _result(self, name: str, peer: Any, task: Any) -> Any:
            if isinstance(task, MaskVector):
                tasks.append((name, task))
            return super()._result(name, peer, task)

    scene = Noted(3, training__epochs=3, averaging__evaluate_every=2)
    scene.false_overflows = {"bert"}
    scene.run()
    scene.check()
    assert ended(scene) == set(THREE)
    seeds: dict[bytes, list[tuple[str, int, int, int]]] = defaultdict(list)
    for name, task in tasks:
        for mask in task.masks:
            seeds[mask.seed.reveal()].append((name, mask.sign, task.step, task.attempt))
    assert {task.step for _, task in tasks} == {1, 3, 4, 5, 6}
    whole = [users for users in seeds.values() if len(users) == 2]
    assert len(whole) >= 3 * 8 - 6  # three pairs; where one overflowed at once, another may not have begun
    for users in seeds.values():
        assert len(users) <= 2
        assert len({user[2:] for user in users}) == 1
        assert len({user[0] for user in users}) == len(users)
        if len(users) == 2:
            assert users[0][1] == -users[1][1]


def test_what_is_trained_is_trained_once_a_round() -> None:
    trained: list[tuple[str, int]] = []

    class Noted(Scene):
        def _result(self, name: str, peer: Any, task: Any) -> Any:
            if isinstance(task, Train):
                trained.append((name, task.turn.number))
            return super()._result(name, peer, task)

    scene = Noted(3, training__epochs=2)
    scene.false_overflows = {"cleo"}
    scene.run()
    assert sorted(trained) == [(name, number) for name in THREE for number in (1, 2)]


def test_the_model_is_kept_once_by_all() -> None:
    scene = Scene(3)
    kept: list[str] = []
    carry_out = scene._carry_out

    def noting(name: str, peer: Any, effect: Any, blob: bytes) -> None:
        if isinstance(effect, KeepModel):
            kept.append(name)
        carry_out(name, peer, effect, blob)

    scene._carry_out = noting  # type: ignore[method-assign]
    scene.run()
    assert sorted(kept) == list(THREE)


class Vows(Scene):
    """Counts, for every kind, how often a peer said it, and looks that each time it can no longer forget that."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.said: Counter[Kind] = Counter()
        super().__init__(*arguments, **options)

    def post(self, name: str, event: Event, **given: Any) -> None:
        peer = self.peers[name]
        before, kept = peer.state, set(peer.letters)
        super().post(name, event, **given)
        if isinstance(event, Overdue):
            return  # what is told again was signed before
        fresh = [peer.letters[key].send.message for key in set(peer.letters) - kept]
        passed_on = [each for each in fresh if isinstance(each, Release) and each.member != name]
        for kind in {each.kind for each in fresh if each not in passed_on} & BINDING:
            self.said[kind] += 1
            before_secrets, after_secrets = (state.as_data()["secrets"] for state in (before, peer.state))
            assert before_secrets["vows"] < after_secrets["vows"], f"{name} may forget a {kind.name}"


BINDING = frozenset({Kind.RECEIPT, Kind.RELEASE, Kind.ABANDON, Kind.DROP, Kind.LEAVE})


def test_what_a_peer_must_not_forget_changes_its_secrets() -> None:
    scene = Vows(4)
    scene.until(lambda: all(peer.state.step for peer in scene.peers.values()))
    scene.leave("dora")
    for name in ("anna", "bert"):
        scene.decide(name, "cleo")
    scene.run()
    assert set(scene.said) == BINDING
