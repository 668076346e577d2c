"""`make simulation` runs what it was asked for, and tells of each seed that fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation import many
from tests.simulation.story import Story
from tests.simulation.trial import Simulation, check

HERE = Path(__file__).parents[2]


def test_a_seed_that_fails_is_kept_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_once(story: Story) -> Simulation:
        if story.seed == 1:
            raise AssertionError("the weights differ")
        return check(story)

    monkeypatch.setattr(many, "check", fails_once)
    sums = many.run(range(3))
    assert (sums.seeds, list(sums.failures), sums.trials.total()) == (3, [1], 2)
    assert "the weights differ" in sums.failures[1]


def test_processes_add_up_to_what_one_finds() -> None:
    together = many.run_many(0, many.BLOCK + 10, processes=2)
    alone = many.run(range(many.BLOCK + 10))
    together.processor_s = alone.processor_s
    assert together == alone


def test_the_last_line_is_a_summary(tmp_path: Path) -> None:
    environ = os.environ | {"PYTHONPATH": str(HERE), "SIMULATION_FIRST": "7"}
    ran = subprocess.run(
        [sys.executable, "-m", "tests.simulation.many", "3"], cwd=tmp_path, env=environ, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1].startswith("simulation: 3 seeds, 0 failed")
    found = json.loads((tmp_path / "out/simulation/summary.json").read_text())
    assert (found["first"], found["seeds"], found["failed"]) == (7, 3, [])
