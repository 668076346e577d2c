"""The whole benchmark: every way in turn, several times over, and one table of ratios.

What is compared runs in the same repetition, one right after the other and in alternating order, so that a busy
machine slows both; the ratio is taken within the repetition.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.config.settings import Broker
from ppdl_mq.report.bench import PARTS, parties, training
from ppdl_mq.report.bench.cleaning import cleaned, new_name
from ppdl_mq.report.bench.figures import spread
from ppdl_mq.report.bench.machine import machine
from ppdl_mq.report.bench.masked import measure_growth, measure_rounds
from ppdl_mq.report.bench.masks import measure_masks
from ppdl_mq.report.bench.pair import Measured, transfer
from ppdl_mq.report.bench.parties import RECEIVER, SENDER, Job
from ppdl_mq.report.bench.training import Trial, through_relay, without_relay
from ppdl_mq.report.bench.transfer import WAYS
from ppdl_mq.transport.address import WEIGHTS

GOALS: Final = {"transfer_ratio": 0.7, "peak_models": 3.0, "masked_times_bare": 1.6, "masks_ratio": 0.8}
_MEGABYTE: Final = 1_000_000


def run_bench(
    *,
    broker: str | None,
    password_env: str | None,
    queue_type: Literal["quorum", "classic"] = "quorum",
    only: Collection[str] = (),
    megabytes: Sequence[int],
    repeat: int,
    epochs: int,
    params: Sequence[int],
    peers: int,
    rounds: int,
    growth: Sequence[int],
    growth_params: int,
    on_step: Callable[[str], None],
) -> dict[str, Any]:
    """Measure, and return everything as plain data.

    Args:
        broker: URL of the relay; an embedded one in a temporary folder without it.
        password_env: environment variable of its password.
        queue_type: of the queues at a broker that has both.
        only: some of `PARTS`; all of them when empty.
        megabytes: sizes of weights to move, in 10**6 bytes.
        repeat: how often.
        epochs: of the trials.
        params: float32 numbers in the models of the rounds of masked-average.
        peers: how many of them there are.
        rounds: counted in each trial of theirs.
        growth: numbers of peers to compare.
        growth_params: float32 numbers in the model then.
        on_step: is told what is measured next.

    Raises:
        PpdlError: the relay cannot be used, or a process failed.
    """
    with tempfile.TemporaryDirectory(prefix="ppdl-mq-bench-") as temporary:
        folder = Path(temporary)
        url = broker or f"embedded:{folder / 'relay.db'}"
        settings = Broker(url=url, password_env=password_env, queue_type=queue_type, wait_s=10.0)
        address = BrokerAddress.from_settings(settings)
        facts = machine()  # before anything loads it
        report: dict[str, Any] = {
            "machine": facts,
            "relay": {"kind": address.scheme, "queue_type": address.queue_type, "chunk_bytes": _chunk_bytes(address)},
            "goals": GOALS,
            "repeat": repeat,
        }
        parts: dict[str, Callable[[], Any]] = {
            "transfer": lambda: [_transfers(address, size, repeat, folder, on_step) for size in megabytes],
            "training": lambda: _trials(address, settings, epochs, repeat, folder, on_step),
            "masked": lambda: measure_rounds(
                address, params=params, peers=peers, rounds=rounds, repeat=repeat, folder=folder, on_step=on_step
            ),
            "growth": lambda: measure_growth(
                address, params=growth_params, peers=growth, rounds=rounds, folder=folder, on_step=on_step
            ),
            "masks": lambda: _masks(repeat, on_step),
        }
        return report | {part: parts[part]() for part in PARTS if not only or part in only}


def _masks(repeat: int, on_step: Callable[[str], None]) -> dict[str, Any]:
    on_step("masks")
    return measure_masks(repeat=repeat)


def _chunk_bytes(address: BrokerAddress) -> int:
    return Job(broker=address, trial="bench", way="sealed", size_bytes=4, folder=Path()).chunk_bytes


def _transfers(
    address: BrokerAddress, megabytes: int, repeat: int, folder: Path, on_step: Callable[[str], None]
) -> dict[str, Any]:
    ways = [way for way in WAYS if way != "bare" or address.scheme != "embedded"]
    yardstick = ways[0]
    measured: dict[str, list[dict[str, Measured]]] = {way: [] for way in ways}
    trial = new_name()
    with cleaned(address, trial, parties.ADDRESSES, declare=True):
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
                "seconds": spread(seconds[way]),
                "megabytes_per_s": round(megabytes / statistics.median(seconds[way]), 1),
                "ratio": spread([base / own for base, own in zip(seconds[yardstick], seconds[way], strict=True)]),
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
    settings: Broker,
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
        trial = Trial(name=new_name(), protocol=protocol, broker=settings, epochs=epochs)
        plain[protocol].append(without_relay(trial))
        with (
            tempfile.TemporaryDirectory(dir=folder) as journals,
            cleaned(address, trial.name, (*training.PEERS, WEIGHTS), declare=False),
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
                "without_relay_s": spread(plain[protocol]),
                "through_relay_s": spread(whole[protocol]),
                "ratio": spread([base / own for base, own in zip(plain[protocol], whole[protocol], strict=True)]),
                "overhead_ms_per_turn": spread(overheads[protocol]),
            }
            for protocol in protocols
        },
    }
