"""A relay that is away: what a peer does by itself meanwhile, and what it does not take for the others' absence."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ppdl_mq.errors import Interrupted
from ppdl_mq.peer import rounds
from ppdl_mq.peer.inputs import StopAsked, Worked
from ppdl_mq.peer.orders import ORDERS_NAME, Order, give_order
from ppdl_mq.peer.rounds import RoundHands
from ppdl_mq.peer.runner import Runner
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.schedule import Turn
from ppdl_mq.training.worker import Worker
from ppdl_mq.transport.memory import MemoryRelay, MemoryTransport
from tests.trial import WAIT_S, TrialInProcess, manifest_for, until


def ended(threads: list[threading.Thread], trial: TrialInProcess) -> None:
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive(), trial.runners[thread.name].state.phase
    assert not trial.errors


def is_away(runner: Runner) -> bool:
    return bool(runner.link.facts()["relay"]["state"] == "reconnecting")


def test_time_in_which_nothing_was_taken_counts_for_nobody_and_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A peer that sends much to one that refuses it is busy for longer than it listens, again and again."""
    now = 0.0
    monkeypatch.setattr("ppdl_mq.peer.rounds.time.monotonic", lambda: now)
    hands = RoundHands.__new__(RoundHands)
    hands._absent_s, hands._listened_s, hands._round_at = {}, math.inf, now
    hands._rules = cast("Any", SimpleNamespace(on_absent="drop"))
    hands.tools = cast("Any", SimpleNamespace(driver=SimpleNamespace(waiting_for=lambda: ("cleo",))))
    hands._count_absence()
    for _ in range(20):
        for passed_s in (rounds._DEAF_S + 20, 1.0):
            now += passed_s
            hands._count_absence()
    assert hands._absent_s == {"cleo": 20.0}
    assert hands._listened_s == math.inf
    now += 5
    hands.unheard()
    hands._count_absence()
    now += 7
    hands._count_absence()
    assert hands._listened_s == 7.0
    assert hands._absent_s == {"cleo": 27.0}


def test_a_result_that_comes_with_the_wish_to_stop_is_noted() -> None:
    noted: list[object] = []
    runner = cast("Any", SimpleNamespace(hands=SimpleNamespace(note=noted.append)))
    with pytest.raises(Interrupted):
        Runner._take(runner, [StopAsked(), Worked("result")])
    assert noted == ["result"]


class Gate:
    """Holds each training of a peer until it is opened, and counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.open = threading.Event()
        self.begun = threading.Event()
        self.trained: Counter[int] = Counter()
        real = Worker.train

        def train(worker: Worker, turn: Turn, *others: Any, **options: Any) -> Any:
            result = real(worker, turn, *others, **options)
            if threading.current_thread().name == "trainer" and turn.peer == name:
                self.begun.set()
                assert self.open.wait(WAIT_S)
                self.trained[turn.number] += 1
            return result

        monkeypatch.setattr(Worker, "train", train)


@pytest.mark.parametrize("meanwhile", [True, False], ids=["meanwhile", "when it is stopped"])
def test_a_turn_that_ends_without_a_relay_is_journalled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: bool
) -> None:
    if not meanwhile:
        monkeypatch.setattr(Runner, "_meanwhile", lambda _: None)
    gate, relay = Gate(monkeypatch, "anna"), MemoryRelay()
    trial = TrialInProcess(manifest_for(("anna", "bert")), tmp_path, lambda _: MemoryTransport(relay))
    (anna, bert) = trial.start("anna", "bert")
    assert gate.begun.wait(WAIT_S)
    relay.cut(reachable=False)
    runner = trial.runners["anna"]
    until(lambda: is_away(runner))
    gate.open.set()
    if meanwhile:
        until(lambda: runner.state.phase is not Phase.TRAINING)
    else:
        until(lambda: gate.trained)
    runner.stop()
    anna.join(WAIT_S)
    assert isinstance(trial.errors.pop("anna"), Interrupted)
    relay.reachable = True
    ended([*trial.start("anna"), bert], trial)
    assert set(gate.trained.values()) == {1}, "a turn was trained again"


def test_orders_are_taken_up_without_a_relay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, relay = Gate(monkeypatch, "anna"), MemoryRelay()
    manifest = manifest_for(protocol="masked-average")
    trial = TrialInProcess(manifest, tmp_path, lambda _: MemoryTransport(relay))
    threads = trial.start()
    assert gate.begun.wait(WAIT_S)
    relay.cut(reachable=False)
    until(lambda: is_away(trial.runners["anna"]))
    give_order(tmp_path / "anna", Order())
    until(lambda: not any((tmp_path / "anna" / ORDERS_NAME).iterdir()))
    assert is_away(trial.runners["anna"])
    gate.open.set()
    relay.reachable = True
    for thread in threads:
        thread.join(WAIT_S)
    assert trial.runners["anna"].state.phase is Phase.LEFT


@pytest.mark.parametrize("rule", ["abort", "drop"])
def test_nobody_is_absent_for_as_long_as_the_relay_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    """Cleo trains on meanwhile, and its message is the first thing to come when the relay is back."""
    monkeypatch.setattr(rounds, "_DEAF_S", 1.5)
    gate, relay = Gate(monkeypatch, "cleo"), MemoryRelay()
    manifest = manifest_for(protocol="masked-average", averaging__on_absent=rule, averaging__absent_after_s=3.0)
    trial = TrialInProcess(manifest, tmp_path, lambda _: MemoryTransport(relay))
    threads = trial.start()
    assert gate.begun.wait(WAIT_S)
    relay.cut(reachable=False)
    for runner in trial.runners.values():
        until(lambda runner=runner: is_away(runner))  # type: ignore[misc]
    time.sleep(4)  # longer than anybody may be absent
    gate.open.set()
    relay.reachable = True
    ended(threads, trial)
    assert len({trial.model(name) for name in trial.manifest.peer_names}) == 1
