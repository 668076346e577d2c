"""From the address of a broker to the adapter that speaks to it."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import SecretStr

from ppdl_mq.config import limits
from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.errors import ConfigError, RelayError
from ppdl_mq.transport.address import Names
from ppdl_mq.transport.allocator import keep_freed_chunks
from ppdl_mq.transport.base import Transport
from ppdl_mq.transport.findings import Finding, Wanted
from ppdl_mq.transport.tap import Tap


def open_transport(
    broker: BrokerAddress, *, trial: str, prefix: str, peer: str, message_bytes: int = limits.MAX_CHUNK_BYTES
) -> Transport:
    """Make the adapter for `broker`, not yet connected.

    Each adapter is imported only when it is used: a peer of an embedded relay needs no AMQP client.

    Args:
        broker: where the relay is.
        trial: the trial's name.
        prefix: first word of every exchange and queue name.
        peer: our own name, by which the broker's administrator recognises the connection.
        message_bytes: the trial's largest message.
    """
    keep_freed_chunks()  # here, since every process that moves weights comes by
    names = Names(prefix=prefix, trial=trial)
    if broker.scheme == "embedded":
        from ppdl_mq.transport.embedded import EmbeddedTransport

        assert broker.path is not None, "an embedded address has a path"
        return EmbeddedTransport(broker.path, names, message_bytes=message_bytes)
    from ppdl_mq.transport.rabbitmq import RabbitMQTransport

    return RabbitMQTransport(broker, names, peer=peer, message_bytes=message_bytes)


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


def examine_relay(
    broker: BrokerAddress,
    wanted: Wanted | None,
    *,
    thorough: bool = True,
    management_url: str | None = None,
    management_password: SecretStr | None = None,
) -> Iterator[Finding]:
    """Look at a relay before a trial; each finding comes as soon as it is known.

    Args:
        broker: where the relay is.
        wanted: what a trial needs of it, or None.
        thorough: also measure, look for needless rights, and make the own inbox where this peer may. Without, only
            what would keep the trial from running.
        management_url: of RabbitMQ's management, which shows what AMQP does not; without a password.
        management_password: of its user; without, user and password are the broker's.

    Raises:
        ConfigError: no password can be found, or the management's URL does not hold.
        RelayRefused: the TLS files cannot be used.
    """
    if broker.scheme == "embedded":
        if management_url is not None:
            raise ConfigError("An embedded relay has no management.", hint="Leave --management out.")
        return iter([_examine_embedded(broker, wanted if thorough else None)])
    from ppdl_mq.transport.rabbitmq.doctor import Management, examine

    management = None
    if management_url is not None:
        management = Management.parse(management_url, broker, management_password)
    return examine(broker, wanted, thorough=thorough, management=management)


def _examine_embedded(broker: BrokerAddress, wanted: Wanted | None) -> Finding:
    names = Names(prefix="ppdl", trial="check") if wanted is None else wanted.names
    try:
        with open_transport(broker, trial=names.trial, prefix=names.prefix, peer="check") as transport:
            if wanted is not None:
                transport.declare(wanted.me)
    except RelayError as error:
        return Finding(check="reach", result="fail", says=error.message, todo=error.hint)
    inbox = "" if wanted is None else f", and the inbox of {wanted.me} is there"
    return Finding(check="reach", result="pass", says=f"{broker} answers and lets us in{inbox}.")
