"""What a demonstration came to: one frozen object, for `result.json`, the terminal and the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

ALL_HOLDOUTS: Final = "all hold-outs together"  # the curve that everybody learns
SAME_ORDER: Final = "pooled, same order"
SHUFFLED: Final = "pooled, shuffled"
MASKED: Final = "masked-average"


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Accuracy after so many epochs or rounds.

    Args:
        name: for people.
        points: (epochs or rounds, accuracy 0 to 1).
    """

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnLength:
    """One turn length, and what it leads to.

    Args:
        passes: how often a peer goes through its own rows in one turn, or round.
        turns: of the whole trial, or rounds.
        accuracy: 0 to 1.
        is_own: whether it is the trial's own.
    """

    passes: float
    turns: int
    accuracy: float
    is_own: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One organisation's samples.

    Args:
        name: of the organisation.
        rows: all of them.
        training_rows: those it trains on; the others are its own hold-out.
        counts: of each class.
    """

    name: str
    rows: int
    training_rows: int
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Averaged:
    """How near a trial of masked-average came to what it promises.

    Args:
        a_round: what one round is, in words.
        largest_difference: of any weight of any peer from plain federated averaging in PyTorch, after all rounds.
        values: that were held to the stated bound: every weight after every round.
        values_off: those that are further from the mean of what the peers trained than docs/PROTOCOL.md, section 14,
            and the rounding to float32 allow.
        holdouts: accuracy over rounds: over all hold-outs together, which everyone learns, then each peer's own, which
            it alone knows.
    """

    a_round: str
    largest_difference: float
    values: int
    values_off: int
    holdouts: tuple[Curve, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one protocol did.

    Args:
        accuracy: of the final model on the public test set, 0 to 1.
        differing_bits: from pooled SGD in the same order; of the peer whose model differs most. None in
            masked-average, which is another computation.
        averaged: what masked-average is held to instead; None in the other protocols.
        distinct_models: how many different model files the peers have in the end.
        relay_messages: that passed the relay.
        relay_bytes: in them.
        relay_readable: messages in which the relay could read something; None where nobody could look.
        relay_counted_by: `tap`, a copy of everything that passed, or `peers`, what they say to have published.
        relay_findings: what `relay_readable` is made of.
        seconds: from the first process's start to the last one's end.
        turns: of the trial; in masked-average, its rounds.
        seconds_a_turn: between the first turn's end and the last one's; in masked-average, a round.
        holdout: by peer, accuracy of the final model on its own hold-out; None without one.
    """

    accuracy: float
    differing_bits: int | None
    averaged: Averaged | None = None
    distinct_models: int
    relay_messages: int
    relay_bytes: int
    relay_readable: int | None
    relay_counted_by: str
    relay_findings: Mapping[str, int]
    seconds: float
    turns: int
    seconds_a_turn: float
    holdout: Mapping[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Everything a demonstration measured.

    Args:
        dataset: its name.
        title: of the data set, for people.
        skew: how the shares differ, in words.
        classes: their names.
        public_rows: of the public test set.
        shares: of the organisations.
        activation: of the model.
        model_bytes: of its weights.
        relay: its address, without secrets.
        pooled_accuracy: of ordinary, shuffled SGD over all rows, 0 to 1.
        pooled_same_order_accuracy: of SGD over all rows in the trial's order.
        alone: by organisation.
        protocols: by name.
        curves: accuracy over epochs.
        turn_lengths: accuracy over turn length, from short to long; nothing where no protocol has turns.
        round_lengths: the same for masked-average; nothing without it.
        cautions: what a person should know of this very demonstration.
        software: versions.
    """

    dataset: str
    title: str
    skew: str
    classes: tuple[str, ...]
    public_rows: int
    shares: tuple[Share, ...]
    activation: str
    model_bytes: int
    relay: str
    pooled_accuracy: float
    pooled_same_order_accuracy: float
    alone: Mapping[str, float]
    protocols: Mapping[str, Outcome]
    curves: tuple[Curve, ...]
    turn_lengths: tuple[TurnLength, ...]
    round_lengths: tuple[TurnLength, ...]
    cautions: tuple[str, ...]
    software: str

    def as_data(self) -> dict[str, Any]:
        """Return it as what JSON knows."""
        return asdict(self)


def in_short(number: float) -> str:
    """Return a small number as people write it: 1.2e-7."""
    mantissa, _, exponent = f"{number:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}" if number else "0"
