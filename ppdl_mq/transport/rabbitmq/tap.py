"""A tap on RabbitMQ: one more queue, bound to everything that is published to the trial's exchange."""

# ruff: noqa: D102 (the base class says what each method does)

from __future__ import annotations

import contextlib
from typing import Any

import pika
from pika import exceptions as amqp

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.errors import RelayRefused
from ppdl_mq.transport.address import Names
from ppdl_mq.transport.rabbitmq.check_message import says_nothing
from ppdl_mq.transport.rabbitmq.errors import channel_error, is_code, lost, opening_error
from ppdl_mq.transport.rabbitmq.parameters import connection_parameters
from ppdl_mq.transport.tap import Tap

_NAME = "tap"


class RabbitMQTap(Tap):
    """Copies what is published to a trial's exchange; makes the exchange, and removes it at the end.

    The one byte that peers send to look at the broker before they begin is left out, as none of the trial's messages.

    Args:
        broker: where to. Its user needs the rights of an administrator of the trial's names.
        names: of the trial.
    """

    def __init__(self, broker: BrokerAddress, names: Names) -> None:
        self._exchange = names.exchange
        self._queue = f"{names.exchange}.{_NAME}"
        try:
            self._connection: Any = pika.BlockingConnection(
                connection_parameters(broker, trial=names.trial, peer=_NAME)
            )
        except (amqp.AMQPError, OSError) as error:
            raise opening_error(error, broker) from error
        try:
            self._channel = self._connection.channel()
            self._channel.exchange_declare(self._exchange, exchange_type="topic", durable=True)
            self._channel.queue_declare(self._queue, exclusive=True)
            self._channel.queue_bind(self._queue, self._exchange, "#")
        except amqp.AMQPError as error:
            self._disconnect()
            if is_code(error, 403):
                raise RelayRefused(
                    f"The user at {broker} may not listen to everything that passes.",
                    hint="Only whoever runs the relay can.",
                ) from error
            raise channel_error(error, _NAME) from error

    def read(self) -> list[bytes]:
        bodies = []
        try:
            self._connection.process_data_events()  # answers heartbeats even where nothing passes
            while (found := self._channel.basic_get(self._queue, auto_ack=True))[0] is not None:
                if not says_nothing(found[1], found[2]):
                    bodies.append(bytes(found[2]))
        except amqp.AMQPError as error:
            raise lost(error) from error
        return bodies

    def close(self) -> None:
        if self._connection.is_open:
            with contextlib.suppress(amqp.AMQPError):  # a peer's queue may still be bound to the exchange
                self._channel.queue_delete(self._queue)
                self._channel.exchange_delete(self._exchange, if_unused=True)
        self._disconnect()

    def _disconnect(self) -> None:
        if self._connection.is_open:
            with contextlib.suppress(amqp.AMQPError):
                self._connection.close()
