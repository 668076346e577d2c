from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from ppdl_mq.crypto.secret import Secret
from ppdl_mq.training.private.randomness import Randomness, turn_key

KEY = Secret(bytes(range(32)))
SEED = b"\7" * 32
ORIGIN = (b"t" * 32, b"\0" * 7 + b"\1", b"d" * 32)


def test_noise_is_normal_to_its_tails() -> None:
    drawn = Randomness(KEY).noise(0).integers(400_000, deviation=1.5 * 2**24)
    assert drawn.dtype == np.int64
    scaled = drawn / (1.5 * 2**24)
    assert stats.kstest(scaled, "norm").pvalue > 0.001
    assert np.mean(np.abs(scaled) > 3) == pytest.approx(2 * stats.norm.sf(3), rel=0.1)
    assert abs(np.mean(scaled * np.roll(scaled, 1))) < 0.01  # neighbours
    halves = scaled.reshape(2, -1)
    assert abs(np.mean(halves[0] * halves[1])) < 0.01  # the two of one pair of words lie apart by a piece's half


def test_the_largest_radius_is_far_out() -> None:
    class Zeros:
        def read_into(self, out: memoryview) -> None:
            out[:] = bytes(len(out))

    from ppdl_mq.training.private.randomness import Noise

    first, second = Noise(Zeros()).integers(2, deviation=2.0**24) / 2**24  # type: ignore[arg-type]
    assert (first, second) == (pytest.approx(9.5, abs=0.1), 0)


def test_noise_small_against_its_grid_rounds_to_the_nearest() -> None:
    drawn = Randomness(KEY).noise(1).integers(200_000, deviation=0.8)
    for value in (-2, -1, 0, 1, 2):
        expected = stats.norm.cdf((value + 0.5) / 0.8) - stats.norm.cdf((value - 0.5) / 0.8)
        assert np.mean(drawn == value) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 2**18 - 1, 2**18, 2**18 + 1])
def test_any_number_of_draws(count: int) -> None:
    drawn = Randomness(KEY).noise(0).integers(count, deviation=2.0**24)
    assert len(drawn) == count
    assert len(set(drawn.tolist())) >= 0.98 * count  # no piece repeats another


def test_the_stream_goes_on_from_call_to_call() -> None:
    noise = Randomness(KEY).noise(0)
    first, second = noise.integers(100, deviation=2.0**24), noise.integers(100, deviation=2.0**24)
    assert not np.array_equal(first, second)


def test_rows_are_taken_each_by_itself() -> None:
    randomness, taken, sizes = Randomness(KEY), np.zeros(50), []
    for step in range(4_000):
        rows = randomness.rows(step, rows=50, batch_size=10)
        assert rows.dtype == torch.int64
        assert torch.equal(rows, rows.unique())
        taken[rows.numpy()] += 1
        sizes.append(len(rows))
    assert taken / 4_000 == pytest.approx(np.full(50, 0.2), abs=0.03)
    assert np.var(sizes) == pytest.approx(50 * 0.2 * 0.8, rel=0.1)  # binomial: a fixed size would have none
    assert min(sizes) < 3 < 18 < max(sizes)


@pytest.mark.parametrize("batch_size", [7, 8])
def test_all_rows_where_a_batch_holds_them(batch_size: int) -> None:
    assert Randomness(KEY).rows(3, rows=7, batch_size=batch_size).tolist() == list(range(7))


def test_the_same_again_and_nothing_twice() -> None:
    one, same = Randomness(KEY), Randomness(Secret(KEY.reveal()))
    kinds = [
        tuple(one.rows(0, rows=400, batch_size=100).tolist()),
        tuple(one.rows(1, rows=400, batch_size=100).tolist()),
        *(tuple(one.noise(step).integers(9, deviation=2.0**24)) for step in (0, 1)),
    ]
    assert len(set(kinds)) == 4
    assert kinds[0] == tuple(same.rows(0, rows=400, batch_size=100).tolist())
    assert kinds[3] == tuple(same.noise(1).integers(9, deviation=2.0**24))


def test_the_key_of_a_turn_follows_from_everything() -> None:
    numbers = (1.0, 1.1, 1200, 32)
    keys = {
        turn_key(SEED, *ORIGIN, numbers=numbers).reveal(),
        turn_key(b"\x08" * 32, *ORIGIN, numbers=numbers).reveal(),
    }
    for place in range(3):
        other = [*ORIGIN]
        other[place] = other[place][:-1] + b"\xff"
        keys.add(turn_key(SEED, *other, numbers=numbers).reveal())
    for place in range(4):
        changed = [*numbers]
        changed[place] += 1
        keys.add(turn_key(SEED, *ORIGIN, numbers=tuple(changed)).reveal())
    assert len(keys) == 9
