"""The bytes of a round and nothing else: the same messages through the same relay, without cryptography or journal.

    bare       stock pika: one blocking connection that publishes and one that receives in each process; persistent, no
               confirms; what comes is dropped
    confirmed  this package's transport, with its confirms; what comes is dropped

Every message of the round is there from the beginning: nobody waits for anything, as the rounds of the protocol must.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final

from ppdl_mq.errors import PpdlError, RelayLost
from ppdl_mq.report.bench.round_job import RoundJob
from ppdl_mq.report.bench.together import Gate, together

WAYS: Final = ("bare", "confirmed")
_PATIENCE_S: Final = 600.0
_SILENCE_S: Final = 120.0

Sent = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BytesJob:
    """What to move.

    Args:
        job: the relay and the queues, which are there already.
        way: one of `WAYS`.
        sent: by peer, recipient and size of each message, in order.
        rounds: how often it is counted; one more goes before.
    """

    job: RoundJob
    way: str
    sent: dict[str, Sent] = field(repr=False)
    rounds: int

    def comes_to(self, name: str) -> int:
        """Return how many bytes a peer receives in a round."""
        return sum(size for sent in self.sent.values() for recipient, size in sent if recipient == name)


def move(job: BytesJob) -> tuple[float, ...]:
    """Move the bytes; return the seconds of each counted round: from the start to the moment that all have all.

    Raises:
        PpdlError: what one of the processes raised.
    """
    accounts = together(_party, job, job.job.names, patience_s=_PATIENCE_S)
    moments = [list(each) for each in zip(*accounts.values(), strict=True)]
    return tuple(max(end for _, end in each) - min(begin for begin, _ in each) for each in moments[1:])


def _party(job: BytesJob, name: str, gate: Gate) -> list[tuple[float, float]]:
    """Be one process; return when it began and ended each round."""
    zeros = bytes(max((size for _, size in job.sent[name]), default=0))
    bodies = [(recipient, zeros[:size]) for recipient, size in job.sent[name]]
    end: _Bare | _Confirmed = _Bare(job, name) if job.way == "bare" else _Confirmed(job, name)
    moments = []
    try:
        for _ in range(job.rounds + 1):
            receiving = _Receiving(end, job.comes_to(name))
            gate.wait(_PATIENCE_S)
            began = time.time()
            receiving.start()
            end.publish(bodies)
            receiving.finish()
            moments.append((began, time.time()))
            gate.wait(_PATIENCE_S)
    finally:
        end.close()
    return moments


class _Receiving(threading.Thread):
    """Receives what comes in a round, beside what is sent."""

    def __init__(self, end: _Bare | _Confirmed, size_bytes: int) -> None:
        super().__init__(name="receiving", daemon=True)
        self._end = end
        self._size_bytes = size_bytes
        self._error: PpdlError | None = None

    def run(self) -> None:
        try:
            self._end.drain(self._size_bytes)
        except PpdlError as error:
            self._error = error

    def finish(self) -> None:
        """Return when all has come."""
        self.join()
        if self._error is not None:
            raise self._error


class _Bare:
    """Stock pika."""

    def __init__(self, job: BytesJob, name: str) -> None:
        from ppdl_mq.transport.rabbitmq.bare import BarePika

        self._name = name
        self._sending, self._receiving = (BarePika(job.job.broker, job.job.relay_names, peer=name) for _ in range(2))

    def publish(self, bodies: Sequence[tuple[str, bytes]]) -> None:
        for recipient, body in bodies:
            self._sending.publish(recipient, memoryview(body), len(body))

    def drain(self, size_bytes: int) -> None:
        if size_bytes:
            self._receiving.drain(self._name, size_bytes)

    def close(self) -> None:
        self._sending.close()
        self._receiving.close()


class _Confirmed:
    """This package's transport."""

    def __init__(self, job: BytesJob, name: str) -> None:
        self._transport = job.job.open_transport(name)
        self._transport.connect()
        self._transport.subscribe(name)

    def publish(self, bodies: Sequence[tuple[str, bytes]]) -> None:
        for recipient, messages in groupby(bodies, key=lambda message: message[0]):
            self._transport.publish(recipient, (body for _, body in messages))

    def drain(self, size_bytes: int) -> None:
        missing, held = size_bytes, []
        while missing > 0:
            delivery = self._transport.receive(_SILENCE_S)
            if delivery is None:
                raise RelayLost("The relay has delivered nothing for two minutes.")
            missing -= len(delivery.body)
            held.append(delivery)
            if missing <= 0 or len(held) == self._transport.max_held // 2:
                self._transport.ack(held)
                held = []

    def close(self) -> None:
        self._transport.close()
