"""`make simulation`: many seeds, one after the other on every processor. python -m tests.simulation.many SEEDS.

SIMULATION_FIRST=N begins with that seed instead of 0. A seed that fails is told at once, with the command that repeats
it, and the others go on. The last line is the summary; out/simulation/summary.json holds it. Ctrl-C or SIGTERM ends it
with the summary of what has run. Exit code 0: all seeds that were asked for have run, and none failed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.simulation.story import story_of
from tests.simulation.trial import Simulation, check, tried

OUT = Path("out/simulation")
BLOCK = 50
_TOLD_EVERY_S = 60.0


@dataclass
class Sums:
    """What many seeds came to.

    Args:
        seeds: how many have run.
        failures: what was said of each seed that failed.
        trials: how many held, by protocol.
        faults: what was injected, by kind.
        kills: of the faults, by the moment at which a peer died.
        overflows: trials in which an attempt in 64 bits was made.
        processor_s: seconds of processor time.
    """

    seeds: int = 0
    failures: dict[int, str] = field(default_factory=dict)
    trials: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    overflows: int = 0
    processor_s: float = 0.0

    def add(self, simulation: Simulation) -> None:
        """Add a trial that has ended as it should."""
        self.trials[simulation.story.protocol] += 1
        self.faults += simulation.faults
        self.faults["lost for good"] += sum(node.has_been_lost for node in simulation.nodes.values())
        self.kills += simulation.kills
        self.overflows += any(step % 2 and word > 32 for step, word in tried(simulation))  # even ones evaluate

    def merge(self, other: Sums) -> None:
        """Add what another process has done."""
        self.seeds += other.seeds
        self.failures |= other.failures
        self.trials += other.trials
        self.faults += other.faults
        self.kills += other.kills
        self.overflows += other.overflows
        self.processor_s += other.processor_s

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "seeds": self.seeds,
            "failed": sorted(self.failures),
            "trials": dict(self.trials.most_common()),
            "faults": dict(self.faults.most_common()),
            "kills": dict(self.kills.most_common()),
            "overflows": self.overflows,
            "processor_s": round(self.processor_s, 1),
        }

    def __str__(self) -> str:
        faults = ", ".join(f"{count} {name}" for name, count in self.faults.most_common())
        each_s = self.processor_s / max(self.seeds, 1)
        return (
            f"simulation: {self.seeds} seeds, {len(self.failures)} failed, {each_s:.3f} s of processor time each; "
            f"{faults}; kills at {len(self.kills)} kinds of moments, {self.overflows} overflows"
        )


def repeats(seed: int) -> str:
    """Return the command that runs a seed again."""
    return f"SIMULATION_FIRST={seed} SIMULATION_SEEDS=1 python -m pytest tests/simulation/test_simulation.py"


def told(seed: int, error: Exception) -> str:
    """Return what is to be said of a seed that failed, whatever it failed with."""
    return f"{type(error).__name__}: {error}\n{story_of(seed)}\nAgain: {repeats(seed)}"


def run(seeds: Iterable[int]) -> Sums:
    """Run seeds in this process."""
    sums, began = Sums(), time.process_time()
    for seed in seeds:
        try:
            sums.add(check(story_of(seed)))
        except Exception as error:
            sums.failures[seed] = told(seed, error)
        sums.seeds += 1
    sums.processor_s = time.process_time() - began
    return sums


def _stays_on_one_processor(numbers: Any) -> None:
    """Prepare a process: only one of its threads runs at a time, and handing over costs less on one processor."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[numbers.get() % len(allowed)]})


def run_many(first: int, count: int, *, processes: int) -> Sums:
    """Run seeds on several processors, and tell how far it is.

    Args:
        first: the first seed.
        count: how many.
        processes: how many run side by side.
    """
    sums, told_at = Sums(), time.monotonic()
    spawning = multiprocessing.get_context("spawn")
    numbers = spawning.Queue()
    for number in range(processes):
        numbers.put(number)
    blocks = [range(begin, min(begin + BLOCK, first + count)) for begin in range(first, first + count, BLOCK)]
    with ProcessPoolExecutor(processes, spawning, _stays_on_one_processor, (numbers,)) as pool:
        try:
            for done in as_completed([pool.submit(run, block) for block in blocks]):
                found = done.result()
                sums.merge(found)
                for seed, failure in found.failures.items():
                    print(f"Seed {seed} failed: {failure}", flush=True)
                if time.monotonic() - told_at >= _TOLD_EVERY_S:
                    told_at = time.monotonic()
                    print(f"{sums.seeds} of {count} seeds, {len(sums.failures)} failed", flush=True)
        except KeyboardInterrupt:
            print("stopped", flush=True)
            pool.shutdown(cancel_futures=True)
    return sums


def main() -> int:
    """Run it as a program."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    first = int(os.environ.get("SIMULATION_FIRST", "0"))
    processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    began = time.monotonic()
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell that started it in the background ignores them
        signal.signal(number, signal.default_int_handler)
    sums = run_many(first, count, processes=processes)
    OUT.mkdir(parents=True, exist_ok=True)
    report = {"first": first, "asked_for": count, "seconds": round(time.monotonic() - began, 1), **sums.as_data()}
    (OUT / "summary.json").write_text(json.dumps(report, indent=1) + "\n")
    print(sums)
    return 0 if sums.seeds == count and not sums.failures else 1


if __name__ == "__main__":
    sys.exit(main())
