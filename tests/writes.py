"""In which order files and folders are synced and renamed, so that a power cut finds a whole file or none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


def noted_writes(monkeypatch: pytest.MonkeyPatch, told: Callable[[Path], str]) -> list[str]:
    """Return a list that grows with each sync, as `fsync` and what `told` says of the path, and each `rename`.

    A sync of the data alone, `fdatasync`, counts as one.
    """
    steps: list[str] = []
    replace = Path.replace

    def noted_sync(sync: Callable[[int], None]) -> Callable[[int], None]:
        def noted(handle: int) -> None:
            steps.append(f"fsync {told(Path(f'/proc/self/fd/{handle}').readlink())}")
            sync(handle)

        return noted

    def noted_replace(path: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(path, target)

    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, noted_sync(getattr(os, name)))
    monkeypatch.setattr(Path, "replace", noted_replace)
    return steps
