"""What steps of the sampled Gaussian mechanism cost, as (epsilon, delta).

The arithmetic is Opacus': Renyi differential privacy of the sampled Gaussian mechanism (Mironov, Talwar and Zhang,
arXiv 1908.10530), its conversion by theorem 21 of Balle et al. (arXiv 1905.09982).

Source: docs/PRIVACY.md, "Accounting".
"""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ppdl_mq.config import limits
from ppdl_mq.errors import PrivacyBudget

_ORDERS: Final = (*(1 + each / 10 for each in range(1, 100)), *range(11, 64), 80, 96, 128, 192, 256, 384, 512)
_NOISES_IN_ONE: Final = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Steps of one kind.

    Args:
        count: how many.
        batch_size: rows of a step on average.
        rows: of all.
        noise: standard deviation in units of the clip.
    """

    count: int
    batch_size: int
    rows: int
    noise: float


def epsilon(steps: Iterable[Steps], delta: float) -> float:
    """Return what steps cost together, at this delta; 0 for none.

    Raises:
        PrivacyBudget: the library that counts is not installed.
    """
    found = [each for each in steps if each.count]
    if not found:
        return 0.0
    total = np.zeros(len(_ORDERS))
    for each in found:
        total += _of_one_step(min(1.0, each.batch_size / each.rows), each.noise) * each.count
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that another order might give less: it is a bound all the same
        spent, _ = _library().get_privacy_spent(orders=list(_ORDERS), rdp=total, delta=delta)
    return max(0.0, float(spent))


def least_noise(count: int, *, batch_size: int, rows: int, budget: float, delta: float) -> float:
    """Return the least noise with which steps stay within a budget.

    Args:
        count: of the steps.
        batch_size: rows of a step on average.
        rows: of all.
        budget: the largest epsilon.
        delta: at which.

    Returns:
        A multiple of 0.0001, in units of the clip.

    Raises:
        PrivacyBudget: no noise is enough, or the library that counts is not installed.
    """

    def fits(noise: float) -> bool:
        return epsilon([Steps(count=count, batch_size=batch_size, rows=rows, noise=noise)], delta) <= budget

    low = high = limits.LEAST_NOISE
    while not fits(high):
        if high >= limits.MOST_NOISE:
            raise PrivacyBudget(
                f"No noise keeps {count} steps within epsilon {budget:g} at delta {delta:g}.",
                hint="Raise epsilon in [privacy], or agree on fewer epochs.",
            )
        low, high = high, min(limits.MOST_NOISE, 2 * high)
    while high - low > 0.25 / _NOISES_IN_ONE:
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return math.ceil(high * _NOISES_IN_ONE) / _NOISES_IN_ONE  # as people write it


@functools.lru_cache(maxsize=256)
def _of_one_step(rate: float, noise: float) -> npt.NDArray[np.float64]:
    """Return the Renyi divergence of one step, for each order."""
    compute = _library().compute_rdp
    found = np.full(len(_ORDERS), np.inf)
    for place, order in enumerate(_ORDERS):
        with contextlib.suppress(ValueError, OverflowError):  # its series does not converge there: no bound from it
            found[place] = compute(q=rate, noise_multiplier=noise, steps=1, orders=float(order))
    return found


def _library() -> Any:
    """Import what counts: only a trial with [privacy] needs it.

    Raises:
        PrivacyBudget: it is not installed.
    """
    try:
        from opacus.accountants.analysis import rdp
    except ImportError as error:
        raise PrivacyBudget(
            f"Differential privacy needs opacus, which cannot be imported ({error.name} is missing).",
            hint="Install it: pip install 'ppdl-mq[privacy]'.",
        ) from error
    return rdp
