from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

from ppdl_mq.crypto.secret import Secret
from ppdl_mq.training.private.randomness import Randomness, gaussians, turn_key

KEY = Secret(bytes(range(32)))
SEED = b"\7" * 32
ORIGIN = (b"t" * 32, b"\0" * 7 + b"\1", b"d" * 32)


def test_noise_is_normal_to_its_tails() -> None:
    drawn = Randomness(KEY).noise(0, 400_000, deviation=1.5 * 2**24)
    assert drawn.dtype == np.int64
    scaled = drawn / (1.5 * 2**24)
    assert stats.kstest(scaled, "norm").pvalue > 0.001
    assert np.mean(np.abs(scaled) > 3) == pytest.approx(2 * stats.norm.sf(3), rel=0.1)
    assert abs(np.mean(scaled * np.roll(scaled, 1))) < 0.01  # neighbours
    halves = scaled.reshape(2, -1)
    assert abs(np.mean(halves[0] * halves[1])) < 0.01  # the two of one pair of words lie apart by a piece's half


def exact(first: int, second: int) -> tuple[mpmath.mpf, mpmath.mpf]:
    """The two draws of one pair of words, to 40 digits."""
    with mpmath.workdps(40):
        uniform = (mpmath.mpf(first) + (mpmath.mpf(second % 2048) + mpmath.mpf(1) / 2) / 2048) / mpmath.mpf(2) ** 64
        radius = mpmath.sqrt(-2 * mpmath.log(uniform))
        angle = 2 * mpmath.pi * (second // 2048) / mpmath.mpf(2) ** 53
        return radius * mpmath.cos(angle), radius * mpmath.sin(angle)


EDGES = (0, 1, 2, 1000, 2**53 - 1, 2**53, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 2**12, 2**64 - 2, 2**64 - 1)


@pytest.mark.parametrize("first", EDGES)
@pytest.mark.parametrize("second", [0, 1, 2047, 2048 * 12345 + 77, 2**63, 2**64 - 1])
def test_draws_are_exact_at_every_edge(first: int, second: int) -> None:
    words = [np.array([word], dtype=np.uint64) for word in (first, second)]
    for found, expected in zip(gaussians(*words), exact(first, second), strict=True):
        assert abs(found - expected) <= 2e-14 * max(1, abs(expected))
    assert np.hypot(*gaussians(*words)) > 0  # no two lie on one another in the middle, either


def test_the_tails_reach_far_and_are_dense() -> None:
    pairs = [
        gaussians(np.array([first], dtype=np.uint64), np.array([second], dtype=np.uint64))
        for first, second in ((0, 0), (0, 1), (1000, 0), (1000, 1))
    ]
    radii = [np.hypot(*pair) for pair in pairs]
    assert radii[0] > 10
    assert 0 < radii[2] - radii[3] < 1e-7  # a step of the grid is 2**-20


def test_noise_small_against_its_grid_rounds_to_the_nearest() -> None:
    drawn = Randomness(KEY).noise(1, 200_000, deviation=0.8)
    for value in (-2, -1, 0, 1, 2):
        expected = stats.norm.cdf((value + 0.5) / 0.8) - stats.norm.cdf((value - 0.5) / 0.8)
        assert np.mean(drawn == value) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 2**18 - 1, 2**18, 2**18 + 1])
def test_any_number_of_draws(count: int) -> None:
    drawn = Randomness(KEY).noise(0, count, deviation=2.0**24)
    assert len(drawn) == count
    assert len(set(drawn.tolist())) >= 0.98 * count  # no piece repeats another


def test_the_stream_goes_on_from_piece_to_piece() -> None:
    whole = Randomness(KEY).noise(0, 2**18 + 50, deviation=2.0**24)
    assert np.array_equal(whole[: 2**18], Randomness(KEY).noise(0, 2**18, deviation=2.0**24))
    assert not set(whole[2**18 :].tolist()) <= set(whole[: 2**18].tolist())


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
        *(tuple(one.noise(step, 9, deviation=2.0**24)) for step in (0, 1)),
    ]
    assert len(set(kinds)) == 4
    assert kinds[0] == tuple(same.rows(0, rows=400, batch_size=100).tolist())
    assert kinds[3] == tuple(same.noise(1, 9, deviation=2.0**24))


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


def test_a_seed_is_of_its_step_and_row() -> None:
    one = Randomness(KEY)
    seeds = {one.seed(step, row) for step in range(20) for row in range(20)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert one.seed(3, 4) == Randomness(Secret(KEY.reveal())).seed(3, 4)
