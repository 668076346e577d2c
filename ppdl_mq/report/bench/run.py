"""The whole benchmark: every way in turn, several times over, and one table of ratios.

What is compared runs in the same repetition, one right after the other and in alternating order, so that a busy
machine slows both; the ratio is taken within the repetition.
"""

from __future__ import annotations

import dataclasses
import itertools
import secrets
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.report.bench import parties, training
from ppdl_mq.report.bench.machine import machine
from ppdl_mq.report.bench.pair import Measured, transfer
from ppdl_mq.report.bench.parties import RECEIVER, SENDER, Job
from ppdl_mq.report.bench.training import Trial, through_relay, without_relay
from ppdl_mq.report.bench.transfer import WAYS
from ppdl_mq.transport.address import WEIGHTS, Names
from ppdl_mq.transport.opening import open_transport

GOALS: Final = {"transfer_ratio": 0.7, "peak_models": 3.0}
_MEGABYTE: Final = 1_000_000
_PREFIX: Final = "ppdl"


def run_bench(
    *,
    broker: str | None,
    password_env: str | None,
    megabytes: Sequence[int],
    repeat: int,
    epochs: int,
    on_step: Callable[[str], None],
) -> dict[str, Any]:
    """Measure, and return everything as plain data.

    Args:
        broker: URL of the relay; an embedded one in a temporary folder without it.
        password_env: environment variable of its password.
        megabytes: sizes of weights to move, in 10**6 bytes.
        repeat: how often.
        epochs: of the trials.
        on_step: is told what is measured next.

    Raises:
        PpdlError: the relay cannot be used, or a process failed.
    """
    with tempfile.TemporaryDirectory(prefix="ppdl-mq-bench-") as temporary:
        folder = Path(temporary)
        url = broker or f"embedded:{folder / 'relay.db'}"
        address = dataclasses.replace(BrokerAddress.parse(url), password_env=password_env)
        facts = machine()  # before anything loads it
        return {
            "machine": facts,
            "relay": {"kind": address.scheme, "queue_type": address.queue_type, "chunk_bytes": _chunk_bytes(address)},
            "goals": GOALS,
            "repeat": repeat,
            "transfer": [_transfers(address, size, repeat, folder, on_step) for size in megabytes],
            "training": _trials(address, url, password_env, epochs, repeat, folder, on_step),
        }


def _chunk_bytes(address: BrokerAddress) -> int:
    return Job(broker=address, trial="bench", way="sealed", size_bytes=4, folder=Path()).chunk_bytes


def _transfers(
    address: BrokerAddress, megabytes: int, repeat: int, folder: Path, on_step: Callable[[str], None]
) -> dict[str, Any]:
    ways = [way for way in WAYS if way != "bare" or address.scheme != "embedded"]
    yardstick = ways[0]
    measured: dict[str, list[dict[str, Measured]]] = {way: [] for way in ways}
    trial = _new_name()
    with _cleaned(address, trial, parties.ADDRESSES, declare=True):
        for repetition in range(repeat):
            for way in ways if repetition % 2 == 0 else reversed(ways):
                on_step(f"{megabytes} MB, {way}, {repetition + 1} of {repeat}")
                with tempfile.TemporaryDirectory(dir=folder) as journals:
                    job = Job(
                        broker=address,
                        trial=trial,
                        way=way,
                        size_bytes=megabytes * _MEGABYTE,
                        folder=Path(journals),
                    )
                    measured[way].append(transfer(job))
    seconds = {way: [_seconds(pair) for pair in pairs] for way, pairs in measured.items()}
    return {
        "megabytes": megabytes,
        "yardstick": yardstick,
        "ways": {
            way: {
                "seconds": _spread(seconds[way]),
                "megabytes_per_s": round(megabytes / statistics.median(seconds[way]), 1),
                "ratio": _spread([base / own for base, own in zip(seconds[yardstick], seconds[way], strict=True)]),
                "sender": _process(measured[way], SENDER, megabytes),
                "receiver": _process(measured[way], RECEIVER, megabytes),
            }
            for way in ways
        },
    }


def _seconds(pair: dict[str, Measured]) -> float:
    return max(each.ended for each in pair.values()) - pair[SENDER].began


def _process(pairs: list[dict[str, Measured]], name: str, megabytes: int) -> dict[str, Any]:
    peak = max(pair[name].peak_bytes for pair in pairs)
    return {
        "peak_bytes": peak,
        "program_bytes": max(pair[name].program_bytes for pair in pairs),
        "peak_models": round(peak / (megabytes * _MEGABYTE), 2),
        "cpu_s": round(statistics.median(pair[name].cpu_s for pair in pairs), 3),
    }


def _trials(
    address: BrokerAddress,
    url: str,
    password_env: str | None,
    epochs: int,
    repeat: int,
    folder: Path,
    on_step: Callable[[str], None],
) -> dict[str, Any]:
    protocols = ("fully-connected", "server-aided")
    plain: dict[str, list[float]] = {protocol: [] for protocol in protocols}
    whole: dict[str, list[float]] = {protocol: [] for protocol in protocols}
    overheads: dict[str, list[float]] = {protocol: [] for protocol in protocols}
    turns = 0
    for repetition, protocol in itertools.product(range(repeat), protocols):
        on_step(f"training, {protocol}, {repetition + 1} of {repeat}")
        trial = Trial(name=_new_name(), protocol=protocol, url=url, password_env=password_env, epochs=epochs)
        plain[protocol].append(without_relay(trial))
        with (
            tempfile.TemporaryDirectory(dir=folder) as journals,
            _cleaned(address, trial.name, (*training.PEERS, WEIGHTS), declare=False),
        ):
            timed = through_relay(trial, Path(journals))
        whole[protocol].append(timed.seconds)
        overheads[protocol].append(1000 * statistics.median(timed.overheads_s))
        turns = len(timed.turns_s)
    return {
        "peers": len(training.PEERS),
        "epochs": epochs,
        "turns": turns,
        "protocols": {
            protocol: {
                "without_relay_s": _spread(plain[protocol]),
                "through_relay_s": _spread(whole[protocol]),
                "ratio": _spread([base / own for base, own in zip(plain[protocol], whole[protocol], strict=True)]),
                "overhead_ms_per_turn": _spread(overheads[protocol]),
            }
            for protocol in protocols
        },
    }


@contextmanager
def _cleaned(address: BrokerAddress, trial: str, addresses: Sequence[str], *, declare: bool) -> Iterator[None]:
    """Remove queues and exchange at the end, whatever happens; where asked to, declare the queues first."""
    with open_transport(address, trial=trial, prefix=_PREFIX, peer="bench") as transport:
        try:
            if declare:
                for each in addresses:
                    transport.declare(each)
            yield
        finally:
            for each in addresses:
                transport.delete(each)
            if address.scheme != "embedded":
                from ppdl_mq.transport.rabbitmq.bare import BarePika

                pika = BarePika(address, Names(prefix=_PREFIX, trial=trial), peer="bench")
                try:
                    pika.remove_exchange()
                finally:
                    pika.close()


def _new_name() -> str:
    return f"bench-{secrets.token_hex(6)}"


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "min": round(min(values), 4),
        "median": round(statistics.median(values), 4),
        "max": round(max(values), 4),
    }
