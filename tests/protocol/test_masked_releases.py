"""Section 16 of docs/PROTOCOL.md, row by row: releases, attempts and the founder."""

from __future__ import annotations

import dataclasses

import pytest

from ppdl_mq.crypto.agreement import mask_commitment
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import (
    Equivocation,
    Malformed,
    Misdirected,
    OutOfTurn,
    RemoteError,
    SplitView,
    Unauthentic,
)
from ppdl_mq.protocol.effects import Record
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.statements import (
    abandon_statement,
    receipt_statement,
)
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.messages import Abandon, Receipt
from tests.protocol.masked_lies import (
    EVERYBODY,
    HONEST,
    SEEDS,
    committed,
    committing,
    contradict,
    ended,
    finished_well,
    receipts_by,
    release_of,
    said,
)
from tests.protocol.masked_scene import Scene, altered, of, spoilt
from tests.protocol.masked_world import Letter


def test_a_release_before_one_s_own_receipt_is_refused() -> None:
    scene = committed(Phase.COMMITTED)
    receipts = receipts_by(scene, EVERYBODY)  # not even with everybody's signatures
    with pytest.raises(OutOfTurn):
        scene.offer("anna", "cleo", release_of(scene, "cleo", receipts=receipts))


@pytest.mark.parametrize(
    ("signers", "why"),
    [
        (("anna", "cleo", "cleo"), Unauthentic),
        (("cleo", "bert", "cleo"), Unauthentic),
        (("bert", "anna", "cleo"), Unauthentic),
        (("anna", "bert"), Malformed),
        (("anna", "bert", "cleo", "cleo"), Malformed),
        ((), Malformed),
    ],
)
def test_a_release_without_everybody_s_receipt_is_refused(signers: tuple[str, ...], why: type[RemoteError]) -> None:
    scene = committed(Phase.RECEIPTED)
    receipts = receipts_by(scene, signers)
    before = scene.state("anna")
    with pytest.raises(RemoteError) as caught:
        scene.offer("anna", "cleo", release_of(scene, "cleo", receipts=receipts))
    assert type(caught.value) is why
    assert scene.state("anna") == before
    right = release_of(scene, "cleo", receipts=receipts_by(scene, EVERYBODY))
    state, effects = scene.offer("anna", "cleo", right)
    assert state.phase is Phase.RELEASED
    assert [type(effect).__name__ for effect in effects] == ["Record"] * 2 + ["Send"] * 2, "as good as the receipts"


def test_a_mask_that_was_not_committed_to_is_refused() -> None:
    scene = committed(Phase.RECEIPTED)
    receipts = receipts_by(scene, EVERYBODY)
    for mask in (bytes(32), b"\xff" * 32):
        with pytest.raises(Unauthentic):
            scene.offer("anna", "cleo", release_of(scene, "cleo", receipts=receipts, mask=mask))
    assert not scene.released
    swapped = dataclasses.replace(release_of(scene, "cleo", receipts=receipts), member="bert")
    with pytest.raises(Unauthentic):
        scene.offer("anna", "cleo", swapped)
    for member in ("anna", "dora", "zoe"):
        with pytest.raises(OutOfTurn):
            scene.offer("anna", "cleo", dataclasses.replace(swapped, member=member))
    context = b"\x01" * 32
    with pytest.raises(Misdirected):
        scene.offer("anna", "cleo", dataclasses.replace(swapped, context=context))


def test_a_commitment_to_a_mask_holds_in_its_context_and_for_its_member_only() -> None:
    seed = Secret(b"\x05" * 32)
    assert len({mask_commitment(c, n, seed) for c in (bytes(32), b"\1" * 32) for n in ("anna", "bert")}) == 4


