"""The metrics' own server and table; in whole trials, tests/trials/test_metrics.py."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import math
import re
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ppdl_mq.config.listening import Listening, parse_listening
from ppdl_mq.config.settings import Metrics
from ppdl_mq.errors import PeerFileError
from ppdl_mq.peer import exporter as module
from ppdl_mq.peer.exporter import Exporter, shown
from ppdl_mq.peer.figures import FIGURES, Figure

PAGE = Path(__file__).resolve().parents[2] / "docs" / "METRICS.md"
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]

# A status with everything that any protocol shows, and what no metric may show.
STATUS: dict[str, Any] = {
    "trial": "heart",
    "trial_id": "ab" * 32,
    "peer": "mercy",
    "phase": "awaiting turn",
    "phase_s": 7,
    "phase_seconds": {"training": 1.5, "awaiting turn": 9.25},
    "turn": 3,
    "turns": 12,
    "round": 2,
    "rounds": 10,
    "step": 3,
    "attempt": 1,
    "members": ["basel", "mercy"],
    "word": 32,
    "waiting_for": ["basel"],
    "waiting_since": {"basel": 1_799_999_000.5},
    "last_contact": {"basel": 1_799_998_000.5, "zurich": None},
    "relay": {"state": "blocked", "since": 1_799_999_500.5, "host": "secret-host:5672", "tries": 2, "reason": "full"},
    "inbox_messages": 5,
    "unsent": {"basel": 3, "weights": 1},
    "asked_again": 7,
    "sent_again": 8,
    "set_aside": {"records": 3, "bytes": 600, "limit": 1_000},
    "checkpoint_at": 1_799_999_900.5,
    "not_there_yet": ["zurich"],
    "received": 20,
    "received_bytes": 2_000,
    "fetched_messages": 4,
    "fetched_bytes": 400,
    "published_messages": 6,
    "published_bytes": 900,
    "reconnects": 1,
    "refused": {"Malformed": 2, "OutOfTurn": 1},
    "training": {
        "times": 2,
        "seconds": 1.25,
        "steps": 8,
        "samples": 200,
        "loss": 0.5,
        "holdout_loss": 0.75,
        "holdout_accuracy": 0.875,
    },
    "privacy": {"epsilon": 1.5, "budget": 8.0, "delta": 1e-5, "noise": 1.25, "steps": 8},
    "evaluation": {"round": 2, "loss": 0.625, "accuracy": 0.9375},
    "updated": 1_800_000_000.25,
    "folder": "/srv/secret-folder",
}


@contextlib.contextmanager
def serving(status: dict[str, Any] | None = None, *, private: bool = False) -> Iterator[Exporter]:
    with Exporter("127.0.0.1:0", private=private) as exporter:
        exporter.watch(lambda: STATUS if status is None else status)
        yield exporter


def ask(address: Listening, path: str = "/metrics", method: str = "GET") -> tuple[int, str, str]:
    """Return status, content type and text of an answer."""
    connection = http.client.HTTPConnection(address.host, address.port, timeout=20)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read().decode()
    finally:
        connection.close()


def samples_in(text: str) -> Samples:
    """Return every sample, as Prometheus' own parser reads the text."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, key
            found[key] = sample.value
    return found


def names_in(text: str) -> set[str]:
    return {name for name, _ in samples_in(text)}


