"""`make soak`: trials of all protocols with random faults until the time is up. python -m tests.chaos.soak SECONDS.

SOAK_SEED=N repeats a run: who is struck by what, in which order and for how long (not the moment to the microsecond).
The last line is the summary; out/soak/summary.json holds it with the times of recovery. A trial that fails stops the
run, and its folder stays. Exit code 0: nothing was lost and no bit differs.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.faults import CLUSTER_KINDS, KINDS, Struck
from tests.chaos.trial import PROTOCOLS, Outcome
from tests.chaos.worlds import disturb, world
from tests.rabbit import RabbitNode, cluster

OUT = Path("out/soak")
EPOCHS = {"server-aided": 20, "fully-connected": 20, "masked-average": 12}
TWO_AT_ONCE = 0.25
CALM_S = 3.0


@dataclass
class Sums:
    """What all trials came to.

    Args:
        trials: how many ended, by protocol.
        faults: how many, by kind.
        recovered_s: after each fault, by kind; where two met, under the name of both.
    """

    trials: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    recovered_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    lost: int = 0
    differing_bits: int = 0
    trained_again: int = 0
    asked_again: int = 0

    def add(self, protocol: str, struck: Sequence[Struck], outcome: Outcome) -> None:
        """Add a trial that has ended."""
        self.trials[protocol] += 1
        for each in struck:
            for kind in each.kind.split(" + "):
                self.faults[kind] += 1
            self.recovered_s["two at once" if " + " in each.kind else each.kind].append(each.recovered_s)
        self.lost += outcome.lost
        self.differing_bits += outcome.differing_bits
        self.trained_again += outcome.trained_again
        self.asked_again += outcome.asked_again

    def as_data(self) -> dict[str, Any]:
        """Return it as plain data; times in seconds."""
        return {
            "trials": dict(self.trials),
            "faults": dict(self.faults.most_common()),
            "recovery_s": {
                kind: {"count": len(all_s), "median": round(statistics.median(all_s), 2), "worst": round(max(all_s), 2)}
                for kind, all_s in sorted(self.recovered_s.items())
            },
            "lost_rounds": self.lost,
            "differing_bits": self.differing_bits,
            "trained_again": self.trained_again,
            "asked_again": self.asked_again,
        }

    def __str__(self) -> str:
        data = self.as_data()
        recovery = ", ".join(
            f"{kind} {found['median']:.1f}/{found['worst']:.1f} s" for kind, found in data["recovery_s"].items()
        )
        return (
            f"soak: {sum(self.trials.values())} trials ({_counted(self.trials)}), {sum(self.faults.values())} faults "
            f"({_counted(self.faults)}), lost rounds {self.lost}, differing bits {self.differing_bits}, "
            f"recovery median/worst: {recovery}"
        )


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def soak(seconds: float, seed: str) -> Sums:
    """Run trials until the time is up; a trial that is under way then is finished.

    Args:
        seconds: how long.
        seed: decides everything.
    """
    sums, ends_at = Sums(), time.monotonic() + seconds
    with ExitStack() as stack:
        single = [stack.enter_context(RabbitNode())]
        three = stack.enter_context(cluster(3))
        number = first = random.Random(seed).randrange(6)  # a short run is not always of the same protocol
        while number == first or time.monotonic() < ends_at:
            protocol = PROTOCOLS[number % 3]
            nodes = three if number % 2 else single
            folder = Path(tempfile.mkdtemp(prefix="ppdl-soak-"))
            _one(sums, folder, protocol, nodes, seed=f"{seed}/{number}", name=f"soak-{number}")
            shutil.rmtree(folder)
            number += 1
    return sums


def _one(sums: Sums, folder: Path, protocol: str, nodes: Sequence[RabbitNode], *, seed: str, name: str) -> None:
    started = time.monotonic()
    kinds = CLUSTER_KINDS if len(nodes) > 1 else KINDS
    where = "a cluster of three" if len(nodes) > 1 else "one node"
    calm_s = random.Random(seed).uniform(0.5, CALM_S)
    with world(folder, protocol, EPOCHS[protocol], nodes, seed=seed, name=name) as found:
        struck, outcome = disturb(found, kinds, calm_s=calm_s, two_at_once=TWO_AT_ONCE)
    sums.add(protocol, struck, outcome)
    faults = ", ".join(f"{each.kind} ({each.recovered_s:.1f} s)" for each in struck)
    print(f"{name}: {protocol} over {where}, {time.monotonic() - started:.0f} s, {outcome}: {faults}", flush=True)
    assert (outcome.lost, outcome.differing_bits) == (0, 0), f"{name} in {folder}: {outcome}"


def main() -> int:
    """Run it as a program."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 1800.0
    seed = os.environ.get("SOAK_SEED") or str(random.SystemRandom().randrange(10**6))
    print(f"SOAK_SEED={seed}", flush=True)
    try:
        sums = soak(seconds, seed)
    except AssertionError:
        print(f"soak: failed; SOAK_SEED={seed} make soak repeats it", flush=True)
        raise
    OUT.mkdir(parents=True, exist_ok=True)
    report = {"seed": seed, "seconds": seconds, "load": os.getloadavg(), **sums.as_data()}
    (OUT / "summary.json").write_text(json.dumps(report, indent=1) + "\n")
    print(sums)
    return 0 if (sums.lost, sums.differing_bits) == (0, 0) else 1


if __name__ == "__main__":
    sys.exit(main())
