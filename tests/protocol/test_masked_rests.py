"""A peer that abandons every attempt: the others rest before the next one, and those who drop it need not wait."""

from __future__ import annotations

from typing import Any

import pytest

from ppdl_mq.config import limits
from ppdl_mq.protocol.events import LeaveAsked, Rested
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.statements import abandon_statement
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.messages import Abandon
from tests.protocol.masked_scene import Scene

HONEST = ("anna", "bert")
AT_ONCE = limits.ATTEMPTS_AT_ONCE


def burning(**rules: Any) -> Scene:
    """A trial whose third peer does nothing but what `abandon` lets it say."""
    scene = Scene(3, **rules)
    scene.until(lambda: all(peer.state.step for peer in scene.peers.values()))
    scene.peers["cleo"].is_dead = True
    scene.ends_rests = False
    return scene


def abandon(scene: Scene, *names: str) -> None:
    """Let cleo abandon the attempt in which each of these stands."""
    for name in names:
        state = scene.state(name)
        signature = scene.sign("cleo", abandon_statement(state.session_id, state.step, state.attempt, False))
        scene.post(name, scene.received(name, "cleo", Abandon(overflow=False, signature=signature)))


def rest_s(scene: Scene, name: str = "anna") -> float | None:
    return scene.peers[name].machine.rest_s(scene.state(name))


def end_rest(scene: Scene, *names: str) -> None:
    for name in names:
        state = scene.state(name)
        scene.post(name, Rested(step=state.step, attempt=state.attempt))


def give_up(scene: Scene) -> float:
    """Let cleo abandon the attempt in which both stand; return how long anna rests after it."""
    number = scene.state("anna").attempt
    assert scene.state("bert").attempt == number
    abandon(scene, *HONEST)
    scene.until(lambda: all(rest_s(scene, name) or scene.state(name).attempt > number for name in HONEST))
    return rest_s(scene) or 0.0


def burn_to(scene: Scene, attempt: int) -> list[float]:
    """Have every attempt up to this one given up; return how long anna rests after each, the last one to come."""
    rests = []
    while True:
        rests.append(give_up(scene))
        if len(rests) > attempt:
            return rests
        end_rest(scene, *(name for name in HONEST if rest_s(scene, name)))


def test_rests_grow_to_an_hour_from_the_eighth_attempt_on() -> None:
    rests = burn_to(burning(), AT_ONCE + 13)
    assert rests[: AT_ONCE - 1] == [0.0] * (AT_ONCE - 1)
    assert rests[AT_ONCE - 1 :] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 3600, 3600, 3600]


def test_an_hour_before_each_makes_the_limit_one_of_more_than_a_year() -> None:
    assert sum(burn_to(burning(), AT_ONCE + 34)) > 86_400
    assert limits.MAX_ATTEMPTS * limits.REST_LAST_S > 365 * 86_400


@pytest.mark.parametrize("rule", ["abort", "drop"])
def test_a_rest_is_shorter_than_the_silence_after_which_a_peer_is_taken_for_absent(rule: str) -> None:
    scene = burning(averaging__on_absent=rule, averaging__absent_after_s=100.0)
    assert burn_to(scene, AT_ONCE + 7)[-4:] == [32, 50, 50, 50]


def test_a_rest_that_is_not_due_changes_nothing() -> None:
    scene = burning()
    burn_to(scene, AT_ONCE - 1)
    machine, resting = scene.peers["anna"].machine, scene.state("anna")
    early = Rested(step=resting.step, attempt=resting.attempt - 1)
    assert machine.step(resting, early) == (resting, ())
    lacking = resting.replace(abandons=dict.fromkeys(("anna", "cleo"), False))
    assert machine.rest_s(lacking) is None
    assert machine.step(lacking, Rested(step=resting.step, attempt=resting.attempt)) == (lacking, ())
    end_rest(scene, "anna")
    assert scene.state("anna").attempt == resting.attempt + 1


def test_what_comes_of_the_next_attempt_while_one_rests_is_kept() -> None:
    scene = burning()
    burn_to(scene, AT_ONCE)
    end_rest(scene, "anna")
    scene.until(lambda: scene.state("anna").phase is Phase.COMMITTED and not scene.peers["anna"].unsent)
    assert scene.waiting_for("anna") == ("bert", "cleo")
    for _ in range(20):
        scene.step()
    assert not scene.refusals
    end_rest(scene, "bert")
    scene.until(lambda: {"anna", "bert"} <= scene.state("bert").commits.keys())


@pytest.mark.parametrize("ahead", [(), ("anna",), ("bert",)], ids=["both rest", "anna is ahead", "bert is ahead"])
@pytest.mark.parametrize("first", HONEST)
def test_who_is_dropped_after_many_attempts_is_gone_at_once(first: str, ahead: tuple[str, ...]) -> None:
    """Nobody's rest ends by itself here: a drop that had to wait for one would never be finished."""
    scene = burning()
    burn_to(scene, AT_ONCE + 12)
    end_rest(scene, *ahead)
    scene.decide(first, "cleo")
    scene.until(lambda: not scene.peers[first].unsent)
    assert scene.state(first).members == ("anna", "bert", "cleo"), "one alone drops nobody"
    scene.decide(next(name for name in HONEST if name != first), "cleo")
    scene.run()
    assert {scene.state(name).phase for name in HONEST} == {Phase.ENDED}
    assert all(scene.peers[name].notes[0].members == HONEST for name in HONEST)
    assert not scene.refusals


def test_who_leaves_after_many_attempts_holds_nobody_up() -> None:
    scene = Scene(4)
    scene.until(lambda: all(peer.state.step for peer in scene.peers.values()))
    scene.peers["dora"].is_dead = True
    scene.ends_rests = False
    signers = ("anna", "bert", "cleo")
    while not all(scene.peers[name].machine.rest_s(scene.state(name)) for name in signers):
        for name in signers:
            state = scene.state(name)
            if state.phase is not Phase.ABANDONING:
                signature = scene.sign("dora", abandon_statement(state.session_id, 1, state.attempt, False))
                scene.post(name, scene.received(name, "dora", Abandon(overflow=False, signature=signature)))
        scene.until(
            lambda: all(not each.unsent and not each.inbox for each in scene.peers.values() if not each.is_dead)
        )
    before = scene.state("anna").attempt
    scene.post("cleo", LeaveAsked())
    scene.until(lambda: all(scene.state(name).attempt > before for name in HONEST))
    assert scene.state("anna").members == ("anna", "bert", "dora")
    assert scene.state("anna").members_since == before + 1


def test_no_attempt_beyond_the_limit_is_named_or_entered() -> None:
    scene = burning()
    burn_to(scene, AT_ONCE)
    terms = scene.peers["anna"].machine.terms
    last = limits.MAX_ATTEMPTS
    for kind in (Kind.COMMIT, Kind.MASKED, Kind.ABANDON):
        assert terms.may_name(kind, "bert", 1, last)
        assert not terms.may_name(kind, "bert", 1, last + 1)
    machine, resting = scene.peers["anna"].machine, scene.state("anna")
    before, at = (resting.replace(attempt=number) for number in (last - 1, last))
    assert machine.step(before, Rested(step=1, attempt=last - 1))[0].attempt == last
    assert machine.rest_s(at) is None
    assert machine.step(at, Rested(step=1, attempt=last)) == (at, ())