def test_what_a_scraper_reads() -> None:
    with serving() as exporter:
        status, content_type, text = ask(exporter.address)
    assert status == 200
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    found = samples_in(text)
    assert found["ppdl_mq_turn", ()] == 3
    assert found["ppdl_mq_members", ()] == 2
    assert found["ppdl_mq_published_bytes_total", ()] == 900
    assert found["ppdl_mq_phase", (("phase", "awaiting turn"),)] == 1
    assert found["ppdl_mq_phase_seconds_total", (("phase", "training"),)] == 1.5
    assert found["ppdl_mq_refused_messages_total", (("reason", "Malformed"),)] == 2
    assert found["ppdl_mq_waiting_for", (("name", "basel"),)] == 1
    assert found["ppdl_mq_updated_timestamp_seconds", ()] == 1_800_000_000.25
    assert {dict(labels)["trial_id"] for name, labels in found if name == "ppdl_mq_peer_info"} == {"ab" * 32}
    assert found["process_resident_memory_bytes", ()] > 1_000_000
    assert found["ppdl_mq_relay_state", (("state", "blocked"),)] == 1
    assert ("ppdl_mq_last_contact_timestamp_seconds", (("name", "zurich"),)) not in found  # it was never heard
    assert "secret-folder" not in text
    assert "secret-host" not in text


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_each_follows_the_conventions(figure: Figure) -> None:
    """Of Prometheus: a prefix, base units, `_total` for counters alone, and one sentence of help."""
    assert re.fullmatch(r"ppdl_mq_[a-z]+(_[a-z]+)*", figure.name)
    assert figure.name.endswith("_total") is (figure.kind == "counter")
    assert not re.search(r"(_s|_ms|milli|percent|_count|_mb)(_|$)", figure.name)
    assert figure.help.endswith(".")
    assert not set(figure.labels) & {"job", "instance"}
    samples = list(figure.read(STATUS))
    assert samples
    assert all(len(labels) == len(figure.labels) for labels, _ in samples)
    assert all(math.isfinite(value) for _, value in samples)
    assert list(figure.read({})) == []


def test_what_tells_of_the_own_samples_is_shown_on_request_only() -> None:
    private = {figure.name for figure in FIGURES if figure.private}
    assert len(private) == 9
    with serving() as exporter:
        assert not names_in(ask(exporter.address)[2]) & private
    with serving(private=True) as exporter:
        assert names_in(ask(exporter.address)[2]) >= private


def test_the_page_describes_exactly_what_is_shown() -> None:
    """The same names in the same order with the same labels and kinds, and what is private is said to be."""
    rows = re.findall(r"^\| `([a-z_]+)(?:\{([a-z_, ]+)\})?` \| (\w+) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    described = [row for row in rows if row[0].startswith("ppdl_mq_")]
    assert [(name, labels, kind) for name, labels, kind, _ in described] == [
        (figure.name, ", ".join(figure.labels), figure.kind) for figure in FIGURES
    ]
    assert {name for name, _, _, text in described if text.startswith("private: ")} == {
        figure.name for figure in FIGURES if figure.private
    }
    with serving(private=True) as exporter:
        assert names_in(ask(exporter.address)[2]) == {name for name, _, _, _ in rows}


def test_before_there_is_a_status_the_process_is_shown() -> None:
    with Exporter("127.0.0.1:0", private=True) as exporter:
        names = names_in(ask(exporter.address)[2])
    assert names
    assert all(name.startswith("process_") for name in names)


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/", 404),
        ("GET", "/metrics/", 404),
        ("GET", "/../status.json", 404),
        ("GET", "/-/quit", 404),
        ("GET", "/metrics?name[]=ppdl_mq_turn", 200),
        ("POST", "/metrics", 501),
        ("HEAD", "/metrics", 501),
        ("DELETE", "/metrics", 501),
        ("OPTIONS", "/metrics", 501),
    ],
)
def test_nothing_else_is_answered(method: str, path: str, expected: int) -> None:
    with serving() as exporter:
        status, _, text = ask(exporter.address, path, method)
    assert status == expected
    assert ("ppdl_mq_turn" in text) is (expected == 200)


