"""Takes the weights that rest at the relay, and holds on to them until their successor is safe.

Source: docs/PROTOCOL.md, section 8, `server-aided`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from ppdl_mq.config import limits
from ppdl_mq.errors import Malformed, RemoteError
from ppdl_mq.peer.intake import Intake
from ppdl_mq.protocol.effects import Fetch
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.session import SessionState
from ppdl_mq.protocol.terms import WEIGHTS
from ppdl_mq.transport.base import Delivery, Transport
from ppdl_mq.wire.header import split_part

_FIRST_DELAY_S: Final = 0.02
_LAST_DELAY_S: Final = 2.0

Refused = Sequence[tuple[RemoteError, bytes]]


class Fetcher:
    """Empties `weights` of one turn.

    Args:
        transport: to the relay.
        intake: assembles.
        refuse: is given what else lies there: why each is refused, and how it begins.
    """

    def __init__(self, transport: Transport, intake: Intake, refuse: Callable[[Refused], object]) -> None:
        self._transport = transport
        self._intake = intake
        self._refuse = refuse
        self._wanted: Fetch | None = None
        self._held: list[Delivery] = []
        self.messages = self.size_bytes = 0  # taken so far, those that were put back too
        self._delay_s = _FIRST_DELAY_S
        self._next_at = 0.0

    def want(self, fetch: Fetch) -> None:
        """Begin to look for the message of a notice."""
        self._wanted = fetch
        self._delay_s, self._next_at = _FIRST_DELAY_S, 0.0

    def sweep(self, state: SessionState) -> bool:
        """Take some of what is there, if it is time to; return whether something new was kept.

        Parts of the wanted message are held unacknowledged, older turns are acknowledged and so dropped, what is
        refused is set aside and dropped, anything else goes back. One sweep is short, whatever lies there.

        Raises:
            RelayLost: the connection broke; what was held went back to the queue.
            Unroutable: somebody has removed the queue.
        """
        if self._wanted is None or time.monotonic() < self._next_at:
            return False
        if state.phase is not Phase.FETCHING:
            self._wanted = None
            return False
        kept_before = len(self._held)
        done: list[Delivery] = []
        others: list[Delivery] = []
        refused: list[tuple[RemoteError, bytes]] = []
        is_empty = False
        for _ in range(limits.RECEIVE_BATCH_PARTS):
            delivery = self._transport.get(WEIGHTS)
            if delivery is None:
                is_empty = True
                break
            self.messages += 1
            self.size_bytes += len(delivery.body)
            taken = Delivery(b"", delivery.tag)  # the bytes of all these would be as much again as the model
            try:
                if self._place(state, self._wanted, delivery.body, taken, done, others):
                    break
            except RemoteError as error:
                refused.append((error, delivery.body[: limits.MAX_REFUSED_HEAD_BYTES]))
                done.append(taken)
        # Not where this failed: the connection ends then, all goes back with it, and a full disk is what is to be told.
        self._transport.requeue(others)
        if refused:
            self._refuse(refused)
        self._intake.flush()
        self._transport.ack(done)
        kept = len(self._held) > kept_before
        self._delay_s = _FIRST_DELAY_S if kept else min(_LAST_DELAY_S, self._delay_s * 2)
        self._next_at = time.monotonic() + (self._delay_s if is_empty else 0.0)
        return kept

    def _place(
        self,
        state: SessionState,
        fetch: Fetch,
        body: bytes,
        taken: Delivery,
        done: list[Delivery],
        others: list[Delivery],
    ) -> bool:
        """Put one delivery where it belongs; return whether the wanted message is whole with it.

        Raises:
            RemoteError: it is refused.
        """
        header, _, _ = split_part(body)
        if header.message_id == fetch.message_id and header.turn == fetch.turn:
            if self._intake.take(state, body, came_to=WEIGHTS) is None:
                done.append(taken)  # it is in the journal already
            else:
                self._held.append(taken)
            return self._intake.has_whole(header)
        if header.turn < fetch.turn:
            done.append(taken)
        elif len(others) < limits.MAX_OPEN_MESSAGES_PER_SENDER:
            others.append(taken)
        else:
            raise Malformed("The queue of weights holds too much that is of no turn of now.")
        return False

    def next_sweep_s(self) -> float | None:
        """Return in how many seconds to look again, or None when nothing is wanted."""
        return None if self._wanted is None else max(0.0, self._next_at - time.monotonic())

    def release(self) -> None:
        """Acknowledge what is held: the relay has its successor."""
        held, self._held = self._held, []
        self._transport.ack(held)

    def start_over(self) -> None:
        """Drop what is held: its message did not become complete, and its maker is asked to send it again.

        It must not go back to the queue: a forged part among it would come first again, and again win.
        """
        self.release()
        self._next_at = 0.0

    def forget_deliveries(self) -> None:
        """Give up what is held: its connection is gone, and the next reader will find and drop it."""
        self._held = []
        self._next_at = 0.0
