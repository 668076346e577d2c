"""pika as anybody would use it, moving opaque bytes: the yardstick that `ppdl-mq bench` holds this package to.

Nothing here is used by a peer. What stock pika leaves to its user is set to what is fastest without changing it: the
frame size of our own connections, a bounded prefetch, many messages for one acknowledgement. The sender waits for no
confirms, the receiver keeps nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pika
from pika import exceptions as amqp

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.transport.address import Names
from ppdl_mq.transport.base import MAX_HELD
from ppdl_mq.transport.rabbitmq.errors import lost, opening_error
from ppdl_mq.transport.rabbitmq.parameters import connection_parameters

_ACK_EVERY: Final = MAX_HELD // 2
_PERSISTENT: Final = pika.BasicProperties(delivery_mode=2)


class BarePika:
    """One blocking connection of pika.

    Args:
        broker: where to.
        names: of an exchange and queues that are there already.
        peer: shown to the broker's administrator.

    Raises:
        RelayUnreachable, RelayRefused: as for any connection.
    """

    def __init__(self, broker: BrokerAddress, names: Names, *, peer: str) -> None:
        self._names = names
        try:
            self._connection = pika.BlockingConnection(connection_parameters(broker, trial=names.trial, peer=peer))
        except (amqp.AMQPError, OSError) as error:
            raise opening_error(error, broker) from error
        self._channel = self._connection.channel()

    def close(self) -> None:
        """Leave; harmless when the connection is gone already."""
        with contextlib.suppress(amqp.AMQPError):
            self._connection.close()

    def publish(self, address: str, content: memoryview, chunk_bytes: int) -> None:
        """Publish `content` in messages of `chunk_bytes`; the bytes have left this process when it returns."""
        with _mapped():
            for start in range(0, len(content), chunk_bytes):
                body = bytes(content[start : start + chunk_bytes])
                self._channel.basic_publish(self._names.exchange, address, body, _PERSISTENT)

    def drain(self, address: str, size_bytes: int) -> None:
        """Receive, acknowledge and drop messages until `size_bytes` have come."""
        with _mapped():
            self._channel.basic_qos(prefetch_count=MAX_HELD)
            missing = size_bytes
            for number, (method, _, body) in enumerate(self._channel.consume(self._names.queue(address)), start=1):
                missing -= len(body)
                if missing <= 0 or number % _ACK_EVERY == 0:
                    self._channel.basic_ack(method.delivery_tag, multiple=True)
                if missing <= 0:
                    break
            self._channel.cancel()

    def remove_exchange(self) -> None:
        """Remove the exchange, which `Transport.delete` leaves to an administrator."""
        with _mapped():
            self._channel.exchange_delete(self._names.exchange)


@contextmanager
def _mapped() -> Iterator[Any]:
    try:
        yield
    except amqp.AMQPError as error:
        raise lost(error) from error
