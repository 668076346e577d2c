"""The rest of a peer before another attempt, on a clock that a test turns: when it ends, and who is named."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ppdl_mq.config import limits
from ppdl_mq.peer import rest
from ppdl_mq.peer.driver import Driver
from ppdl_mq.peer.rest import Rest
from ppdl_mq.protocol.effects import Record
from ppdl_mq.protocol.events import Event, Rested


class Peer:
    """Anna's hands and clock; her machine rests as long as a test says, and begins the next attempt when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000.0
        self.rest_s: float | None = None
        self.state = SimpleNamespace(step=1, attempt=0)
        self.machine = SimpleNamespace(terms=SimpleNamespace(me="anna"), rest_s=lambda _: self.rest_s)
        self.posted: list[Event] = []
        monkeypatch.setattr(rest.time, "monotonic", lambda: self.now)
        self.begin()

    def begin(self) -> None:
        """Begin a process."""
        self.rest = Rest(cast(Driver, self))

    def post(self, event: Event) -> None:
        self.posted.append(event)
        self.state.attempt += 1
        self.rest_s = None

    def give_up(self, *names: str, rest_s: float | None = 3_600.0) -> None:
        """Have the attempt abandoned, in this order."""
        for name in names:
            about: dict[str, Any] = {"step": self.state.step, "attempt": self.state.attempt}
            self.rest.heard(Record(by=name, says="abandon", about=about, signature=bytes(64)))
        self.rest_s = rest_s
        self.rest.look()

    def burn(self, to: int, *names: str) -> None:
        """Have the attempts before this one given up, the first without a rest."""
        while self.state.attempt < to:
            self.give_up(*names, rest_s=None if self.state.attempt < limits.ATTEMPTS_AT_ONCE - 1 else 3_600.0)
            if self.rest_s is None:
                self.state.attempt += 1
            else:
                self.now += self.rest_s
                self.rest.look()


@pytest.fixture
def anna(monkeypatch: pytest.MonkeyPatch) -> Peer:
    return Peer(monkeypatch)


def test_the_machine_is_told_when_the_rest_is_over_and_not_before(anna: Peer) -> None:
    anna.rest.look()
    assert anna.rest.next_s() is None
    anna.rest_s = 8.0
    assert anna.rest.next_s() == 0.0, "it is looked at soon"
    anna.rest.look()
    assert anna.rest.next_s() == 8.0
    anna.now += 7.5
    anna.rest.look()
    assert (anna.posted, anna.rest.next_s()) == ([], 0.5)
    anna.now += 0.5
    anna.rest.look()
    assert anna.posted == [Rested(step=1, attempt=0)]
    assert anna.rest.next_s() is None
    anna.rest_s = 16.0  # the next one was given up at once
    anna.rest.look()
    assert anna.rest.next_s() == 16.0


def test_a_rest_that_members_who_changed_ended_is_forgotten(anna: Peer) -> None:
    anna.give_up("cleo")
    anna.rest_s, anna.state.attempt = None, 1
    anna.now += 4_000.0
    anna.rest.look()
    assert anna.posted == []
    anna.give_up("cleo")
    assert anna.rest.next_s() == 3_600.0


def test_a_process_that_begins_in_a_rest_rests_anew(anna: Peer) -> None:
    anna.give_up("cleo")
    anna.now += 3_000.0
    anna.begin()
    anna.rest.look()
    assert anna.rest.next_s() == 3_600.0
    assert anna.rest.facts() == {"rests_s": 3_600, "abandons_first": None}


def test_who_abandons_first_is_named_at_the_eighth_attempt_and_then_rarely(
    anna: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    anna.burn(7, "cleo", "anna", "bert")
    assert not caplog.records
    anna.burn(100, "cleo", "bert", "anna")
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [text for text in said if text.startswith("cleo abandons again and again")] == said
    assert [text.split("(")[1].split(" ")[0] for text in said] == ["8", "16", "32", "64"]
    assert all(text.endswith("ppdl-mq peer drop cleo") for text in said)


def test_the_one_who_was_first_most_often_is_named_and_never_oneself(anna: Peer) -> None:
    for names in (("anna", "bert", "cleo"), ("bert", "cleo", "anna")) * 2 + (("cleo", "bert", "anna"),) * 3:
        anna.give_up(*names, rest_s=None)
        anna.state.attempt += 1
    anna.give_up("anna", "bert", "cleo")
    assert anna.rest.facts() == {"rests_s": 3_600, "abandons_first": "cleo"}
    anna.state.step, anna.state.attempt = 2, 0  # what was heard in another step counts no more
    assert anna.rest.facts()["abandons_first"] is None
    anna.give_up("anna", "bert", "cleo")
    assert anna.rest.facts()["abandons_first"] is None


def test_other_statements_abandon_nothing(anna: Peer) -> None:
    about = {"session": bytes(32), "step": 1, "name": "bert"}
    anna.rest.heard(Record(by="cleo", says="drop", about=about, signature=bytes(64)))
    anna.give_up()
    assert anna.rest.facts() == {"rests_s": 3_600, "abandons_first": None}
