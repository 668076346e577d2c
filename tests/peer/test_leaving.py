"""Peers whose connection breaks in the very call that removes their inbox, at the end of a trial."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from ppdl_mq.errors import Interrupted, RelayError, RelayLost, RelayRefused
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.terms import WEIGHTS
from ppdl_mq.transport.memory import MemoryRelay, MemoryTransport
from ppdl_mq.wire.header import decode_header
from ppdl_mq.wire.kinds import Kind
from tests.transport.relays import eventually
from tests.trial import TrialInProcess, manifest_for

LOST = RelayLost("The connection broke.")
REFUSED = RelayRefused("No right to.")


class Leaving(MemoryTransport):
    """Removes queues as planned: fails so many times, with this error, and has or has not removed the queue by then.

    Args:
        relay: of the trial.
        times: how often; counted down here.
        error: of each failure; one that is lost breaks the connection.
        is_done: whether the queue is gone all the same.
    """

    def __init__(self, relay: MemoryRelay, times: int = 0, error: RelayError = LOST, *, is_done: bool = False) -> None:
        super().__init__(relay)
        self.times, self.error, self.is_done = times, error, is_done
        self.has_failed = threading.Event()
        self.deleted: list[str] = []

    def delete(self, address: str) -> None:
        self._check()
        self.deleted.append(address)
        if self.times == 0 or self.is_done:
            super().delete(address)
        if self.times:
            self.times -= 1
            if isinstance(self.error, RelayLost):
                self.close()
            self.has_failed.set()
            raise self.error


class Speechless(Leaving):
    """The relay takes each DONE of this peer, and loses it."""

    def publish(self, address: str, bodies: Iterable[bytes]) -> None:
        parts = list(bodies)
        if decode_header(parts[0])[0].kind is not Kind.DONE:
            super().publish(address, parts)


class Unconfirmed(Leaving):
    """The relay takes each TURN of this peer, and once its reader has left it breaks the connection: no confirm."""

    def publish(self, address: str, bodies: Iterable[bytes]) -> None:
        parts = list(bodies)
        super().publish(address, parts)
        if decode_header(parts[0])[0].kind is Kind.TURN:
            eventually(lambda: address in self._relay.queues, False)
            self.close()
            raise LOST


Make = Callable[..., TrialInProcess]


@pytest.fixture
def relay() -> MemoryRelay:
    return MemoryRelay()


@pytest.fixture
def make(tmp_path: Path, relay: MemoryRelay) -> Make:
    """Make trials in which Anna's connection is a given one, at first, and all others hold."""

    def build(anna: MemoryTransport, protocol: str = "fully-connected", broker_wait_s: float = 20.0) -> TrialInProcess:
        first = [anna]

        def transport_for(name: str) -> MemoryTransport:
            return first.pop() if name == "anna" and first else Leaving(relay)

        manifest = manifest_for(protocol=protocol, training__epochs=1)
        return TrialInProcess(manifest, tmp_path, transport_for, patience_s=0.3, broker_wait_s=broker_wait_s)

    return build


def test_nobody_waits_for_a_peer_that_has_ended_and_whose_last_word_was_lost(make: Make, relay: MemoryRelay) -> None:
    """Only that Anna's inbox is gone tells the others that she has what she needs."""
    trial = make(anna := Speechless(relay, times=2), "masked-average")
    trial.run()
    assert anna.deleted == ["anna"] * 3
    assert {runner.state.phase for runner in trial.runners.values()} == {Phase.ENDED}
    assert not relay.queues


def test_a_turn_whose_reader_has_left_counts_as_read(make: Make, relay: MemoryRelay) -> None:
    """Anna hears nothing of it until the trial is over for Bert: its inbox, by then, is gone for good."""
    trial = make(Unconfirmed(relay))
    trial.run()
    assert {runner.state.phase for runner in trial.runners.values()} == {Phase.ENDED}
    assert not relay.queues


@pytest.mark.parametrize("protocol", ["server-aided", "fully-connected", "masked-average"])
@pytest.mark.parametrize("is_done", [False, True], ids=["not removed", "removed"])
def test_no_queue_stays(make: Make, relay: MemoryRelay, protocol: str, is_done: bool) -> None:
    trial = make(anna := Leaving(relay, times=3, is_done=is_done), protocol)
    trial.run()
    assert anna.times == 0
    assert not relay.queues


def test_a_peer_removes_its_inbox_when_it_is_run_again(
    make: Make, relay: MemoryRelay, caplog: pytest.LogCaptureFixture
) -> None:
    trial = make(Leaving(relay, times=1), broker_wait_s=0.0)
    trial.run()
    assert list(relay.queues) == ["anna"]
    assert "until this is run again" in caplog.text
    relay.reachable = False
    trial.run_one("anna")
    assert not trial.errors, "the trial has ended, with or without a relay"
    relay.reachable = True
    trial.run_one("anna")
    assert not trial.errors
    assert not relay.queues


@pytest.mark.parametrize("error", [None, REFUSED], ids=["removed", "refused"])
def test_what_is_removed_or_refused_is_not_tried_again(
    make: Make, relay: MemoryRelay, error: RelayError | None, caplog: pytest.LogCaptureFixture
) -> None:
    trial = make(anna := Leaving(relay, times=1, error=error) if error else Leaving(relay))
    trial.run()
    assert anna.deleted == ["anna"]
    assert list(relay.queues) == ([] if error is None else ["anna"])
    assert ("its queues remain at the relay: No right to." in caplog.text) is (error is not None)
    trial.transport_for = lambda _: later
    later = Leaving(relay)
    trial.run_one("anna")
    assert not trial.errors
    assert not later.deleted


class Keeping(Leaving):
    """The relay gives no right to remove the queue of the weights."""

    def delete(self, address: str) -> None:
        if address == WEIGHTS:
            raise REFUSED
        super().delete(address)


def test_a_queue_of_the_weights_that_stays_keeps_no_inbox(
    make: Make, relay: MemoryRelay, caplog: pytest.LogCaptureFixture
) -> None:
    trial = make(Leaving(relay), "server-aided")
    trial.transport_for = lambda _: Keeping(relay)
    trial.run()
    assert list(relay.queues) == [WEIGHTS]
    assert "its queues remain at the relay: No right to." in caplog.text


def test_a_peer_that_is_stopped_while_it_leaves_goes_on_with_that(
    make: Make, relay: MemoryRelay, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="ppdl_mq")
    trial = make(anna := Leaving(relay, times=10**9), broker_wait_s=1e9)
    threads = trial.start()
    assert anna.has_failed.wait(60)
    trial.runners["anna"].stop()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert isinstance(trial.errors.pop("anna"), Interrupted)
    assert not trial.errors
    assert list(relay.queues) == ["anna"]
    trial.run_one("anna")
    assert not trial.errors
    assert not relay.queues
