"""The short form of `make soak-memory`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.memory import Sample, growth, run
from tests.rabbit import RabbitNode

MB = 1_000_000


def samples(*sizes_bytes: int, files: int = 20) -> list[Sample]:
    return [Sample(number, size, files) for number, size in enumerate(sizes_bytes, start=1)]


def busy_later(count: int) -> list[Sample]:
    return [Sample(51 + each, 100 * MB, 20 + each % 5) for each in range(count)]


def test_what_counts_as_growth() -> None:
    steady = growth("anna", samples(100 * MB, 101 * MB, 103 * MB), 2)
    assert steady.is_flat
    assert round(steady.share, 3) == 0.02
    assert not growth("anna", samples(100 * MB, 100 * MB, 106 * MB), 2).is_flat
    assert not growth("anna", [*samples(100 * MB, 100 * MB), Sample(3, 100 * MB, 21)], 2).is_flat
    at_work = [*samples(100 * MB, 100 * MB), *(Sample(3 + each, 100 * MB, 20 + each % 3) for each in range(12))]
    assert growth("anna", at_work, 2).is_flat, "files that are open for a moment"
    leak = [*samples(100 * MB, 100 * MB), *(Sample(3 + each, 100 * MB, 20 + each // 4) for each in range(12))]
    assert not growth("anna", leak, 2).is_flat, "one file in four rounds"
    busy = [Sample(1 + each, 100 * MB, 20 + each % 5) for each in range(50)]
    slow = [Sample(51 + each, 100 * MB, 20 + each % 5 + each // 100) for each in range(450)]
    assert growth("anna", [*busy, *busy_later(450)], 50).is_flat
    assert not growth("anna", [*busy, *slow], 50).is_flat, "one file in a hundred rounds, among some that come and go"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.rabbitmq
def test_five_peers_through_some_rounds(tmp_path: Path, rabbit: RabbitNode) -> None:
    found, outcome, _ = run(tmp_path, rabbit, 15, warm_rounds=5)
    assert (outcome.differing_bits, outcome.lost, outcome.trained_again) == (0, 0, 0)
    assert all(each.is_flat for each in found), found
