"""What the documents say exists: files, make targets, commands and their options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ppdl_mq.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "brokers/**/*.md", "peers/**/*.md")
    for path in ROOT.glob(pattern)
    if path.is_file()
)

LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
# A path in backticks is checked when it begins with a folder or file that this repository keeps.
REPOSITORY_PATH = re.compile(
    r"^(?:(?:ppdl_mq|brokers|peers|tests|docs|scripts|benchmarks|\.ci)/[\w./-]*"
    r"|Makefile|Dockerfile|docker-compose\.yml|pyproject\.toml|constraints\.txt|[A-Z]+\.md)$"
)
PLACEHOLDER = re.compile(r"NNNN|NAME|FILE|PATH|\*|<|\.\.\.")


def broken_links(text: str, folder: Path) -> Iterator[str]:
    """Yield relative links whose target is missing, the anchor left aside."""
    for target in LINK.findall(_without_code(text)):
        path = target.partition("#")[0]
        if path and not re.match(r"[a-z][a-z0-9+.-]*:", path) and not (folder / path).exists():
            yield target


def missing_paths(text: str, folder: Path) -> Iterator[str]:
    """Yield paths in backticks that are neither in the repository nor beside the document."""
    for code in CODE.findall(text):
        path = code.strip()
        ours = REPOSITORY_PATH.match(path) and not PLACEHOLDER.search(path)
        if ours and not (ROOT / path).exists() and not (folder / path).exists():
            yield path


def missing_targets(text: str, makefile: str) -> Iterator[str]:
    """Yield `make X` for which the Makefile has no target X."""
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    shown = re.findall(r"^\s*(?:[+$] )?(?:[A-Z_]+=\S+ )*make ([a-z][a-z-]*)", _code_blocks(text), re.MULTILINE)
    shown += [found[1] for code in CODE.findall(text) if (found := re.match(r"make ([a-z][a-z-]*)", code))]
    yield from (target for target in shown if target not in targets)


def shown_commands(text: str) -> Iterator[str]:
    """Yield every `ppdl-mq ...` of the code blocks and of the text, continued lines joined."""
    blocks = re.sub(r"\\\n\s*", " ", _code_blocks(text))
    for line in blocks.splitlines():
        if found := re.match(r"\s*(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\S*/)?ppdl-mq ((?! *$).*)", line):
            yield found[1]
    for code in CODE.findall(text):
        if found := re.match(r"(?:\S*/)?ppdl-mq (.+)", code):
            yield found[1]


def faults_of_command(line: str, program: click.Command) -> list[str]:
    """Return what is wrong with one command line: an unknown command, or an unknown option."""
    words = shlex.split(line, comments=True)
    command, context = program, click.Context(program, info_name="ppdl-mq")
    position = 0
    while isinstance(command, click.Group):
        word = words[position] if position < len(words) else None
        if word is None or word in ("--help", "..."):
            return []
        if word.startswith("-"):  # an option of the group itself, or none that exists
            if word.partition("=")[0] not in _options(command, context):
                return [f"{context.command_path} has no option {word}"]
            position += 1
            continue
        for alternative in word.split("|"):
            if command.get_command(context, alternative) is None:
                return [f"{context.command_path} has no command {alternative}"]
        following = command.get_command(context, word.split("|")[0])
        assert following is not None
        context = click.Context(following, info_name=word, parent=context)
        command, position = following, position + 1
    known = _options(command, context)
    options = [word.partition("=")[0] for word in words[position:] if re.match(r"--?[a-z]", word)]
    return [f"{context.command_path} has no option {option}" for option in options if option not in known]


def _options(command: click.Command, context: click.Context) -> set[str]:
    return {name for each in command.get_params(context) for name in (*each.opts, *each.secondary_opts)}


def _code_blocks(text: str) -> str:
    """Return fenced blocks and blocks indented by four, except inside lists."""
    fenced = re.findall(r"^```[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return "\n".join([*fenced, *re.findall(r"^ {4,}\S.*$", text, re.MULTILINE)])


def _without_code(text: str) -> str:
    return CODE.sub("", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_names_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert list(broken_links(text, document.parent)) == []
    assert list(missing_paths(text, document.parent)) == []
    assert list(missing_targets(text, (ROOT / "Makefile").read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_a_document_parse(document: Path) -> None:
    commands = list(shown_commands(document.read_text(encoding="utf-8")))
    if commands:
        assert [fault for line in commands for fault in faults_of_command(line, main)] == []


def test_the_changelog_has_an_unreleased_section() -> None:
    assert "\n## [Unreleased]\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_checks_notice_what_is_wrong(tmp_path: Path) -> None:
    assert list(broken_links("[a](missing.md) [b](https://x.org/y) [c](#here) `[d](e)`", tmp_path)) == ["missing.md"]
    assert list(missing_paths("`docs/NO-SUCH.md` `Makefile` `docs/NAME.md` `a/b`", tmp_path)) == ["docs/NO-SUCH.md"]
    assert list(missing_targets("`make demo`, `make tea`\n\n    make coffee\n", "demo: x\n")) == ["coffee", "tea"]
    assert list(shown_commands("`ppdl-mq a b`\n\n    $ ppdl-mq c \\\n        --d\n")) == ["c  --d", "a b"]


def test_the_check_of_commands_notices_what_is_wrong() -> None:
    @click.group("program")
    def program() -> None: ...

    @program.command("run")
    @click.argument("trial")
    @click.option("--config", "-c")
    def run(trial: str, config: str) -> None: ...

    assert faults_of_command("run heart.toml --config a.toml -c b  # --not-this", program) == []
    assert faults_of_command("--help", program) == []
    assert faults_of_command("walk heart.toml", program) == ["ppdl-mq has no command walk"]
    assert faults_of_command("run heart.toml --speed=3", program) == ["ppdl-mq run has no option --speed"]
    assert faults_of_command("--loud run x", program) == ["ppdl-mq has no option --loud"]
