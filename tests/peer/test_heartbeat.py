"""What systemd is told: one datagram a message, to a socket of the test's own."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ppdl_mq.peer import heartbeat
from ppdl_mq.peer.heartbeat import Heartbeat


@contextmanager
def listening(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.setblocking(False)
        yield manager


def heard(manager: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(manager.recv(4_096).decode())
        except BlockingIOError:
            return found


@pytest.mark.parametrize("name", ["path", "abstract"])
def test_ready_status_and_watchdog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    now = [100.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])
    path = str(tmp_path / "notify") if name == "path" else "@ppdl-test-" + tmp_path.name
    with listening(path.replace("@", "\0", 1) if name == "abstract" else path) as manager:
        beats = Heartbeat({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "20000000"})
        beats.beat("training")
        assert heard(manager) == ["READY=1\nWATCHDOG=1\nSTATUS=training"]
        now[0] += 9.9
        beats.beat("training")
        assert heard(manager) == []
        now[0] += 0.2
        beats.beat("training")
        assert heard(manager) == ["WATCHDOG=1"]
        beats.beat("waiting")
        assert heard(manager) == ["STATUS=waiting"]
        beats.end()
        assert heard(manager) == ["STOPPING=1"]


def test_without_a_watchdog_it_only_tells(tmp_path: Path) -> None:
    with listening(str(tmp_path / "notify")) as manager:
        beats = Heartbeat({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        beats.beat("a")
        beats.beat("a")
        assert heard(manager) == ["READY=1\nSTATUS=a"]


@pytest.mark.parametrize(
    "environment",
    [{}, {"NOTIFY_SOCKET": "/nowhere/at/all"}, {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "x"}],
)
def test_where_nobody_listens_nothing_happens(environment: dict[str, str]) -> None:
    beats = Heartbeat(environment)
    beats.beat("a")
    beats.end()
