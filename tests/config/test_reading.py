from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest

from ppdl_mq.config import limits
from ppdl_mq.config.reading import manifest_from_data, manifest_from_text, read_manifest
from ppdl_mq.errors import ManifestError
from tests.config.samples import keys, manifest_data


def test_a_valid_manifest_is_read_with_its_defaults() -> None:
    manifest = manifest_from_data(manifest_data())
    assert manifest.training.momentum == 0.0
    assert manifest.data.shape == (4,)
    assert manifest.peer_names == ("basel", "mercy")
    assert [peer["name"] for peer in manifest.as_data()["peers"]] == ["basel", "mercy"]


def test_an_integer_where_a_float_belongs_becomes_a_float() -> None:
    manifest = manifest_from_data(manifest_data({"training.learning_rate": 1}))
    assert type(manifest.training.learning_rate) is float


def test_arguments_keep_their_types() -> None:
    given = {"a": 1, "b": 1.0, "c": True, "d": "1", "e": [1, 2.5, {"f": []}]}
    kept = manifest_from_data(manifest_data({"model.arguments": given})).model.arguments
    assert repr(kept) == repr(given)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    # why it is wrong: what is changed, and the field that the sentence must name
    "missing": ({"training.batch_size": ...}, "training.batch_size"),
    "missing table": ({"training": ...}, "training"),
    "unknown": ({"training.colour": 1}, "training.colour"),
    "unknown in a peer": ({"peers.0.colour": 1}, "peers.mercy.colour"),
    "unknown at the top": ({"colour": 1}, "colour"),
    "a string for a number": ({"training.epochs": "2"}, "training.epochs"),
    "a float for an integer": ({"training.epochs": 2.0}, "training.epochs"),
    "a boolean for a number": ({"training.learning_rate": True}, "training.learning_rate"),
    "zero": ({"training.batch_size": 0}, "training.batch_size"),
    "negative": ({"training.learning_rate": -0.1}, "training.learning_rate"),
    "not finite": ({"training.learning_rate": float("inf")}, "training.learning_rate"),
    "not a number": ({"model.arguments.x": float("nan")}, "model.arguments.x"),
    "over 64 bits": ({"model.arguments.x": 2**63}, "model.arguments.x"),
    "under 64 bits": ({"model.arguments.x": -(2**63) - 1}, "model.arguments.x"),
    "a date": ({"model.arguments.x": datetime.date(2020, 1, 1)}, "model.arguments.x"),
    "bytes": ({"model.arguments.x": b"x"}, "model.arguments.x"),
    "no value": ({"model.arguments.x": None}, "model.arguments.x"),
    "a bad name": ({"name": "Heart"}, "name"),
    "a newline after a name": ({"name": "heart\n"}, "name"),
    "a short nonce": ({"nonce": "00"}, "nonce"),
    "an unknown protocol": ({"protocol": "masked"}, "protocol"),
    "an unknown version": ({"version": 2}, "version"),
    "no module": ({"model.callable": "mlp"}, "model.callable"),
    "a path for a module": ({"model.callable": "models.py:mlp()"}, "model.callable"),
    "no peers": ({"peers": []}, "peers"),
    "one peer": ({"peers": manifest_data()["peers"][:1]}, "peers"),
    "equal names": ({"peers.1.name": "mercy"}, "peers.mercy"),
    "equal keys": ({"peers.1.keys": keys(1)}, "peers.basel.keys"),
    "half-equal keys": ({"peers.1.keys": keys(2)[:43] + keys(1)[43:]}, "peers.basel.keys"),
    "two encodings of keys": ({"peers.1.keys": keys(2)[:-1] + chr(ord(keys(2)[-1]) + 1)}, "peers.basel.keys"),
    "a reserved name": ({"peers.0.name": "weights"}, "peers.weights"),
    "two kinds of turn": ({"training.turn_epochs": 1, "training.turn_steps": 1}, "training.turn_epochs"),
    "passes and several turns": ({"training.turn_epochs": 1, "training.turns_per_epoch": 2}, "training.turn_epochs"),
    "too many turns": ({"training.epochs": 100_000, "training.turns_per_epoch": 51}, "training.epochs"),
    "cross-entropy without classes": ({"data.classes": ...}, "data.classes"),
    "binary with three classes": ({"training.loss": "binary-cross-entropy"}, "data.classes"),
    "mse with classes": ({"training.loss": "mse"}, "data.classes"),
    "constants unused": ({"data.mean": [1.0]}, "data.mean"),
    "constants missing": ({"data.standardise": "manifest"}, "data.mean"),
    "as many constants as axes": (
        {"data.standardise": "manifest", "data.mean": [0.0], "data.std": [1.0, 1.0]},
        "data.std",
    ),
    "a std of zero": ({"data.standardise": "manifest", "data.mean": [0.0], "data.std": [0.0]}, "data.std"),
    "no shape": ({"data.shape": []}, "data.shape"),
    "too many axes": ({"data.shape": [1] * 9}, "data.shape"),
    "too many peers": ({"peers": [{"name": f"p{at}", "keys": keys(1)} for at in range(201)]}, "peers"),
    "an empty axis": ({"data.shape": [4, 0]}, "data.shape.1"),
    "a huge sample": ({"data.shape": [2**40]}, "data.shape"),
}


@pytest.mark.parametrize(("changes", "field"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ManifestError) as caught:
        manifest_from_data(manifest_data(changes), source="heart.toml")
    assert caught.value.message.removeprefix("heart.toml: ").split(" ")[0].rstrip(":") == field
    assert "\n" not in str(caught.value)


def test_a_misspelt_key_is_answered_with_the_nearest_known_one() -> None:
    changes = {"training.learning_rate": ..., "training.learningrate": 0.1}
    with pytest.raises(ManifestError) as caught:
        manifest_from_data(manifest_data(changes))
    assert caught.value.hint == "Did you mean training.learning_rate?"


def test_a_draft_may_lack_peers() -> None:
    assert manifest_from_data(manifest_data({"peers": ...}), complete=False).peers == ()


@pytest.mark.parametrize(
    "content",
    [b"name = ", b"\xff", b"x = " + b"[" * 100_000, b"#" * (limits.MAX_MANIFEST_BYTES + 1), b"x = 1" + b"0" * 5000],
    ids=["not TOML", "not UTF-8", "deep", "large", "many digits"],
)
def test_a_file_that_is_no_manifest(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "heart.toml"
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=r"heart\.toml"):
        read_manifest(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ManifestError):
        read_manifest(tmp_path / "heart.toml")
    with pytest.raises(ManifestError):
        read_manifest(tmp_path)


def test_nesting_has_a_limit() -> None:
    deep: Any = 1
    for _ in range(limits.MAX_ARGUMENT_DEPTH):
        deep = [deep]
    with pytest.raises(ManifestError):
        manifest_from_data(manifest_data({"model.arguments.x": deep}))


def test_long_hostile_names_are_not_repeated() -> None:
    with pytest.raises(ManifestError) as caught:
        manifest_from_data(manifest_data({"x" * 1000: 1}))
    assert len(str(caught.value)) < 300


def test_toml_lists_become_tuples() -> None:
    with pytest.raises(ManifestError, match="version"):
        manifest_from_text("name = 'heart'", source="x")
