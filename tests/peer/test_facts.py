"""What status says of those who are waited for, by a clock of its own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from ppdl_mq.peer import facts
from ppdl_mq.peer.facts import Facts
from ppdl_mq.protocol.phases import Phase


class Shown:
    """The facts of a peer whose parts say nothing, but for whom it waits for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000.0
        self.waiting_for: tuple[str, ...] = ()
        self.is_due = True
        self.status: dict[str, Any] = {}
        clock = SimpleNamespace(time=lambda: self.now, monotonic=lambda: self.now)
        monkeypatch.setattr(facts, "time", clock)

        def nothing(*_: Any, **__: Any) -> dict[str, Any]:
            return {}

        parts: dict[str, Any] = {
            "terms": SimpleNamespace(trial_id=bytes(32), me="anna", others=()),
            "manifest": SimpleNamespace(name="small"),
            "driver": SimpleNamespace(
                waiting_for=lambda: self.waiting_for,
                state=SimpleNamespace(phase=Phase.TRAINING),
                phase_since=0.0,
                machine=SimpleNamespace(progress=nothing),
                seconds_by_phase=nothing,
            ),
            "outbox": SimpleNamespace(without_inbox=tuple, unsent=nothing, published_messages=0, published_bytes=0),
            "quarantine": SimpleNamespace(counts=nothing, kept=nothing),
            "link": SimpleNamespace(reconnects=0, facts=nothing),
            "hands": SimpleNamespace(facts=nothing, tells_waiting_in=()),
            "progress": SimpleNamespace(
                last_contacts=nothing,
                is_due=lambda: self.is_due,
                show=lambda status, *, now: self.status.update(status),
                tally=SimpleNamespace(facts=nothing),
                checkpoint_at=lambda: None,
            ),
            "mailroom": SimpleNamespace(contacts={}, manifests={}, resent=0),
            "heartbeat": SimpleNamespace(beat=nothing),
            "spending": None,
        }
        self.facts = Facts(**{name: cast(Any, part) for name, part in parts.items()})

    def since(self, at: float, *waiting_for: str) -> dict[str, float]:
        """Let status be written at a time; return since when it says that somebody is waited for."""
        self.now, self.waiting_for = at, waiting_for
        self.facts.show()
        return dict(self.status["waiting_since"])


def test_since_when_is_kept_while_the_same_peer_is_waited_for_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Shown(monkeypatch)
    assert shown.since(1_000.0) == {}
    assert shown.since(1_010.0, "bert", "cleo") == {"bert": 1_010.0, "cleo": 1_010.0}
    assert shown.since(1_020.0, "bert", "cleo") == {"bert": 1_010.0, "cleo": 1_010.0}
    assert shown.since(1_030.0, "cleo", "dora") == {"cleo": 1_010.0, "dora": 1_030.0}
    assert shown.since(1_040.0, "bert", "cleo") == {"bert": 1_040.0, "cleo": 1_010.0}
    assert shown.since(1_050.0) == {}
    assert shown.since(1_060.0, "cleo") == {"cleo": 1_060.0}


def test_what_is_not_written_yet_is_no_reason_to_count_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Shown(monkeypatch)
    assert shown.since(1_010.0, "bert") == {"bert": 1_010.0}
    shown.is_due = False
    assert shown.since(1_020.0, "bert") == {"bert": 1_010.0}
    shown.is_due = True
    assert shown.since(1_030.0, "bert") == {"bert": 1_010.0}
