"""Time rounds of Flower's SecAgg+ among five clients that do not train. One JSON object per run on stdout.

Called by `run`, which makes the environment. README.md says what the figures hold.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

APP = Path(__file__).resolve().parent / "app"
BIN = Path(sys.executable).parent
PEERS = 5
OUT_OF_RANGE = 12.8  # Flower clips at 8


def write_vectors(folder: Path, params: int) -> None:
    """Write the peers' vectors, their mean in float64 and the model that the server sends out.

    The vectors are standard normal, float32. Weight 0 is out of range at one peer, weight 1 at every peer.
    """
    total = np.zeros(params)
    for peer in range(PEERS):
        vector = np.random.default_rng(peer).standard_normal(params, dtype=np.float32)
        vector[0] = OUT_OF_RANGE if peer == 0 else 0.0
        vector[1] = OUT_OF_RANGE
        np.save(folder / f"vector-{peer}.npy", vector)
        total += vector
    np.save(folder / "mean.npy", total / PEERS)
    np.save(folder / "model.npy", np.random.default_rng(PEERS).standard_normal(params, dtype=np.float32))


def free_port() -> int:
    """Return a TCP port of loopback that was free just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of Flower's processes: state in `folder`, nothing told to anybody outside."""
    return {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",  # SuperLink and SuperNode start their helpers by name
        "HOME": str(folder),
        "FLWR_HOME": str(folder / "flwr"),
        "RAY_TMPDIR": str(folder),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "NO_PROXY": "127.0.0.1",
    }


@contextlib.contextmanager
def processes(commands: list[list[str]], folder: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start the commands; at exit end those that still run, and wait for all that they started themselves.

    Their output goes through a pipe to `flower.log`. The pipe closes when the last process that inherited it has ended:
    that is how we learn that Flower's helpers, which leave our process group, are gone and do not disturb the next run.
    """
    read_end, write_end = os.pipe()
    reader = threading.Thread(target=copy_to_log, args=(read_end, folder / "flower.log"), daemon=True)
    reader.start()
    started: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            process = subprocess.Popen(command, stdout=write_end, stderr=write_end, env=environment(folder), cwd=folder)
            started.append(process)
        os.close(write_end)
        write_end = -1
        yield started
    finally:
        if write_end >= 0:  # a command did not start
            os.close(write_end)
        for process in started:
            process.terminate()
        for process in started:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        reader.join(timeout=30)
        if reader.is_alive():
            print("run: a process that Flower started still runs", file=sys.stderr)


def copy_to_log(read_end: int, log: Path) -> None:
    """Append what arrives at `read_end` to `log` until its last writer has ended."""
    with open(read_end, "rb", buffering=0) as source, log.open("ab", buffering=0) as target:
        while block := source.read(65536):
            target.write(block)


def wait_until_up(port: int, limit_s: float = 60.0) -> None:
    """Wait until the SuperLink answers."""
    deadline = time.monotonic() + limit_s
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def run_app(folder: Path, port: int, rounds: int, engine: str, limit_s: float) -> None:
    """Submit the app to the SuperLink at `port` and wait until the run has ended."""
    (folder / "flwr").mkdir(exist_ok=True)
    (folder / "flwr" / "config.toml").write_text(
        f'[superlink]\ndefault = "bench"\n\n[superlink.bench]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    command = [str(BIN / "flwr"), "run", str(APP), "bench", "--stream"]
    command += ["--run-config", f'folder="{folder}" peers={PEERS} rounds={rounds}']
    if engine == "simulation":  # Flower's default of two CPUs a client would run one client at a time on two cores
        command += ["--federation-config", f"num-supernodes={PEERS} client-resources-num-cpus=1"]
    # After the limit there is no result, and `measure` says so.
    with processes([command], folder) as (flwr,), contextlib.suppress(subprocess.TimeoutExpired):
        flwr.wait(timeout=limit_s)


def measure(params: int, engine: str, rounds: int, limit_s: float) -> dict[str, Any]:
    """Start the engine, run the rounds, end the engine, and return the figures."""
    with tempfile.TemporaryDirectory(prefix="flower-") as name:
        folder = Path(name)
        write_vectors(folder, params)
        port = free_port()
        superlink = [str(BIN / "flower-superlink"), "--insecure", "--host", "127.0.0.1", "--port", str(port)]
        superlink.append("--disable-runtime-dependency-installation")
        nodes: list[list[str]] = []
        if engine == "simulation":
            superlink.append("--simulation")
        else:
            for peer in range(PEERS):
                node = [str(BIN / "flower-supernode"), "--insecure", "--superlink", f"127.0.0.1:{port}"]
                node += ["--port", str(free_port()), "--node-config", f"partition-id={peer} num-partitions={PEERS}"]
                nodes.append(node)
        started = time.perf_counter()
        with processes([superlink], folder):
            wait_until_up(port)
            with processes(nodes, folder):
                # Ray starts within the first round: a simulation runs one round more, and its time stands apart.
                run_app(folder, port, rounds + (engine == "simulation"), engine, limit_s)
                all_seconds = time.perf_counter() - started
        if not (folder / "server.json").exists():
            log = (folder / "flower.log").read_text(errors="replace").splitlines()
            raise SystemExit("\n".join([*log[-60:], "run: the round failed; above is the end of Flower's log"]))
        result: dict[str, Any] = json.loads((folder / "server.json").read_text())
    if engine == "simulation":
        result["first_round_seconds"] = result["round_seconds"].pop(0)
    return {"engine": engine, "params": params, "peers": PEERS, "all_seconds": round(all_seconds, 2), **result}


def main() -> None:
    """Measure each size and print one JSON object for each."""
    parser = argparse.ArgumentParser(prog="run", description="Time rounds of Flower's SecAgg+ among five clients.")
    parser.add_argument(
        "--params", type=int, nargs="+", default=[1_000_000], help="parameters of the model, one run each"
    )
    parser.add_argument("--engine", choices=["simulation", "deployment"], default="simulation")
    parser.add_argument("--rounds", type=int, default=1, help="rounds in a run; each is timed")
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds after which a run is given up")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the processes are ended then too
    versions = {"python": platform.python_version(), **{name: version(name) for name in ("flwr", "ray", "numpy")}}
    for params in arguments.params:
        result = measure(params, arguments.engine, arguments.rounds, arguments.limit)
        print(json.dumps({**result, "cpus": os.cpu_count(), "versions": versions}), flush=True)


if __name__ == "__main__":
    main()