@pytest.mark.parametrize("rubbish", [b"", b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"A" * 200_000 + b"\r\n\r\n"])
def test_rubbish_does_no_harm(rubbish: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with serving() as exporter:
        with socket.create_connection(exporter.address) as connection, contextlib.suppress(OSError):
            connection.sendall(rubbish)
        assert ask(exporter.address)[0] == 200
    assert capfd.readouterr().err == ""


def test_a_status_that_cannot_be_shown_fails_the_request_alone(capfd: pytest.CaptureFixture[str]) -> None:
    with serving({"turn": "no number"}) as exporter:
        with pytest.raises((http.client.HTTPException, OSError)):
            ask(exporter.address)
        exporter.watch(lambda: STATUS)
        assert ask(exporter.address)[0] == 200
    assert capfd.readouterr().err == ""


def test_a_scraper_that_is_slow_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte now and then keeps every single read within its limit; the request as a whole has one, too."""
    monkeypatch.setattr(module, "_REQUEST_S", 0.5)
    with serving() as exporter, socket.create_connection(exporter.address) as slow:
        slow.settimeout(0.05)
        started = time.monotonic()
        is_cut = False
        while not is_cut and time.monotonic() - started < 20:
            try:
                slow.sendall(b"G")
                is_cut = slow.recv(1) == b""
            except TimeoutError:
                continue
            except OSError:
                is_cut = True
        assert is_cut
        assert ask(exporter.address)[0] == 200


def test_a_request_under_way_does_not_hold_up_the_peers_end() -> None:
    with contextlib.ExitStack() as held:  # the request is under way for longer than the exporter is
        with serving() as exporter:
            slow = held.enter_context(socket.create_connection(exporter.address))
            slow.sendall(b"GET /metrics HTTP/1.1\r\n")  # and no more
            with socket.create_connection(exporter.address, timeout=0.3) as next_one, pytest.raises(TimeoutError):
                next_one.recv(1)  # nobody else is answered meanwhile: the thread is with the first
            started = time.monotonic()
        assert time.monotonic() - started < module._REQUEST_S / 2


def test_who_asks_without_a_pause_is_given_a_few_answers_a_second() -> None:
    answers = 0
    with serving() as exporter:
        started = time.monotonic()
        while time.monotonic() - started < 1.0:
            assert ask(exporter.address)[0] == 200
            answers += 1
    assert 2 <= answers <= 1.0 / module._REST_S + 2


def test_nothing_listens_after_the_end() -> None:
    with serving() as exporter:
        address = exporter.address
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    with Exporter(str(address), private=False):  # and the port is free at once
        pass


def test_a_port_that_is_taken() -> None:
    with serving() as exporter, pytest.raises(PeerFileError, match=f"{exporter.address}: Address already in use"):
        Exporter(str(exporter.address), private=False)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(PeerFileError, match="not installed") as caught:
        Exporter("127.0.0.1:0", private=False)
    assert "ppdl-mq[metrics]" in caught.value.hint


def test_nothing_listens_unless_the_settings_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Exporter", None)
    with shown(Metrics()) as show:
        show(lambda: STATUS)


@pytest.mark.parametrize(("listen", "warns"), [("127.0.0.1:0", False), ("[::1]:0", False), ("0.0.0.0:0", True)])
def test_who_listens_beyond_this_machine_is_warned(listen: str, warns: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "ppdl_mq"), Exporter(listen, private=False) as exporter:
        said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert said[0] == ("INFO", f"Metrics are at http://{exporter.address}/metrics.")
    assert [level for level, _ in said[1:]] == (["WARNING"] if warns else [])


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:9464", "127.0.0.1", 9464), ("[::1]:0", "::1", 0), ("monitor-1.example:80", "monitor-1.example", 80)],
)
def test_addresses(text: str, host: str, port: int) -> None:
    address = parse_listening(text)
    assert (address.host, address.port) == (host, port)
    assert str(address) == text


@pytest.mark.parametrize(
    "text", [":9464", "9464", "127.0.0.1", "::1:9464", "a b:1", "127.0.0.1:65536", "x:-1", "a:1\n"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(PeerFileError, match="cannot be shown"):
        parse_listening(text)


def test_a_host_that_does_not_exist() -> None:
    with pytest.raises(PeerFileError, match=r"nowhere\.invalid:0"):
        Exporter("nowhere.invalid:0", private=False)


def test_a_status_is_what_the_file_says() -> None:
    """What is plain data for the file is plain data here; nothing else reaches the metrics."""
    assert json.loads(json.dumps(STATUS)) == STATUS
