"""The simulation notices: each way to break the product is met by one of the first seeds that can meet it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from ppdl_mq.peer import outbox
from ppdl_mq.peer.blobs import BlobWriter
from ppdl_mq.peer.driver import Driver
from ppdl_mq.peer.intake import Intake
from ppdl_mq.peer.live import LiveSecrets
from ppdl_mq.peer.outbox import Fate, Outbox
from ppdl_mq.peer.runner import Runner
from ppdl_mq.peer.spending import Spending
from ppdl_mq.protocol.events import Sent
from ppdl_mq.protocol.machine import Table
from ppdl_mq.protocol.masked_average.machine import MaskedAverageMachine
from ppdl_mq.protocol.masked_average.state import RoundState
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.sequential import SequentialMachine
from ppdl_mq.wire.kinds import Kind
from tests.simulation.disk import Connection as Database
from tests.simulation.story import story_of
from tests.simulation.trial import check, undisturbed

_SEEDS = 300  # how many may pass before one notices; most breaks show in the first 20

Breaks = dict[str, tuple[Any, str, Callable[[Any], Any]]]


def _drops_before_the_commit(real: Any) -> Any:
    def write(self: LiveSecrets, data: dict[str, Any]) -> Any:
        mark = real(self, data)
        self._remove_all_but(mark.name)
        return mark

    return write


def _trains_again(real: Any) -> Any:
    def unfinished(self: SequentialMachine, state: Any) -> Any:
        if state.phase is Phase.HANDING_OVER and state.turn:
            return (self._train(self.terms.schedule.turn(state.turn)),)
        return real(self, state)

    return unfinished


def _publishes_before_the_commit(real: Any) -> Any:
    def publish(self: Runner) -> None:
        with self.journal.transaction():
            real(self)

    return publish


def _remembers_nothing(real: Any) -> Any:
    def settle(self: Intake, *given: Any, **named: Any) -> None:
        real(self, *given, **(named | {"remember": False}))

    return settle


def _commits_a_half(real: Any) -> Any:
    def execute(self: Database, sql: str, *given: Any) -> Any:
        return real(self, "COMMIT" if sql == "ROLLBACK" else sql, *given)

    return execute


def _loses_commits_in_a_power_cut(real: Any) -> Any:
    def execute(self: Database, sql: str, *given: Any) -> Any:
        return real(self, sql.replace("synchronous = FULL", "synchronous = OFF"), *given)

    return execute


def _syncs_no_folder(real: Any) -> Any:
    def init(self: BlobWriter, *given: Any) -> None:
        real(self, *given)
        self._new_in = None

    return init


def _takes_a_name_that_is_there_for_synced(real: Any) -> Any:
    def init(self: BlobWriter, path: Path, *given: Any) -> None:
        was_there = path.exists()
        real(self, path, *given)
        self._new_in = None if was_there else self._new_in

    return init


def _leaves_when_the_relay_has_its_last_word(real: Table) -> Table:
    def on_sent(self: MaskedAverageMachine, state: Any, event: Sent) -> Any:
        is_last = event.kind in (Kind.AGREE, Kind.DONE)
        return self._on_sent(state, dataclasses.replace(event, is_gone=event.is_gone or is_last))

    return {**real, (Phase.CLOSING, "Sent"): on_sent}


def _gives_up_when_all_have_decided(_: Any) -> Any:
    def is_dropped(self: MaskedAverageMachine, state: RoundState) -> bool:
        without_me = self.going_on_without(state)
        return bool(without_me) and {self.terms.me, *without_me} >= set(self.members_seen(state))

    return is_dropped


def _charges_a_turn_later(real: Any) -> Any:
    late: dict[Spending, int] = {}

    def charge(self: Spending, ordinal: int) -> None:
        if self in late:
            real(self, late[self])
        late[self] = ordinal

    return charge


def _charges_twice(real: Any) -> Any:
    def charge(self: Spending, ordinal: int) -> None:
        real(self, ordinal)
        real(self, ordinal)

    return charge


BREAKS: Breaks = {
    "leaves when the relay has its last word": (
        MaskedAverageMachine,
        "table",
        _leaves_when_the_relay_has_its_last_word,
    ),
    "acknowledges before the commit": (Intake, "flush", lambda _: lambda self: None),
    "takes a refusal for a confirm": (Outbox, "_refused", lambda _: lambda *_: Fate.CONFIRMED),
    "drops live secrets before the commit": (LiveSecrets, "write", _drops_before_the_commit),
    "seals anew": (outbox, "seal_parts", lambda real: lambda *given, **named: real(*given, **without(named))),
    "trains again": (SequentialMachine, "unfinished", _trains_again),
    "forgets what it has seen": (Intake, "settle", _remembers_nothing),
    "publishes before the commit": (Runner, "_publish", _publishes_before_the_commit),
    "resumes nothing": (Driver, "resume", lambda _: lambda self: None),
    "sends nothing again": (Outbox, "resend", lambda _: lambda *_: None),
    "commits half a transaction": (Database, "execute", _commits_a_half),
    "gives up when all have decided": (MaskedAverageMachine, "is_dropped", _gives_up_when_all_have_decided),
    "stands in for nobody": (MaskedAverageMachine, "_instead_of", lambda _: lambda *_: ()),
    "syncs no blob": (BlobWriter, "sync", lambda _: lambda self: None),
    "syncs a blob without its name": (BlobWriter, "__init__", _syncs_no_folder),
    "takes a name that is there for synced": (BlobWriter, "__init__", _takes_a_name_that_is_there_for_synced),
    "loses commits in a power cut": (Database, "execute", _loses_commits_in_a_power_cut),
    "charges no turn": (Spending, "charge", lambda _: lambda *_: None),
    "charges a turn with the next": (Spending, "charge", _charges_a_turn_later),
    "charges a turn twice": (Spending, "charge", _charges_twice),
    "keeps no state": (Driver, "_journal_state", lambda _: lambda self: None),
}


OF_THE_LOST = ("gives up when all have decided", "stands in for nobody")


def without(named: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in named.items() if name != "nonce_base"}


@contextlib.contextmanager
def broken(what: str) -> Iterator[None]:
    owner, name, change = BREAKS[what]
    with mock.patch.object(owner, name, change(getattr(owner, name))):
        yield


def seeds_for(what: str) -> Iterable[int]:
    """Return the seeds of stories in which a break can matter."""
    return (seed for seed in range(10 * _SEEDS) if story_of(seed).doomed) if what in OF_THE_LOST else range(_SEEDS)


def first_to_notice(what: str, seeds: Iterable[int]) -> tuple[int, str]:
    """Return the first seed that fails, and what it said."""
    for seed in seeds:
        story = story_of(seed)
        undisturbed(story.trial)  # by the product as it is
        with broken(what):
            try:
                check(story)
            except AssertionError as error:
                return seed, str(error)
    raise AssertionError(f"nothing notices that a peer {what}")


@pytest.mark.parametrize("what", BREAKS)
def test_what_breaks_a_promise_is_noticed(what: str) -> None:
    first_to_notice(what, seeds_for(what))
