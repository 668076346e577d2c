"""Memory and open files of five peers through many rounds. Run: python -m tests.chaos.memory ROUNDS (500)."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.chaos.trial import ChaosTrial, Outcome, peers_of
from tests.rabbit import RabbitNode

OUT = Path("out/soak")
NAMES = ("anna", "bert", "cleo", "dora", "emil")
ROUNDS = 500
WARM_ROUNDS = 50  # in which allocators and caches fill
GROWTH = 0.05
_TELL_ROUNDS = 25
_LOOK_S = 0.25  # between two samples


@dataclass(frozen=True)
class Sample:
    """One look at one process.

    Args:
        round: that it had finished.
        rss_bytes: resident memory.
        files: open file descriptors.
    """

    round: int
    rss_bytes: int
    files: int


@dataclass(frozen=True)
class Growth:
    """How one process grew after its first rounds.

    Args:
        peer: whose.
        warm_bytes: most resident memory in the rounds before the watch begins.
        most_bytes: and after.
        warm_files: fewest open files in the second half of the samples before: a file that is open for a moment is
            not held, and one that leaks is.
        late_files: fewest in the second half of what came after.
    """

    peer: str
    warm_bytes: int
    most_bytes: int
    warm_files: int
    late_files: int

    @property
    def share(self) -> float:
        """By how much memory grew, 0.05 for 5 %."""
        return self.most_bytes / self.warm_bytes - 1

    @property
    def is_flat(self) -> bool:
        """Whether neither memory nor files grew."""
        return self.share <= GROWTH and self.late_files <= self.warm_files


def watch(trial: ChaosTrial, limit_s: float) -> dict[str, list[Sample]]:
    """Look at every process until all have ended.

    Args:
        trial: of masked-average, under way.
        limit_s: it must end by then.
    """
    found: dict[str, list[Sample]] = {peer: [] for peer in trial.names}
    watched = {peer: psutil.Process(trial.process(peer).pid) for peer in trial.names}
    deadline, tell_at = time.monotonic() + limit_s, 1
    while not trial.has_ended:
        trial.check()
        assert time.monotonic() < deadline, trial.report()
        for peer, process in watched.items():
            status = trial.files.state(peer) / "status.json"
            try:
                number = int(json.loads(status.read_text()).get("round", 0)) if status.exists() else 0
                found[peer].append(Sample(number, process.memory_info().rss, process.num_fds()))
            except psutil.Error:  # it has ended, or is about to
                continue
        if (reached := min(each[-1].round if each else 0 for each in found.values())) >= tell_at:
            sizes = ", ".join(f"{peer} {each[-1].rss_bytes / 1e6:.1f} MB" for peer, each in found.items())
            print(f"round {reached}: {sizes}", flush=True)
            tell_at = reached + _TELL_ROUNDS
        time.sleep(_LOOK_S)
    return found


def growth(peer: str, samples: list[Sample], warm_rounds: int) -> Growth:
    """Compare what a process held in its first rounds with what it held later."""
    warm = [each for each in samples if 0 < each.round <= warm_rounds]
    later = [each for each in samples if each.round > warm_rounds]
    assert warm, f"{peer} was not seen in its first rounds"
    assert later, f"{peer} was not seen after its first rounds"
    return Growth(
        peer,
        max(each.rss_bytes for each in warm),
        max(each.rss_bytes for each in later),
        min(each.files for each in warm[len(warm) // 2 :]),
        min(each.files for each in later[len(later) // 2 :]),
    )


def run(
    folder: Path, node: RabbitNode, rounds: int, *, warm_rounds: int = WARM_ROUNDS
) -> tuple[list[Growth], Outcome, dict[str, list[Sample]]]:
    """Run a trial of masked-average with five peers, and watch it.

    Args:
        folder: empty.
        node: of the broker.
        rounds: how many.
        warm_rounds: from when on it has to be flat.
    """
    urls = dict.fromkeys(NAMES, node.url())
    with peers_of(folder) as started:
        trial = ChaosTrial(
            folder, f"memory-{rounds}", "masked-average", rounds, urls, node, started, names=NAMES, checkpoint_s=60.0
        )
        samples = watch(trial, limit_s=60 + 10.0 * rounds)
        outcome = trial.finish(60.0)
    return [growth(peer, each, warm_rounds) for peer, each in samples.items()], outcome, samples


def main() -> int:
    """Run it as a program; the last line says whether all is flat."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ppdl-memory-") as folder, RabbitNode() as node:
        found, outcome, samples = run(Path(folder), node, rounds)
    OUT.mkdir(parents=True, exist_ok=True)
    rows = {peer: [(each.round, each.rss_bytes, each.files) for each in each_of] for peer, each_of in samples.items()}
    (OUT / "memory.json").write_text(json.dumps({"load": os.getloadavg(), "samples": rows}) + "\n")
    for each in found:
        print(
            f"{each.peer}: {each.warm_bytes / 1e6:.1f} MB in the first {WARM_ROUNDS} rounds, "
            f"{each.most_bytes / 1e6:.1f} MB after ({each.share:+.1%}); "
            f"open files {each.warm_files}, then {each.late_files}"
        )
    is_well = all(each.is_flat for each in found) and (outcome.lost, outcome.differing_bits) == (0, 0)
    print(
        f"soak-memory: {rounds} rounds, {len(NAMES)} peers, {time.monotonic() - started:.0f} s, memory "
        f"{max(each.share for each in found):+.1%} at most, lost rounds {outcome.lost}, differing bits "
        f"{outcome.differing_bits}: {'flat' if is_well else 'NOT FLAT'}"
    )
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
