"""Who is left behind in an attempt, with its receipt in it, when others have ended early: it must not wait for ever."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ppdl_mq.protocol.phases import Phase
from ppdl_mq.wire.kinds import Kind
from tests.protocol.masked_scene import Scene, of
from tests.protocol.masked_world import cheap_signatures


@pytest.fixture(autouse=True)
def cheap() -> Iterator[None]:
    with cheap_signatures():
        yield


def receipted(*names: str, **options: object) -> Scene:
    """A trial of four, that wants four, in step 3; only these have signed a receipt in it."""
    scene = Scene(4, cheap=True, restores=False, training__epochs=3, averaging__min_peers=4, **options)
    others = set(scene.peers) - set(names)
    scene.hold(
        lambda letter: (
            letter.send.turn == 3
            and (
                letter.send.message.kind is Kind.RECEIPT
                or (letter.send.message.kind is Kind.MASKED and letter.send.recipient in others)
            )
        )
    )
    scene.until(
        lambda: all(
            scene.state(name).step == 3
            and scene.state(name).phase is (Phase.RECEIPTED if name in names else Phase.COMMITTED)
            for name in scene.peers
        )
    )
    scene.run()  # whatever is on its way
    scene.let_go = lambda: None  # type: ignore[method-assign]
    scene.tampers = lambda _, letter: letter
    scene.held = []
    return scene


def have_ended_early(scene: Scene, *names: str) -> None:
    waits = {name: scene.waiting_for(name) for name in scene.peers}
    assert [scene.state(name).phase for name in names] == [Phase.ENDED_EARLY] * len(names), (scene.phases(), waits)
    assert {scene.state(name).base_step for name in names} == {1}


def test_all_drop_one_that_died_when_some_had_ended_early_already() -> None:
    """Nothing is lost. Bert, without a receipt, ends at once, and signs no DROP any more: cleo counts on it."""
    scene = receipted("anna", "cleo")
    scene.peers["anna"].is_dead = True
    scene.leave("dora")
    scene.run()
    for name in ("bert", "cleo", "dora"):
        scene.decide(name, "anna")
    scene.run()
    have_ended_early(scene, "bert", "cleo")
    assert scene.state("dora").phase is Phase.LEFT


def test_one_dies_when_its_abandon_has_reached_some() -> None:
    """Anna's ABANDON reaches dora only. Dora ends; bert's people drop anna, and dora's say that they wait no longer."""
    scene = receipted("anna", "bert", "dora")
    scene.tampers = lambda _, letter: None if of(Kind.ABANDON, "anna", "bert")(letter) else letter
    scene.leave("cleo")
    scene.until(lambda: scene.state("dora").phase is Phase.CLOSING)
    scene.peers["anna"].is_dead = True
    scene.run()
    for _ in range(2):
        for name in ("bert", "cleo", "dora"):
            scene.decide(name, "anna")
        scene.run()
    have_ended_early(scene, "bert", "dora")
    assert scene.state("cleo").phase is Phase.LEFT


def test_one_ends_that_has_dropped_another_all_by_itself() -> None:
    """Anna has dropped bert, nobody else has. It ends without waiting for bert, whom its ABANDON has not reached."""
    scene = receipted("anna", "bert", "dora")
    scene.tampers = lambda _, letter: None if of(Kind.ABANDON, "anna", "bert")(letter) else letter
    scene.decide("anna", "bert")
    scene.leave("cleo")
    scene.until(lambda: scene.state("anna").phase is Phase.ENDED_EARLY)
    scene.tampers = lambda _, letter: letter
    scene.run()
    if scene.state("bert").phase is not Phase.ENDED_EARLY:
        assert scene.waiting_for("bert") == ("anna",)  # both its ABANDON and its DONE were lost, and it has gone
        scene.decide("bert", "anna")
        scene.run()
    have_ended_early(scene, "anna", "bert", "dora")
    assert scene.state("cleo").phase is Phase.LEFT


def test_with_those_who_have_ended_a_majority_is_one_still() -> None:
    """With `on_absent = "drop"`: dora ends, and with bert alone anna would be no majority that drops cleo."""
    scene = receipted("anna", "cleo", averaging__on_absent="drop")
    scene.peers["cleo"].is_dead = True
    scene.hold(of(Kind.ABANDON, "bert", "anna"))
    for name in ("anna", "bert", "dora"):
        scene.decide(name, "cleo")
    scene.run()
    scene.tampers = lambda _, letter: letter
    scene.deliver(scene.held)
    scene.run()
    have_ended_early(scene, "anna", "bert", "dora")
