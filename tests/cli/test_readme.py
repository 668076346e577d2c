"""The README's walk-through, run to the letter: real commands, a real broker, two organisations."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.brokers.scene import TlsNode, make_ca
from tests.rabbit import why_absent
from tests.shell import ROOT, Shell, blocks

README = ROOT / "README.md"


def records(path: Path, seed: int) -> None:
    """Write 60 made-up patients of ten features, one of which tells the label."""
    draw = random.Random(seed)
    lines = [",".join([*(f"f{column}" for column in range(10)), "num"])]
    for _ in range(60):
        row = [draw.gauss(50, 10) for _ in range(10)]
        lines.append(",".join([*(f"{value:.3f}" for value in row), str(int(row[0] > 50))]))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[TlsNode]:
    """A broker with TLS, whose authority's certificate lies where the organisations are."""
    if (reason := why_absent()) is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason} (CI=true: the RabbitMQ tests must run)")
        pytest.skip(reason)
    authority = make_ca().Authority.new("the broker's CA")
    authority.write(tmp_path)
    authority.issue(tmp_path / "relay", "localhost", server_names=("localhost",))
    node = TlsNode(tmp_path, asks_certificate=False)
    node.use("relay")
    with node:
        yield node


@pytest.mark.slow
def test_the_walk_through_works_to_the_letter(broker: TlsNode, tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    shell.add_ppdl_mq()
    shell.add_rabbitmqctl(broker)
    page = README.read_text(encoding="utf-8").replace("relay.example:5671", f"localhost:{broker.tls_port}")
    shown = blocks(page)
    assert shown.keys() == {"identity", "trial", "broker", "peer", "status"}
    for number, name in enumerate(("mercy", "charite")):
        records(tmp_path / f"{name}.csv", seed=number)

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
    assert broker.waiting("ppdl") == {f"ppdl.heart.{each}": 0 for each in ("charite", "mercy", "weights")}
