from __future__ import annotations

import secrets
from pathlib import Path

import numpy as np
import pytest

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.errors import LocalError, RelayError, TrainingError
from ppdl_mq.protocol.schedule import Turn
from ppdl_mq.report.bench.counting import Counted, Counts
from ppdl_mq.report.bench.round import run_rounds
from ppdl_mq.report.bench.round_job import RoundJob, new_secrets
from ppdl_mq.report.bench.same_bytes import BytesJob, move
from ppdl_mq.report.bench.stand_in import StandIn, largest_error, local
from ppdl_mq.report.bench.together import Gate, together
from ppdl_mq.transport.memory import MemoryRelay, MemoryTransport

PARAMS = 30_000
PATIENCE_S = 60.0


class _Open:
    def wait(self, timeout: float | None = None) -> int:
        return 0


def job_for(folder: Path, *, peers: int = 3, rounds: int = 2) -> RoundJob:
    return RoundJob(
        broker=BrokerAddress.parse(f"embedded:{folder / 'relay.db'}"),
        trial=f"bench-{secrets.token_hex(4)}",
        params=PARAMS,
        peers=peers,
        rounds=rounds,
        folder=folder,
        secrets=new_secrets(peers),
    )


def fail_or_wait(failing: str, name: str, gate: Gate) -> str:
    if name == failing:
        raise TrainingError("It failed.", hint="On purpose.")
    gate.wait(PATIENCE_S)
    return name


def crash(_: object, name: str, gate: Gate) -> None:
    raise ZeroDivisionError(name)


@pytest.mark.slow
def test_a_round_is_timed_counted_and_right(tmp_path: Path) -> None:
    job = job_for(tmp_path)
    rounds = run_rounds(job)
    assert len(rounds.exchange_s) == len(rounds.whole_s) == 2
    assert all(0 < exchange < whole + 0.01 for exchange, whole in zip(rounds.exchange_s, rounds.whole_s, strict=True))
    # Half a float32's last place, for values up to 8, and next to nothing for the fixed point.
    assert 0 < rounds.max_abs_error <= 1.001 * 2.0**-22
    vector = 4 * PARAMS
    for name, sent in rounds.sent.items():
        assert {recipient for recipient, _ in sent} == set(job.names) - {name}
        assert 5 / 3 * vector < sum(size for _, size in sent) < 1.8 * vector  # a whole vector, and 2/3 of a sum
    assert rounds.up_bytes < 1.8 * vector
    assert rounds.peak_bytes > rounds.program_bytes > 0
    assert rounds.cpu_s > 0
    # The same bytes again, and nothing else.
    (tmp_path / "again").mkdir()
    again = job_for(tmp_path / "again")
    with again.open_transport("boss") as transport:
        for name in again.names:
            transport.declare(name)
        seconds = move(BytesJob(job=again, way="confirmed", sent=rounds.sent, rounds=2))
        assert [transport.depth(name) for name in again.names] == [0, 0, 0]
    assert len(seconds) == 2
    assert all(each > 0 for each in seconds)


@pytest.mark.slow
def test_bytes_that_nobody_can_take_fail_for_all(tmp_path: Path) -> None:
    job = job_for(tmp_path, peers=2)
    sent = {name: tuple((other, 9) for other in job.names if other != name) for name in job.names}
    with pytest.raises(RelayError):  # nobody has declared the queues
        move(BytesJob(job=job, way="confirmed", sent=sent, rounds=1))


@pytest.mark.slow
def test_one_process_that_fails_keeps_nobody_waiting() -> None:
    with pytest.raises(LocalError, match="It failed"):
        together(fail_or_wait, "b", ("a", "b"), patience_s=PATIENCE_S)


@pytest.mark.slow
def test_a_process_that_crashes_is_an_error() -> None:
    with pytest.raises(LocalError, match="ZeroDivisionError"):
        together(crash, None, ("a",), patience_s=PATIENCE_S)


def test_the_error_is_that_of_the_worst_weight(tmp_path: Path) -> None:
    transport = Counted(MemoryTransport(MemoryRelay()))
    workers = [
        StandIn(index, PARAMS, _Open(), transport, last_round=2, keep_base=tmp_path / "base" if index == 0 else None)
        for index in range(3)
    ]
    base = workers[0].initial()
    assert base == workers[2].initial()
    turn = Turn(number=2, epoch=1, cycle=0, ordinal=1, peer="a")
    trained = [np.frombuffer(worker.train(turn, base, b"").weights, dtype="<f4") for worker in workers]
    assert not np.array_equal(trained[0], trained[1])
    assert np.array_equal(trained[1], local(np.frombuffer(base, dtype="<f4"), 1, 2, 0))
    mean = np.mean(trained, axis=0, dtype=np.float64).astype("<f4")
    assert largest_error(tmp_path / "base", mean.tobytes(), peers=3, number=2) <= 2.0**-22
    assert largest_error(tmp_path / "base", mean.tobytes(), peers=3, number=1) > 0.001
    mean[-1] += 0.25
    assert largest_error(tmp_path / "base", mean.tobytes(), peers=3, number=2) == pytest.approx(0.25)


def test_a_counted_transport_counts_what_passes() -> None:
    relay = MemoryRelay()
    with Counted(MemoryTransport(relay)) as transport:
        transport.declare("anna")
        transport.subscribe("anna")
        before = transport.counts()
        transport.publish("anna", [b"123", b"4567"])
        between = transport.counts()
        delivery = transport.receive(1.0)
        assert delivery is not None
        transport.ack([delivery])
        assert before == Counts(0, 0, ())
        assert between.since(before) == Counts(7, 0, (("anna", 3), ("anna", 4)))
        assert transport.counts().since(between) == Counts(0, 3, ())
