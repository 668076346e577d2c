from __future__ import annotations

from typing import Any

import pytest

from ppdl_mq.config import limits
from ppdl_mq.config.differences import differences
from ppdl_mq.config.reading import manifest_from_data
from tests.config.samples import keys, manifest_data


def between(changes: dict[str, Any]) -> tuple[str, ...]:
    mine, theirs = manifest_from_data(manifest_data()), manifest_from_data(manifest_data(changes))
    return differences(mine.as_data(), theirs.as_data())


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({}, ()),
        ({"peers": manifest_data()["peers"][::-1]}, ()),
        ({"training.momentum": 0.0}, ()),
        ({"training.learning_rate": 0.2, "nonce": "f" * 32}, ("nonce", "training.learning_rate")),
        ({"peers.0.keys": keys(3)}, ("peers.mercy.keys",)),
        ({"peers.0.name": "geneva"}, ("peers.geneva", "peers.mercy")),
        ({"model.arguments.hidden": [9]}, ("model.arguments.hidden",)),
        ({"model.arguments.inputs": 4.0}, ("model.arguments.inputs",)),
        ({"model.arguments.inputs": True}, ("model.arguments.inputs",)),
        ({"model.arguments.inputs": ...}, ("model.arguments.inputs",)),
        ({"training.turn_steps": 3}, ("training.turn_steps",)),
        ({"model.arguments.inputs": {"a": 1}}, ("model.arguments.inputs",)),
    ],
)
def test_exactly_the_fields_that_differ(changes: dict[str, Any], fields: tuple[str, ...]) -> None:
    assert between(changes) == fields


def test_the_rules_of_masked_average_differ_by_name() -> None:
    masked: dict[str, Any] = {"protocol": "masked-average"}
    mine = manifest_from_data(manifest_data(masked)).as_data()
    assert differences(mine, mine) == ()
    theirs = masked | {"averaging": {"weighting": "secret", "min_peers": 2, "head_room": 4}}
    fields = ("averaging.head_room", "averaging.weighting", "averaging.word")
    assert differences(mine, manifest_from_data(manifest_data(theirs)).as_data()) == fields
    assert differences(mine, manifest_from_data(manifest_data()).as_data()) == ("averaging", "protocol")
    samples = {"peers.0.samples": 5, "peers.1.samples": 5, "averaging": {"weighting": "declared"}}
    fields = ("averaging.weighting", "peers.basel.samples", "peers.mercy.samples")
    assert differences(mine, manifest_from_data(manifest_data(masked | samples)).as_data()) == fields


def test_many_differences_are_cut_and_odd_names_hidden() -> None:
    many = between({f"model.arguments.x{number}": 1 for number in range(1000)})
    assert len(many) == limits.MAX_DIFFERENCES
    assert between({"model.arguments": {"\x1b[2J": 1, "inputs": 4, "hidden": [8], "outputs": 3}}) == (
        "model.arguments.?",
    )
    assert between({"model.arguments." + "y" * 5000: "value"}) == ("model.arguments.?",)
