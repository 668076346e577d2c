from __future__ import annotations

import pytest

from ppdl_mq.config.manifest_text import PRESETS, manifest_text, with_nonce, with_peer
from ppdl_mq.config.reading import manifest_from_text
from ppdl_mq.config.toml_text import parse_argument
from ppdl_mq.errors import ManifestError
from tests.config.samples import keys

NONCE = "0" * 31 + "1"


def draft(preset: str = "digits") -> str:
    return manifest_text(
        PRESETS[preset],
        name="trial",
        nonce=NONCE,
        protocol="fully-connected",
        order="shuffled",
        turns_per_epoch=2,
        turn_steps=4,
    )


def add(text: str, name: str, number: int) -> str:
    return with_peer(text, name=name, keys=keys(number), comment="AAAAA", source="trial.toml")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_whole_manifest_once_it_has_peers(preset: str) -> None:
    manifest = manifest_from_text(add(add(draft(preset), "b", 1), "a", 2), source="x")
    assert manifest.peer_names == ("a", "b")
    assert manifest.model.callable == PRESETS[preset].model
    assert (manifest.nonce, manifest.training.turn_steps) == (NONCE, 4)


def test_every_field_stands_in_the_text() -> None:
    text = draft()
    manifest = manifest_from_text(text, source="x", complete=False)
    fields = set(type(manifest).model_fields) - {"peers"}
    for table in (manifest.model, manifest.training, manifest.data, manifest.relay):
        fields |= set(type(table).model_fields)
    assert [field for field in sorted(fields) if f"{field} = " not in text and f"[{field}" not in text] == [
        "arguments"
    ]  # [model.arguments]


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
