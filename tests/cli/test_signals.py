"""What Ctrl-C and SIGTERM do to a peer before its loop runs, and to the first process of a container."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from ppdl_mq.cli import exit_codes
from ppdl_mq.cli.main import run
from ppdl_mq.peer import running
from tests.people import PEERS
from tests.trials.files import TrialFiles

WAIT_S = 30.0
FIRST_PROCESS = """
import os, signal, sys, time
from ppdl_mq.cli.signals import stop_on_signals

class Runner:
    def stop(self):
        print("stopping", flush=True)

stop_on_signals(Runner())
print(os.getpid(), flush=True)
while True:
    time.sleep(0.05)
"""

# Its imports take as long as they would on a slow disk.
SLOW_TO_IMPORT = """
import importlib.abc, signal, sys, time

signal.signal(signal.SIGINT, signal.default_int_handler)  # as at a terminal: a shell's job in the background ignores it

class Slow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "ppdl_mq.cli.peer":
            print("importing", flush=True)
            time.sleep(60)

from ppdl_mq.cli.main import entry
sys.meta_path.insert(0, Slow())
entry()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["run", "status"])
def test_a_signal_while_it_imports_ends_it_with_a_sentence(number: signal.Signals, command: str) -> None:
    words = [sys.executable, "-c", SLOW_TO_IMPORT, "peer", command, "heart.toml", "--config", "mercy.toml"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "importing\n"
            process.send_signal(number)
            _, said = process.communicate(timeout=WAIT_S)
        finally:
            process.kill()
    assert process.returncode == exit_codes.INTERRUPTED
    stopped = "error: Stopped.\nhint: Run the peer again and it goes on where it was."
    assert said.strip() == (stopped if command == "run" else "error: Interrupted.")


# The second signal comes while the first is told.
TWO_SIGNALS = """
import os, signal, sys
from ppdl_mq.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # as above

def told(_):
    try:
        signal.raise_signal(signal.SIGTERM)
    except KeyboardInterrupt:
        signal.raise_signal(signal.Signals(int(sys.argv[1])))

main.run = told
main.entry()
"""


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_before_the_loop_leaves_the_code_of_the_first(second: signal.Signals) -> None:
    done = subprocess.run([sys.executable, "-c", TWO_SIGNALS, str(int(second))], check=False, timeout=WAIT_S)
    assert done.returncode == exit_codes.INTERRUPTED


def test_sigterm_ends_it_while_it_reads_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reads(*_: Any, **__: Any) -> Path:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it went on")

    files = TrialFiles(tmp_path, PEERS[:2], new=("--epochs", "1"))
    monkeypatch.setattr(running, "run_peer", reads)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert run(files.run_arguments(PEERS[0])) == exit_codes.INTERRUPTED
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def unshared() -> list[str]:
    """Return what makes a process the first of its own world, where this machine allows it; otherwise skip."""
    command = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*command, "true"], check=False, capture_output=True).returncode
    ):
        pytest.skip("this machine lets nobody make a namespace of processes")
    return command


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_the_first_process_of_a_container(second: signal.Signals) -> None:
    command = [*unshared(), sys.executable, "-c", FIRST_PROCESS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "1\n"
            (inner,) = psutil.Process(process.pid).children()
            inner.send_signal(signal.SIGTERM)
            assert process.stdout.readline() == "stopping\n"
            inner.send_signal(second)
            assert process.wait(WAIT_S) == 128 + second
        finally:
            process.kill()
