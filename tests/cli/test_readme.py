"""The README's walk-through, run to the letter: real commands, a real broker, two organisations."""

from __future__ import annotations

import os
import random
import re
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.rabbit import RabbitNode

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
LIMIT_S = 120


def blocks() -> dict[str, str]:
    """Return the blocks marked `<!-- run: NAME -->`, by name."""
    found = re.findall(r"<!-- run: ([a-z]+) -->\n```sh\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return dict(found)


def records(path: Path, seed: int) -> None:
    """Write 60 made-up patients of ten features, one of which tells the label."""
    draw = random.Random(seed)
    lines = [",".join([*(f"f{column}" for column in range(10)), "num"])]
    for _ in range(60):
        row = [draw.gauss(50, 10) for _ in range(10)]
        lines.append(",".join([*(f"{value:.3f}" for value in row), str(int(row[0] > 50))]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


class Shell:
    """Runs a block as a person would, with our program and the test's node on the PATH."""

    def __init__(self, folder: Path, node: RabbitNode) -> None:
        self.folder = folder
        tools = folder / "tools"
        tools.mkdir()
        # The node's own environment is what makes `rabbitmqctl` speak to it and not to the machine's.
        exports = "\n".join(f"export {name}='{value}'" for name, value in node._environment().items())
        (tools / "rabbitmqctl").write_text(
            f'#!/bin/sh\n{exports}\nexec "{node._scripts}/rabbitmqctl" --node {node.name} "$@"\n', encoding="utf-8"
        )
        (tools / "ppdl-mq").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ppdl_mq.cli.main "$@"\n')
        for tool in tools.iterdir():
            tool.chmod(0o700)
        self.environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"}
        self.port = node.port

    def run(self, block: str) -> str:
        script = block.replace("relay.example:5672", f"127.0.0.1:{self.port}")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.mark.slow
def test_the_walk_through_works_to_the_letter(rabbit: RabbitNode, tmp_path: Path) -> None:
    shell, shown = Shell(tmp_path, rabbit), blocks()
    assert shown.keys() == {"identity", "trial", "broker", "peer", "status"}
    for number, name in enumerate(("mercy", "charite")):
        records(tmp_path / f"{name}.csv", seed=number)

    try:
        for name in ("mercy", "charite"):
            shell.run(shown["identity"].replace("mercy", name))
        shell.run(shown["trial"])
        shell.run(shown["broker"])
        for name in ("mercy", "charite"):
            assert stat.S_IMODE((tmp_path / f"passwords/{name}.password").stat().st_mode) == 0o600
            (tmp_path / f"passwords/{name}.password").rename(tmp_path / f"{name}.password")  # handed over
        peers = {name: shown["peer"].replace("mercy", name) for name in ("mercy", "charite")}
        with ThreadPoolExecutor(2) as pool:
            ran = {
                name: pool.submit(shell.run, script.replace("model.safetensors", f"{name}.safetensors"))
                for name, script in peers.items()
            }
        assert all("has ended" in each.result() for each in ran.values())
        assert "ended" in shell.run(shown["status"])
        assert (tmp_path / "mercy.safetensors").read_bytes() == (tmp_path / "charite.safetensors").read_bytes()
        # The administrator's queues stay, and nothing is left in them.
        queues = rabbit.ctl("list_queues", "-p", "ppdl", "--silent", "--no-table-headers", "name", "messages")
        assert sorted(queues.split("\n")) == [
            "",
            *(f"ppdl.heart.{each}\t0" for each in ("charite", "mercy", "weights")),
        ]
    finally:
        rabbit.ctl("delete_vhost", "ppdl")
        for name in ("mercy", "charite"):
            rabbit.delete_user(name)
