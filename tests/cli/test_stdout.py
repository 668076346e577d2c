"""An answer that cannot be written is told in one sentence, and takes nothing from work that is done."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.shell import ROOT
from tests.trials.files import TrialFiles

FULL = Path("/dev/full")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
# A trial that ends at once, and the entrance of the program.
PEER = """
import pathlib, sys
from ppdl_mq.peer import running

def ends(*_, **__):
    model = pathlib.Path("model")
    model.write_bytes(b"weights")
    return model

running.run_peer = ends
from ppdl_mq.cli.main import entry
entry()
"""


def outcome(stdout: int, *arguments: str, program: tuple[str, ...], cwd: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, *program, *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        cwd=cwd,
        env=ENVIRONMENT,
    )
    return done.returncode, done.stderr


def run_to(where: str, *arguments: str, program: tuple[str, ...], cwd: Path) -> tuple[int, str]:
    """Run a program whose stdout takes nothing: a full device, or a pipe whose reader has left."""
    if where == "full":
        if not FULL.exists():
            pytest.skip("this system has no /dev/full")
        with FULL.open("wb") as full:
            return outcome(full.fileno(), *arguments, program=program, cwd=cwd)
    reads, writes = os.pipe()
    os.close(reads)
    try:
        return outcome(writes, *arguments, program=program, cwd=cwd)
    finally:
        os.close(writes)


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("trial", "new", "heart.toml")], ids=" ".join)
@pytest.mark.parametrize("json", [(), ("--json",)], ids=["text", "json"])
def test_an_answer_that_cannot_be_written(tmp_path: Path, arguments: tuple[str, ...], json: tuple[str, ...]) -> None:
    given = (*arguments, *(json if arguments[0] == "trial" else ()))
    code, said = run_to("full", *given, program=("-m", "ppdl_mq.cli.main"), cwd=tmp_path)
    assert code == 10, said
    assert said.count("stdout cannot be written: No space left on device.") == 1
    assert len(said.splitlines()) <= 2


@pytest.mark.parametrize("arguments", [("--help",), ("trial", "new", "heart.toml")], ids=" ".join)
def test_a_reader_that_has_left(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert run_to("left", *arguments, program=("-m", "ppdl_mq.cli.main"), cwd=tmp_path) == (141, "")


@pytest.mark.parametrize("where", ["full", "left"])
def test_a_trial_that_has_ended_stays_ended(tmp_path: Path, where: str) -> None:
    files = TrialFiles(tmp_path, ("anna", "bert"))
    given = ("--quiet", "--out", "copy")
    code, said = run_to(where, *files.run_arguments("anna"), *given, program=("-c", PEER), cwd=tmp_path)
    assert code == 0, said
    assert (tmp_path / "copy").read_bytes() == b"weights"
    expected = {
        "full": "warning: stdout cannot be written: No space left on device. The work is done all the same.\n",
        "left": "",
    }
    assert said == expected[where]


# What a command raises that ends without a word only where the reader of its answer has left.
RAISES = """
import sys
from ppdl_mq.cli import main

def raises(*_, **__):
    {what}

main.COMMANDS["bench"] = main.Entry("main:command", "")
sys.modules["main"] = type("", (), dict(command=main.click.Command("bench", callback=raises)))
main.entry()
"""


@pytest.mark.parametrize("what", ["raise SystemExit(0)", "raise SystemExit", "raise BrokenPipeError(32, '')"])
def test_what_else_asks_for_the_end_is_a_bug(tmp_path: Path, what: str) -> None:
    code, said = outcome(subprocess.DEVNULL, "bench", program=("-c", RAISES.format(what=what)), cwd=tmp_path)
    assert (code, "This is a bug of ppdl-mq: SystemExit." in said) == (1, True), said


def test_a_reader_of_stderr_that_has_left(tmp_path: Path) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    program = RAISES.format(what="print('step 1', file=sys.stderr, flush=True)")
    done = subprocess.run(
        [sys.executable, "-c", program, "bench"], stderr=writes, check=False, cwd=tmp_path, env=ENVIRONMENT
    )
    os.close(writes)
    assert done.returncode == 141


def run_closed(closed: str, *arguments: str, program: tuple[str, ...], cwd: Path) -> tuple[int, str]:
    """Run a program some of whose standard streams are closed, as a shell closes them."""
    command = shlex.join([sys.executable, *program, *arguments])
    done = subprocess.run(
        ["/bin/sh", "-c", f"exec {command} {closed}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=ENVIRONMENT,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_a_stdout_that_is_closed_takes_no_answer(tmp_path: Path) -> None:
    code, said = run_closed(">&-", "trial", "new", "heart.toml", program=("-m", "ppdl_mq.cli.main"), cwd=tmp_path)
    assert (code, said.count("stdout cannot be written: Bad file descriptor.")) == (10, 1), said


def test_a_trial_that_has_ended_stays_ended_without_any_stdout(tmp_path: Path) -> None:
    files = TrialFiles(tmp_path, ("anna", "bert"))
    code, said = run_closed(">&-", *files.run_arguments("anna"), "--quiet", program=("-c", PEER), cwd=tmp_path)
    assert (code, said) == (
        0,
        "warning: stdout cannot be written: Bad file descriptor. The work is done all the same.\n",
    )


# What an opened file is, and what becomes of what is printed into streams that are closed.
OPENS = """
import os, sys
from ppdl_mq.cli import main

def opens(_):
    with open("journal", "w") as file:
        os.write(file.fileno(), b"%d" % (file.fileno() > 2))
        for number in range(3):
            os.fstat(number)
        print("lost", file=sys.stderr, flush=True)
        return 10 * (sys.stdin.read() == "")

main.run = opens
main.entry()
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_no_file_takes_the_place_of_a_stream_that_is_closed(tmp_path: Path, closed: str) -> None:
    given = closed if "<&-" in closed else f"{closed} </dev/null"
    code, _ = run_closed(given, program=("-c", OPENS), cwd=tmp_path)
    assert (code, (tmp_path / "journal").read_text()) == (10, "1")


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
def test_where_nobody_can_be_told_the_code_stays(tmp_path: Path) -> None:
    with FULL.open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ppdl_mq.cli.main", "trial", "check", "missing.toml"],
            stderr=full,
            cwd=tmp_path,
            check=False,
            env=ENVIRONMENT,
        )
    assert done.returncode == 3
