from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("protocol", "marker", "phases", "says"),
    [("sequential", "states", 12, "on_turn_sent"), ("masked-average", "masked states", 21, "ABANDON, DROP, LEAVE |")],
)
def test_the_page_has_the_table_of_the_machine(protocol: str, marker: str, phases: int, says: str) -> None:
    printed = subprocess.run(
        [sys.executable, "scripts/protocol-states", "--of", protocol],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.count("\n") == 2 + phases
    assert says in printed
    page = (ROOT / "docs" / "PROTOCOL.md").read_text(encoding="utf-8")
    assert f"<!-- {marker} -->\n{printed}<!-- /{marker} -->" in page, "run `scripts/protocol-states --write`"
