"""For how long a recipient is left alone whose messages the relay refuses, or takes and does not confirm."""

from __future__ import annotations

import random
import time
from collections.abc import Set
from dataclasses import dataclass
from typing import Final

from ppdl_mq.config import limits

_LONGEST_REST_S: Final = 600.0  # of a recipient whose queue hangs: each try may stop the loop for two minutes


@dataclass(slots=True)
class _Waiting:
    """How long to leave a recipient alone, and whether it is for want of an inbox."""

    until: float
    delay_s: float
    has_inbox: bool


class Delays:
    """Of the recipients of one outbox."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Waiting] = {}
        self._rests_s: dict[str, float] = {}  # of recipients whose messages the relay took and did not confirm
        self._to_rest: set[str] = set()  # of these, whose rest begins when there is a connection again

    def served(self, recipients: Set[str]) -> set[str]:
        """Return the recipients who are not to be left alone now. To be called while connected.

        Args:
            recipients: all for whom there are letters.
        """
        while self._to_rest:
            name = self._to_rest.pop()
            self._wait(name, self._rests_s[name], has_inbox=True)
        # Nobody waits for who has no letter any more; and a wait that is over would have the loop spin.
        self._waiting = {name: waiting for name, waiting in self._waiting.items() if name in recipients}
        now = time.monotonic()
        return {name for name in recipients if name not in self._waiting or now >= self._waiting[name].until}

    def refused(self, recipient: str, *, has_inbox: bool) -> None:
        """Leave a recipient alone, for twice as long as the time before: the relay has refused what is for it."""
        before = self._waiting.get(recipient)
        delay_s = min(limits.BACKOFF_LAST_S, before.delay_s * 2) if before else limits.BACKOFF_FIRST_S
        self._wait(recipient, delay_s, has_inbox=has_inbox)

    def hung(self, recipient: str) -> None:
        """Let the loop go round before a recipient whose queue hangs is tried again, ever more often than it hangs."""
        before_s = self._rests_s.get(recipient, limits.BACKOFF_LAST_S / 2)
        self._rests_s[recipient] = min(_LONGEST_REST_S, before_s * 2)
        self._to_rest.add(recipient)

    def taken(self, recipient: str) -> None:
        """Forget all of it: the relay has confirmed a message."""
        self._waiting.pop(recipient, None)
        self._rests_s.pop(recipient, None)

    def without_inbox(self) -> tuple[str, ...]:
        """Return the recipients, sorted, that are left alone for want of an inbox."""
        return tuple(sorted(name for name, waiting in self._waiting.items() if not waiting.has_inbox))

    def next_due_s(self) -> float | None:
        """Return in how many seconds the first of them is to be tried again; None where nobody is left alone."""
        now = time.monotonic()
        return min((max(0.0, waiting.until - now) for waiting in self._waiting.values()), default=None)

    def _wait(self, recipient: str, delay_s: float, *, has_inbox: bool) -> None:
        jitter = random.uniform(0.5, 1.0)  # noqa: S311 (spreads retries; nothing secret)
        until = time.monotonic() + delay_s * jitter
        self._waiting[recipient] = _Waiting(until=until, delay_s=delay_s, has_inbox=has_inbox)
