"""What reaches the peer's one loop from other threads, through one queue."""

from __future__ import annotations

import logging
import queue
import threading
from dataclasses import dataclass, field
from typing import Final

from ppdl_mq.errors import PpdlError, RelayError, RelayLost
from ppdl_mq.transport.base import Delivery, Transport

_BUSY_S: Final = 0.02

log = logging.getLogger("ppdl_mq.peer")


@dataclass(frozen=True, slots=True)
class Delivered:
    """The relay handed out a message on connection number `connection`."""

    delivery: Delivery
    connection: int


@dataclass(frozen=True, slots=True)
class LinkDown:
    """Connection number `connection` is gone."""

    error: RelayError
    connection: int


@dataclass(frozen=True, slots=True)
class Worked:
    """A job of the worker's thread is done, and this is what it returned."""

    result: object = field(repr=False)


@dataclass(frozen=True, slots=True)
class TrainingFailed:
    """A job of the worker's thread could not be finished."""

    error: PpdlError


@dataclass(frozen=True, slots=True)
class StopAsked:
    """Somebody asked this peer to stop."""


Input = Delivered | LinkDown | Worked | TrainingFailed | StopAsked
Inputs = queue.SimpleQueue[Input]


class Receiver:
    """Moves deliveries from a transport into the queue, in a thread of its own, until the connection ends.

    Nothing is acknowledged here, so that the transport bounds how many are under way, and a relay that disregards that
    fills no memory: what is not taken off the queue in time is left with the transport.

    Args:
        transport: connected and subscribed.
        inputs: where to.
        connection: number of the connection.
    """

    def __init__(self, transport: Transport, inputs: Inputs, connection: int) -> None:
        self._transport = transport
        self._inputs = inputs
        self._connection = connection
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="receiver", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what it put into the queue stays there."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            # Where the peer is busy the transport bounds what waits behind.
            if self._inputs.qsize() >= self._transport.max_held:
                self._stopped.wait(_BUSY_S)
                continue
            try:
                delivery = self._transport.receive(timeout_s=0.5)
            except RelayError as error:
                self._inputs.put(LinkDown(error, self._connection))
                return
            except Exception as error:
                # A bug, ours or of what we use: the loop must not wait for a thread that is gone.
                log.exception("the thread that receives failed")
                broke = RelayLost(f"Receiving from the relay failed: {type(error).__name__}.")
                self._inputs.put(LinkDown(broke, self._connection))
                return
            if delivery is not None:
                self._inputs.put(Delivered(delivery, self._connection))
