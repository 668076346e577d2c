"""The ways of moving one set of weights from a sending to a receiving process.

    bare             stock pika, opaque bytes: the yardstick; RabbitMQ only
    unsealed         this package's transport, opaque bytes
    sealed           signed, sealed, published with confirms; received, opened, hashed, verified; no disk
    fully-connected  the same through outbox and intake, as a peer does it: journalled on both sides, fsync included
    server-aided     as before, but through the resting queue, whose reader begins when the sender has finished

An end is made, then runs, then is closed; only `run` is measured. The sender knows the digest of its weights before,
as a peer does: training ends with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Final, Protocol

import numpy as np

from ppdl_mq.config import limits
from ppdl_mq.crypto.seal import open_sealed
from ppdl_mq.errors import RelayLost, Unroutable
from ppdl_mq.peer.blobs import Blobs
from ppdl_mq.peer.fetcher import Fetcher, Refused
from ppdl_mq.peer.intake import Intake
from ppdl_mq.peer.journal import Journal
from ppdl_mq.peer.outbox import Fate, Outbox
from ppdl_mq.peer.slots import Slots
from ppdl_mq.protocol.effects import Fetch, Send
from ppdl_mq.protocol.keyring import Keyring
from ppdl_mq.protocol.slots import Cut, Slot
from ppdl_mq.report.bench.parties import MESSAGE, RECEIVER, SENDER, TURN, Job
from ppdl_mq.transport.address import WEIGHTS
from ppdl_mq.transport.base import Delivery, Transport
from ppdl_mq.wire.envelope import BodyDigest, body_bytes, read_body, seal_parts
from ppdl_mq.wire.header import Header, split_part, stride_for
from ppdl_mq.wire.kinds import Kind

_SILENCE_S: Final = 60.0  # nothing for so long means that nothing will come


class End(Protocol):
    """One side of a transfer."""

    def run(self) -> None:
        """Send everything until the relay has it, or receive everything until it is verified."""

    def close(self) -> None:
        """Leave the relay."""


def weights_of(job: Job) -> memoryview:
    """Return random float32 weights as bytes: they do not compress, as trained ones hardly do."""
    drawn = np.random.default_rng(1).standard_normal(job.size_bytes // 4, dtype=np.float32)
    return drawn.data.cast("B")


class _BareSender:
    def __init__(self, job: Job) -> None:
        from ppdl_mq.transport.rabbitmq.bare import BarePika

        self._weights, self._chunk_bytes = weights_of(job), job.chunk_bytes
        self._pika = BarePika(job.broker, job.names, peer=SENDER)
        self.close = self._pika.close

    def run(self) -> None:
        self._pika.publish(RECEIVER, self._weights, self._chunk_bytes)


class _BareReceiver:
    def __init__(self, job: Job) -> None:
        from ppdl_mq.transport.rabbitmq.bare import BarePika

        self._job = job
        self._pika = BarePika(job.broker, job.names, peer=RECEIVER)
        self.close = self._pika.close

    def run(self) -> None:
        self._pika.drain(RECEIVER, self._job.size_bytes)


class _OverTransport:
    """What the other ways have in common: this package's transport."""

    def __init__(self, job: Job, me: str) -> None:
        self.job = job
        self.held = ExitStack()
        self.transport = self.held.enter_context(job.open_transport(me))
        if me == RECEIVER:
            self.transport.subscribe(me)

    def close(self) -> None:
        self.held.close()


class _UnsealedSender(_OverTransport):
    def __init__(self, job: Job) -> None:
        super().__init__(job, SENDER)
        self._weights, self._chunk_bytes = weights_of(job), job.chunk_bytes

    def run(self) -> None:
        step = self._chunk_bytes
        starts = range(0, len(self._weights), step)
        self.transport.publish(RECEIVER, (bytes(self._weights[start : start + step]) for start in starts))


class _UnsealedReceiver(_OverTransport):
    def __init__(self, job: Job) -> None:
        super().__init__(job, RECEIVER)

    def run(self) -> None:
        missing = self.job.size_bytes
        while missing > 0:
            batch = _batch(self.transport)
            missing -= sum(len(delivery.body) for delivery in batch)
            self.transport.ack(batch)


class _SealedSender(_OverTransport):
    def __init__(self, job: Job) -> None:
        super().__init__(job, SENDER)
        self._weights = weights_of(job)
        self._digest = hashlib.sha256(self._weights).digest()  # a turn ends with it: its statement is signed
        self._terms, self._state = job.terms(SENDER), job.state(SENDER)
        self._keyring = Keyring(self._terms, job.identity(SENDER))

    def run(self) -> None:
        header = Header(
            kind=Kind.TURN,
            trial_id=self._terms.trial_id,
            session_id=self._state.session_id,
            message_id=bytes(16),
            turn=TURN,
            body_bytes=body_bytes(MESSAGE, len(self._weights)),
            stride=stride_for(self.job.chunk_bytes, SENDER, RECEIVER),
            sender=SENDER,
            recipient=RECEIVER,
        )
        key = self._keyring.key(self._state, header)
        assert key is not None, "the session is agreed"
        parts = seal_parts(header, MESSAGE, key, self._terms.sign, blob=self._weights, blob_digest=self._digest)
        self.transport.publish(RECEIVER, parts)


