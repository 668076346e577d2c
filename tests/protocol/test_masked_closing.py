"""How peers of masked-average part: nobody leaves before the others have what they need, whatever a relay loses."""

from __future__ import annotations

from collections.abc import Callable, Collection

import pytest

from ppdl_mq.errors import Equivocation, OutOfTurn, Unauthentic
from ppdl_mq.protocol.effects import Discard, Record, Send
from ppdl_mq.protocol.events import Decided, Overdue, Received, Sent
from ppdl_mq.protocol.machine import NotYet
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.statements import final_statement, leave_statement
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.messages import Done, Leave
from tests.protocol.masked_scene import Scene, of
from tests.protocol.masked_world import Letter

THREE = ("anna", "bert", "cleo")
LAST_WORDS = (Kind.AGREE, Kind.DONE, Kind.LEAVE)


def destroy_once(scene: Scene, kinds: Collection[Kind], when: Callable[[Letter], bool] = lambda _: True) -> set[int]:
    """Let the relay confirm messages and destroy them, each the first time; return the set of their numbers."""
    destroyed: set[int] = set()

    def tampers(_: str, letter: Letter) -> Letter | None:
        if letter.send.message.kind not in kinds or letter.number in destroyed or not when(letter):
            return letter
        destroyed.add(letter.number)
        return None

    scene.tampers = tampers
    return destroyed


def all_have_the_model(scene: Scene) -> None:
    scene.check()
    assert set(scene.phases().values()) <= {Phase.ENDED, Phase.LEFT}, (scene.phases(), scene._asked_in_vain)
    assert all(peer.kept is not None for peer in scene.peers.values())
    assert all(not peer.failure for peer in scene.peers.values())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("evaluate_every", [0, 1])
@pytest.mark.parametrize("kinds", [(Kind.AGREE,), (Kind.DONE,), LAST_WORDS], ids=["agree", "done", "both"])
def test_a_last_word_that_the_relay_loses_is_said_again(
    kinds: tuple[Kind, ...], evaluate_every: int, seed: int
) -> None:
    scene = Scene(3, seed=seed, averaging__evaluate_every=evaluate_every)
    destroyed = destroy_once(scene, kinds)
    scene.run()
    assert len(destroyed) >= 6
    all_have_the_model(scene)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kinds", [*((kind,) for kind in LAST_WORDS), LAST_WORDS], ids=[*"adl", "all"])
@pytest.mark.parametrize("phase", [Phase.TRAINING, Phase.COMMITTED, Phase.RECEIPTED, Phase.AGREEING])
def test_so_is_one_between_a_leaver_and_those_who_go_on(phase: Phase, kinds: tuple[Kind, ...], seed: int) -> None:
    scene = Scene(3, seed=seed, training__epochs=4)
    scene.until(lambda: scene.state("cleo").step == 3 and scene.state("cleo").phase is phase)
    destroyed = destroy_once(scene, kinds)
    scene.leave("cleo")
    scene.run()
    assert destroyed
    all_have_the_model(scene)
    assert scene.state("cleo").phase is Phase.LEFT


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("early", [True, False])
def test_a_leaver_that_is_cut_off_gets_what_it_needs_of_those_who_are_rounds_ahead(early: bool, seed: int) -> None:
    scene = Scene(3, seed=seed, training__epochs=6)
    phase = Phase.COMMITTED if early else Phase.RECEIPTED
    scene.until(lambda: scene.state("cleo").step == 3 and scene.state("cleo").phase is phase)
    scene.leave("cleo")
    # What the others say after they have all of it never comes, however often the relay confirmed it.
    words = (Kind.AGREE, Kind.DONE)
    scene.tampers = lambda _, letter: (
        None if letter.send.recipient == "cleo" and letter.send.message.kind in words else letter
    )
    scene.until(lambda: all(scene.state(name).step >= 9 for name in ("anna", "bert")))
    assert scene.state("cleo").phase is (Phase.CLOSING if early else Phase.AGREEING)
    scene.tampers = lambda _, letter: letter
    scene.run()
    all_have_the_model(scene)


@pytest.mark.parametrize("phase", [Phase.TRAINING, Phase.COMMITTED, Phase.RECEIPTED])
def test_a_leaver_has_left_before_the_others_are_two_rounds_further(phase: Phase) -> None:
    scene = Scene(3, training__epochs=6)
    scene.until(lambda: scene.state("cleo").step == 3 and scene.state("cleo").phase is phase)
    scene.leave("cleo")
    scene.until(lambda: scene.state("cleo").phase is Phase.LEFT or scene.state("anna").step > 7)
    assert scene.state("cleo").phase is Phase.LEFT


def test_who_goes_on_does_not_end_before_the_leaver_has_what_it_needs() -> None:
    scene = Scene(3, training__epochs=2)
    scene.until(lambda: scene.state("cleo").step == 1 and scene.state("cleo").phase is Phase.RECEIPTED)
    scene.leave("cleo")
    scene.hold(of(Kind.AGREE, to="cleo"))
    scene.run()
    assert scene.phases() == {"anna": Phase.CLOSING, "bert": Phase.CLOSING, "cleo": Phase.AGREEING}
    assert scene.waiting_for("anna") == scene.waiting_for("bert") == ("cleo",)
    scene.let_go()
    scene.run()
    all_have_the_model(scene)


