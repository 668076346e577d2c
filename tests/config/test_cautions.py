from __future__ import annotations

from typing import Any

import pytest

from ppdl_mq.config.cautions import cautions_of
from ppdl_mq.config.manifest import Manifest
from ppdl_mq.config.reading import manifest_from_data

from .samples import keys, manifest_data

THREE = [{"name": name, "keys": keys(number)} for number, name in enumerate(("basel", "mercy", "zurich"), 1)]


def manifest(**changes: Any) -> Manifest:
    return manifest_from_data(
        manifest_data({"peers": THREE} | {key.replace("__", "."): changes[key] for key in changes})
    )


def test_an_ordinary_trial_needs_none() -> None:
    assert cautions_of(manifest()) == []
    assert cautions_of(manifest(training__batch_size=8, training__turn_steps=8)) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model__callable": "company.models:net"}, "company.models:net"),
        ({"model__callable": "ppdl_mq.training.models.more:net"}, "allow it"),
        ({"training__batch_size": 7}, "7 samples"),
        ({"training__batch_size": 1}, "1 sample:"),
        ({"training__batch_size": 9, "training__turn_steps": 7}, "63 samples"),
        ({"peers": THREE[:2]}, "two peers"),
    ],
)
def test_each_has_its_own_sentence(changes: dict[str, Any], said: str) -> None:
    (caution,) = cautions_of(manifest(**changes))
    assert said in caution
    assert caution.endswith(".")


def masked(*names: str, **changes: Any) -> Manifest:
    peers = [peer for peer in THREE if not names or peer["name"] in names]
    return manifest(**{"protocol": "masked-average", "peers": peers} | changes)


def declared(*counts: int) -> dict[str, Any]:
    peers = [peer | {"samples": count} for peer, count in zip(THREE, counts, strict=True)]
    return {"averaging__weighting": "declared", "peers": peers}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"training__batch_size": 8, "training__turn_steps": 8},
        declared(300, 300, 300),
        {"averaging__on_absent": "abort"},
    ],
)
def test_an_ordinary_trial_of_masked_average_needs_none(changes: dict[str, Any]) -> None:
    assert cautions_of(masked(**changes)) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peers": THREE[:2]}, "the other peer can subtract its own part"),
        ({"training__turn_steps": 1}, "one local step"),
        ({"training__turn_steps": 1, "training__batch_size": 1000}, "is a gradient"),
        ({"training__turn_steps": 2, "training__batch_size": 31}, "62 samples"),
        ({"averaging__on_absent": "drop", "averaging__absent_after_s": 90.0}, "90 s of silence"),
        (declared(299, 1_000_000, 12), "basel, zurich:"),
        ({"averaging__weighting": "secret"}, "when the membership changes"),
    ],
)
def test_each_price_of_masked_average_has_its_own_sentence(changes: dict[str, Any], said: str) -> None:
    (caution,) = cautions_of(masked(**changes))
    assert said in caution
    assert caution.endswith(".")


def test_one_step_a_turn_is_not_called_a_round_in_a_sequential_trial() -> None:
    (caution,) = cautions_of(manifest(training__turn_steps=1))
    assert "a turn is only 8 samples" in caution


def test_all_are_said() -> None:
    few = {"training__batch_size": 1, "training__turn_steps": 1, "peers": THREE[:2]}
    assert len(cautions_of(manifest(model__callable="company.models:net", **few))) == 4