class _SealedReceiver(_OverTransport):
    def __init__(self, job: Job) -> None:
        super().__init__(job, RECEIVER)
        self._terms, self._state = job.terms(RECEIVER), job.state(RECEIVER)
        self._keyring = Keyring(self._terms, job.identity(RECEIVER))

    def run(self) -> None:
        body = bytearray(body_bytes(MESSAGE, self.job.size_bytes))
        missing = len(body)
        digest: BodyDigest | None = None
        while missing:
            batch = _batch(self.transport)
            for delivery in batch:
                header, associated, sealed = split_part(delivery.body)
                key = self._keyring.key(self._state, header)
                assert key is not None, "the session is agreed"
                start = header.part * header.stride
                plaintext = open_sealed(key, sealed, associated)
                body[start : start + len(plaintext)] = plaintext
                digest = digest or BodyDigest(header)
                digest.add(start, plaintext)
                missing -= len(plaintext)
            self.transport.ack(batch)
        assert digest is not None
        read_body(header, memoryview(body), self._terms.peers[SENDER], blob_digest=digest.value)


class _Journalled(_OverTransport):
    """A peer's own journal beside the transport."""

    def __init__(self, job: Job, me: str) -> None:
        super().__init__(job, me)
        self.terms, self.state = job.terms(me), job.state(me)
        self.journal = Journal(job.folder / me, trial_id=self.terms.trial_id, identity=job.identity(me))
        self.held.callback(self.journal.close)
        self.blobs = Blobs(self.journal)
        self.keyring = Keyring(self.terms, job.identity(me))
        self.address = WEIGHTS if self.terms.uses_trial_key else RECEIVER


class _JournalledSender(_Journalled):
    def __init__(self, job: Job) -> None:
        super().__init__(job, SENDER)
        slots = Slots(self.journal, self.blobs)
        weights = weights_of(job)
        self._cut = Cut(Slot("turn", TURN), hashlib.sha256(weights).digest())
        slots.put(self._cut.slot, weights)  # a trained turn is hashed and journalled before it is sent
        self._outbox = Outbox(self.terms, self.keyring, self.journal, self.blobs, slots, chunk_bytes=job.chunk_bytes)

    def run(self) -> None:
        send = Send(recipient=self.address, reader=RECEIVER, turn=TURN, message=MESSAGE, blob=self._cut)
        with self.journal.transaction():
            self._outbox.add(self.state, send)
        (letter,) = letters = self._outbox.due()
        if self._outbox.publish_all(self.transport, self.state, letters) != [Fate.CONFIRMED]:
            raise Unroutable(self.address)
        self._outbox.mark_sent(letter)
        if self.address == WEIGHTS:  # stands for the notice
            self.transport.publish(RECEIVER, [letter.message_id])


class _JournalledReceiver(_Journalled):
    def __init__(self, job: Job) -> None:
        super().__init__(job, RECEIVER)
        self._intake = Intake(
            self.terms,
            self.keyring,
            self.journal,
            self.blobs,
            weights_bytes=job.size_bytes,
            blob_bytes=job.size_bytes,
            chunk_bytes=job.chunk_bytes,
        )
        self.held.callback(self._intake.close)

    def run(self) -> None:
        if self.address == WEIGHTS:
            self._fetch()
        else:
            self._receive()
        ((row, header, blob),) = self._intake.complete()
        self._intake.read(row, header, blob)

    def _receive(self) -> None:
        while not self._intake.complete():
            batch = _batch(self.transport)
            for delivery in batch:
                self._intake.take(self.state, delivery.body, came_to=self.address)
            self._intake.flush()
            self.transport.ack(batch)

    def _fetch(self) -> None:
        (notice,) = _batch(self.transport)
        fetcher = Fetcher(self.transport, self._intake, _fail)
        fetcher.want(Fetch(turn=TURN, message_id=notice.body))
        self.transport.ack([notice])
        while not self._intake.complete():
            fetcher.sweep(self.state)
        fetcher.release()


def _fail(refused: Refused) -> None:
    for error, _ in refused:
        raise error


def _batch(transport: Transport) -> list[Delivery]:
    """Wait for a delivery; return it with what is there already, as the peer's loop does."""
    return [_first(transport), *_rest(transport)]


def _first(transport: Transport) -> Delivery:
    delivery = transport.receive(_SILENCE_S)
    if delivery is None:
        raise RelayLost("The relay has delivered nothing for a minute.")
    return delivery


def _rest(transport: Transport) -> Iterator[Delivery]:
    for _ in range(limits.RECEIVE_BATCH_PARTS - 1):
        delivery = transport.receive(0.0)
        if delivery is None:
            return
        yield delivery


WAYS: Final[dict[str, dict[str, Callable[[Job], End]]]] = {
    "bare": {SENDER: _BareSender, RECEIVER: _BareReceiver},
    "unsealed": {SENDER: _UnsealedSender, RECEIVER: _UnsealedReceiver},
    "sealed": {SENDER: _SealedSender, RECEIVER: _SealedReceiver},
    "fully-connected": {SENDER: _JournalledSender, RECEIVER: _JournalledReceiver},
    "server-aided": {SENDER: _JournalledSender, RECEIVER: _JournalledReceiver},
}
