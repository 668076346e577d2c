"""The peer's connection to the relay: waits for it, comes back to it, says so."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

from ppdl_mq.config import limits
from ppdl_mq.errors import InboxTaken, Interrupted, RelayLost, RelayUnreachable
from ppdl_mq.peer.inputs import Delivered, Inputs, Receiver
from ppdl_mq.transport.base import Transport


class Link:
    """Keeps one transport connected and its inbox subscribed.

    Args:
        transport: to the relay.
        inbox: this peer's address.
        shared: names further addresses to declare, each time.
        inputs: where deliveries go.
        resumes: whether an earlier process of this peer may have read the inbox.
        wait_s: how long to wait for a relay that does not answer at the start; later there is no limit.
        stopped: set when the peer is to stop.
        on_wait: told once why it is waiting.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        inbox: str,
        shared: Callable[[], tuple[str, ...]],
        inputs: Inputs,
        resumes: bool,
        wait_s: float,
        stopped: threading.Event,
        on_wait: Callable[[str], None],
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
        self._on_wait = on_wait
        self._receiver: Receiver | None = None

    def up(self) -> None:
        """Connect for the first time.

        Raises:
            RelayUnreachable: nobody answered within the limit.
            RelayRefused, InboxTaken: waiting does not help.
            Interrupted: the peer is to stop.
        """
        self._connect(deadline=time.monotonic() + self._wait_s)

    def again(self) -> None:
        """Reconnect, however long it takes. What was delivered and not acknowledged will be delivered again."""
        self.reconnects += 1
        self._connect(deadline=None)

    def close(self) -> None:
        """Leave the relay."""
        self.transport.close()
        if self._receiver is not None:
            self._receiver.stop()
            self._receiver = None

    def is_current(self, delivered: Delivered) -> bool:
        """Tell whether a delivery belongs to the connection that stands now; others come again."""
        return delivered.connection == self.connection

    def _taken_patience_s(self) -> float:
        """After a broken connection the relay may believe for a while that the old one still reads the inbox."""
        return 2.5 * limits.HEARTBEAT_S if self._resumes or self.reconnects else 0.0

    def _connect(self, deadline: float | None) -> None:
        delay_s = limits.BACKOFF_FIRST_S
        told = False
        taken_at: float | None = None
        while True:
            self.close()
            try:
                self.transport.connect()
                for address in (self._inbox, *self._shared()):
                    self.transport.declare(address)
                self.transport.subscribe(self._inbox)
                break
            except (RelayUnreachable, RelayLost, InboxTaken) as error:
                self.transport.close()
                if isinstance(error, InboxTaken):
                    taken_at = taken_at or time.monotonic()
                    if time.monotonic() - taken_at >= self._taken_patience_s():
                        raise
                if deadline is not None and time.monotonic() >= deadline:
                    raise
                if not told:
                    self._on_wait(error.message)
                    told = True
            if self._stopped.wait(delay_s * random.uniform(0.5, 1.0)):  # noqa: S311 (spreads retries; not secret)
                raise Interrupted("Stopped while waiting for the relay.")
            delay_s = min(limits.BACKOFF_LAST_S, delay_s * 2)
        self.connection += 1
        self._receiver = Receiver(self.transport, self._inputs, self.connection)
