"""The rules of masked-average: their defaults, and what does not go together."""

from __future__ import annotations

from typing import Any

import pytest

from ppdl_mq.config.manifest import Averaging, Manifest
from ppdl_mq.config.reading import manifest_from_data
from ppdl_mq.errors import ManifestError
from tests.config.samples import keys, manifest_data

THREE = [{"name": name, "keys": keys(number)} for number, name in enumerate(("basel", "mercy", "zurich"), 1)]


def masked(changes: dict[str, Any] | None = None, *, complete: bool = True) -> Manifest:
    return manifest_from_data(manifest_data({"protocol": "masked-average"} | (changes or {})), complete=complete)


def test_the_rules_are_filled_in() -> None:
    assert masked().averaging == masked({"averaging": {}}).averaging == Averaging()
    assert masked().as_data() == masked({"averaging": {"word": 32, "min_peers": 2}}).as_data()
    assert masked().as_data()["averaging"]["weighting"] == "equal"


def test_another_protocol_has_none_in_its_trial_id() -> None:
    manifest = manifest_from_data(manifest_data())
    assert manifest.averaging is None
    assert "averaging" not in manifest.as_data()
    assert "samples" not in manifest.as_data()["peers"][0]


def test_what_is_written_out_is_read_back() -> None:
    rules = {"weighting": "declared", "stop_at_loss": 0.5, "on_absent": "drop", "absent_after_s": 60}
    changes = {"averaging": rules, "peers.0.samples": 7, "peers.1.samples": 9}
    data = manifest_data({"protocol": "masked-average"} | changes)
    manifest = manifest_from_data(data)
    assert [peer.get("samples") for peer in manifest.as_data()["peers"]] == [9, 7]  # basel, mercy
    assert manifest.averaging is not None
    assert manifest.averaging.absent_after_s == 60.0


@pytest.mark.parametrize("weighting", ["equal", "declared", "secret"])
def test_secret_begins_with_64_bits(weighting: str) -> None:
    rules = Averaging.model_validate({"weighting": weighting})
    assert rules.word == (64 if weighting == "secret" else 32)
    changes: dict[str, Any] = {"averaging.weighting": weighting}
    if weighting == "declared":
        changes |= {"peers.0.samples": 5, "peers.1.samples": 5}
    assert masked(changes).averaging == rules
    assert masked(changes | {"averaging.word": 64}).averaging == rules.model_copy(update={"word": 64})


ENDS = {"averaging.evaluate_every": 0}
REGRESSION = {"training.loss": "mse", "data.classes": ...}
DECLARED = {"averaging.weighting": "declared"}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    # why it is wrong: what is changed, and the field that the sentence must name
    "rules of another protocol": ({"protocol": "server-aided", "averaging": {}}, "averaging"),
    "rules of one more": ({"protocol": "fully-connected", "averaging": {"min_peers": 2}}, "averaging"),
    "samples in another protocol": ({"protocol": "server-aided", "peers.0.samples": 5}, "peers.mercy.samples"),
    "an order": ({"order": "shuffled"}, "order"),
    "nobody declares": (DECLARED, "peers.mercy.samples"),
    "one declares": (DECLARED | {"peers.0.samples": 5}, "peers.basel.samples"),
    "declared for nothing": ({"peers.1.samples": 5}, "peers.basel.samples"),
    "declared and secret": ({"averaging.weighting": "secret", "peers.1.samples": 5}, "peers.basel.samples"),
    "no samples": (DECLARED | {"peers.0.samples": 0, "peers.1.samples": 5}, "peers.mercy.samples"),
    "too many samples": (DECLARED | {"peers.0.samples": 2**31 + 1, "peers.1.samples": 5}, "peers.mercy.samples"),
    "secret in 32 bits": ({"averaging": {"weighting": "secret", "word": 32}}, "averaging.word"),
    "an odd word": ({"averaging.word": 48}, "averaging.word"),
    "more than there are": ({"averaging.min_peers": 3}, "averaging.min_peers"),
    "alone": ({"averaging.min_peers": 1}, "averaging.min_peers"),
    "accuracy unmeasured": (ENDS | {"averaging.stop_at_accuracy": 0.9}, "averaging.stop_at_accuracy"),
    "loss unmeasured": (ENDS | {"averaging.stop_at_loss": 0.0}, "averaging.stop_at_loss"),
    "patience unmeasured": (ENDS | {"averaging.stop_patience": 1}, "averaging.stop_patience"),
    "accuracy in regression": (REGRESSION | {"averaging.stop_at_accuracy": 0.9}, "averaging.stop_at_accuracy"),
    "accuracy over 1": ({"averaging.stop_at_accuracy": 95}, "averaging.stop_at_accuracy"),
    "no deadline": ({"averaging.absent_after_s": 0}, "averaging.absent_after_s"),
    "too many rounds": ({"training.epochs": 100_000, "training.turns_per_epoch": 51}, "training.epochs"),
    "an unknown weighting": ({"averaging.weighting": "rows"}, "averaging.weighting"),
    "no rules": ({"averaging": 5}, "averaging"),
    "unknown": ({"averaging.headroom": 3}, "averaging.headroom"),
}


@pytest.mark.parametrize(("changes", "field"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ManifestError) as caught:
        masked(changes)
    assert caught.value.message.removeprefix("manifest: ").split(" ")[0] == field
    assert "\n" not in str(caught.value)


def test_a_misspelt_rule_is_answered_with_the_nearest_known_one() -> None:
    with pytest.raises(ManifestError) as caught:
        masked({"averaging.headroom": 3})
    assert caught.value.hint == "Did you mean averaging.head_room?"


@pytest.mark.parametrize(
    "changes",
    [
        REGRESSION | {"averaging.stop_at_loss": 0.0},
        {"averaging.evaluate_every": 0},
        {"averaging": {"stop_at_accuracy": 1, "stop_patience": 3, "evaluate_every": 5}},
        {"averaging.min_peers": 3, "peers": THREE},
    ],
)
def test_what_goes_together(changes: dict[str, Any]) -> None:
    assert masked(changes).averaging is not None


def test_a_draft_may_lack_peers_that_its_rules_want() -> None:
    assert masked({"averaging.min_peers": 3}, complete=False).peers
    with pytest.raises(ManifestError, match="at least 2"):  # said before min_peers, which is 2 by itself
        masked({"peers": []})
