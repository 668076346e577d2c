"""A round of masked-average beside one of Flower's SecAgg+, in turn on this machine, as a table of ratios.

    python benchmarks/against_flower.py --params 1000000 10000000 25000000 > out/bench-flower.json

For each size: Flower's simulation, `ppdl-mq bench --only masked` through a private RabbitMQ node, Flower's deployment
engine. The table stands on stderr, everything that was measured on stdout. benchmarks/flower/README.md and
docs/BENCHMARKS.md say what the figures hold, and what the comparison leaves out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
COLUMNS = (
    "parameters",
    "ours, s",
    "simulation, s",
    "deployment, s",
    "ours / simulation",
    "deployment / ours",
    "error ours / simulation",
    "ours / bare pika",
)


def main() -> None:
    """Measure each size and print the table."""
    parser = argparse.ArgumentParser(description="Compare a round of masked-average with one of Flower's SecAgg+.")
    parser.add_argument("--params", type=int, nargs="+", default=[1_000_000, 10_000_000, 25_000_000])
    parser.add_argument("--rounds", type=int, default=3, help="counted, of ours and of the simulation; one goes before")
    parser.add_argument("--repeat", type=int, default=1, help="of ours and of the simulation")
    parser.add_argument(
        "--no-deployment", action="store_true", help="leave out the deployment engine, which takes minutes"
    )
    parser.add_argument("--env", help="folder of Flower's environment")
    arguments = parser.parse_args()
    flower = [str(HERE / "flower" / "run"), *(("--env", arguments.env) if arguments.env else ())]
    report = []
    for params in arguments.params:
        found: dict[str, list[dict[str, Any]]] = {"simulation": [], "ours": [], "deployment": []}
        for _ in range(arguments.repeat):
            common = ["--params", str(params)]
            rounds = ["--rounds", str(arguments.rounds)]
            found["simulation"].append(measured([*flower, *common, *rounds, "--engine", "simulation"]))
            ours = [sys.executable, str(HERE / "rabbitmq.py"), "--only", "masked", "--repeat", "1"]
            found["ours"].append(measured([*ours, *common, *rounds]))
        if not arguments.no_deployment:
            found["deployment"].append(measured([*flower, *common, "--engine", "deployment"]))
        report.append({"params": params, **found})
    print(json.dumps(report, indent=2))
    print("\n" + table([row(each) for each in report]), file=sys.stderr)


def measured(command: list[str]) -> dict[str, Any]:
    """Run a program and return the JSON that it prints."""
    print(">", " ".join(command), file=sys.stderr, flush=True)
    answer: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return answer


def row(found: dict[str, Any]) -> list[str]:
    """Return one line of the table: medians over all rounds, and ratios of them."""
    sizes = [each["masked"]["sizes"][0] for each in found["ours"]]
    ours = statistics.median(size["whole_s"]["median"] for size in sizes)
    bare = statistics.median(size["ways"]["bare"]["times"]["median"] for size in sizes)
    simulation = statistics.median(seconds for each in found["simulation"] for seconds in each["round_seconds"])
    deployment = [seconds for each in found["deployment"] for seconds in each["round_seconds"]]
    error = max(size["max_abs_error"] for size in sizes) / max(each["max_abs_error"] for each in found["simulation"])
    return [
        f"{found['params']:,}",
        f"{ours:.2f}",
        f"{simulation:.2f}",
        f"{statistics.median(deployment):.1f}" if deployment else "-",
        f"{ours / simulation:.2f}",
        f"{statistics.median(deployment) / ours:.1f}" if deployment else "-",
        f"{error:.2g}",
        f"{bare:.2f}",
    ]


def table(rows: list[list[str]]) -> str:
    """Return the table in Markdown, as docs/BENCHMARKS.md has it."""
    lines = [COLUMNS, ["---:"] * len(COLUMNS), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
