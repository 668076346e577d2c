"""The peer's connection to the relay: waits for it, comes back to it, says so.

Source: docs/CONNECTION.md says what waits how long, and why.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from ppdl_mq.config import limits
from ppdl_mq.errors import (
    ConfigError,
    InboxTaken,
    Interrupted,
    MessageTooLarge,
    RelayError,
    RelayLost,
    RelayRefused,
    RelayUnreachable,
    Unroutable,
)
from ppdl_mq.peer.inputs import Delivered, Inputs, Receiver
from ppdl_mq.transport.base import Transport

STOPPED: Final = "Stopped; run the peer again and it goes on where it was."

log = logging.getLogger("ppdl_mq.peer")


class Link:
    """Keeps one transport connected and its inbox subscribed.

    Args:
        transport: to the relay.
        inbox: this peer's address.
        shared: names further addresses to declare, each time.
        inputs: where deliveries go.
        resumes: whether an earlier process of this peer was let in, and may have read the inbox.
        wait_s: how long to wait at the start for a relay that does not answer; None for `limits.BROKER_WAIT_S` in a new
            trial and for ever in one that resumes. Later there is no limit, but at the end, when only `leave` is to do:
            this again, None for `limits.BROKER_WAIT_S`.
        stopped: set when the peer is to stop.
        show: brings the status up to date; called again and again while this thread waits for the relay.
        meanwhile: does what can be done without the relay; called as often, while the connection is broken.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        inbox: str,
        shared: Callable[[], tuple[str, ...]],
        inputs: Inputs,
        resumes: bool,
        wait_s: float | None,
        stopped: threading.Event,
        show: Callable[[], None],
        meanwhile: Callable[[], None],
    ) -> None:
        self.transport = transport
        self.connection = 0
        self.reconnects = 0
        self._inbox = inbox
        self._shared = shared
        self._inputs = inputs
        self._resumes = resumes
        self._wait_s = wait_s
        self._stopped = stopped
        self._show = show
        self._meanwhile = meanwhile
        self._was_cut = False  # since it was asked last
        self._has_lost = False  # a queue was gone, and nobody was told yet
        self._receiver: Receiver | None = None
        self._longest_delay_s = limits.BACKOFF_FIRST_S
        self._connected_at = 0.0
        self._passed = 0  # messages, either way, up to the last connection that broke
        self._said: tuple[str, float] = ("", -math.inf)  # why we wait, and when it was last said
        self._state, self._since = "connecting", time.time()
        self._tries = 0
        self._reason = ""
        self._blocked: str | None = None
        transport.look_round(self.look)

    def up(self) -> bool:
        """Connect for the first time; return whether messages to us may be lost, since a queue was gone.

        Raises:
            RelayUnreachable: nobody answered within the limit.
            RelayRefused, InboxTaken: waiting does not help.
            Interrupted: the peer is to stop.
        """
        return self._connect()

    def again(self, error: RelayError, *, received: int, published: int) -> bool:
        """Reconnect, however long it takes, and whatever the relay refuses: it let us in before.

        What was delivered and not acknowledged will be delivered again.

        Args:
            error: why.
            received: messages that came since this process began.
            published: messages that the relay has taken. Until there is one, a refusal is a matter of settings.

        Returns:
            Whether messages to us may be lost, since a queue was gone.

        Raises:
            RelayError: waiting does not help.
            Interrupted: the peer is to stop.
        """
        if isinstance(error, MessageTooLarge):
            raise error
        if isinstance(error, RelayRefused) and not published and not self._resumes:
            raise error
        self.close()
        self._was_cut = True
        self.reconnects += 1
        if received + published > self._passed or time.monotonic() - self._connected_at >= limits.BACKOFF_LAST_S:
            self._longest_delay_s = limits.BACKOFF_FIRST_S  # otherwise what breaks at once would be tried at once
        self._passed = received + published
        self._turn("reconnecting", error.message)
        log.warning("%s Reconnecting.", error.message)
        self._pause(self._meanwhile)
        return self._connect()

    def leave(self, remove: Callable[[], None]) -> None:
        """Have our queues removed, the last thing there is to do, and again where the connection breaks meanwhile.

        For that the inbox is neither declared nor read again: what is gone stays gone.

        Args:
            remove: does it; may be called more than once.

        Raises:
            RelayLost, RelayUnreachable: nobody let us in, or it broke again and again, for `wait_s`.
            RelayError: the relay refuses to do it.
            Interrupted: the peer is to stop.
        """
        ends_at = time.monotonic() + self._usual_wait_s
        while True:
            try:
                if self._receiver is None:  # not connected, or not any more
                    self._enter()
                remove()
                break
            except (RelayLost, RelayUnreachable) as error:
                self._hang_up()
                self.reconnects += isinstance(error, RelayLost)
                self._tries += 1
                self._turn("reconnecting" if self.connection else "connecting", error.message)
                if time.monotonic() >= ends_at:
                    raise
                self._say_why(error.message)
            self._pause()
        self._tries = 0
        self._turn("connected", "")

    def close(self) -> None:
        """Hang up."""
        self._hang_up()
        self._turn("closed", self._reason)

    def renew(self) -> None:
        """Make sure that exchange, queues and bindings are still there: without them nothing comes, and nobody says so.

        Raises:
            RelayError: they are not, and cannot be made.
        """
        for address in (self._inbox, *self._shared()):
            self.transport.declare(address)

    def is_gone(self, address: str) -> bool:
        """Tell whether the relay has no queue for an address.

        Raises:
            RelayLost: the relay cannot tell, since the node with that queue is down.
        """
        try:
            self.transport.depth(address)
        except Unroutable:
            return True
        return False

    def is_current(self, delivered: Delivered) -> bool:
        """Tell whether a delivery belongs to the connection that stands now; others come again."""
        return delivered.connection == self.connection

    def look(self) -> None:
        """Look round while waiting for the relay: at whether to stop, and at what `watch` sees; and show it.

        Raises:
            Interrupted: the peer is to stop.
        """
        if self._stopped.is_set():
            raise Interrupted(STOPPED)
        self.watch()
        self._show()

    def watch(self) -> None:
        """Notice, and log, that the relay takes no messages for now, and that it does again."""
        blocked = self.transport.blocked_reason
        if blocked != self._blocked:
            self._blocked = blocked
            self._was_cut = True
            if blocked is not None:
                self._turn("blocked", blocked)
                log.warning("The relay takes no messages for now (%s). Waiting for it.", blocked)
            elif self._state == "blocked":
                self._turn("connected", "")
                log.info("The relay takes messages again.")

    def was_cut(self) -> bool:
        """Tell whether the relay was away, or took nothing, since this was asked last, or does so now."""
        was_cut, self._was_cut = self._was_cut or self._blocked is not None, False
        return was_cut

    def facts(self) -> dict[str, Any]:
        """Return what the status says of the relay, as plain data for JSON.

        `relay` holds:
            state: `connecting` (never let in by it since the process began), `connected`, `blocked` (connected, but the
                relay takes none: memory or disk is full; or it confirms or answers nothing), `reconnecting`, `closed`.
            since: when that began, in seconds since 1970.
            host: `name:port` of the host that is connected; null otherwise, and for an embedded relay.
            tries: attempts in a row that failed; each asks every host once.
            reason: why the last of them failed, or why the connection broke, or why the relay takes nothing; "" if all
                is well.
            reconnects: connections that broke since the process began.
        """
        return {
            "relay": {
                "state": self._state,
                "since": round(self._since, 3),
                "host": self.transport.connected_to,
                "tries": self._tries,
                "reason": self._reason,
                "reconnects": self.reconnects,
            }
        }

    def _connect(self) -> bool:
        failing_since = refused_since = math.inf
        while True:
            try:
                self._try()
                break
            except RelayError as error:
                self.transport.close()
                self._tries += 1
                self._reason = error.message
                kind = next((kind for kind in (InboxTaken, RelayRefused) if isinstance(error, kind)), RelayError)
                now = time.monotonic()
                failing_since = min(failing_since, now)
                # Refusals count in a row: a broker that boots may refuse everybody, and be away for long in between.
                refused_since = min(refused_since, now) if kind is RelayRefused else math.inf
                if now - (refused_since if kind is RelayRefused else failing_since) >= self._patience_s(kind):
                    raise
                self._say_why(error.message)
            self._pause(self._meanwhile if self.connection else None)
        has_lost, self._has_lost = self._has_lost, False
        self.connection += 1
        self._receiver = Receiver(self.transport, self._inputs, self.connection)
        self._connected_at = time.monotonic()
        where = self.transport.connected_to
        again = " again" if self.connection > 1 or self._tries else ""
        if again or where:
            log.info("Connected%s%s.", again, f" to {where}" if where else "")
        self._tries, self._said = 0, ("", -math.inf)
        self._turn("connected", "")
        return has_lost

    def _try(self) -> None:
        self._open()
        is_gone = [self.is_gone(address) for address in (self._inbox, *self._shared())]
        # Noted before it is made anew: where the rest of this fails, the next try finds a queue, and what was in it is
        # lost all the same.
        self._has_lost |= any(is_gone) and (self._resumes or self.connection > 0)
        self.renew()
        self.transport.subscribe(self._inbox)

    def _open(self) -> None:
        """Connect. A password that cannot be read now counts as refused: who changes the file may be in the midst."""
        try:
            self.transport.connect()
        except ConfigError as error:
            if not self.connection and not self._resumes:
                raise
            raise RelayRefused(error.message, hint=error.hint) from error

    def _enter(self) -> None:
        """Connect, without the inbox; what refuses us may be a broker that has not loaded its users yet."""
        try:
            self._open()
        except RelayRefused as error:
            raise RelayUnreachable(error.message, hint=error.hint) from error

    def _hang_up(self) -> None:
        self.transport.close()
        if self._receiver is not None:
            self._receiver.stop()
            self._receiver = None

    @property
    def _usual_wait_s(self) -> float:
        return limits.BROKER_WAIT_S if self._wait_s is None else self._wait_s

    def _patience_s(self, kind: type[RelayError]) -> float:
        """Return for how long failures are borne with when the last one is of this kind."""
        if self.connection:
            return math.inf
        # The lock on the journal keeps a second process away. When a peer resumes it is its own shadow that reads the
        # inbox: the relay does not notice that a connection has died before two heartbeats are missing, nor, while it
        # is short of memory or disk, as long as that lasts.
        if kind is InboxTaken and not self._resumes:
            return 0.0
        if kind is RelayRefused:
            return self._usual_wait_s if self._resumes else 0.0
        return math.inf if self._resumes and self._wait_s is None else self._usual_wait_s

    def _pause(self, meanwhile: Callable[[], None] | None = None) -> None:
        """Wait for a random while: anything up to twice as long as the time before, with a bound."""
        until = time.monotonic() + random.uniform(0, self._longest_delay_s)  # noqa: S311 (spreads retries; not secret)
        self._longest_delay_s = min(limits.BACKOFF_LAST_S, self._longest_delay_s * 2)
        while True:
            if meanwhile is not None:
                meanwhile()
            self.look()  # after it, which passes over who asks to stop
            left_s = until - time.monotonic()
            if left_s <= 0:
                return
            self._stopped.wait(min(left_s, limits.LOOK_S))

    def _say_why(self, why: str) -> None:
        said, at = self._said
        if why != said or time.monotonic() - at >= limits.SAY_AGAIN_S:
            self._said = why, time.monotonic()
            log.warning("%s Waiting for the relay.", why)

    def _turn(self, state: str, reason: str) -> None:
        self._reason = reason
        if state != self._state:
            self._state, self._since = state, time.time()
