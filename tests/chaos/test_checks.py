"""What a trial of this folder is held to notices what it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.chaos.trial import Death, differing_bits, trained_again


def line(turn: int, at: float, digest: str = "aa") -> dict[str, Any]:
    return {"event": "turn", "turn": turn, "at": at, "digest": digest, "loss": 0.5}


@pytest.mark.parametrize(
    ("noted", "deaths", "again"),
    [
        ([line(1, 1.0), line(5, 2.0)], [], 0),
        ([line(1, 1.0), line(5, 2.0)], [Death(1.5, frozenset({1}))], 0),
        ([line(1, 1.0), line(1, 3.0), line(5, 4.0)], [Death(2.0, frozenset())], 1),  # noted, not yet journalled
    ],
)
def test_turns_that_were_trained_as_often_as_need_be(
    noted: list[dict[str, Any]], deaths: list[Death], again: int
) -> None:
    assert trained_again(noted, deaths, "turn") == again


@pytest.mark.parametrize(
    ("noted", "deaths"),
    [
        ([line(1, 1.0), line(1, 3.0)], []),  # nobody died
        ([line(1, 1.0), line(1, 3.0)], [Death(4.0, frozenset())]),  # or only later
        ([line(1, 1.0), line(1, 3.0)], [Death(2.0, frozenset({1}))]),  # its result was there
        ([line(1, 1.0), line(1, 3.0, "bb")], [Death(2.0, frozenset())]),  # it came to something else
    ],
)
def test_turns_that_were_trained_twice(noted: list[dict[str, Any]], deaths: list[Death]) -> None:
    with pytest.raises(AssertionError):
        trained_again(noted, deaths, "turn")


def test_one_bit_that_differs(tmp_path: Path) -> None:
    weights = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3.0]])}
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    assert differing_bits(tmp_path / "model.safetensors", weights) == 0
    assert differing_bits(tmp_path / "model.safetensors", weights | {"a": torch.tensor([-1.0, 2.0])}) == 1