@pytest.mark.parametrize(
    ("kind", "phase"), [(Kind.RELEASE, Phase.RELEASED), (Kind.SUM, Phase.GATHERING), (Kind.AGREE, Phase.AGREEING)]
)
@pytest.mark.parametrize("seed", SEEDS)
def test_who_keeps_its_release_or_sum_to_itself_is_named(kind: Kind, phase: Phase, seed: int) -> None:
    scene = Scene(3, seed=seed)
    scene.tampers = lambda _, letter: None if of(kind, "cleo")(letter) else letter
    scene.run()
    for name in HONEST:
        assert scene.state(name).phase is phase
        assert scene.waiting_for(name) == ("cleo",)
        assert (name, 1) in scene.released


def test_a_receipt_over_other_commitments_splits_the_view() -> None:
    scene = committed(Phase.RECEIPTED)
    context, other = scene.context("anna"), b"\x03" * 32
    signature = scene.sign("cleo", receipt_statement(context, other))
    lie = Receipt(context=context, commitments=other, signature=signature)
    with pytest.raises(SplitView):
        scene.offer("anna", "cleo", lie)
    with pytest.raises(Unauthentic):  # bert cannot put these words into the mouth of cleo, nor she unsigned
        scene.offer("anna", "bert", lie)


# --- attempts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_a_false_overflow_costs_twice_the_bytes_and_no_more(seed: int) -> None:
    scene = Scene(3, seed=seed)
    scene.false_overflows = {"cleo"}
    scene.run()
    finished_well(scene)
    for peer in scene.peers.values():
        assert [note.attempts for note in peer.notes] == [2]
        assert len(peer.kept or b"") == 2 * len(scene.vector("anna", 1))
        assert [record.about["overflow"] for record in peer.records if record.says == "abandon"].count(True) == 1


def test_an_overflow_said_to_some_is_said_to_all_by_who_hears_of_it_and_contradicts_itself() -> None:
    scene = Scene(3)
    scene.false_overflows = {"cleo"}

    def lie(letter: Letter) -> Letter:
        signature = scene.sign("cleo", abandon_statement(scene.state("bert").session_id, 1, 0, False))
        return altered(letter, overflow=False, signature=signature)

    is_first = of(Kind.ABANDON, "cleo", "bert")
    scene.replace(lambda letter: is_first(letter) and letter.send.attempt == 0, lie)
    scene.until(lambda: scene.state("anna").word == 64 and scene.state("bert").attempt == 1)
    assert scene.state("bert").word == 32
    scene.run()
    scene.check()
    assert ended(scene) >= set(HONEST)
    assert max(note.attempts for note in scene.peers["bert"].notes) > 2
    assert contradict(*(said(scene, name, "abandon", "cleo")[0] for name in HONEST))


@pytest.mark.parametrize("members", [["anna", "bert", "cleo"], ["anna", "cleo"]])
def test_the_commitment_that_makes_a_peer_say_overflow_is_recorded(members: list[str]) -> None:
    scene = Scene(3)
    scene.until(lambda: scene.state("anna").phase is Phase.MASKING)
    commit = committing(scene, {"word": 64, "members": members}, count=len(members))
    state, effects = scene.offer("anna", "cleo", commit)
    assert state.abandons == {"anna": True}
    first, second = (effect for effect in effects if isinstance(effect, Record))
    assert (first.by, first.says, first.about["context"]) == ("cleo", "commitment", commit.context)
    assert first.signature == commit.signature
    assert (second.by, second.says, second.about["overflow"]) == ("anna", "abandon", True)
    again = scene.peers["anna"].machine.step(state, scene.received("anna", "cleo", commit))
    assert again == (state, ()), "it has said so, and records no more of it"


def test_a_commitment_with_the_smaller_word_is_passed_over() -> None:
    """Of somebody who has not heard of an overflow yet."""
    scene = Scene(3, averaging__word=64)
    scene.until(lambda: scene.state("anna").phase is Phase.MASKING)
    assert scene.state("anna").word == 64
    assert scene.offer("anna", "cleo", committing(scene, {"word": 32})) == (scene.state("anna"), ())


