"""What the figures were measured on."""

from __future__ import annotations

import datetime
import os
import platform
import sqlite3
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ppdl_mq import __version__


def machine() -> dict[str, Any]:
    """Return processor, memory, versions and the date, without names that identify the machine."""
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "versions": {
            "ppdl-mq": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "sqlite": sqlite3.sqlite_version,
            **{name: version(name) for name in ("pika", "pynacl", "numpy")},
        },
    }


def _cpu() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
