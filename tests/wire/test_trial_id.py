from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppdl_mq.config import limits
from ppdl_mq.config.reading import manifest_from_data
from ppdl_mq.errors import Malformed, RemoteError, TooLarge
from ppdl_mq.wire import canonical
from ppdl_mq.wire.trial_id import manifest_bytes, manifest_from_bytes, trial_id
from tests.config.samples import manifest_data


def build(changes: dict[str, Any] | None = None) -> Any:
    return manifest_from_data(manifest_data(changes))


def test_the_id_is_the_hash_of_the_canonical_form() -> None:
    manifest = build()
    assert trial_id(manifest) == hashlib.sha256(b"ppdl-mq/1 trial id\0" + manifest_bytes(manifest)).digest()
    # Known answer: a changed encoding splits every trial whose peers run different releases.
    assert trial_id(manifest).hex() == "29360ed6b6f060bed02a975afb3851c9802db6c881e14ccf90de0ff914581d73"


def test_the_same_agreement_written_otherwise_has_the_same_id() -> None:
    other = build({"peers": manifest_data()["peers"][::-1], "training.momentum": 0, "order": "fixed"})
    assert trial_id(other) == trial_id(build())


@pytest.mark.parametrize("changes", [{"nonce": "f" * 32}, {"training.seed": 2}, {"model.arguments.inputs": 4.0}])
def test_another_agreement_has_another_id(changes: dict[str, Any]) -> None:
    assert trial_id(build(changes)) != trial_id(build())


def test_round_trip() -> None:
    manifest = build({"model.arguments.x": [1, 2.5, {"y": True}]})
    assert manifest_from_bytes(manifest_bytes(manifest)).as_data() == manifest.as_data()


def spoilt(**changes: Any) -> bytes:
    return canonical.encode(build().as_data() | changes)


@pytest.mark.parametrize(
    "raw",
    [
        canonical.encode([1]),
        canonical.encode(manifest_data()),  # defaults left out
        spoilt(peers=build().as_data()["peers"][::-1]),
        spoilt(version=1.0),
        spoilt(version=True),
        spoilt(name="B" * 10),
        spoilt(colour=1),
        spoilt(peers=[]),
        spoilt(peers=None),
        spoilt(name=b"heart"),
        b"\xff" * 10,
    ],
)
def test_a_hostile_manifest_is_malformed(raw: bytes) -> None:
    with pytest.raises(Malformed):
        manifest_from_bytes(raw)


def test_a_large_manifest_is_refused() -> None:
    with pytest.raises(TooLarge):
        manifest_from_bytes(spoilt(name="x" * limits.MAX_MANIFEST_BYTES))


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_flipped_byte_gives_another_trial_or_a_typed_error(at: int, flip: int) -> None:
    raw = bytearray(manifest_bytes(build()))
    raw[at % len(raw)] ^= flip
    try:
        manifest = manifest_from_bytes(bytes(raw))
    except RemoteError:
        return
    assert trial_id(manifest) != trial_id(build())
