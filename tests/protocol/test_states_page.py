from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_has_the_table_of_the_machine() -> None:
    printed = subprocess.run(
        [sys.executable, "scripts/protocol-states"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert printed.count("\n") == 2 + 12
    assert "on_turn_sent" in printed
    page = (ROOT / "docs" / "PROTOCOL.md").read_text(encoding="utf-8")
    assert f"<!-- states -->\n{printed}<!-- /states -->" in page, "run `scripts/protocol-states --write`"
