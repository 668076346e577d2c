"""What people see of a running peer: the status that is written ever again, and a line in the log when it waits."""

from __future__ import annotations

import logging
import math
import time
from typing import Final

from ppdl_mq.config import limits
from ppdl_mq.config.manifest import Manifest
from ppdl_mq.peer.driver import Driver
from ppdl_mq.peer.hands import Hands
from ppdl_mq.peer.heartbeat import Heartbeat
from ppdl_mq.peer.link import Link
from ppdl_mq.peer.mailroom import Mailroom
from ppdl_mq.peer.outbox import Outbox
from ppdl_mq.peer.progress import Progress
from ppdl_mq.peer.quarantine import Quarantine
from ppdl_mq.peer.spending import Spending
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.terms import Terms
from ppdl_mq.wire.trial_id import short_id

log = logging.getLogger("ppdl_mq.peer")

_CLOSES_SOON_S: Final = 5.0  # all end at almost the same time: before this there is nothing to say


class Facts:
    """Says how far one peer is.

    Args:
        terms: of the trial.
        manifest: of the trial.
        driver: knows the phase, and who is waited for.
        outbox: knows what is on the way out.
        quarantine: knows what was refused.
        link: knows the relay.
        hands: know what only their protocol has.
        progress: writes it.
        mailroom: knows who was heard when.
        heartbeat: is told that the loop goes round.
        spending: knows what was spent of the privacy budget; None without one.
    """

    def __init__(
        self,
        terms: Terms,
        manifest: Manifest,
        driver: Driver,
        outbox: Outbox,
        quarantine: Quarantine,
        link: Link,
        hands: Hands,
        progress: Progress,
        mailroom: Mailroom,
        heartbeat: Heartbeat,
        spending: Spending | None,
    ) -> None:
        self._terms = terms
        self._manifest = manifest
        self._driver = driver
        self._outbox = outbox
        self._quarantine = quarantine
        self._link = link
        self._hands = hands
        self._progress = progress
        self._mailroom = mailroom
        self._heartbeat = heartbeat
        self._spending = spending
        self._said = ""
        self._waiting_since: dict[str, float] = {}
        self._inbox_messages: int | None = None
        self._inbox_asked_at = -math.inf
        # Of the process before: a restart must not make it look as if nobody had been heard for ever.
        self._contacts_before = progress.last_contacts(terms.others)
        self.received = self.received_bytes = 0  # of the inbox
        self.asked_again = 0

    def show(self, *, now: bool = False) -> None:
        """Bring status and log up to date; unless `now`, not more often than the status is written.

        To be called again and again by whatever holds the loop up: the status' time, and the service manager's
        watchdog, tell a loop that hangs from one that waits.
        """
        waiting_for, without_inbox = self._driver.waiting_for(), self._outbox.without_inbox()
        self._say(waiting_for, without_inbox)
        state = self._driver.state
        waits = f", waiting for {', '.join(waiting_for)}" if waiting_for else ""
        self._heartbeat.beat(f"{state.phase.value}{waits}")
        if not now and not self._progress.is_due():
            return
        at = round(time.time(), 3)
        self._waiting_since = {name: self._waiting_since.get(name, at) for name in waiting_for}
        self._progress.show(
            {
                "trial": self._manifest.name,
                "trial_id": self._terms.trial_id.hex(),
                "peer": self._terms.me,
                "phase": state.phase.value,
                "phase_s": round(time.monotonic() - self._driver.phase_since),
                **self._driver.machine.progress(state),
                "waiting_for": list(waiting_for),
                "waiting_since": dict(self._waiting_since),
                "last_contact": {**self._contacts_before, **self._mailroom.contacts},
                "not_there_yet": list(without_inbox),
                "other_manifests": {name: list(fields) for name, fields in self._mailroom.manifests.items()},
                "phase_seconds": self._driver.seconds_by_phase(),
                "received": self.received,
                "received_bytes": self.received_bytes,
                "published_messages": self._outbox.published_messages,
                "published_bytes": self._outbox.published_bytes,
                "reconnects": self._link.reconnects,
                "asked_again": self.asked_again,
                "sent_again": self._mailroom.resent,
                "unsent": self._outbox.unsent(),
                "inbox_messages": self._inbox_messages,
                "refused": self._quarantine.counts(),
                **self._link.facts(),
                **self._progress.tally.facts(),
                "set_aside": self._quarantine.kept(),
                "checkpoint_at": self._progress.checkpoint_at(),
                **({} if self._spending is None else {"privacy": self._spending.facts()}),
                **self._hands.facts(),
            },
            now=now,
        )

    def look_at_inbox(self) -> None:
        """Count now and then what waits for this peer at the relay, beyond what it has been handed already.

        Raises:
            RelayError: the relay is lost, or does not have the inbox any more.
        """
        if time.monotonic() - self._inbox_asked_at < limits.INBOX_EVERY_S:
            return
        self._inbox_asked_at = time.monotonic()
        self._inbox_messages = self._link.transport.depth(self._terms.me)

    def _say(self, waiting_for: tuple[str, ...], without_inbox: tuple[str, ...]) -> None:
        """Log once for whom the session waits; in the turns that follow waiting is the rule."""
        if self._driver.state.phase is Phase.CLOSING:
            self._say_for_whom_it_closes(waiting_for)
            return
        if self._driver.state.phase not in self._hands.tells_waiting_in or not waiting_for:
            return
        absent = [f"{name}{self._why_absent(name, without_inbox)}" for name in waiting_for]
        agreed = f"All need the same relay and the trial id {short_id(self._terms.trial_id)}."
        self._say_once(f"Waiting for {', '.join(absent)}. {agreed}", waiting_for)

    def _why_absent(self, name: str, without_inbox: tuple[str, ...]) -> str:
        if fields := self._mailroom.manifests.get(name):
            return f" (had another manifest when it was last heard: {', '.join(fields)})"
        return " (has not opened its inbox)" if name in without_inbox else ""

    def _say_for_whom_it_closes(self, waiting_for: tuple[str, ...]) -> None:
        """Log once that this peer's part is done, and who may still need something of it."""
        if not waiting_for or time.monotonic() - self._driver.phase_since < _CLOSES_SOON_S:
            return
        self._say_once(
            f"The last model that was agreed on is written; waiting until {', '.join(waiting_for)} has what it needs. "
            "Nothing of this peer is lost if it is stopped.",
            waiting_for,
        )

    def _say_once(self, said: str, waiting_for: tuple[str, ...]) -> None:
        if said != self._said:
            self._said = said
            log.info("%s", said, extra={"waiting_for": waiting_for})
