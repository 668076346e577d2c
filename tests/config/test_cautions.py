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


def test_all_are_said() -> None:
    few = {"training__batch_size": 1, "training__turn_steps": 1, "peers": THREE[:2]}
    assert len(cautions_of(manifest(model__callable="company.models:net", **few))) == 4
