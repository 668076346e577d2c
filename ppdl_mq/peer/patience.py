"""How long a peer waits for a message before it asks for it again."""

from __future__ import annotations

import logging
import time

from ppdl_mq.config import limits
from ppdl_mq.peer.driver import Driver
from ppdl_mq.peer.facts import Facts
from ppdl_mq.peer.hands import Hands
from ppdl_mq.peer.link import Link
from ppdl_mq.peer.mailroom import Mailroom
from ppdl_mq.protocol.events import Overdue

log = logging.getLogger("ppdl_mq.peer")


class Patience:
    """Asks those who are waited for again: at once where messages are lost, else ever more rarely until there is news.

    Args:
        driver: knows who is waited for, and since when.
        mailroom: knows when something came from them last.
        hands: prepare for it.
        link: makes sure that what is asked for can come.
        facts: count how often.
        first_s: how long to wait the first time.
    """

    def __init__(
        self, driver: Driver, mailroom: Mailroom, hands: Hands, link: Link, facts: Facts, *, first_s: float
    ) -> None:
        self._driver = driver
        self._mailroom = mailroom
        self._hands = hands
        self._link = link
        self._facts = facts
        self._first_s = self._now_s = first_s
        self._asked_at = time.monotonic()
        self.has_lost_queue = False  # a queue was gone from the relay, and what lay in it with it

    def ask_if_overdue(self) -> None:
        """Ask where nothing has come for so long."""
        waiting_for = self._driver.waiting_for()
        news_at = max(self._driver.moved_at, self._mailroom.last_at)
        if news_at > self._asked_at:
            self._now_s = self._first_s
        if not waiting_for or time.monotonic() - max(news_at, self._asked_at) < self._now_s:
            return
        log.info("Nothing has come for %d s; asking %s again.", self._now_s, ", ".join(waiting_for))
        self._link.renew()
        self._ask()
        self._now_s = min(limits.PATIENCE_LAST_S, self._now_s * 2)  # not where asking failed: nobody was asked

    def ask_for_what_was_lost(self) -> None:
        """Ask at once where a queue was gone."""
        if not self.has_lost_queue:
            return
        if waiting_for := self._driver.waiting_for():
            log.warning("A queue of ours was gone from the relay; asking %s again.", ", ".join(waiting_for))
            self._ask()
        self.has_lost_queue = False

    def _ask(self) -> None:
        self._facts.asked_again += 1
        self._hands.overdue()
        self._driver.post(Overdue())
        self._asked_at = time.monotonic()
