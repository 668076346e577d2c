"""Section 16 of docs/PROTOCOL.md, row by row: a relay that withholds, splits and replays."""

from __future__ import annotations

import itertools

import pytest

from ppdl_mq.errors import (
    Misdirected,
    RemoteError,
    Unauthentic,
)
from ppdl_mq.protocol.effects import PublishHeld
from ppdl_mq.protocol.machine import NotYet
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.messages import Abandon
from tests.protocol.masked_lies import (
    EVERYBODY,
    SEEDS,
    ended,
    finished_well,
)
from tests.protocol.masked_scene import Scene, of


def undisturbed(kind: Kind, seed: int) -> Scene:
    """A trial in which messages of this kind are sent."""
    audits = 0 if kind in (Kind.DEMAND, Kind.PROOF) else None
    scene = Scene(4 if kind is Kind.DROP else 3, seed=seed, training__epochs=2)
    scene.audits = audits
    if kind is Kind.ABANDON:
        scene.false_overflows = {"cleo"}
    return scene


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "kind",
    [
        Kind.INITIAL,
        Kind.COMMIT,
        Kind.MASKED,
        Kind.RECEIPT,
        Kind.RELEASE,
        Kind.SUM,
        Kind.AGREE,
        Kind.ABANDON,
        Kind.DROP,
        Kind.LEAVE,
        Kind.DEMAND,
        Kind.PROOF,
    ],
    ids=lambda kind: kind.name,
)
def test_what_the_relay_withholds_is_waited_for_and_named(kind: Kind, seed: int) -> None:
    scene = undisturbed(kind, seed)
    scene.hold(of(kind))
    gone = set()
    if kind is Kind.DROP:
        scene.until(lambda: all(peer.state.step for peer in scene.peers.values()))
        scene.peers["dora"].is_dead = True
        for name in EVERYBODY:
            scene.decide(name, "dora")
        gone = {"dora"}
    if kind is Kind.LEAVE:
        scene.until(lambda: all(peer.state.step for peer in scene.peers.values()))
        scene.leave("cleo")
        gone = {"cleo"}
    scene.run()
    assert scene.held
    waiting = {name: scene.waiting_for(name) for name in scene.peers if name not in gone}
    assert not ended(scene)
    # A founder awaits commitments, an auditor whom it asked: nobody stands still without a name.
    assert all(waiting.values()), waiting
    senders = {letter.sender for letter in scene.held}
    assert {name for names in waiting.values() for name in names} & (senders | gone)
    scene.let_go()
    scene.run()
    scene.check()
    assert ended(scene) == set(scene.peers) - gone, scene.phases()
    assert not scene.refusals


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", [Kind.COMMIT, Kind.MASKED, Kind.RELEASE, Kind.SUM, Kind.AGREE])
def test_one_letter_withheld_is_one_name(kind: Kind, seed: int) -> None:
    scene = Scene(3, seed=seed)
    scene.hold(of(kind, "cleo", "anna"))
    scene.run()
    assert scene.waiting_for("anna") == ("cleo",)
    scene.let_go()
    scene.run()
    finished_well(scene)


def test_a_receipt_withheld_from_one_comes_with_the_release_of_another() -> None:
    scene = Scene(3)
    scene.hold(of(Kind.RECEIPT, "cleo", "anna"))
    scene.run()
    assert scene.held
    finished_well(scene)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("at", [1, 2])
def test_two_halves_that_cannot_see_each_other_both_wait(at: int, seed: int) -> None:
    halves = ({"anna", "bert"}, {"cleo", "dora"})
    scene = Scene(4, seed=seed, training__epochs=2)
    scene.until(lambda: all(peer.state.round >= at for peer in scene.peers.values()))
    before = {key for key in scene.released if key[1] == 2 * at - 1}
    scene.partition = lambda one, other: any((one in half) != (other in half) for half in halves)
    scene.run()
    for half, other in (halves, halves[::-1]):
        for name in half:
            assert set(scene.waiting_for(name)) & other
    if not before:
        assert not {key for key in scene.released if key[1] == 2 * at - 1}, "nobody releases in half a trial"
    scene.partition = lambda _, __: False
    scene._asked_in_vain = 0
    scene.run()
    finished_well(scene)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_was_said_in_an_earlier_step_or_attempt_is_dropped_silently(seed: int) -> None:
    scene = Scene(3, seed=seed, training__epochs=2, averaging__evaluate_every=1)
    scene.false_overflows = {"cleo"}
    scene.audits = 0
    tried: set[Kind] = set()

    def look_back() -> bool:
        for name, peer in scene.peers.items():
            state = peer.state
            if not state.step or state.phase in (Phase.CLOSING, Phase.ENDED):
                continue
            for to, letter in scene.everything[-60:]:
                old = (letter.send.turn, letter.send.attempt) < (state.step, state.attempt)
                if to == name and letter.send.message.kind.in_attempt and old:
                    after, effects = peer.machine.step(state, letter.received)
                    kinds = {type(effect) for effect in effects}  # a demand may bring what is held: nothing, here
                    assert (after, kinds - {PublishHeld}) == (state, set())
                    assert not kinds or letter.send.message.kind is Kind.DEMAND
                    assert not peer.held
                    tried.add(letter.send.message.kind)
        return len(ended(scene)) == 3

    scene.until(look_back)
    assert tried == {kind for kind in Kind if kind.in_attempt}
    finished_well(scene)


REPLAYED = {
    Kind.COMMIT: Misdirected,  # its context names the step
    Kind.MASKED: None,  # as its commitment: passed over
    Kind.RECEIPT: Misdirected,
    Kind.RELEASE: Misdirected,
    Kind.SUM: Misdirected,
    Kind.AGREE: Misdirected,
    Kind.ABANDON: Unauthentic,  # its statement names step and attempt
    Kind.DEMAND: Misdirected,
    Kind.PROOF: Misdirected,
}


@pytest.mark.parametrize("kind", REPLAYED, ids=lambda kind: kind.name)
def test_what_a_sender_itself_says_again_under_a_new_header_is_of_another_context(kind: Kind) -> None:
    scene = Scene(3, training__epochs=2)
    scene.false_overflows, scene.audits = {"cleo"}, 2 if kind is Kind.PROOF else 0
    scene.until(lambda: scene.state("anna").step == 3 and scene.state("anna").phase is Phase.MASKING)
    old = [each for to, each in scene.everything if to == "anna" and each.send.message.kind is kind]
    assert old
    for letter in old:
        if REPLAYED[kind] is None:
            state = scene.state("anna")
            message, blob = letter.send.message, letter.blob
            assert scene.offer("anna", letter.sender, message, blob=blob) == (state, ())
        else:
            with pytest.raises(RemoteError) as caught:
                scene.offer("anna", letter.sender, letter.send.message, blob=letter.blob)
            assert type(caught.value) is REPLAYED[kind]


def test_what_is_said_too_early_is_kept() -> None:
    scene = Scene(3)
    scene.until(lambda: scene.state("anna").step == 1)
    for sender, (turn, attempt) in itertools.product(("bert", "cleo"), ((2, 0), (1, 1))):
        with pytest.raises(NotYet):
            scene.offer("anna", sender, Abandon(overflow=False, signature=bytes(64)), turn=turn, attempt=attempt)
