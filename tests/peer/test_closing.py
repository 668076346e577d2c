"""Whole peers of masked-average at a relay that destroys each peer's last word once, after it has confirmed it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from ppdl_mq.errors import Interrupted
from ppdl_mq.peer import facts
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.transport.memory import MemoryRelay, MemoryTransport
from ppdl_mq.wire.header import decode_header
from ppdl_mq.wire.kinds import Kind
from tests.trial import TrialInProcess, manifest_for

LAST_STEP = 1
PATIENCE_S = 0.3


class Losing(MemoryTransport):
    """Takes some messages, and loses them: each the first time, or always while `blocked` is set."""

    kinds: frozenset[Kind]
    blocked: threading.Event
    lost: set[bytes]

    def publish(self, address: str, bodies: Iterable[bytes]) -> None:
        parts = list(bodies)
        header, _ = decode_header(parts[0])
        is_last = header.kind in self.kinds and header.turn == LAST_STEP
        if is_last and (self.blocked.is_set() or header.message_id not in self.lost):
            self.lost.add(header.message_id)
            return
        super().publish(address, parts)


def losing(tmp_path: Path, *kinds: Kind, **rules: Any) -> tuple[TrialInProcess, type[Losing]]:
    relay = MemoryRelay()
    state = {"kinds": frozenset(kinds), "blocked": threading.Event(), "lost": set()}
    transport: type[Losing] = type("LosingHere", (Losing,), state)
    manifest = manifest_for(protocol="masked-average", training__epochs=1, averaging={"evaluate_every": 0, **rules})
    return TrialInProcess(manifest, tmp_path, lambda _: transport(relay), patience_s=PATIENCE_S), transport


@pytest.mark.parametrize("kinds", [[Kind.AGREE], [Kind.DONE], [Kind.AGREE, Kind.DONE]], ids=["agree", "done", "both"])
def test_all_end_with_the_model_although_the_last_words_are_lost(tmp_path: Path, kinds: list[Kind]) -> None:
    trial, transport = losing(tmp_path, *kinds)
    trial.run()
    names = trial.manifest.peer_names
    # One whose sender has ended is not sent again: that its inbox is gone says the same.
    assert len(transport.lost) >= (len(names) if kinds == [Kind.DONE] else len(names) * (len(names) - 1))
    assert len({trial.model(name) for name in names}) == 1
    assert {runner.state.phase for runner in trial.runners.values()} == {Phase.ENDED}


def test_one_that_is_stopped_while_it_is_closing_goes_on_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(facts, "_CLOSES_SOON_S", 0.0)
    caplog.set_level(logging.INFO, logger="ppdl_mq")
    trial, transport = losing(tmp_path, Kind.DONE)
    transport.blocked.set()
    threads = trial.start()
    stopped = threading.Event()
    for _ in range(600):
        runners = list(trial.runners.values())
        are_closing = len(runners) == len(threads) and all(each.state.phase is Phase.CLOSING for each in runners)
        if are_closing and all(each.model_path.exists() for each in runners):  # it is written right after
            break
        stopped.wait(0.1)
    first, *_ = names = trial.manifest.peer_names
    assert all(trial.runners[name].driver.waiting_for() for name in names)
    assert all(trial.runners[name].model_path.exists() for name in names)
    trial.runners[first].stop()
    next(thread for thread in threads if thread.name == first).join(30)
    assert isinstance(trial.errors.pop(first), Interrupted)
    assert f"waiting until {', '.join(names[1:])} has what it needs" in caplog.text
    transport.blocked.clear()
    for thread in [*trial.start(first), *threads]:
        thread.join(60)
        assert not thread.is_alive()
    assert not trial.errors
    assert {runner.state.phase for runner in trial.runners.values()} == {Phase.ENDED}
    assert len({trial.model(name) for name in names}) == 1


@pytest.mark.parametrize("rule", ["abort", "drop"])
def test_one_that_has_the_model_ends_with_it_whatever_the_manifest_says_of_the_absent(
    tmp_path: Path, rule: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="ppdl_mq")
    trial, transport = losing(tmp_path, Kind.DONE, on_absent=rule, absent_after_s=5.0)
    transport.blocked.set()  # no DONE ever comes
    trial.run()
    assert {runner.state.phase for runner in trial.runners.values()} == {Phase.ENDED}
    assert len({trial.model(name) for name in trial.manifest.peer_names}) == 1
    assert "waiting for it no longer" in caplog.text
