from __future__ import annotations

from collections import Counter

import pytest
import torch

from ppdl_mq.training import order

from .trials import SEEDS, manifest, schedule

SEED = SEEDS["ash"]
EXPECTED_SEED = 3995225103191647827


def rows_of(agreed, turn, rows: int) -> list[int]:
    return [int(row) for batch in order.turn_batches(agreed.training, turn, SEED, rows=rows) for row in batch]


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 40])
@pytest.mark.parametrize("turns_per_epoch", [1, 2, 3, 7])
def test_the_turns_of_an_epoch_are_one_pass_over_the_rows(rows: int, turns_per_epoch: int) -> None:
    agreed = manifest(turns_per_epoch=turns_per_epoch, epochs=2)
    turns = list(schedule(agreed).turns_of("birch"))
    for epoch in range(2):
        seen = [row for turn in turns if turn.epoch == epoch for row in rows_of(agreed, turn, rows)]
        assert sorted(seen) == list(range(rows))


def test_steps_go_on_where_the_last_turn_ended() -> None:
    agreed = manifest(turn_steps=4, epochs=6)
    turns = list(schedule(agreed).turns_of("ash"))
    batches = [batch for turn in turns for batch in order.turn_batches(agreed.training, turn, SEED, rows=20)]
    assert [len(batch) for batch in batches] == [8, 8, 4] * 8
    assert Counter(row for batch in batches for row in batch.tolist()) == dict.fromkeys(range(20), 8)


def test_local_epochs_are_whole_and_all_different() -> None:
    agreed = manifest(turn_epochs=2, epochs=2)
    seen = [rows_of(agreed, turn, 20) for turn in schedule(agreed).turns_of("ash")]
    passes = [tuple(each[start : start + 20]) for each in seen for start in (0, 20)]
    assert all(sorted(each) == list(range(20)) for each in passes)
    assert len(set(passes)) == 4


def test_the_order_is_what_the_specification_says() -> None:
    """Worked out once by hand from docs/TRAINING.md, so that a change of the rule does not go unseen."""
    assert order.derive(bytes(32), b"order" + bytes(8)) == EXPECTED_SEED
    generator = torch.Generator().manual_seed(EXPECTED_SEED)
    assert torch.equal(order.permutation(bytes(32), b"order" + bytes(8), 9), torch.randperm(9, generator=generator))


def test_a_seed_of_another_length_is_our_own_bug() -> None:
    with pytest.raises(ValueError, match="32"):
        order.derive(b"short", b"order")
