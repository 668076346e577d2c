"""Many random schedules: a relay that loses, repeats, delays and replays, peers that crash, leave and are dropped.

`make release-once` runs 100,000 of them; a failing one prints the command that repeats it.
"""

from __future__ import annotations

import os
import random

import pytest

from ppdl_mq.errors import Dropped
from tests.protocol.masked_world import OVER, World, cheap_signatures

SCHEDULES = int(os.environ.get("RELEASE_ONCE_SCHEDULES", "2000"))
FIRST = int(os.environ.get("RELEASE_ONCE_FIRST", "0"))
BLOCK = 100


class Story:
    """One schedule: what goes wrong, and when, follows from its number."""

    def __init__(self, number: int) -> None:
        self.chance = random.Random(number)
        chance = self.chance
        self.count = chance.choice((2, 3, 3, 4, 4, 5))
        self.world = World(
            self.count,
            seed=number,
            loss=chance.choice((0, 0, 0.02, 0.1)),
            duplicates=chance.choice((0, 0.1)),
            replay=chance.choice((0, 0.05)),
            crash=chance.choice((0, 0.02)),
            overflow=chance.choice((0, 0, 0.2)),
            audit=chance.choice((0, 0.3)),
            cheap=True,
            restores=number % 50 == 0,
            training__epochs=chance.choice((1, 1, 2)),
            averaging__evaluate_every=chance.choice((0, 1)),
        )
        names = list(self.world.peers)
        self.victim = chance.choice(names) if self.count > 2 and chance.random() < 0.6 else None
        self.dies = chance.random() < 0.6  # else it is only thought dead
        self.dies_at = chance.randrange(20, 250)
        self.decide_at = {name: chance.randrange(20, 400) for name in names}
        self.leaver = chance.choice(names) if self.count > 2 and chance.random() < 0.2 else None
        self.leaves_at = chance.randrange(20, 300)
        self.is_split = chance.random() < 0.2
        self.heals_at = chance.randrange(50, 300)
        self.halves = {name: chance.random() < 0.5 for name in names}

    def run(self) -> World:
        world = self.world
        at = 0
        if self.is_split:
            world.partition = lambda one, other: at < self.heals_at and self.halves[one] != self.halves[other]
        for at in range(450):
            if self.victim is not None and self.dies and at == self.dies_at:
                world.peers[self.victim].is_dead = True
            if self.leaver is not None and at == self.leaves_at:
                world.leave(self.leaver)
            for name, moment in self.decide_at.items():
                if at == moment and self.victim is not None and name != self.victim:
                    world.decide(name, self.victim)
            world.step()
        world.partition = lambda _, __: False
        if self.victim is not None:
            for name in world.peers:  # those who had not begun when people asked them to
                if name != self.victim:
                    world.decide(name, self.victim)
        world.run()
        world.check()
        return world


def ends_well(story: Story, world: World) -> None:
    """Whoever has not ended waits for a peer by name, and only where something was lost for good."""
    for name, peer in world.peers.items():
        if peer.is_dead or peer.state.phase in OVER:
            continue
        if peer.failure is not None:
            assert isinstance(peer.failure, Dropped)
            continue
        waiting_for = peer.machine.waiting_for(peer.state)
        assert waiting_for, f"{name} is stuck while {peer.state.phase.value}"
        is_disturbed = world.loss or story.victim or story.leaver
        assert is_disturbed, f"{name} waits for {waiting_for} while {peer.state.phase.value}"


@pytest.mark.parametrize("block", range(-(-SCHEDULES // BLOCK)))
def test_no_vector_is_released_twice_and_whoever_finishes_agrees(block: int) -> None:
    with cheap_signatures():
        for number in range(FIRST + block * BLOCK, FIRST + min((block + 1) * BLOCK, SCHEDULES)):
            story = Story(number)
            try:
                ends_well(story, story.run())
            except AssertionError as error:
                again = f"RELEASE_ONCE_FIRST={number} RELEASE_ONCE_SCHEDULES=1 python -m pytest {__file__}"
                raise AssertionError(f"{error}\nAgain: {again}") from error
