"""Whole trials of machines under a scheduler that reorders and duplicates, from a seed."""

from __future__ import annotations

import itertools

import pytest

from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.sequential import TABLE
from ppdl_mq.wire.kinds import Kind
from tests.protocol.world import Letter, World, result_of

PROTOCOLS = ("fully-connected", "server-aided")

# What honest peers never meet, or hardly ever: a message that nobody can have sent yet, a runner that asks where it
# waits for nobody, an old copy that arrives between a FINAL and the DONE that answers it.
FOR_LIARS = {(phase, row) for phase in (Phase.BUILDING, Phase.ANSWERING_FINAL) for row in ("TURN", "NOTICE")} | {
    (phase, "Overdue") for phase in (Phase.BUILDING, Phase.TRAINING, Phase.HANDING_OVER, Phase.ANSWERING_FINAL)
}
FOR_PEOPLE = {(Phase.AWAITING_DONES, "Decided")}


def run(protocol: str, order: str, count: int, epochs: int, cycles: int, seed: int) -> World:
    world = World(
        count,
        seed=seed,
        duplicates=0.3,
        impatience=0.02,
        protocol=protocol,
        order=order,
        training__epochs=epochs,
        training__turns_per_epoch=cycles,
    )
    world.run()
    return world


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_everyone_ends_with_the_same(protocol: str, count: int) -> None:
    shapes = [(1, 1), (1, 3), (2, 2), (3, 1)] if count < 5 else [(1, 1), (2, 1)]
    for seed, (order, (epochs, cycles)) in enumerate(itertools.product(("fixed", "shuffled"), shapes)):
        world = run(protocol, order, count, epochs, cycles, seed)
        turns = world.schedule.turns
        for name, peer in world.peers.items():
            assert peer.kept == turns, (name, seed)
            assert peer.state.chain.digest_of(turns) == result_of(turns), (name, seed)
            # Every turn of one's own is trained exactly once, and nobody else's.
            assert peer.turns == [turn.number for turn in world.schedule.turns_of(name)], (name, seed)
            assert peer.state.session_secret is None
            assert not peer.state.contributions
            assert not peer.state.pair_keys
            stated = [record.about["turn"] for record in peer.records if record.says == "turn"]
            assert stated == list(range(len(stated))), "the transcript has a gap, or a turn twice"
            assert len(stated) == turns + 1
            assert sorted(record.by for record in peer.records if record.says == "session key") == sorted(world.peers)
        assert len({peer.state.session_id for peer in world.peers.values()}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("order", ["fixed", "shuffled"])
@pytest.mark.parametrize(("epochs", "cycles"), list(itertools.product((1, 2, 3), (1, 2, 3))))
def test_everyone_ends_with_the_same_in_every_shape(protocol: str, order: str, epochs: int, cycles: int) -> None:
    for count in range(2, 7):
        world = run(protocol, order, count, epochs, cycles, seed=1000 + count)
        assert {peer.state.chain.digest_of(world.schedule.turns) for peer in world.peers.values()} == {
            result_of(world.schedule.turns)
        }


def overtaken(protocol: str) -> World:
    """Bert gets Anna's first turn while one CONFIRM is still on its way to him."""
    world = World(protocol=protocol, impatience=0.02)

    def is_late(letter: Letter) -> bool:
        return (letter.sender, letter.send.recipient, letter.send.message.kind) == ("cleo", "bert", Kind.CONFIRM)

    world.held_back = is_late
    row = "NOTICE" if protocol == "server-aided" else "TURN"
    world.run(until=lambda: (Phase.AWAITING_CONFIRMS, row) in world.visited)
    world.held_back = lambda _: False
    world.run()
    return world


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_comes_too_early_is_kept(protocol: str) -> None:
    world = overtaken(protocol)
    assert world.peers["bert"].turns == [2, 5]


def test_the_runs_reach_the_table() -> None:
    visited = overtaken("fully-connected").visited | overtaken("server-aided").visited
    for protocol, seed in itertools.product(PROTOCOLS, range(30)):
        visited |= run(protocol, "shuffled", 2 + seed % 3, 2, 2, seed).visited
    assert set(TABLE) - visited <= FOR_LIARS | FOR_PEOPLE