def closing(**options: object) -> Scene:
    """A scene in which all have finished, and no DONE has come."""
    scene = Scene(3, **options)
    scene.hold(of(Kind.DONE))
    scene.run()
    assert set(scene.phases().values()) == {Phase.CLOSING}
    return scene


def test_who_has_finished_waits_by_name_with_the_model_in_its_hand() -> None:
    scene = closing()
    for name in THREE:
        others = tuple(other for other in THREE if other != name)
        assert scene.waiting_for(name) == others
        assert scene.peers[name].kept is not None
        state, machine = scene.state(name), scene.peers[name].machine
        for kind in LAST_WORDS:  # that the relay has it is not enough
            event = Sent(kind=kind, turn=state.step, recipient=others[0], message_id=bytes(16))
            assert machine.step(state, event) == (state, ())
        _, effects = machine.step(state, Overdue())
        assert [each.recipient for each in effects if isinstance(each, Send)] == list(others)


def test_secrets_of_sums_go_when_the_last_is_made_and_the_others_at_the_end() -> None:
    scene = closing()
    for name in THREE:
        state = scene.state(name)
        secrets = state.as_data()["secrets"]
        assert not state.masks
        assert not secrets["own_mask"]
        assert not secrets["mask_keys"]
        assert secrets["pair_keys"], "what answers is sealed with them"
    scene.let_go()
    scene.run()
    for name in THREE:
        assert not scene.state(name).as_data()["secrets"]["pair_keys"]


@pytest.mark.parametrize("way", ["done", "gone", "given up"])
def test_what_ends_the_waiting(way: str) -> None:
    scene = closing()
    state, machine = scene.state("anna"), scene.peers["anna"].machine
    let_go = (Discard(step=state.step),)
    for name in ("bert", "cleo"):
        assert state.phase is Phase.CLOSING
        match way:
            case "done":
                letter = next(each for each in scene.held if of(Kind.DONE, name, "anna")(each))
                state, effects = machine.step(state, letter.received)
                record = effects[0]
                assert isinstance(record, Record)
                assert effects[1:] == (() if name == "bert" else let_go)
                assert (record.by, record.says) == (name, "final")
            case "gone":
                gone = Sent(kind=Kind.RESEND, turn=0, recipient=name, message_id=bytes(16), is_gone=True)
                state, _ = machine.step(state, gone)
            case _:
                state, effects = machine.step(state, Decided(name=name))
                assert effects == (() if name == "bert" else let_go), "no statement: it takes part in nothing any more"
    assert state.phase is Phase.ENDED


def offered(scene: Scene, digest: bytes, *, turn: int, signer: str = "cleo") -> Received:
    statement = final_statement(scene.state("anna").session_id, turn, digest)
    done = Done(digest=digest, signature=scene.sign(signer, statement))
    return Received(sender="cleo", turn=turn, message=done, blob_digest=bytes(32))


def test_a_false_done_counts_for_nothing() -> None:
    scene = closing(training__epochs=2)
    machine, state = scene.peers["anna"].machine, scene.state("anna")
    right, wrong = state.base, bytes(32)
    with pytest.raises(Equivocation) as caught:
        machine.step(state, offered(scene, wrong, turn=3))
    (record,) = caught.value.records
    assert isinstance(record, Record)
    assert (record.by, record.says, record.about["digest"]) == ("cleo", "final", wrong)
    with pytest.raises(OutOfTurn):
        machine.step(state, offered(scene, right, turn=1))
    with pytest.raises(Unauthentic):
        machine.step(state, offered(scene, right, turn=3, signer="bert"))
    after, _ = machine.step(state, offered(scene, right, turn=3))
    assert after.done == {"cleo"}
    with pytest.raises(Equivocation):  # also of who has said it rightly before
        machine.step(after, offered(scene, wrong, turn=3))


def test_a_done_that_comes_before_its_time_is_kept() -> None:
    scene = Scene(3, training__epochs=2)
    scene.hold(of(Kind.AGREE, to="anna"))
    scene.run()
    machine, state = scene.peers["anna"].machine, scene.state("anna")
    assert state.phase is Phase.AGREEING
    with pytest.raises(NotYet):
        machine.step(state, offered(scene, state.result, turn=state.step))
    after, effects = machine.step(state.replace(step=5), offered(scene, bytes(32), turn=1))
    assert (after.step, effects) == (5, ()), "of long ago"


ENDS = [Phase.TRAINING, Phase.COMMITTED, Phase.RECEIPTED, Phase.AGREEING]


def all_are_seen_off(scene: Scene, *leavers: str) -> None:
    """Whoever left has left, the others have ended for want of peers, and all have the same model."""
    scene.check()
    for name, peer in scene.peers.items():
        final = Phase.LEFT if name in leavers else Phase.ENDED_EARLY
        assert (peer.state.phase, peer.failure) == (final, None), scene.waiting_for(name)
        assert peer.kept is not None
    ended = [peer.state.base for name, peer in scene.peers.items() if name not in leavers]
    assert len(set(ended)) == 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kinds", [(), *((kind,) for kind in LAST_WORDS), LAST_WORDS], ids=["", *"adl", "all"])
