"""The command line's entrance: finds the command, and turns every error into a sentence and an exit code."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import click

from ppdl_mq import __version__
from ppdl_mq.cli import exit_codes, log, stdout
from ppdl_mq.cli.signals import sigterm_interrupts
from ppdl_mq.cli.terminal import Declined, NotWithout, Terminal, not_written
from ppdl_mq.errors import PpdlError


@dataclass(frozen=True, slots=True)
class Entry:
    """A command that is imported only when it is used, so that `--help` stays fast.

    Args:
        target: `module:attribute` of the click command.
        summary: its line in the list of commands.
    """

    target: str
    summary: str


COMMANDS = {
    "identity": Entry("ppdl_mq.cli.identity:identity", "Make and show a peer's keys."),
    "trial": Entry("ppdl_mq.cli.trial:trial", "Write, complete and check the manifest of a trial."),
    "peer": Entry("ppdl_mq.cli.peer:peer", "Run this organisation's part of a trial."),
    "relay": Entry("ppdl_mq.cli.relay:relay", "Plan and check the broker; empty the own inbox."),
    "demo": Entry("ppdl_mq.cli.demo:demo", "Train on real data with several peers on this machine."),
    "bench": Entry("ppdl_mq.cli.bench:bench", "Measure this machine and a relay."),
}


# What a person is told who stops a peer before its loop can say so itself.
STOPPED = ("Stopped.", "Run the peer again and it goes on where it was.")


class LazyGroup(click.Group):
    """A group whose commands stand in a table and are imported when called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        """Return the names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a command, or return None for an unknown name."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command), entry.target
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the list of commands without importing them, then the exit codes."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in exit_codes.MEANINGS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(__version__, prog_name="ppdl-mq")
@click.pass_context
def main(context: click.Context, debug: bool) -> None:
    """Train one PyTorch model across organisations, through a broker that nobody has to trust.

    \b
    Example:
      ppdl-mq identity new --name mercy --out mercy.key
      ppdl-mq trial new heart.toml --preset heart
      ppdl-mq peer run heart.toml --config mercy.toml
    """
    context.ensure_object(Terminal).debug = debug


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code.

    An answer that stdout does not take is an error (code 10). Where the reader of stdout has left, as `head` does, the
    command ends without a word, with the code that shells report of who was ended by SIGPIPE (141). A command that has
    done its work without the answer (`peer run`, `peer status --check`) ends with 0 in both. A person who answers a
    question with no ends it with 2, so that nothing that follows in a script takes it for done.
    """
    # Known even where the command line cannot be parsed.
    terminal = Terminal(json="--json" in arguments, log_format=log.format_in(arguments))
    try:
        # Outside click's standalone mode, `--help` and `--version` return their exit code.
        outcome = main.main(list(arguments), prog_name="ppdl-mq", standalone_mode=False, obj=terminal)
    except click.UsageError as fault:
        place = fault.ctx.command_path if fault.ctx is not None else "ppdl-mq"
        hint = fault.hint if isinstance(fault, NotWithout) else f"`{place} --help` shows how to call it."
        return terminal.refusal("Usage", fault.format_message(), hint, exit_codes.USAGE)
    except Declined as answer:
        return terminal.declined(answer, exit_codes.USAGE)
    except click.ClickException as fault:
        return terminal.refusal("Usage", fault.format_message(), "", exit_codes.USAGE)
    except PpdlError as error:
        return terminal.failure(error)
    except (KeyboardInterrupt, click.Abort):
        words = [each for each in arguments if not each.startswith("-")]
        what, hint = STOPPED if words[:2] == ["peer", "run"] else ("Interrupted.", "")
        return terminal.refusal("Interrupted", what, hint, exit_codes.INTERRUPTED)
    except SystemExit as end:
        # Of click, and of rich, after a BrokenPipeError, whose pipe may be another; or of what was called.
        if stdout.reader_has_left():
            return exit_codes.READER_LEFT
        return terminal.bug(end, exit_codes.INTERNAL)
    except Exception as error:
        not_taken = stdout.fault() if isinstance(error, OSError) else None
        if isinstance(not_taken, BrokenPipeError):
            return exit_codes.READER_LEFT
        if not_taken is not None:
            return terminal.failure(not_written(not_taken))
        return terminal.bug(error, exit_codes.INTERNAL)
    return outcome if isinstance(outcome, int) else exit_codes.OK


def entry() -> None:
    """Run the command line of this process and exit."""
    try:
        sigterm_interrupts()
        stdout.occupy_closed()
        stdout.remember_faults()
        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # the second, while the first is told
        code = exit_codes.INTERRUPTED
    stdout.finish()
    if any(thread.name == "trainer" for thread in threading.enumerate()):
        # A step that takes long was not waited for. It computes in torch, and must not while torch is taken apart.
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    entry()
