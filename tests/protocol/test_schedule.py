from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppdl_mq.protocol.schedule import Schedule
from tests.protocol.world import NAMES, terms_of


@st.composite
def schedules(draw: Any) -> Schedule:
    return Schedule(
        trial_id=draw(st.binary(min_size=32, max_size=32)),
        peers=tuple(sorted(NAMES[: draw(st.integers(2, 6))])),
        epochs=draw(st.integers(1, 4)),
        turns_per_epoch=draw(st.integers(1, 4)),
        order=draw(st.sampled_from(["fixed", "shuffled"])),
    )


@given(schedules())
def test_every_peer_has_one_turn_in_every_cycle(schedule: Schedule) -> None:
    turns = [schedule.turn(number) for number in range(1, schedule.turns + 1)]
    cycles: dict[tuple[int, int], list[str]] = {}
    for turn in turns:
        cycles.setdefault((turn.epoch, turn.cycle), []).append(turn.peer)
    assert list(cycles) == [(e, c) for e in range(schedule.epochs) for c in range(schedule.turns_per_epoch)]
    for (epoch, _), peers in cycles.items():
        assert sorted(peers) == list(schedule.peers)
        assert tuple(peers) == schedule.epoch_order(epoch)
    for peer in schedule.peers:
        assert [turn.ordinal for turn in schedule.turns_of(peer)] == list(
            range(schedule.epochs * schedule.turns_per_epoch)
        )
        assert [turn for turn in turns if turn.peer == peer] == list(schedule.turns_of(peer))


@given(schedules())
def test_fixed_is_by_name(schedule: Schedule) -> None:
    if schedule.order == "fixed":
        assert schedule.epoch_order(schedule.epochs - 1) == schedule.peers
        assert schedule.founder == schedule.peers[0]


@pytest.mark.parametrize("number", [0, -1, 13])
def test_there_are_no_other_turns(number: int) -> None:
    schedule = terms_of("anna", training__epochs=2, training__turns_per_epoch=2).schedule
    assert schedule.turns == 12
    with pytest.raises(ValueError, match="not in"):
        schedule.turn(number)


def test_the_published_shuffle() -> None:
    """Computed here from the words of docs/PROTOCOL.md, section 6, once as code and once as a constant."""
    peers, trial_id = NAMES, b"\x01" * 32
    schedule = Schedule(trial_id=trial_id, peers=peers, epochs=3, turns_per_epoch=2, order="shuffled")
    orders = []
    for epoch in range(3):
        order = list(peers)
        n = len(order)
        for i in range(n - 1, 0, -1):
            drawn = hashlib.sha256(
                b"ppdl-mq/1 schedule\0" + trial_id + epoch.to_bytes(8, "big") + (n - 1 - i).to_bytes(8, "big")
            ).digest()
            j = int.from_bytes(drawn[:8], "big") % (i + 1)
            order[i], order[j] = order[j], order[i]
        orders.append(tuple(order))
    assert [schedule.epoch_order(epoch) for epoch in range(3)] == orders
    assert [" ".join(order) for order in orders] == PUBLISHED


PUBLISHED = ["bert anna fritz egon dora cleo", "cleo bert anna dora fritz egon", "cleo anna fritz egon bert dora"]


def test_the_shuffle_is_fair() -> None:
    """Each of the 6 orders of 3 peers in 6000 epochs: expected 1000, standard deviation 29."""
    schedule = Schedule(trial_id=bytes(32), peers=NAMES[:3], epochs=6_000, turns_per_epoch=1, order="shuffled")
    counts = Counter(schedule.epoch_order(epoch) for epoch in range(6_000))
    assert len(counts) == 6
    assert all(850 < count < 1_150 for count in counts.values())


@pytest.mark.parametrize("order", ["fixed", "shuffled"])
@pytest.mark.parametrize("count", [2, 3, 6])
def test_next_and_last_turn(order: str, count: int) -> None:
    terms = terms_of("anna", count, order=order, training__epochs=4, training__turns_per_epoch=2)
    turns = terms.schedule.turns
    for peer in NAMES[:count]:
        own = [turn.number for turn in terms.schedule.turns_of(peer)]
        for at in range(turns + 2):
            assert terms.next_turn_of(peer, at) == next((number for number in own if number > at), None)
            assert terms.last_turn_of(peer, at) == next((number for number in reversed(own) if number < at), None)
    assert terms.my_next_turn(0) == next(terms.schedule.turns_of("anna")).number
    assert terms.finisher == terms.schedule.turn(turns).peer
