from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ppdl_mq.errors import RelayLost
from ppdl_mq.peer.patience import Patience

FIRST_S = 60.0


class Asking:
    """Bert is waited for; what is done for asking him fails as often as `failures` says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.failures = 0
        self.asked: list[float] = []
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.patience = Patience(
            cast("Any", SimpleNamespace(waiting_for=lambda: ("bert",), post=self.post, moved_at=0.0)),
            cast("Any", SimpleNamespace(last_at=0.0)),
            cast("Any", SimpleNamespace(overdue=self.breaks)),
            cast("Any", SimpleNamespace(renew=self.breaks)),
            cast("Any", SimpleNamespace(asked_again=0)),
            first_s=FIRST_S,
        )

    def post(self, _: object) -> None:
        self.asked.append(self.now)

    def breaks(self) -> None:
        if self.failures:
            self.failures -= 1
            raise RelayLost("The connection broke.")

    def after(self, seconds: float) -> None:
        self.now += seconds
        self.patience.ask_if_overdue()


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch) -> Asking:
    return Asking(monkeypatch)


def test_it_doubles_with_each_time_that_somebody_was_asked(asking: Asking) -> None:
    for wait_s in (FIRST_S, 2 * FIRST_S, 4 * FIRST_S):
        asking.after(wait_s - 1)
        asking.after(1)
    assert asking.asked == [60.0, 180.0, 420.0]


def test_it_does_not_double_where_the_connection_broke_before_anybody_was_asked(asking: Asking) -> None:
    asking.failures = 3
    for _ in range(3):
        with pytest.raises(RelayLost):
            asking.after(FIRST_S)
    asking.after(1)
    assert asking.asked == [asking.now]


def test_a_queue_that_was_lost_is_remembered_until_they_were_asked(asking: Asking) -> None:
    asking.patience.has_lost_queue, asking.failures = True, 1
    with pytest.raises(RelayLost):
        asking.patience.ask_for_what_was_lost()
    for _ in range(2):
        asking.patience.ask_for_what_was_lost()
    assert asking.asked == [0.0]
