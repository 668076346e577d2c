"""Publishing with confirms: several messages under way, and none believed before the broker has it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

import pika
from pika import exceptions as amqp
from pika.channel import Channel

from ppdl_mq.config import limits
from ppdl_mq.errors import NotTaken, RelayError, RelayLost, Unroutable
from ppdl_mq.transport.rabbitmq.errors import channel_error, is_code, lost
from ppdl_mq.transport.rabbitmq.lane import Lane
from ppdl_mq.transport.rabbitmq.link import Link, give
from ppdl_mq.transport.rabbitmq.stillness import LOST_AFTER_S, Stillness

# Waiting for each confirm in turn would take three times as long; four messages or more under way reach full speed.
_MAX_BYTES_UNDER_WAY: Final = 16 * 1024 * 1024
_MAX_MESSAGES_UNDER_WAY: Final = 64

_PROPERTIES: Final = pika.BasicProperties(delivery_mode=2, content_type="application/octet-stream")  # 2: persistent


@dataclass(eq=False, slots=True)
class _Set:
    """Messages for one address, published together.

    Args:
        address: whose.
        refused: why the relay did not take one of them.
    """

    address: str
    refused: Unroutable | NotTaken | None = None


class Publisher:
    """The publishing channel of one connection.

    Args:
        link: the connection.
        exchange: where to; its bindings lead to the queues.
    """

    def __init__(self, link: Link, exchange: str) -> None:
        self._link = link
        self._exchange = exchange
        self._lane = Lane(link, prepare=self._prepare, on_close=self._on_channel_closed)
        self._turn = threading.Lock()  # one caller at a time
        self._changed = threading.Condition()  # guards everything below
        self._sets: list[_Set] = []  # of this call
        self._outbox: deque[tuple[_Set, bytes]] = deque()  # handed over, not yet given to pika
        self._unconfirmed: dict[int, tuple[_Set, int]] = {}  # by delivery tag: whose, and how many bytes
        self._bytes_under_way = 0
        self._next_tag = 1
        self._flush_is_due = False
        self._error: RelayError | None = None  # that ends the call
        self._is_left = False
        self._unwritten_bytes = 0  # when it was last looked at
        self._stillness = Stillness()  # of confirms and of what is written, while confirms are awaited

    def publish(self, address: str, bodies: Iterable[bytes]) -> None:
        """Publish in order and wait until all is confirmed, or something went wrong with one of them."""
        (refused,) = self.publish_all([(address, bodies)])
        if refused is not None:
            raise refused

    def publish_all(self, sets: Iterable[tuple[str, Iterable[bytes]]]) -> list[Unroutable | NotTaken | None]:
        """Publish several sets and wait for all confirms once; return for each why it was not taken, or None."""
        with self._turn:
            if self._is_left:
                raise RelayLost("A publication on this connection was left in the middle.")
            with self._changed:
                self._sets, self._error = [], None
            try:
                for address, bodies in sets:
                    self._hand_over_set(address, bodies)
            finally:  # also when `bodies` raises: what is under way must not be taken for part of the next call
                self._is_left = True  # if not even that can be waited for
                self._wait_until(lambda: self._nothing_under_way)
                self._is_left = False
            if self._error is not None:
                raise self._error
            return [each.refused for each in self._sets]

    def _hand_over_set(self, address: str, bodies: Iterable[bytes]) -> None:
        channel = self._open(address)
        with self._changed:
            before = next((each.refused for each in self._sets if each.address == address and each.refused), None)
            current = _Set(address, before)
            self._sets.append(current)
        if current.refused is None:
            for body in bodies:
                if not self._hand_over(channel, current, body):
                    break

    def on_lost(self, error: RelayError) -> None:
        """Wake a waiting publisher: the connection is gone."""
        self._give_up(RelayLost(error.message, hint=error.hint))

    @property
    def withheld(self) -> tuple[str, ...]:
        """Whose messages the relay does not confirm, sorted; empty until nothing has moved for some time."""
        with self._changed:
            if not self._stillness.is_to_be_said:
                return ()
            return tuple(sorted({current.address for current, _ in self._unconfirmed.values()}))

    @property
    def withheld_reason(self) -> str | None:
        """The same in words, which do not change while it lasts; None where nothing is withheld."""
        with self._changed:
            names = ", ".join(self.withheld)
            if not names:
                return None
            return f"the relay confirms nothing that was sent to {names} since {self._stillness.since}"

    @property
    def _nothing_under_way(self) -> bool:
        return not self._outbox and not self._unconfirmed

    def _open(self, address: str) -> Channel:
        try:
            return self._lane.ask(give_channel)
        except amqp.AMQPError as error:
            raise channel_error(error, address) from error

    def _hand_over(self, channel: Channel, current: _Set, body: bytes) -> bool:
        """Wait for room and pass one message to the I/O thread; False when its set has failed."""

        def has_failed() -> bool:
            return self._error is not None or current.refused is not None

        self._wait_until(lambda: has_failed() or self._has_room(len(body)))
        with self._changed:
            if has_failed():
                return False
            self._outbox.append((current, body))
            self._bytes_under_way += len(body)
            due, self._flush_is_due = self._flush_is_due, True
        if not due:
            try:
                self._link.submit(lambda: self._flush(channel))
            except RelayLost as error:
                self._give_up(error)
        return True

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for confirms, which may be long where the relay takes nothing for now."""
        while True:
            with self._changed:
                if self._changed.wait_for(condition, limits.LOOK_S):
                    return
            self._link.look()
            self._look_for_progress()

    def _look_for_progress(self) -> None:
        """Note whether anything has moved since the last look.

        Raises:
            RelayLost: nothing has for long. What is under way stays so: nobody publishes on this connection again.
        """
        unwritten = self._link.unwritten_bytes
        with self._changed:
            # A relay whose memory or disk is full is waited for as long as it takes. Of what is written only a backlog
            # that shrinks counts: without one it is the heartbeats that are written.
            is_blocked = self._link.blocked_reason is not None
            if not self._unconfirmed or is_blocked or unwritten < self._unwritten_bytes:
                self._stillness.moves()
            self._unwritten_bytes = unwritten
            if self._stillness.is_a_loss:
                names = ", ".join(self.withheld)
                raise RelayLost(f"The relay confirmed nothing that was sent to {names} for {LOST_AFTER_S:.0f} s.")

    def _has_room(self, size: int) -> bool:
        if self._nothing_under_way:
            return True  # a message larger than the bound goes alone
        under_way = len(self._outbox) + len(self._unconfirmed)
        return under_way < _MAX_MESSAGES_UNDER_WAY and self._bytes_under_way + size <= _MAX_BYTES_UNDER_WAY

    # On the I/O thread.

    def _prepare(self, channel: Channel, ready: Callable[[], None]) -> None:
        self._next_tag = 1
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(self._on_confirm, lambda _: ready())

    def _flush(self, channel: Channel) -> None:
        with self._changed:
            self._flush_is_due = False
            if not channel.is_open:
                self._give_up(RelayLost("The channel to the relay is closed."))
                return
            bodies = list(self._outbox)
            self._outbox.clear()
            self._stillness.moves()
            for current, body in bodies:
                self._unconfirmed[self._next_tag] = current, len(body)
                self._next_tag += 1
        for current, body in bodies:
            channel.basic_publish(self._exchange, current.address, body, _PROPERTIES, mandatory=True)

    def _on_return(self, _: Channel, method: Any, *__: object) -> None:
        """A message came back: there is no queue at its address. (The key of a returned message is its address.)"""
        with self._changed:
            for current in self._sets:
                if current.address == method.routing_key:
                    current.refused = current.refused or Unroutable(current.address)
            self._changed.notify_all()

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        with self._changed:
            tags = [method.delivery_tag]
            if method.multiple:
                tags = [tag for tag in self._unconfirmed if tag <= method.delivery_tag]
            for tag in tags:
                if tag not in self._unconfirmed:
                    continue
                self._stillness.moves()
                current, size_bytes = self._unconfirmed.pop(tag)
                self._bytes_under_way -= size_bytes
                if isinstance(method, pika.spec.Basic.Nack):
                    self._note_nack(current)
            self._changed.notify_all()

    def _note_nack(self, current: _Set) -> None:
        """Count what follows for the same address as refused, too: it may lie there before what was not taken."""
        nack = NotTaken(
            f"The relay did not take a message for {current.address!r}.",
            hint="Its queue may be full: the broker's administrator can see its limits and policies.",
        )
        for each in self._sets[self._sets.index(current) :]:
            if each.address == current.address:
                each.refused = each.refused or nack

    def _on_channel_closed(self, reason: BaseException) -> None:
        # A queue that is missing shows as a returned message, never as 404: that is the exchange.
        address = self._sets[-1].address if self._sets else ""
        error = channel_error(reason, address) if is_code(reason, 311, 403, 404, 406) else lost(reason)
        self._give_up(error)

    def _give_up(self, error: RelayError) -> None:
        """Fail, and expect no more confirms."""
        with self._changed:  # once for both: what is handed over in between would stay, and be waited for
            self._error = self._error or error
            self._outbox.clear()
            self._unconfirmed.clear()
            self._bytes_under_way = 0
            self._changed.notify_all()


def give_channel(channel: Channel, answer: Future[Any]) -> None:
    """Answer with the channel itself."""
    give(answer, channel)
