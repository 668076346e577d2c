"""Real data sets that ship with scikit-learn, cut into the unequal, skewed shares of several organisations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ppdl_mq.errors import DataError

# In this order, which is that of the names too: the first organisation has the largest share.
ORGANISATIONS: Final = (
    "alder",
    "birch",
    "cedar",
    "dogwood",
    "elm",
    "fir",
    "ginkgo",
    "hazel",
    "ironwood",
    "juniper",
    "larch",
    "maple",
)

_STRAYS: Final = 0.05  # share of each organisation's rows that are the next one's; the rest is its own kind alone

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Some rows of a data set.

    Args:
        inputs: float32 (rows, features).
        labels: int64 (rows).
    """

    inputs: Floats
    labels: Integers

    def take(self, rows: Integers) -> Rows:
        """Return some of the rows: int64 indices (k)."""
        return Rows(inputs=self.inputs[rows], labels=self.labels[rows])

    def counts(self, classes: int) -> tuple[int, ...]:
        """Return how many rows there are of each class."""
        return tuple(int(count) for count in np.bincount(self.labels, minlength=classes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """One data set, and how it is used here.

    Args:
        name: as the command line has it.
        title: for people.
        classes: their names.
        rows: all of them.
        spectrum: int64 (rows), the rows from one end of the population to the other; neighbours are alike.
        public_share: of the rows, kept as the public test set.
        hidden: widths of the model's hidden layers.
        skew: how the shares differ, in words.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    rows: Rows
    spectrum: Integers
    public_share: float
    hidden: tuple[int, ...]
    skew: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """A data set dealt out.

    Args:
        public: nobody trains on these; they compare the models.
        private: by organisation.
    """

    public: Rows
    private: Mapping[str, Rows]


def load(name: str, *, seed: int) -> Dataset:
    """Read a data set.

    Args:
        name: one of `NAMES`.
        seed: of the order among equals.

    Raises:
        DataError: scikit-learn is not installed.
    """
    return _LOADERS[name](np.random.default_rng([seed, 0]))


def deal(dataset: Dataset, organisations: int, *, seed: int) -> Shares:
    """Deal a data set out: sizes as n : n-1 : ... : 1, each organisation with one stretch of the spectrum.

    A few rows of each go to the next one, so that most classes are rare somewhere rather than missing.

    Args:
        dataset: all of it.
        organisations: how many, 2 to `len(ORGANISATIONS)`.
        seed: of the deal.
    """
    generator = np.random.default_rng([seed, 1])
    total = len(dataset.rows.labels)
    is_public = np.zeros(total, dtype=bool)
    is_public[generator.permutation(total)[: round(total * dataset.public_share)]] = True
    stretch = dataset.spectrum[~is_public[dataset.spectrum]]  # (private rows)
    weights = np.arange(organisations, 0, -1)
    ends = np.round(np.cumsum(weights) / weights.sum() * len(stretch))
    owner = np.searchsorted(ends, np.arange(len(stretch)), side="right")  # (private rows)
    strays = generator.random(len(stretch)) < _STRAYS
    owner = np.where(strays, (owner + 1) % organisations, owner)
    return Shares(
        public=dataset.rows.take(np.flatnonzero(is_public)),
        private={
            name: dataset.rows.take(np.sort(stretch[owner == index]))
            for index, name in enumerate(ORGANISATIONS[:organisations])
        },
    )


def _digits(generator: np.random.Generator) -> Dataset:
    loaded = _sklearn_datasets().load_digits()
    labels = loaded.target.astype(np.int64)
    return Dataset(
        name="digits",
        title="Handwritten digits (8x8 pixels)",
        classes=tuple(str(digit) for digit in range(10)),
        rows=Rows(inputs=loaded.data.astype(np.float32), labels=labels),
        spectrum=np.lexsort((generator.random(len(labels)), labels)),
        public_share=0.2,
        hidden=(64,),
        skew="each organisation has its own digits, few of its neighbour's, and none of the others",
    )


def _breast_cancer(_: np.random.Generator) -> Dataset:
    loaded = _sklearn_datasets().load_breast_cancer()
    labels = loaded.target.astype(np.int64)
    benign, radius = labels == 1, loaded.data[:, 0]
    return Dataset(
        name="breast-cancer",
        title="Breast cancer (Wisconsin, 30 measurements of cell nuclei)",
        classes=tuple(str(name) for name in loaded.target_names),
        rows=Rows(inputs=loaded.data.astype(np.float32), labels=labels),
        # Benign ones first, from large to small nuclei, then malignant ones from small to large.
        spectrum=np.lexsort((np.where(benign, -radius, radius), ~benign)),
        public_share=0.3,
        hidden=(16,),
        skew="each organisation sees other diagnoses, and nuclei of another size",
    )


_LOADERS: Final[Mapping[str, Callable[[np.random.Generator], Dataset]]] = {
    "digits": _digits,
    "breast-cancer": _breast_cancer,
}


def _sklearn_datasets() -> Any:
    try:
        from sklearn import datasets
    except ImportError:
        raise DataError(
            "The demo's data come with scikit-learn, which is not installed.",
            hint='Install it: pip install "ppdl-mq[demo]"',
        ) from None
    return datasets