@pytest.mark.parametrize("phase", ENDS)
def test_a_trial_that_a_farewell_leaves_too_few_in_ends_for_all(
    phase: Phase, kinds: tuple[Kind, ...], seed: int
) -> None:
    scene = Scene(3, seed=seed, training__epochs=3, averaging__min_peers=3)
    scene.until(lambda: scene.state("cleo").step == 3 and scene.state("cleo").phase is phase)
    destroyed = destroy_once(scene, kinds)
    scene.leave("cleo")
    scene.run()
    assert destroyed or not kinds or kinds == (Kind.AGREE,), "nobody agrees on a step that is given up"
    all_are_seen_off(scene, "cleo")


@pytest.mark.parametrize("last", ["anna", "bert"])
def test_who_finishes_a_step_after_which_too_few_are_left_still_says_its_last_words(last: str) -> None:
    """It hears of the farewell, and everybody's AGREE, before it has averaged itself."""
    scene = Scene(3, training__epochs=3, averaging__min_peers=3)
    scene.until(lambda: scene.state("cleo").step == 3 and scene.state("cleo").phase is Phase.RECEIPTED)
    scene.leave("cleo")
    scene.hold(of(Kind.SUM, to=last))
    scene.until(lambda: len(scene.state(last).leaves) == 1 and scene.state("cleo").phase is Phase.AGREEING)
    scene.run()
    assert scene.state("cleo").phase is Phase.AGREEING, "it waits for the AGREE of the last one"
    scene.let_go()
    scene.run()
    all_are_seen_off(scene, "cleo")
    assert {peer.state.base_step for peer in scene.peers.values()} == {3}


@pytest.mark.parametrize("phase", ENDS)
@pytest.mark.parametrize("kinds", [(), (Kind.DROP, Kind.ABANDON, Kind.DONE)], ids=["all comes", "some is lost"])
def test_a_trial_that_people_drop_too_many_from_ends_for_all(kinds: tuple[Kind, ...], phase: Phase) -> None:
    scene = Scene(4, training__epochs=3, averaging__min_peers=4)
    scene.until(lambda: scene.state("dora").step == 3 and scene.state("dora").phase is phase)
    scene.peers["dora"].is_dead = True
    scene.run()
    destroyed = destroy_once(scene, kinds)
    for name in THREE:
        scene.decide(name, "dora")
    scene.run()
    for name in THREE:  # where dora was to release, people have decided about the next step, which they did not reach
        if scene.state(name).phase is not Phase.ENDED_EARLY:
            assert scene.state(name).phase in (Phase.RELEASED, Phase.ABANDONING), scene.state(name).phase
            assert scene.waiting_for(name) == ("dora",)
            return
    scene.check()
    assert bool(destroyed) is bool(kinds)
    assert {scene.state(name).base_step for name in THREE} == {3 if phase is Phase.AGREEING else 1}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("count", "least"), [(4, 3), (5, 4)])
@pytest.mark.parametrize("kinds", [(), (Kind.AGREE, Kind.DONE)], ids=["all comes", "some is lost"])
def test_two_who_leave_at_once(kinds: tuple[Kind, ...], count: int, least: int, seed: int) -> None:
    """Each finds, on leaving, that enough remain without it."""
    scene = Scene(count, seed=seed, training__epochs=3, averaging__min_peers=least)
    scene.hold(lambda letter: letter.send.message.kind is Kind.RECEIPT and letter.send.turn == 3)
    scene.until(lambda: all(scene.state(name).step == 3 for name in scene.peers))
    scene.let_go()
    if kinds:
        destroy_once(scene, kinds)
    scene.leave("bert")
    scene.leave("cleo")
    scene.run()
    all_are_seen_off(scene, "bert", "cleo")


@pytest.mark.parametrize("seed", range(4))
def test_two_who_leave_one_step_after_the_other(seed: int) -> None:
    """Anna and dora hear of the second farewell before they have parted from the first."""
    scene = Scene(4, seed=seed, training__epochs=3, averaging__min_peers=3)
    scene.until(lambda: scene.state("bert").step == 3 and scene.state("bert").phase is Phase.RECEIPTED)
    scene.leave("bert")
    scene.hold(lambda letter: letter.send.message.kind is Kind.AGREE and letter.send.recipient in ("anna", "dora"))
    scene.until(lambda: scene.state("cleo").step == 5)
    scene.leave("cleo")
    scene.until(lambda: all("cleo" in scene.state(name).leaves for name in ("anna", "dora")))
    scene.let_go()
    scene.run()
    all_are_seen_off(scene, "bert", "cleo")


def test_who_has_finished_takes_no_farewell() -> None:
    scene = closing()
    statement = leave_statement(scene.state("anna").session_id, 1)
    message = Leave(name="cleo", signature=scene.sign("cleo", statement))
    assert scene.offer("anna", "cleo", message) == (scene.state("anna"), ())
