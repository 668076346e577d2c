"""Members that somebody has given up after a release, and what is kept for them: they may live, or two may be dead."""

from __future__ import annotations

import pytest

from ppdl_mq.protocol.effects import PublishHeld, Send
from ppdl_mq.protocol.events import Overdue
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.messages import Demand, Proof
from tests.protocol.masked_scene import Scene, of

THREE = ("anna", "bert", "cleo")
LOST_BY_ONE = {
    "a sum of who gave it up": (Kind.SUM, "anna", "bert"),
    "its own sum": (Kind.SUM, "bert", "anna"),
    "its demand": (Kind.DEMAND, "bert", "anna"),
    "the proof for it": (Kind.PROOF, "anna", "bert"),
}


def ended(scene: Scene) -> set[str]:
    return {name for name, phase in scene.phases().items() if phase is Phase.ENDED}


def kept(scene: Scene) -> set[tuple[str, int]]:
    """Return what is kept of any step, but for what was agreed."""
    return {(slot.what, slot.step) for peer in scene.peers.values() for slot in peer.slots if slot.what != "agreed"}


def given_up_by_anna(scene: Scene) -> None:
    """Anna gives bert up after the release of step 1; nobody else does."""
    scene.hold(of(Kind.SUM, "bert", to="anna"))
    scene.until(lambda: bool(scene.held))  # and that is lost
    scene.decide("anna", "bert")
    scene.tampers = lambda _, letter: letter


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rules", [(1, 0), (2, 0), (1, 1)], ids=["the last step", "more rounds", "an evaluation"])
@pytest.mark.parametrize("what", LOST_BY_ONE)
def test_a_peer_that_lives_and_that_only_one_gave_up_gets_what_it_lacks(
    what: str, rules: tuple[int, int], seed: int
) -> None:
    """Anna gives bert up and finishes; cleo waits for bert's AGREE; bert lacks what anna has, or anna bert's sum."""
    scene = Scene(3, seed=seed, training__epochs=rules[0], averaging__evaluate_every=rules[1])
    kind, sender, reader = LOST_BY_ONE[what]
    scene.audits = 0 if kind in (Kind.DEMAND, Kind.PROOF) else None
    scene.hold(of(kind, sender, to=reader))
    scene.until(lambda: bool(scene.held))  # and that is lost
    scene.decide("anna", "bert")
    if what != "its own sum":
        scene.until(lambda: scene.state("anna").step > 1 or scene.state("anna").phase is Phase.CLOSING)
    scene.tampers = lambda _, letter: letter
    scene.run()
    scene.check()
    assert ended(scene) == set(THREE)
    assert not kept(scene)


def test_what_a_peer_trained_goes_with_its_step_all_the_same() -> None:
    """A journal that is stolen in a later round is to open no vector of an earlier one."""
    scene = Scene(3, training__epochs=2)
    given_up_by_anna(scene)
    scene.until(lambda: scene.state("anna").step > 1)
    here = {(slot.what, slot.step) for slot in scene.peers["anna"].slots}
    assert ("local", 1) not in here
    assert {("masked", 1), ("shard", 1), ("sum", 1)} <= here


def test_nothing_is_kept_by_one_that_leaves_the_step_after() -> None:
    scene = Scene(3, seed=1, training__epochs=3)
    given_up_by_anna(scene)
    scene.until(lambda: scene.state("anna").step == 3 and scene.state("anna").phase is Phase.TRAINING)
    scene.leave("anna")
    scene.run()
    assert scene.state("anna").phase is Phase.LEFT
    assert not kept(scene)


@pytest.mark.parametrize("where", [Phase.TRAINING, Phase.ABANDONING, Phase.COMMITTED, Phase.CLOSING])
def test_a_demand_of_the_step_before_is_answered_wherever_one_stands(where: Phase) -> None:
    """Dora has left meanwhile: the step before had four members."""
    scene = Scene(4, seed=2, training__epochs=2)
    scene.until(lambda: "dora" in scene.state("dora").receipts)
    scene.leave("dora")
    given_up_by_anna(scene)
    scene.until(lambda: scene.state("anna").step == 3 and scene.state("anna").phase is Phase.TRAINING)
    assert len(scene.state("anna").members) == 3
    anna, state = scene.peers["anna"], scene.state("anna").replace(phase=where)
    held = [letter.send for letter in anna.letters.values() if letter.number in anna.held]
    assert {(send.reader, send.turn) for send in held} == {("bert", 1)}
    proofs = {send.message.shard: set[int]() for send in held if isinstance(send.message, Proof)}
    for send in held:
        assert isinstance(send.message, Proof)
        proofs[send.message.shard].add(send.ordinal)
    assert len(proofs[0]) == 3, "anna made that sum: she has the shards of all but bert"
    for shard, ordinals in proofs.items():
        demand = scene.received("anna", "bert", Demand(context=bytes(32), shard=shard), turn=1, attempt=0)
        (effect,) = anna.machine.step(state, demand)[1]
        assert isinstance(effect, PublishHeld)
        assert (effect.reader, effect.turn) == ("bert", 1)
        assert {send.ordinal for send in held if send.ordinal in effect.ordinals} == ordinals


def two_lost_in_an_audit(seed: int) -> Scene:
    """Bert and dora recompute cleo's sum; cleo and anna die before they answer, and are given up."""
    scene = Scene(4, seed=seed)
    scene.audits = 2
    scene.tampers = lambda _, letter: None if letter.send.message.kind in (Kind.DEMAND, Kind.PROOF) else letter
    scene.until(lambda: all(scene.state(name).phase is Phase.AUDITING for name in ("bert", "dora")))
    scene.tampers = lambda _, letter: letter
    for name in ("anna", "cleo"):
        scene.peers[name].is_dead = True
        for other in ("bert", "dora"):
            scene.decide(other, name)
    return scene


@pytest.mark.parametrize("seed", range(4))
def test_an_audit_is_given_up_where_a_shard_behind_the_sum_is_with_lost_members_only(seed: int) -> None:
    scene = two_lost_in_an_audit(seed)
    for name in ("bert", "dora"):
        machine, state = scene.peers[name].machine, scene.state(name)
        assert name not in machine.waiting_for(state)
        assert not any(isinstance(each, Send) and each.recipient == name for each in machine.step(state, Overdue())[1])
    scene.run()
    assert {scene.phases()[name] for name in ("bert", "dora")} == {Phase.ENDED}
    assert len({scene.peers[name].kept for name in ("bert", "dora")}) == 1


def test_two_lost_before_their_sums_stop_the_step_and_are_waited_for_by_name() -> None:
    """The shard that the one sent to the other is with these two only: one of them has to come back."""
    scene = Scene(4, seed=1)
    dead = ("anna", "cleo")
    scene.tampers = lambda _, letter: None if letter.send.message.kind is Kind.SUM and letter.sender in dead else letter
    scene.until(lambda: all(len(scene.state(name).masks) == 4 for name in scene.peers))
    for name in dead:
        scene.peers[name].is_dead = True
    for by in ("bert", "dora"):
        for name in dead:
            scene.decide(by, name)
    scene.run()
    assert set(dead) & set(scene.waiting_for("bert"))
    assert set(dead) & set(scene.waiting_for("dora"))
    scene.tampers = lambda _, letter: letter
    scene.peers["anna"].is_dead = False
    scene.decide("anna", "cleo")
    scene.run()
    assert ended(scene) == {"anna", "bert", "dora"}
