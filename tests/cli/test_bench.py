from __future__ import annotations

import json
import secrets
from dataclasses import replace
from pathlib import Path

import pytest

from ppdl_mq.cli import exit_codes
from ppdl_mq.cli.main import run
from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.errors import RelayError
from ppdl_mq.report.bench import PARTS, pair
from ppdl_mq.report.bench.parties import ADDRESSES, RECEIVER, SENDER, Job
from ppdl_mq.report.bench.transfer import WAYS
from tests.rabbit import RabbitNode

FAST = ["bench", "--megabytes", "2", "--repeat", "1", "--epochs", "1", "--params", "50000", "--peers", "2"]
FAST += ["--rounds", "2", "--growth", "2", "--growth-params", "20000"]
SIZE_BYTES = 3_000_000  # several parts


def job_for(way: str, folder: Path, **changes: object) -> Job:
    broker = BrokerAddress.parse(f"embedded:{folder / 'relay.db'}")
    job = Job(broker=broker, trial=f"bench-{secrets.token_hex(4)}", way=way, size_bytes=SIZE_BYTES, folder=folder)
    return replace(job, **changes)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_answer_is_json_alone_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run(FAST) == exit_codes.OK
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    (transfer,) = report["transfer"]
    assert transfer["yardstick"] == "unsealed"  # stock pika cannot use an embedded relay
    assert set(transfer["ways"]) == set(WAYS) - {"bare"}
    assert transfer["ways"]["unsealed"]["ratio"] == {"min": 1, "median": 1, "max": 1}
    for way in transfer["ways"].values():
        assert 0 < way["seconds"]["min"] <= way["seconds"]["median"] <= way["seconds"]["max"]
        assert way["sender"]["peak_bytes"] >= way["sender"]["program_bytes"] > 0
    assert report["training"]["turns"] == 12  # 3 peers, 4 turns an epoch
    for protocol in report["training"]["protocols"].values():
        assert 0 < protocol["ratio"]["median"] < 1
    assert set(PARTS) < set(report)
    (size,) = report["masked"]["sizes"]
    assert set(size["ways"]) == {"confirmed"}
    assert 0 < size["exchange_s"]["median"] <= size["whole_s"]["median"] < size["whole_s"]["max"] + 1
    assert 1.5 < size["up_models"] < 1.6  # a whole vector, half a sum, and some signatures
    assert 1.5 < size["down_models"] < 1.6
    assert 0 < size["max_abs_error"] < 1e-6
    (grown,) = report["growth"]["by_peers"]
    assert grown["peers"] == 2
    assert 1.5 < grown["up_models"] < 1.7
    assert set(report["masks"]["cores"]) == {"1", "2"}
    assert "unsealed" in printed.err
    assert not list(tmp_path.glob("ppdl-*"))  # torch leaves an empty folder of its own


@pytest.mark.slow
@pytest.mark.rabbitmq
def test_a_broker_is_left_as_it_was(rabbit: RabbitNode, capsys: pytest.CaptureFixture[str]) -> None:
    before = [rabbit.ctl("list_queues", "name"), rabbit.ctl("list_exchanges", "name")]
    assert run([*FAST, "--broker", rabbit.url(), "--only", "transfer", "--only", "masked"]) == exit_codes.OK
    assert [rabbit.ctl("list_queues", "name"), rabbit.ctl("list_exchanges", "name")] == before
    report = json.loads(capsys.readouterr().out)
    assert not {"training", "growth", "masks"} & set(report)
    (size,) = report["masked"]["sizes"]
    assert set(size["ways"]) == {"bare", "confirmed"}
    assert all(way["times"]["median"] > 1 for way in size["ways"].values())  # the same bytes alone are faster
    (transfer,) = report["transfer"]
    assert transfer["yardstick"] == "bare"
    assert set(transfer["ways"]) == set(WAYS)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "bare"])
def test_every_way_arrives(way: str, tmp_path: Path) -> None:
    job = job_for(way, tmp_path)
    with job.open_transport("boss") as transport:
        for address in ADDRESSES:
            transport.declare(address)
        measured = pair.transfer(job)
        assert [transport.depth(address) for address in ADDRESSES] == [0, 0, 0]
    assert measured[RECEIVER].ended > measured[SENDER].began
    assert all(each.peak_bytes > SIZE_BYTES for each in measured.values())


def test_one_process_that_fails_does_not_leave_the_other_waiting(tmp_path: Path) -> None:
    job = job_for("server-aided", tmp_path)
    with job.open_transport("boss") as transport:
        transport.declare(RECEIVER)  # but not where the weights rest: the sender fails, the receiver waits for it
        with pytest.raises(RelayError, match="weights"):
            pair.transfer(job)


def test_a_broker_that_does_not_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*FAST, "--broker", "amqp://guest@127.0.0.1:9"]) == exit_codes.RELAY
    assert capsys.readouterr().out == ""


def test_the_peak_is_in_bytes_and_stays() -> None:
    ballast = bytearray(b"x") * 300_000_000
    assert pair.peak_bytes() >= len(ballast)
    del ballast
    assert 300_000_000 <= pair.peak_bytes() < 300_000_000_000
