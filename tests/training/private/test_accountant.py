"""The library's bound, held to other ways to count; and what we ask of it."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from scipy import integrate, optimize, stats

from ppdl_mq.errors import PrivacyBudget
from ppdl_mq.training.private import accountant
from ppdl_mq.training.private.accountant import Steps, epsilon, least_noise

DELTA = 1e-5


def steps(count: int, *, rate: tuple[int, int] = (1, 1), noise: float = 1.0) -> Steps:
    return Steps(count=count, batch_size=rate[0], rows=rate[1], noise=noise)


def exact_gaussian(noise: float, delta: float) -> float:
    """Balle and Wang (arXiv 1805.06530), theorem 8: epsilon of one Gaussian mechanism of sensitivity 1."""

    def missing(eps: float) -> float:
        a, b = 1 / (2 * noise), eps * noise
        return float(stats.norm.cdf(a - b) - math.exp(eps) * stats.norm.cdf(-a - b)) - delta

    return float(optimize.brentq(missing, 1e-9, 300))


def failing(rate: float, noise: float, eps: float) -> float:
    """Delta of one step of the sampled Gaussian mechanism, by integration, for a row that is added or removed."""

    def excess(added: bool) -> float:
        def density(x: float) -> float:
            without, with_row = stats.norm.pdf(x, 0, noise), stats.norm.pdf(x, 1, noise)
            mixed = (1 - rate) * without + rate * with_row
            return max(0.0, mixed - math.exp(eps) * without) if added else max(0.0, without - math.exp(eps) * mixed)

        return float(integrate.quad(density, -12 * noise, 12 * noise + 1, points=[0, 0.5, 1], limit=400)[0])

    return max(excess(True), excess(False))


@pytest.mark.parametrize(("noise", "count"), [(1.0, 1), (4.0, 1), (0.7, 1), (5.0, 40), (20.0, 1000)])
def test_without_sampling_it_bounds_the_exact_value_closely(noise: float, count: int) -> None:
    exact = exact_gaussian(noise / math.sqrt(count), DELTA)  # so many steps are one of less noise
    found = epsilon([steps(count, noise=noise)], DELTA)
    assert exact <= found <= 1.25 * exact


@pytest.mark.parametrize("rate", [(1, 2), (1, 10), (1, 100)])
@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
def test_one_sampled_step_fails_no_more_often_than_delta(rate: tuple[int, int], noise: float) -> None:
    found = epsilon([steps(1, rate=rate, noise=noise)], DELTA)
    assert failing(rate[0] / rate[1], noise, found) <= DELTA
    assert failing(rate[0] / rate[1], noise, found / 12) > DELTA  # a bound that is not empty


@pytest.mark.parametrize(
    ("count", "rate", "noise"), [(10_000, (256, 60_000), 1.1), (480, (32, 1_200), 0.76), (100, (1, 4), 3.0)]
)
def test_many_sampled_steps_against_numerical_composition(count: int, rate: tuple[int, int], noise: float) -> None:
    """Gopi, Lee and Wutschitz (arXiv 2106.02848) compose without Renyi divergence."""
    from opacus.accountants import PRVAccountant

    other = PRVAccountant()
    other.history = [(noise, rate[0] / rate[1], count)]
    composed = other.get_epsilon(DELTA, eps_error=0.05)
    found = epsilon([steps(count, rate=rate, noise=noise)], DELTA)
    assert composed - 0.1 <= found <= 1.3 * composed


def test_nothing_costs_nothing() -> None:
    assert epsilon([], DELTA) == 0.0
    assert epsilon([steps(0)], DELTA) == 0.0


def test_steps_of_several_kinds_add_up() -> None:
    one, other = steps(100, rate=(1, 20)), steps(50, rate=(1, 10), noise=2.0)
    both = epsilon([one, other], DELTA)
    assert max(epsilon([one], DELTA), epsilon([other], DELTA)) < both
    assert both < epsilon([one], DELTA) + epsilon([other], DELTA)
    assert epsilon([steps(60, rate=(1, 20)), steps(40, rate=(1, 20))], DELTA) == epsilon([one], DELTA)


def test_it_grows_with_what_it_should() -> None:
    base = epsilon([steps(100, rate=(1, 20))], DELTA)
    assert base < epsilon([steps(101, rate=(1, 20))], DELTA)
    assert base < epsilon([steps(100, rate=(1, 19))], DELTA)
    assert base < epsilon([steps(100, rate=(1, 20), noise=0.99)], DELTA)
    assert base < epsilon([steps(100, rate=(1, 20))], DELTA / 10)


@pytest.mark.parametrize("budget", [1.0, 3.0, 8.0])
def test_the_least_noise_is_enough_and_hardly_more(budget: float) -> None:
    noise = least_noise(480, batch_size=32, rows=1_200, budget=budget, delta=DELTA)
    assert budget * 0.999 < epsilon([steps(480, rate=(32, 1_200), noise=noise)], DELTA) <= budget
    assert noise == round(noise, 4)  # as it is told, it can be written down


def test_a_budget_that_no_noise_meets() -> None:
    with pytest.raises(PrivacyBudget, match="No noise"):
        least_noise(10**9, batch_size=1, rows=1, budget=0.001, delta=DELTA)


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "opacus"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opacus", None)
    monkeypatch.setattr(accountant, "_of_one_step", accountant._of_one_step.__wrapped__)
    with pytest.raises(PrivacyBudget) as caught:
        epsilon([steps(1)], DELTA)
    assert "ppdl-mq[privacy]" in caught.value.hint


def test_every_order_that_is_asked_for_gives_a_bound_or_none() -> None:
    found = accountant._of_one_step(0.9, 0.3)
    assert not np.isnan(found).any()
    assert np.isfinite(found).any()
