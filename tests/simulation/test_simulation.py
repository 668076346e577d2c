"""Thousands of trials in which everything goes wrong that a seed can think of, and which end as if nothing had.

`make simulation` runs 100,000 of them; a failing one prints the command that repeats it.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable

import pytest

from ppdl_mq.errors import ModelError
from ppdl_mq.peer.orders import Order, give_order
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.wire.header import split_part
from ppdl_mq.wire.kinds import Kind
from tests.simulation.many import BLOCK, told
from tests.simulation.recomputing import check_rounds
from tests.simulation.relay import Relay
from tests.simulation.story import PROTOCOLS, Story, story_of
from tests.simulation.trial import check, simulated, tried

SEEDS = int(os.environ.get("SIMULATION_SEEDS", "2000"))
FIRST = int(os.environ.get("SIMULATION_FIRST", "0"))


@pytest.mark.parametrize("block", range(-(-SEEDS // BLOCK)))
def test_a_trial_ends_as_if_nothing_had_happened(block: int) -> None:
    for seed in range(FIRST + block * BLOCK, FIRST + min((block + 1) * BLOCK, SEEDS)):
        try:
            check(story_of(seed))
        except Exception as error:
            raise AssertionError(told(seed, error)) from error


def test_a_seed_that_fails_is_told_with_the_command_that_repeats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Story) -> None:
        raise ModelError("There is no model.")

    monkeypatch.setattr(f"{__name__}.check", fails)
    with pytest.raises(AssertionError, match=f"SIMULATION_FIRST={FIRST} SIMULATION_SEEDS=1 "):
        test_a_trial_ends_as_if_nothing_had_happened(0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_undisturbed_trial_asks_for_nothing_twice(protocol: str) -> None:
    story = Story(seed=0, protocol=protocol, count=3, changes={"training__epochs": 2})
    with simulated(story) as simulation:
        (model,) = set(simulation.run().values())
    assert model
    assert not simulation.faults
    assert set(simulation.trained.values()) == {1}
    assert all(node.watch.refused == 0 for node in simulation.nodes.values())


def test_what_does_not_fit_32_bits_is_tried_again_in_64() -> None:
    story = Story(seed=0, protocol="masked-average", count=3, changes={"training__epochs": 2}, grows=(("bert", 2),))
    assert {each for each in tried(check(story)) if each[0] % 2} == {(1, 32), (3, 32), (3, 64)}


def test_who_finishes_the_last_step_alone_has_the_model() -> None:
    # It says AGREE and DONE in the step that drops the session's keys: it had none left to seal them with.
    story = Story(seed=1, protocol="masked-average", count=2, calm_after_s=3_600.0, doomed=frozenset({"anna"}))
    story.changes = {"training__epochs": 1, "averaging__evaluate_every": 0}
    story.deaths = [("anna", "after publish", 8)]  # the masks of both are released
    simulation = check(story)
    assert simulation.nodes["anna"].is_lost
    assert simulation.nodes["bert"].has_result


@pytest.mark.parametrize("seed", range(24))
def test_two_of_four_that_die_for_good_around_the_release(seed: int) -> None:
    """Audits included: one that could ask the two lost only is given up. It wrote to itself, and crashed."""
    chance = random.Random(seed)
    dead = ("anna", "cleo")
    story = Story(seed=seed + 1, protocol="masked-average", count=4, audit_rate=1.0, calm_after_s=3_600.0)
    story.doomed = frozenset(dead)
    story.changes = {"training__epochs": 1, "averaging__evaluate_every": 0}
    story.deaths = [(name, "after publish", chance.randrange(14, 40)) for name in dead]
    simulation = check(story)
    assert all(simulation.nodes[name].has_ended for name in ("bert", "dora"))


@pytest.mark.parametrize("kind", [Kind.SUM, Kind.DEMAND], ids=["a sum", "proofs"])
def test_who_was_given_up_and_lives_gets_it_from_one_that_has_finished(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = Story(seed=4, protocol="masked-average", count=3, calm_after_s=600.0, audit_rate=1.0)
    story.changes = {"training__epochs": 1, "averaging__evaluate_every": 0}
    sender, reader = ("anna", "bert") if kind is Kind.SUM else ("bert", "anna")
    lost = []

    def arrive(relay: Relay, address: str, body: bytes) -> Iterable[tuple[str, bytes]]:
        header, _, _ = split_part(body)
        anna = simulation.nodes["anna"]
        said = (header.kind, header.sender, header.recipient)
        if said == (kind, sender, reader) and not anna.has_ended and anna.state.phase is not Phase.CLOSING:
            if not lost:
                give_order(anna.folder, Order(drop="bert"))
            lost.append(said)
            return ()
        return real(relay, address, body)

    real = Relay._arrive
    monkeypatch.setattr(Relay, "_arrive", arrive)
    with simulated(story) as simulation:
        models = simulation.run()
        check_rounds(simulation, models)
    assert lost
    assert len(models) == 3
    assert len(set(models.values())) == 1


@pytest.mark.parametrize("seed", [2, 34, 42])
def test_a_seed_is_one_story(seed: int) -> None:
    one, other = (check(story_of(seed), trace=True) for _ in range(2))
    assert one.trace == other.trace
    assert one.faults == other.faults


def test_a_peer_that_dies_twice_at_its_first_secrets_begins_all_the_same() -> None:
    # Between the file and its commit, and then in the middle of erasing that file. It was refused as newer: seed 2245.
    moment = ("anna", "before fsync of live secrets")
    story = Story(seed=1, protocol="fully-connected", count=2, calm_after_s=600.0)
    story.deaths = [(*moment, 2), (*moment, 0)]
    story.changes = {"training__epochs": 1}
    assert check(story).kills == {moment[1]: 2}
