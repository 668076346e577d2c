"""A TCP proxy between one peer and its brokers, for bad networks: cut, silent, slow, lossy, narrow, forgetful.

`tc netem` is not in every kernel, and wants root; this needs neither. It does what TCP lets a program see: a lost
packet is a pause, a network that is away is a silence in which nothing is lost, and a firewall that forgets a
connection leaves both ends waiting for what never comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

_READ_BYTES = 64 * 1024
_PACKET_BYTES = 1448  # payload of a TCP segment on Ethernet
_RETRANSMIT_S = 0.2  # Linux's shortest retransmission timeout
_SOON_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Weather:
    """How a network is.

    Args:
        cut: connections break at once, and none comes about.
        silent: nothing passes, nothing breaks; what is under way arrives when it is over.
        latency_s: one way.
        loss: share of the packets that are lost, and sent again by TCP after a pause.
        bytes_per_s: each way and connection; None for as fast as it goes.
    """

    cut: bool = False
    silent: bool = False
    latency_s: float = 0.0
    loss: float = 0.0
    bytes_per_s: float | None = None


FAIR = Weather()


class Proxy:
    """Passes connections on to the first of its brokers that answers.

    Args:
        ports: of the brokers on this machine, in the order in which they are tried.
        seed: of the losses.
    """

    def __init__(self, ports: Sequence[int], *, seed: str = "") -> None:
        self._ports = tuple(ports)
        self._draw = random.Random(seed)
        self._weather = FAIR
        self._loop = asyncio.new_event_loop()
        self._passing = asyncio.Event()
        self._passing.set()
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy {self.port}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_SOON_S)
        self._loop.close()

    @property
    def connections(self) -> int:
        """How many are open, those that were forgotten included."""
        return len(self._connections)

    def turn(self, weather: Weather) -> None:
        """Have this weather from now on."""
        self._call(self._turn(weather))

    def forget(self) -> None:
        """Forget all connections, as a firewall does that restarts: neither end is told, nothing passes any more."""
        self._call(self._forget())

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_SOON_S)

    # --- on the proxy's thread -----------------------------------------------------------------------------------

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, sock=self._listener)

    async def _turn(self, weather: Weather) -> None:
        self._weather = weather
        (self._passing.clear if weather.silent else self._passing.set)()
        if weather.cut:
            for connection in list(self._connections):
                connection.abort()

    async def _forget(self) -> None:
        for connection in self._connections:
            connection.forgotten = True

    async def _end(self) -> None:
        self._server.close()
        for connection in list(self._connections):
            connection.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._passing.wait()
        if self._weather.cut:
            writer.transport.abort()
            return
        for port in self._ports:
            with contextlib.suppress(OSError):
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
                break
        else:
            writer.transport.abort()
            return
        connection = _Connection(writer, far_writer)
        self._connections.add(connection)
        try:
            await asyncio.gather(self._pump(connection, reader, far_writer), self._pump(connection, far_reader, writer))
        finally:
            connection.abort()
            self._connections.discard(connection)

    async def _pump(self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one direction on; when it ends, or breaks, so does the whole connection."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=256)  # when it arrives, and what
        arriving = asyncio.ensure_future(self._deliver(connection, under_way, writer))
        arrives_at = 0.0  # of the newest: TCP keeps the order
        try:
            while data := await reader.read(_READ_BYTES):
                arrives_at = max(self._loop.time(), arrives_at) + self._delay_s(len(data))
                await under_way.put((arrives_at + self._weather.latency_s, data))
            await under_way.put((arrives_at + self._weather.latency_s, b""))
            await arriving
        except OSError:  # that the connection broke is told as late as that it ended
            await self._until_told(connection)
        finally:
            arriving.cancel()
            connection.abort()

    async def _deliver(
        self, connection: _Connection, under_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while True:
                at, data = await under_way.get()
                await asyncio.sleep(max(0.0, at - self._loop.time()))
                await self._until_told(connection)
                if not data:
                    return
                writer.write(data)
                await writer.drain()

    async def _until_told(self, connection: _Connection) -> None:
        """Wait as long as the network is silent, which for a forgotten connection is for ever."""
        await self._passing.wait()
        if connection.forgotten:
            await asyncio.Event().wait()

    def _delay_s(self, size_bytes: int) -> float:
        """Return for how long these bytes hold up what comes after them."""
        weather, delay_s = self._weather, 0.0
        if weather.bytes_per_s is not None:
            delay_s += size_bytes / weather.bytes_per_s
        if weather.loss:
            for _ in range(0, size_bytes, _PACKET_BYTES):
                pause_s = _RETRANSMIT_S
                while self._draw.random() < weather.loss:
                    delay_s += pause_s
                    pause_s *= 2  # the packet that was sent again is lost, too
        return delay_s


class _Connection:
    """The two halves of one connection."""

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self.forgotten = False
        self._writers = near, far

    def abort(self) -> None:
        """Break it, at both ends."""
        for writer in self._writers:
            writer.transport.abort()
