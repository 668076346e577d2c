"""The proxy does to a connection what its weather says, and nothing else."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.chaos.proxy import FAIR, Proxy, Weather

SOON_S = 20.0
LETTER = bytes(range(256)) * 100


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends back what it gets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                while data := connection.recv(65536):
                    connection.sendall(data)

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]


def dial(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=SOON_S)


def received(connection: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        data = connection.recv(size - len(got))
        if not data:
            break
        got += data
    return got


def said_back(connection: socket.socket) -> float:
    """Send a letter and receive it; return the seconds it took."""
    started = time.monotonic()
    connection.sendall(LETTER)
    assert received(connection, len(LETTER)) == LETTER
    return time.monotonic() - started


def test_it_passes_on_to_the_first_broker_that_answers(echo: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        closed = other.getsockname()[1]
    with Proxy([closed, echo]) as proxy, dial(proxy) as connection:
        said_back(connection)
        assert proxy.connections == 1


def test_a_cut_breaks_what_is_there_and_lets_nothing_new_in(echo: int) -> None:
    with Proxy([echo]) as proxy, dial(proxy) as connection:
        said_back(connection)
        proxy.turn(Weather(cut=True))
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""
        with dial(proxy) as late, contextlib.suppress(OSError):
            late.sendall(LETTER)
            assert late.recv(1) == b""
        proxy.turn(FAIR)
        with dial(proxy) as fresh:
            said_back(fresh)


def test_a_silence_loses_nothing(echo: int) -> None:
    with Proxy([echo]) as proxy, dial(proxy) as connection:
        said_back(connection)
        proxy.turn(Weather(silent=True))
        connection.sendall(LETTER)
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        proxy.turn(FAIR)
        connection.settimeout(SOON_S)
        assert received(connection, len(LETTER)) == LETTER


def test_a_forgotten_connection_stays_silent_and_a_new_one_passes(echo: int) -> None:
    with Proxy([echo]) as proxy, dial(proxy) as connection:
        said_back(connection)
        proxy.forget()
        connection.sendall(LETTER)
        with dial(proxy) as fresh:
            said_back(fresh)
            connection.settimeout(0.2)
            with pytest.raises(TimeoutError):
                connection.recv(1)
        connection.close()
        assert proxy.connections >= 1, "the far end is not told"


@pytest.mark.parametrize(
    ("weather", "at_least_s"),
    [
        (Weather(latency_s=0.1), 0.2),  # there and back
        (Weather(bytes_per_s=len(LETTER) * 5), 0.2),
        (Weather(loss=0.9), 0.2),
    ],
)
def test_it_takes_longer(echo: int, weather: Weather, at_least_s: float) -> None:
    with Proxy([echo], seed="1") as proxy, dial(proxy) as connection:
        said_back(connection)
        if weather.loss:  # a few bytes only: each lost packet costs 0.2 s, then 0.4 s, and so on
            proxy.turn(Weather(loss=0.5))
            started = time.monotonic()
            for _ in range(2):
                connection.sendall(b"x")
                assert received(connection, 1) == b"x"
            assert time.monotonic() - started >= at_least_s
            return
        proxy.turn(weather)
        assert said_back(connection) >= at_least_s