def test_who_gives_up_before_some_and_releases_before_others_stops_the_trial_and_learns_nothing() -> None:
    """Cleo, with the relay's help, has anna in the next attempt and bert in this one."""
    scene = Scene(3)
    scene.hold(lambda letter: of(Kind.RECEIPT)(letter) and letter.send.recipient != "cleo")
    scene.until(lambda: len(scene.state("cleo").receipts) == 3)
    release = release_of(scene, "cleo")
    signature = scene.sign("cleo", abandon_statement(scene.state("anna").session_id, 1, 0, False))
    abandon = Abandon(overflow=False, signature=signature)
    scene.peers["cleo"].is_dead = True  # from here on it acts by hand
    scene.hold(lambda letter: of(Kind.ABANDON, "anna", "bert")(letter) or letter.send.recipient == "cleo")
    for name in HONEST:
        scene.post(name, scene.received(name, "cleo", abandon))
    scene.until(lambda: scene.state("anna").attempt == 1)
    assert scene.state("bert").phase is Phase.ABANDONING
    scene.post("bert", scene.received("bert", "cleo", release))
    assert scene.state("bert").phase is Phase.RELEASED
    scene.run()
    scene.deliver(each for each in scene.held if each.send.recipient == "bert")
    scene.run()
    assert "bert" in scene.waiting_for("anna")
    assert "anna" in scene.waiting_for("bert")
    assert set(scene.released) - {("cleo", 1)} == {("bert", 1)}, "anna releases nothing, and bert nothing twice"
    assert scene.committed[scene.context("anna")] == {"anna"}, "bert commits to nothing in the next attempt"


def test_those_who_gave_up_go_back_when_somebody_has_released() -> None:
    """As above, but the relay delivers in the end: all go back and finish."""
    scene = Scene(3)
    scene.hold(of(Kind.RECEIPT, "cleo", "anna"))
    scene.until(lambda: ("bert", 1) in scene.released)
    scene.hold(of(Kind.RELEASE))
    signature = scene.sign("cleo", abandon_statement(scene.state("anna").session_id, 1, 0, False))
    scene.post("anna", scene.received("anna", "cleo", Abandon(overflow=False, signature=signature)))
    assert scene.state("anna").phase is Phase.ABANDONING
    scene.run()
    assert scene.waiting_for("anna") == ("bert",)
    scene.let_go()
    scene._asked_in_vain = 0
    scene.run()
    assert ended(scene) == set(EVERYBODY)
    assert all(peer.notes[0].attempts == 1 for peer in scene.peers.values())


# --- the founder -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_different_initial_weights_are_said_at_once(seed: int) -> None:
    scene = Scene(3, seed=seed)
    scene.replace(of(Kind.INITIAL, "anna", "cleo"), lambda letter: altered(letter, blob=spoilt(letter.blob)))
    scene.run()
    failures = {name: type(peer.failure) for name, peer in scene.peers.items() if peer.failure}
    assert failures
    assert set(failures.values()) == {SplitView}
    assert "cleo" in failures or all("cleo" in str(scene.peers[name].failure) for name in failures)
    assert not scene.released
    assert not any(record.says == "receipt" for peer in scene.peers.values() for record in peer.records)


def test_initial_weights_twice() -> None:
    scene = Scene(3)
    scene.until(lambda: scene.state("cleo").step == 1)
    initial = next(each for to, each in scene.everything if to == "cleo" and of(Kind.INITIAL)(each))
    state = scene.state("cleo")
    assert scene.offer("cleo", "anna", initial.send.message, blob=initial.blob, turn=0) == (state, ())
    with pytest.raises(Equivocation):
        scene.offer("cleo", "anna", initial.send.message, blob=b"others", turn=0)
    assert scene.offer("cleo", "bert", initial.send.message, blob=b"others", turn=0) == (state, ())
