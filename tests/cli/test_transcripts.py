"""The command line as a person sees it: each file in `transcripts/` is replayed in an empty folder.

A transcript holds comments (`#`), commands, and the output that follows each. `[N]` after it is the exit code, 0
where there is none. Commands are `$ ppdl-mq ...`, `$ cat FILE`, `$ chmod MODE FILE`, `$ append FILE LINE`, and
`$ NAME=value` to set a variable; in one, `@NAME` stands for the public line of the identity NAME.key. In the output
`<word>` stands for anything without spaces, and `...` alone on a line for any lines.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ppdl_mq.cli.main import run
from ppdl_mq.peer.identity_file import read_public_line

TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))


@dataclass
class Step:
    """One command, what it should print, and its exit code."""

    number: int
    command: str
    expected: list[str] = field(default_factory=list)
    code: int = 0


def test_there_are_transcripts() -> None:
    assert len(TRANSCRIPTS) >= 4


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    steps = parse(path.read_text())
    assert steps
    for step in steps:
        code, output = perform(step.command, monkeypatch)
        place = f"{path.name}:{step.number}: $ {step.command}\n{output}"
        assert re.fullmatch(pattern(step.expected), output.rstrip("\n")), place
        assert code == step.code, place


def parse(text: str) -> list[Step]:
    steps: list[Step] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("$ "):
            steps.append(Step(number, line.removeprefix("$ ")))
        elif line.startswith("#") and (not steps or steps[-1].expected[-1:] in ([], [""])):
            continue
        elif steps and (code := re.fullmatch(r"\[(\d+)\]", line)):
            steps[-1].code = int(code[1])
        elif steps:
            steps[-1].expected.append(line)
    return steps


def pattern(expected: list[str]) -> str:
    while expected and not expected[-1]:
        expected = expected[:-1]
    lines = [
        r"(?s:.*?)" if line == "..." else re.sub(r"<[a-z-]+>", r"\\S+", re.escape(line).replace(r"\-", "-"))
        for line in expected
    ]
    return "\n".join(lines)


def perform(command: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    words = shlex.split(command)
    words = [read_public_line(Path(f"{word[1:]}.key")) if word.startswith("@") else word for word in words]
    if len(words) == 1 and "=" in words[0]:
        name, _, value = words[0].partition("=")
        monkeypatch.setenv(name, value)
        return 0, ""
    if words[0] == "cat":
        return 0, Path(words[1]).read_text()
    if words[0] == "chmod":
        Path(words[2]).chmod(int(words[1], 8))
        return 0, ""
    if words[0] == "append":
        with Path(words[1]).open("a") as file:
            file.write(f"{words[2]}\n")
        return 0, ""
    assert words[0] == "ppdl-mq", command

    @click.command(context_settings={"ignore_unknown_options": True})
    def inside() -> None:
        raise SystemExit(run(words[1:]))

    outcome = CliRunner().invoke(inside, [])
    return outcome.exit_code, outcome.output
