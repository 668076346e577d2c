"""`ppdl-mq relay` with several hosts in one URL."""

from __future__ import annotations

import json
import socket

import pytest

from ppdl_mq.cli.main import run
from tests.rabbit import RabbitNode


@pytest.mark.rabbitmq
def test_check_tells_of_each_host(rabbit: RabbitNode, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{unused.getsockname()[1]}"
        url = f"amqp://guest@{dead},127.0.0.1:{rabbit.port},localhost:{rabbit.port}"
        assert run(("relay", "check", url)) == 0
        text = capsys.readouterr().out
        assert f"warn    reach             Nobody answers at {dead}: Connection refused.\n" in text
        assert f"localhost:{rabbit.port} answers" in text
        assert run(("relay", "check", url, "--json")) == 0
        findings = json.loads(capsys.readouterr().out)["findings"]
        assert [each["result"] for each in findings if each["check"] == "reach"] == ["warn", "pass", "pass"]


def test_check_names_every_host_that_does_not_answer(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as one, socket.socket() as other:
        for unused in (one, other):
            unused.bind(("127.0.0.1", 0))
        dead = [f"127.0.0.1:{unused.getsockname()[1]}" for unused in (one, other)]
        assert run(("relay", "check", f"amqp://guest@{','.join(dead)}")) != 0
    said = capsys.readouterr().out
    assert all(f"Nobody answers at {host}: Connection refused" in said for host in dead)
