"""What differential privacy costs in accuracy: federated averaging over scikit-learn's digits, with and without it.

    python benchmarks/privacy.py > out/bench-privacy.json

Three peers with a third of the training rows each train as in masked-average (the average is taken in double precision
here, without masks and messages), every one with its own budget. The table stands on stderr, everything that was
measured on stdout. docs/PRIVACY.md has the figures.
"""

from __future__ import annotations

import argparse
import json
import math
import secrets
import statistics
import sys
import time
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits

from ppdl_mq.config.manifest import Training
from ppdl_mq.config.reading import manifest_from_data
from ppdl_mq.crypto.hashing import sha256
from ppdl_mq.crypto.identity import Identity
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.numeric import flatten
from ppdl_mq.protocol.schedule import Turn
from ppdl_mq.training import order
from ppdl_mq.training.data.samples import Samples, Split
from ppdl_mq.training.private.accountant import Steps, epsilon, least_noise
from ppdl_mq.training.private.gradient import Mechanism
from ppdl_mq.training.worker import Worker

PEERS = ("anna", "bert", "cleo")
LABEL = b"ppdl-mq benchmark privacy\0"


def main() -> None:
    """Measure each budget and print the table."""
    parser = argparse.ArgumentParser(description="Measure what differential privacy costs in accuracy.")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[math.inf, 32.0, 8.0, 3.0, 1.0])
    parser.add_argument("--delta", type=float, default=1e-4)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1.0)
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = []
    for budget in arguments.epsilon:
        runs = [measured(budget, repetition, arguments) for repetition in range(arguments.repeat)]
        report.append({"epsilon": budget if math.isfinite(budget) else None, "runs": runs})
        shown = [run["accuracy"] for run in runs]
        print(
            f"epsilon {budget:>5g}  noise {runs[0]['noise']:.3f}  accuracy {statistics.mean(shown):.1%} "
            f"({min(shown):.1%} to {max(shown):.1%})  {statistics.mean(run['step_ms'] for run in runs):.1f} ms a step",
            file=sys.stderr,
        )
    print(json.dumps({**vars(arguments), "epsilon": None, "report": report}, indent=2))


def measured(budget: float, repetition: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train once; return how good the average of the last round is on rows that nobody trained on."""
    data = load_digits()
    places = np.random.default_rng(repetition).permutation(len(data.target))
    inputs = torch.tensor(data.data[places] / 16.0, dtype=torch.float32)
    targets = torch.tensor(data.target[places], dtype=torch.int64)
    tested, parts = 360, [slice(360 + peer, None, len(PEERS)) for peer in range(len(PEERS))]
    nobody = Samples(inputs[:0], targets[:0])
    manifest = manifest_from_data(
        {
            "version": 1,
            "name": "privacy",
            "nonce": f"{repetition:032x}",
            "protocol": "masked-average",
            "averaging": {"evaluate_every": 0},
            "model": {
                "callable": "ppdl_mq.training.models:mlp",
                "arguments": {"inputs": 64, "hidden": [32], "outputs": 10},
            },
            "training": {
                "learning_rate": arguments.learning_rate,
                "batch_size": arguments.batch_size,
                "epochs": arguments.rounds,
                "seed": repetition,
            },
            "data": {"shape": [64], "classes": 10, "standardise": "none"},
            "peers": [
                {"name": name, "keys": Identity(name=name, secret=Secret(secrets.token_bytes(64))).public.keys}
                for name in PEERS
            ],
        }
    )
    rows = len(inputs[parts[0]])
    mechanism, cost = _within(budget, manifest.training, rows, arguments)
    cpu = torch.device("cpu")
    workers = [
        Worker(manifest, Split(Samples(inputs[part], targets[part]), nobody), device=cpu, mechanism=mechanism)
        for part in parts
    ]
    weights, steps, began = bytes(workers[0].initial()), 0, time.perf_counter()
    for number in range(1, arguments.rounds + 1):
        states = []
        for name, worker in zip(PEERS, workers, strict=True):
            turn = Turn(number=number, epoch=number - 1, cycle=0, ordinal=number - 1, peer=name)
            result = worker.train(turn, weights, sha256(LABEL, name.encode(), bytes([repetition])))
            steps += result.steps
            states.append(np.frombuffer(result.weights, dtype="<f4").astype(np.float64))
        weights = np.mean(states, axis=0).astype("<f4").tobytes()
    seconds = time.perf_counter() - began
    flatten.check_finite(weights, workers[0].layout)
    found = workers[0].evaluate(weights, Samples(inputs[:tested], targets[:tested]))
    return {
        "accuracy": found.accuracy,
        "loss": found.loss,
        "rows": rows,
        "noise": mechanism.noise if mechanism is not None else 0.0,
        "cost": cost,
        "step_ms": 1000 * seconds / steps,
    }


def _within(
    budget: float, training: Training, rows: int, arguments: argparse.Namespace
) -> tuple[Mechanism | None, float | None]:
    """Return the mechanism whose trial stays within the budget, and what it costs."""
    if math.isinf(budget):
        return None, None
    _, steps = order.turn_run(training, training.epochs - 1, rows=rows)
    batch_size = min(training.batch_size, rows)
    noise = least_noise(steps, batch_size=batch_size, rows=rows, budget=budget, delta=arguments.delta)
    spent = Steps(count=steps, batch_size=batch_size, rows=rows, noise=noise)
    return Mechanism(clip=arguments.clip, noise=noise), epsilon([spent], arguments.delta)


if __name__ == "__main__":
    main()
