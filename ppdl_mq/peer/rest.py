"""The rest before another attempt, after many that were given up: time to act. Source: docs/PROTOCOL.md, 13.3.

The loop is never held up: it goes round, answers, and takes orders while a peer rests.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import Any, cast

from ppdl_mq.peer.driver import Driver
from ppdl_mq.protocol.effects import Record
from ppdl_mq.protocol.events import Rested
from ppdl_mq.protocol.masked_average.machine import MaskedAverageMachine
from ppdl_mq.protocol.masked_average.state import RoundState

log = logging.getLogger("ppdl_mq.peer")


class Rest:
    """Waits on behalf of a machine, and says who makes it wait.

    Args:
        driver: of the machine.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._of: tuple[int, int] | None = None  # step and attempt after which this peer rests
        self._ends_at = 0.0
        self._step = 0  # of what follows
        self._last_attempt = -1
        self._first: Counter[str] = Counter()  # whose ABANDON came first, in how many attempts
        self._said_after = 0  # attempts

    @property
    def _state(self) -> RoundState:
        return cast("RoundState", self._driver.state)

    def heard(self, record: Record) -> None:
        """Note who was the first to abandon an attempt: the others have to follow."""
        if record.says != "abandon":
            return
        step, attempt = record.about["step"], record.about["attempt"]
        if step != self._step:
            self._step, self._last_attempt, self._said_after = step, -1, 0
            self._first.clear()
        if attempt > self._last_attempt:
            self._last_attempt = attempt
            self._first[record.by] += 1

    def look(self) -> None:
        """Begin a rest, or end one that has lasted long enough."""
        state, rest_s, now = self._state, self._due_s(), time.monotonic()
        if rest_s is None:
            self._of = None
            return
        if self._of != (state.step, state.attempt):
            self._of, self._ends_at = (state.step, state.attempt), now + rest_s
            self._say(state, rest_s)
        if now >= self._ends_at:
            self._of = None
            self._driver.post(Rested(step=state.step, attempt=state.attempt))

    def next_s(self) -> float | None:
        """Return in how many seconds to look again, or None when there is no rest."""
        if self._due_s() is None:
            return None
        is_known = self._of == (self._state.step, self._state.attempt)
        return max(0.0, self._ends_at - time.monotonic()) if is_known else 0.0

    def facts(self) -> dict[str, Any]:
        """Return what the status says while this peer rests: for how long still, and who was the first to abandon."""
        left_s = self.next_s()
        return {} if left_s is None else {"rests_s": round(left_s), "abandons_first": self._who()}

    def _due_s(self) -> float | None:
        return cast("MaskedAverageMachine", self._driver.machine).rest_s(self._state)

    def _who(self) -> str | None:
        """Return the other peer that was the first to abandon most often, in this step as this process saw it."""
        others = Counter({name: times for name, times in self._first.items() if name != self._driver.machine.terms.me})
        return others.most_common(1)[0][0] if others and self._step == self._state.step else None

    def _say(self, state: RoundState, rest_s: float) -> None:
        """Say who abandons, each time that the attempts have doubled."""
        attempts, name = state.attempt + 1, self._who()
        if name is None or attempts < 2 * self._said_after:
            return
        self._said_after = attempts
        log.warning(
            "%s abandons again and again (%d attempts), and the next one begins in %d s. If that does not end, and the "
            "others see the same: ppdl-mq peer drop %s",
            *(name, attempts, rest_s, name),
        )
