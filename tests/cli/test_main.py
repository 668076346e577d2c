from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ppdl_mq import errors
from ppdl_mq.cli import exit_codes
from ppdl_mq.cli.exit_codes import exit_code
from ppdl_mq.cli.main import COMMANDS, main, run
from ppdl_mq.cli.terminal import Terminal
from ppdl_mq.config.reading import read_settings

HEAVY = {"torch", "numpy", "pika", "sklearn", "pyarrow", "pandas"}


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group, obj=Terminal())
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


EVERY = dict(commands(main))


def test_the_words_of_the_issue_are_there() -> None:
    words = "identity new|identity show|trial new|trial add-peer|trial check|trial renew|peer new|peer run|peer status"
    words += "|peer drop|peer leave"
    for command in f"{words}|relay check|relay purge|demo|bench".split("|"):
        assert tuple(command.split()) in EVERY


@pytest.mark.parametrize("path", EVERY, ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*path, "--help"]) == 0
    shown = capsys.readouterr().out
    if not isinstance(EVERY[path], click.Group):
        assert f"Example:\n    ppdl-mq {' '.join(path)}" in shown
        assert EVERY[path].get_short_help_str()


def test_no_command_takes_a_secret_as_an_argument() -> None:
    for path, command in EVERY.items():
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.is_flag:
                assert not {"--passphrase", "--password"} & set(parameter.opts), path


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["peer", "run", "--help"],
        ["peer", "drop", "basel", "--config", "missing.toml"],
        ["peer", "leave", "--config", "missing.toml"],
        ["demo", "--help"],
        ["trial", "check", "missing.toml"],
    ],
    ids=" ".join,
)
def test_what_a_command_does_not_need_is_not_imported(arguments: list[str]) -> None:
    program = (
        "import sys; from ppdl_mq.cli.main import run; run(sys.argv[1:]);"
        " print(*(name for name in sys.modules if '.' not in name), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    imported = set(done.stderr.splitlines()[-1].split())
    assert "click" in imported
    assert not HEAVY & imported


def test_the_main_help_needs_no_command() -> None:
    program = "import sys; from ppdl_mq.cli.main import run; run(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"pydantic", "nacl", "msgpack", "rich"} & set(done.stderr.split())


def leaves(kind: type[errors.PpdlError]) -> Iterator[type[errors.PpdlError]]:
    yield kind
    for narrower in kind.__subclasses__():
        yield from leaves(narrower)


def make(kind: type[errors.PpdlError]) -> errors.PpdlError:
    if kind is errors.ManifestMismatch:
        return errors.ManifestMismatch("mercy", ("nonce",))
    if kind is errors.Unroutable:
        return errors.Unroutable("mercy")
    if kind is errors.DiskFull:
        return errors.DiskFull("The journal")
    return kind("Something is wrong.", hint="Put it right.")


@pytest.mark.parametrize("kind", list(leaves(errors.PpdlError)), ids=lambda kind: kind.__name__)
def test_every_error_has_a_documented_exit_code(kind: type[errors.PpdlError]) -> None:
    code = exit_code(make(kind))
    assert code in exit_codes.MEANINGS
    assert code != 0
    bugs = {errors.PpdlError, errors.LocalError, errors.IllegalEvent}
    assert (code == exit_codes.INTERNAL) == (kind in bugs)


def test_exit_codes_of_each_branch() -> None:
    expected = {
        errors.ManifestError: 3,
        errors.PassphraseError: 4,
        errors.NotFinite: 5,
        errors.Overflow: 5,
        errors.RelayRefused: 6,
        errors.TooFewPeers: 7,
        errors.Dropped: 7,
        errors.ManifestMismatch: 7,
        errors.AlreadyRunning: 8,
        errors.InboxTaken: 8,
        errors.JournalError: 9,
        errors.InTheWay: 10,
        errors.DiskFull: 10,
        errors.Unwell: 11,
    }
    assert {kind: exit_code(make(kind)) for kind in expected} == expected


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make `ppdl-mq demo` raise `error`."""

    def callback(**_options: object) -> None:
        raise error

    command = click.Command("demo", callback=callback)
    monkeypatch.setattr(type(main), "get_command", lambda *_arguments: command)


def test_a_bug_shows_its_text_with_debug_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, RuntimeError("a cell of somebody's data"))
    assert run(["demo"]) == 1
    shown = capsys.readouterr().err
    assert "somebody" not in shown
    assert "Traceback" not in shown
    assert run(["--debug", "demo"]) == 1
    assert "somebody" in capsys.readouterr().err


def test_an_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    assert run(["demo"]) == 130
    assert capsys.readouterr().err.strip() == "error: Interrupted."


def test_what_others_sent_cannot_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, errors.Malformed("\x1b[2J\rgone"))
    assert run(["demo"]) == 7
    assert capsys.readouterr().err == "error: ?[2J?gone\n"


def test_an_error_for_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert Terminal(json=True).failure(errors.RelayLost("Lost.", hint="Wait.")) == 6
    expected = {"error": {"kind": "RelayLost", "message": "Lost.", "hint": "Wait.", "exit_code": 6}}
    assert json.loads(capsys.readouterr().err) == expected


def test_paths_are_kept_as_seen_from_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mercy").mkdir()
    given = ["--identity", "mercy.key", "--broker", "embedded:relay.sqlite", "--data", "csv:rows.csv"]
    assert run(["peer", "new", "mercy/peer.toml", *given]) == 0
    settings = read_settings(tmp_path / "mercy" / "peer.toml")
    assert settings.identity.resolve() == tmp_path / "mercy.key"
    assert settings.state_dir == tmp_path / "mercy" / "peer.state"
    assert Path(settings.broker.url.removeprefix("embedded:")).resolve() == tmp_path / "relay.sqlite"
    assert settings.data.arguments == {"path": "../rows.csv"}


def test_every_way_to_log_in_can_be_given_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mercy").mkdir()
    names = ("password", "ca", "certificate", "key")
    for name in names:
        (tmp_path / name).touch(mode=0o600)
    files = [f"--{'broker-' if name == 'password' else ''}{name}-file={name}" for name in names]
    given = ["--identity", "mercy.key", "--broker", "amqps://mercy@relay/ppdl", "--data", "csv:rows.csv", *files]
    assert run(["peer", "new", "mercy/peer.toml", *given]) == 0
    broker = read_settings(tmp_path / "mercy" / "peer.toml").broker
    found = (broker.password_file, broker.ca_file, broker.certificate_file, broker.key_file)
    assert [path.resolve() for path in found if path is not None] == [tmp_path / name for name in names]


def test_the_table_of_commands_matches_the_modules() -> None:
    assert [path[0] for path in EVERY if len(path) == 1] == list(COMMANDS)
