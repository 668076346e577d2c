from __future__ import annotations

import pytest

from ppdl_mq.config.manifest import Averaging
from ppdl_mq.config.manifest_text import PRESETS, manifest_text, with_nonce, with_peer
from ppdl_mq.config.reading import manifest_from_text
from ppdl_mq.config.toml_text import parse_argument
from ppdl_mq.errors import ManifestError
from tests.config.samples import keys

NONCE = "0" * 31 + "1"


def draft(preset: str = "digits", *, weighting: str | None = None) -> str:
    """A manifest without peers; with a weighting, of masked-average."""
    return manifest_text(
        PRESETS[preset],
        name="trial",
        nonce=NONCE,
        protocol="masked-average" if weighting else "fully-connected",
        order="fixed" if weighting else "shuffled",
        turns_per_epoch=2,
        turn_steps=4,
        weighting=weighting or "equal",
    )


def add(text: str, name: str, number: int, samples: int | None = None) -> str:
    return with_peer(text, name=name, keys=keys(number), comment="AAAAA", source="trial.toml", samples=samples)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_whole_manifest_once_it_has_peers(preset: str) -> None:
    manifest = manifest_from_text(add(add(draft(preset), "b", 1), "a", 2), source="x")
    assert manifest.peer_names == ("a", "b")
    assert manifest.model.callable == PRESETS[preset].model
    assert (manifest.nonce, manifest.training.turn_steps) == (NONCE, 4)


def test_every_field_stands_in_the_text() -> None:
    text = draft(weighting="equal")
    manifest = manifest_from_text(text, source="x", complete=False)
    fields = set(type(manifest).model_fields) - {"peers"}
    assert manifest.averaging is not None
    for table in (manifest.model, manifest.training, manifest.data, manifest.relay, manifest.averaging):
        fields |= set(type(table).model_fields)
    assert [field for field in sorted(fields) if f"{field} = " not in text and f"[{field}" not in text] == [
        "arguments"
    ]  # [model.arguments]


@pytest.mark.parametrize("weighting", ["equal", "declared", "secret"])
def test_the_rules_of_masked_average_are_written_with_their_defaults(weighting: str) -> None:
    manifest = manifest_from_text(draft(weighting=weighting), source="x", complete=False)
    assert manifest.averaging == Averaging.model_validate({"weighting": weighting})


def test_every_rule_that_is_left_out_shows_a_value_that_holds() -> None:
    text = draft(weighting="equal").replace("# stop_", "stop_")
    rules = manifest_from_text(text, source="x", complete=False).averaging
    assert rules is not None
    assert (rules.stop_at_accuracy, rules.stop_at_loss, rules.stop_patience) == (0.95, 0.1, 5)


def test_the_rules_of_masked_average_stand_there_only() -> None:
    assert "averaging]\n" not in draft()
    assert manifest_from_text(draft(), source="x", complete=False).averaging is None


def test_adding_peers_with_the_samples_they_declare() -> None:
    text = add(add(draft(weighting="declared"), "b", 1, 120), "a", 2, 300)
    manifest = manifest_from_text(text, source="x")
    assert [(peer.name, peer.samples) for peer in manifest.peers] == [("b", 120), ("a", 300)]
    renewed = manifest_from_text(with_nonce(text, "f" * 32, source="x"), source="x")
    assert renewed == manifest.model_copy(update={"nonce": "f" * 32})


@pytest.mark.parametrize(
    ("weighting", "samples"), [("declared", None), ("declared", 0), ("equal", 5), ("secret", 5), (None, 5)]
)
def test_samples_that_do_not_fit_the_weighting_are_refused(weighting: str | None, samples: int | None) -> None:
    with pytest.raises(ManifestError, match=r"peers\.b\.samples .*; b was not added"):
        add(draft(weighting=weighting), "b", 1, samples)


def test_adding_a_peer_keeps_the_text_before_it() -> None:
    text = draft()
    assert add(text, "b", 1).startswith(text.rstrip())


@pytest.mark.parametrize(("name", "number"), [("b", 2), ("c", 1), ("weights", 3), ("B", 3)])
def test_a_peer_that_does_not_fit_is_refused(name: str, number: int) -> None:
    with pytest.raises(ManifestError):
        add(add(draft(), "b", 1), name, number)


def test_peers_written_inline_are_left_to_the_person() -> None:
    with pytest.raises(ManifestError, match="not added"):
        add("peers = []\n" + draft(), "b", 1)


def test_a_new_nonce_and_nothing_else() -> None:
    text = draft() + f"# the nonce was {NONCE}\n"
    changed = with_nonce(text, "f" * 32, source="x")
    assert changed == text.replace(f'nonce = "{NONCE}"', f'nonce = "{"f" * 32}"')


def test_a_nonce_that_is_not_on_its_line_is_left_to_the_person() -> None:
    text = draft().replace(f'nonce = "{NONCE}"', f'"nonce" = "{NONCE}"')
    with pytest.raises(ManifestError, match="nonce"):
        with_nonce(text, "f" * 32, source="x")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=1", ("a", 1)),
        ("a=1.5", ("a", 1.5)),
        ("a=true", ("a", True)),
        ("a=[1, 2]", ("a", [1, 2])),
        ("a=relu", ("a", "relu")),
        ('a="1"', ("a", "1")),
        ("a=b=c", ("a", "b=c")),
        ("a=", ("a", "")),
        ("a=1\nb = 2", ("a", "1\nb = 2")),
    ],
)
def test_arguments_on_the_command_line(text: str, expected: object) -> None:
    assert parse_argument(text) == expected


@pytest.mark.parametrize("text", ["a", "=1", ""])
def test_not_an_argument(text: str) -> None:
    with pytest.raises(ValueError, match="key=value"):
        parse_argument(text)
