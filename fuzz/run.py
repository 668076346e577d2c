"""Fuzz every target for a while each: `python -m fuzz.run SECONDS [TARGET ...]`. The last line is a summary.

Corpora, logs and findings are kept in out/fuzz; out/fuzz/summary.json has the figures of this run.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from fuzz.harness import MEMORY, SCRATCH

OUT = Path("out/fuzz")
_EXECUTED = re.compile(rb"^(?:stat::number_of_executed_units: |Done )(\d+)|^#(\d+)\t", re.MULTILINE)


def fuzz(name: str, seconds: int) -> dict[str, int | float | bool]:
    """Fuzz one target; return its figures."""
    findings = OUT / "found" / name
    findings.mkdir(parents=True, exist_ok=True)
    log, before = OUT / f"{name}.log", set(findings.iterdir())
    options = [f"-max_total_time={seconds}", f"-artifact_prefix={findings}/", str(OUT / "corpus" / name)]
    begun = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "fuzz.one", name, *options], stdout=file, stderr=subprocess.STDOUT
        )
        code = process.wait()
    for left in MEMORY.glob(f"{SCRATCH}{process.pid}-*"):  # libFuzzer ends a process without its last words
        shutil.rmtree(left)
    counts = [int(one or other) for one, other in _EXECUTED.findall(log.read_bytes())]
    found = len(set(findings.iterdir()) - before)
    return {
        "executions": max(counts, default=0),
        "seconds": round(time.monotonic() - begun, 1),
        "findings": max(found, int(code != 0)),
    }


def main() -> None:
    """Fuzz, print a line a target, and end with 1 if anything was found."""
    seconds, chosen = int(sys.argv[1]), sys.argv[2:]
    subprocess.run([sys.executable, "-m", "fuzz.corpus", str(OUT / "corpus")], check=True)
    names = chosen or sorted(path.name for path in (OUT / "corpus").iterdir())
    results = {}
    for name in names:
        results[name] = fuzz(name, seconds)
        print(f"fuzz: {name}: {json.dumps(results[name])}", flush=True)
    total = {
        key: round(sum(each[key] for each in results.values()), 1) for key in ("executions", "seconds", "findings")
    }
    summary = {"atheris": version("atheris"), "python": sys.version.split()[0], "total": total, "targets": results}
    (OUT / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(
        f"fuzz: {total['executions']} executions of {len(results)} targets in {total['seconds']} s, "
        f"{total['findings']} findings"
    )
    sys.exit(bool(total["findings"]))


if __name__ == "__main__":
    main()
