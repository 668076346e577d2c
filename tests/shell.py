"""Lines of shell as people run them, from the documents or as the program prints them, in a folder of a test."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.rabbit import RabbitNode

ROOT: Final = Path(__file__).resolve().parents[1]
BASH: Final = ("bash", "-euo", "pipefail")
LIMIT_S: Final = 240


def blocks(page: str) -> dict[str, str]:
    """Return the blocks of a page that are marked `<!-- run: NAME -->`, by name."""
    return dict(re.findall(r"<!-- run: ([a-z]+) -->\n```sh\n(.*?)```", page, re.DOTALL))


class Shell:
    """Runs lines in a folder, with programs of its own before those of the machine.

    Args:
        folder: where; its `tools` are the programs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tools = folder / "tools"
        self._tools.mkdir(exist_ok=True)

    def add(self, name: str, body: str) -> None:
        """Add a program, as lines of shell."""
        (self._tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (self._tools / name).chmod(0o700)

    def add_ppdl_mq(self) -> None:
        """Add our program."""
        self.add("ppdl-mq", f'exec "{sys.executable}" -m ppdl_mq.cli.main "$@"')

    def add_rabbitmqctl(self, node: RabbitNode) -> None:
        """Add the `rabbitmqctl` of a node; its environment is what makes it speak to that and not to the machine's."""
        exports = "\n".join(f"export {name}='{value}'" for name, value in node._environment().items())
        self.add("rabbitmqctl", f'{exports}\nexec "{node._scripts}/rabbitmqctl" --node {node.name} "$@"')

    def run(self, script: str, shell: Sequence[str] = BASH) -> str:
        """Run lines, all of which have to succeed, and return what they print."""
        done = subprocess.run(
            [*shell, "-c", script],
            cwd=self.folder,
            env=os.environ | {"PATH": f"{self._tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout
