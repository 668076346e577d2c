"""What a round of masked-average costs, beside the same bytes without it, and how that grows with the peers."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.report.bench.cleaning import cleaned, new_name
from ppdl_mq.report.bench.figures import spread
from ppdl_mq.report.bench.round import Rounds, run_rounds
from ppdl_mq.report.bench.round_job import RoundJob, new_secrets
from ppdl_mq.report.bench.same_bytes import WAYS, BytesJob, move

_WORD_BYTES: Final = 4


def measure_rounds(
    address: BrokerAddress,
    *,
    params: Sequence[int],
    peers: int,
    rounds: int,
    repeat: int,
    folder: Path,
    on_step: Callable[[str], None],
) -> dict[str, Any]:
    """Time rounds of each size against the same bytes.

    Args:
        address: the relay.
        params: float32 numbers in the models.
        peers: how many.
        rounds: counted in each trial.
        repeat: how many trials of each size.
        folder: for journals.
        on_step: is told what is measured next.

    Raises:
        PpdlError: the relay cannot be used, or a process failed.
    """
    ways = [way for way in WAYS if way != "bare" or address.scheme != "embedded"]
    return {
        "peers": peers,
        "rounds": rounds,
        "sizes": [_size(address, size, peers, rounds, repeat, ways, folder, on_step) for size in params],
    }


def measure_growth(
    address: BrokerAddress,
    *,
    params: int,
    peers: Sequence[int],
    rounds: int,
    folder: Path,
    on_step: Callable[[str], None],
) -> dict[str, Any]:
    """Count bytes and seconds of a round for each number of peers; arguments as above."""
    grown: list[dict[str, Any]] = []
    for count in peers:
        on_step(f"{params:,} parameters, {count} peers")
        measured = _trial(address, params, count, rounds, (), folder)[0]
        whole_s = spread(measured.whole_s)
        grown.append(
            {
                "peers": count,
                **_bytes(measured, params),
                "whole_s": whole_s,
                "whole_s_per_peer": round(whole_s["median"] / count, 4),
                "cpu_s_per_peer": round(measured.cpu_s / count, 4),
            }
        )
    return {"params": params, "rounds": rounds, "by_peers": grown}


def _size(
    address: BrokerAddress,
    params: int,
    peers: int,
    rounds: int,
    repeat: int,
    ways: Sequence[str],
    folder: Path,
    on_step: Callable[[str], None],
) -> dict[str, Any]:
    trials: list[Rounds] = []
    moved: dict[str, list[Sequence[float]]] = {way: [] for way in ways}
    for repetition in range(repeat):
        on_step(f"{params:,} parameters, {peers} peers, {repetition + 1} of {repeat}")
        measured, others = _trial(address, params, peers, rounds, ways, folder)
        trials.append(measured)
        for way, seconds in others.items():
            moved[way].append(seconds)
    largest = max(trials, key=lambda trial: trial.peak_bytes)
    own = [statistics.median(trial.whole_s) for trial in trials]
    return {
        "params": params,
        **_bytes(trials[0], params),
        "exchange_s": spread([seconds for trial in trials for seconds in trial.exchange_s]),
        "whole_s": spread([seconds for trial in trials for seconds in trial.whole_s]),
        "ways": {
            way: {
                "seconds": spread([seconds for each in moved[way] for seconds in each]),
                "times": spread([ours / statistics.median(each) for ours, each in zip(own, moved[way], strict=True)]),
            }
            for way in ways
        },
        "cpu_s": round(statistics.median(trial.cpu_s for trial in trials), 3),
        "peak_bytes": largest.peak_bytes,
        "program_bytes": largest.program_bytes,
        "peak_models": round((largest.peak_bytes - largest.program_bytes) / (params * _WORD_BYTES), 2),
        "max_abs_error": max(trial.max_abs_error for trial in trials),
    }


def _trial(
    address: BrokerAddress, params: int, peers: int, rounds: int, ways: Sequence[str], folder: Path
) -> tuple[Rounds, dict[str, tuple[float, ...]]]:
    """Run one trial, and then move the same bytes in the other ways."""
    with tempfile.TemporaryDirectory(dir=folder) as journals:
        job = RoundJob(
            broker=address,
            trial=new_name(),
            params=params,
            peers=peers,
            rounds=rounds,
            folder=Path(journals),
            secrets=new_secrets(peers),
        )
        with cleaned(address, job.trial, job.names, declare=False):
            measured = run_rounds(job)
    others = {}
    for way in ways:
        bare = dataclasses.replace(job, trial=new_name())
        with cleaned(address, bare.trial, bare.names, declare=True):
            others[way] = move(BytesJob(job=bare, way=way, sent=measured.sent, rounds=rounds))
    return measured, others


def _bytes(measured: Rounds, params: int) -> dict[str, Any]:
    size_bytes = params * _WORD_BYTES
    return {
        "up_bytes": measured.up_bytes,
        "down_bytes": measured.down_bytes,
        "up_models": round(measured.up_bytes / size_bytes, 3),
        "down_models": round(measured.down_bytes / size_bytes, 3),
        "messages": max(len(sent) for sent in measured.sent.values()),
    }
