"""What reaches the loop when the thread that receives cannot go on."""

from __future__ import annotations

import logging
import queue
from collections.abc import Iterator

import pytest

from ppdl_mq.errors import RelayError, RelayLost
from ppdl_mq.peer.inputs import Input, Inputs, LinkDown, Receiver
from ppdl_mq.transport.base import Delivery
from ppdl_mq.transport.memory import MemoryRelay, MemoryTransport

SOON_S = 20.0  # a limit for what takes milliseconds
GONE = RelayLost("gone")


class Failing(MemoryTransport):
    """Hands out nothing but an error."""

    def __init__(self, error: Exception) -> None:
        super().__init__(MemoryRelay())
        self._error = error

    def receive(self, timeout_s: float) -> Delivery | None:
        raise self._error


@pytest.fixture
def inputs() -> Iterator[Inputs]:
    inputs: Inputs = queue.SimpleQueue()
    yield inputs
    assert inputs.empty()


def said_by(error: Exception, inputs: Inputs) -> Input:
    """Return what the loop hears of a receiver that met an error."""
    receiver = Receiver(Failing(error), inputs, connection=7)
    try:
        return inputs.get(timeout=SOON_S)
    finally:
        receiver.stop()


@pytest.mark.parametrize("error", [GONE, RelayError("506 RESOURCE_ERROR.")])
def test_a_lost_connection_is_told(error: RelayError, inputs: Inputs) -> None:
    assert said_by(error, inputs) == LinkDown(error, 7)


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), ValueError("odd"), KeyError("none")])
def test_any_other_error_is_told_as_one_and_logged_once(
    error: Exception, inputs: Inputs, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody is to wait for a thread that is gone."""
    said = said_by(error, inputs)
    assert isinstance(said, LinkDown)
    assert said.connection == 7
    assert type(said.error) is RelayLost
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert record.exc_info[1] is error
