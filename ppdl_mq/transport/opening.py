"""From the address of a broker to the adapter that speaks to it."""

from __future__ import annotations

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.transport.address import Names
from ppdl_mq.transport.allocator import keep_freed_chunks
from ppdl_mq.transport.base import Transport
from ppdl_mq.transport.tap import Tap


def open_transport(broker: BrokerAddress, *, trial: str, prefix: str, peer: str) -> Transport:
    """Make the adapter for `broker`, not yet connected.

    Each adapter is imported only when it is used: a peer of an embedded relay needs no AMQP client.

    Args:
        broker: where the relay is.
        trial: the trial's name.
        prefix: first word of every exchange and queue name.
        peer: our own name, by which the broker's administrator recognises the connection.
    """
    keep_freed_chunks()  # here, since every process that moves weights comes by
    names = Names(prefix=prefix, trial=trial)
    if broker.scheme == "embedded":
        from ppdl_mq.transport.embedded import EmbeddedTransport

        assert broker.path is not None, "an embedded address has a path"
        return EmbeddedTransport(broker.path, names)
    from ppdl_mq.transport.rabbitmq import RabbitMQTransport

    return RabbitMQTransport(broker, names, peer=peer)


def open_tap(broker: BrokerAddress, *, trial: str, prefix: str) -> Tap:
    """Set a tap on a relay, before the trial begins.

    On RabbitMQ it takes every message, so that no publisher learns any more that an inbox is missing: declare them all
    before the first peer starts.

    Args:
        broker: where the relay is.
        trial: the trial's name.
        prefix: first word of every exchange and queue name.

    Raises:
        RelayUnreachable: nobody answers.
        RelayRefused: we may not log in, or may not listen to everything.
    """
    names = Names(prefix=prefix, trial=trial)
    if broker.scheme == "embedded":
        from ppdl_mq.transport.embedded.tap import EmbeddedTap

        assert broker.path is not None, "an embedded address has a path"
        return EmbeddedTap(broker.path, names)
    from ppdl_mq.transport.rabbitmq.tap import RabbitMQTap

    return RabbitMQTap(broker, names)
