"""The manifest of the example, with made-up organisations pinned in it."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

from ppdl_mq.cli.main import run
from tests.people import identity_of

ROOT = Path(__file__).resolve().parents[2]
HOSPITALS = ("cleveland", "hungary", "switzerland", "va")


def heart_manifest(folder: Path, peers: tuple[str, ...] = HOSPITALS) -> Path:
    """Write peers/heart/heart.toml with these peers into `folder` and return its path."""
    tables = [f'[[peers]]\nname = "{name}"\nkeys = "{identity_of(name).public.keys}"\n' for name in peers]
    path = folder / "heart.toml"
    path.write_text("\n".join([(ROOT / "peers" / "heart" / "heart.toml").read_text(), *tables]))
    return path


def planned(manifest: Path, *options: str) -> dict[str, Any]:
    """Return what `relay plan --json` says about a manifest."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert run(("relay", "plan", str(manifest), "--json", *options)) == 0
    answer: dict[str, Any] = json.loads(said.getvalue())
    return answer
