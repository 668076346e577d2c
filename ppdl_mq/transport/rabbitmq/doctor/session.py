"""One connection of the doctor's, on which each question gets a channel of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import pika
from pika import exceptions as amqp
from pika.adapters.blocking_connection import BlockingChannel

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.transport.rabbitmq.connection import Connection
from ppdl_mq.transport.rabbitmq.errors import lost, opening_error
from ppdl_mq.transport.rabbitmq.parameters import connection_parameters

# A broker that is blocked, or silent, must not keep the person at the terminal waiting.
_BLOCKED_AFTER_S: Final = 5.0
_HEARTBEAT_S: Final = 10

_OK: Final = 200


class Blocked(Exception):
    """The broker takes no messages at the moment. The argument is its reason, in its own words."""


class Late(Exception):
    """The broker did not do in time what it was asked for."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the broker answered to one question.

    Args:
        code: AMQP's reply code; 200 where it did what was asked.
        text: the broker's words.
        value: what pika returned.
    """

    code: int
    text: str = ""
    value: Any = None

    @property
    def ok(self) -> bool:
        """It was done."""
        return self.code == _OK

    @property
    def denied(self) -> bool:
        """A right is missing."""
        return self.code == 403

    @property
    def missing(self) -> bool:
        """There is no such thing."""
        return self.code == 404

    @property
    def differs(self) -> bool:
        """Rights and names were in order; what was asked for does not fit."""
        return self.code == 406


class Session:
    """A connection for questions.

    Args:
        broker: where to; one host of it.
        trial: shown to the broker's administrator.
        peer: shown as well.

    Raises:
        RelayUnreachable, RelayRefused: as for any connection.
        ConfigError: no password can be found.
    """

    def __init__(self, broker: BrokerAddress, *, trial: str, peer: str) -> None:
        (parameters,) = connection_parameters(broker, trial=trial, peer=peer)
        parameters.heartbeat = _HEARTBEAT_S
        parameters.blocked_connection_timeout = _BLOCKED_AFTER_S
        self._why_blocked = ""
        try:
            self._connection = pika.BlockingConnection(parameters, _impl_class=Connection)
        except (amqp.AMQPError, OSError) as error:
            raise opening_error(error, broker) from error
        # The blocking connection itself hands events out between two calls only, and by then it has given up.
        inner = getattr(self._connection, "_impl", None)
        if inner is not None:
            inner.add_on_connection_blocked_callback(self._on_blocked)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection.is_open:
            with contextlib.suppress(amqp.AMQPError):
                self._connection.close()

    def ask(self, question: Callable[[BlockingChannel], Any]) -> Reply:
        """Ask on a new channel, and wait until the broker has refused, or has done it all.

        Raises:
            Blocked: the broker takes no messages.
            RelayError: the connection broke.
        """
        try:
            channel = self._connection.channel()
            value = question(channel)
            channel.basic_qos(prefetch_count=1)  # comes back after whatever the question made the broker do
            channel.close()
        except amqp.ChannelClosedByBroker as error:
            return Reply(error.reply_code, error.reply_text)
        except amqp.AMQPError as error:
            raise self._broken(error) from error
        return Reply(_OK, value=value)

    def channel(self) -> BlockingChannel:
        """Open a channel for more than one question; what is raised by those is pika's.

        Raises:
            Blocked: the broker takes no messages.
            RelayError: the connection broke.
        """
        try:
            return self._connection.channel()
        except amqp.AMQPError as error:
            raise self._broken(error) from error

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Raise `Late` from whatever waits longer for the broker; pika alone would wait for a confirm for good."""
        inner: Any = getattr(self._connection, "_impl", None)
        timer = inner._adapter_call_later(seconds, _raise_late)
        try:
            yield
        finally:
            inner._adapter_remove_timeout(timer)

    def _broken(self, error: amqp.AMQPError) -> Exception:
        if isinstance(error, amqp.ConnectionBlockedTimeout):
            return Blocked(self._why_blocked or "it does not say why")
        return lost(error)

    def _on_blocked(self, _: object, frame: Any) -> None:
        self._why_blocked = str(frame.method.reason)


def _raise_late() -> None:
    raise Late
