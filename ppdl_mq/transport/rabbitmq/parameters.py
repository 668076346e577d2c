"""From a broker's address to what pika wants to know."""

from __future__ import annotations

import platform
import ssl
from typing import Final

import pika
from pika.credentials import ExternalCredentials, PlainCredentials

from ppdl_mq import __version__
from ppdl_mq.config import limits
from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.config.hosts import Host
from ppdl_mq.errors import RelayRefused

# Larger frames are slower with pika (it copies more), and more than the broker's 131072 is refused with a misleading
# error. Brokers whose limit is lower negotiate it down; RabbitMQ 4.x wants at least 8192.
_FRAME_MAX: Final = 32 * 1024


def connection_parameters(broker: BrokerAddress, *, trial: str, peer: str) -> list[pika.ConnectionParameters]:
    """Build pika's parameters for each host. They hold the password: never log them.

    Args:
        broker: where to.
        trial: shown to the broker's administrator.
        peer: our own name; shown as well.

    Raises:
        ConfigError: no password can be found.
        RelayRefused: the TLS files cannot be used; who renews them may be in the middle of it.
    """
    return [_parameters(broker, host, trial=trial, peer=peer) for host in broker.hosts]


def _parameters(broker: BrokerAddress, host: Host, *, trial: str, peer: str) -> pika.ConnectionParameters:
    if broker.by_certificate:
        credentials: PlainCredentials | ExternalCredentials = ExternalCredentials()
    else:
        # Kept for no longer than the login takes: pika clears them.
        credentials = PlainCredentials(broker.login, broker.password().get_secret_value(), erase_on_connect=True)
    return pika.ConnectionParameters(
        host=host.name,
        port=host.port,
        virtual_host=broker.vhost,
        credentials=credentials,
        ssl_options=pika.SSLOptions(tls_context(broker), host.name) if broker.scheme == "amqps" else None,
        frame_max=_FRAME_MAX,
        heartbeat=limits.HEARTBEAT_S,
        socket_timeout=limits.TCP_S,
        stack_timeout=limits.LOGIN_S,
        connection_attempts=1,  # waiting and trying again is the peer's business
        client_properties={
            "connection_name": f"ppdl-mq {trial}/{peer}",
            "product": "ppdl-mq",
            "version": __version__,
            "platform": f"Python {platform.python_version()}, pika {pika.__version__}",
            "information": f"peer {peer} of trial {trial}",
        },
    )


def tls_context(broker: BrokerAddress) -> ssl.SSLContext:
    """Verify chain and host name, always; there is no way to switch it off.

    Raises:
        RelayRefused: the TLS files cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=broker.ca_file)
    except OSError as error:
        raise _unusable(f"ca_file {broker.ca_file}", error) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if broker.certificate_file is not None:

        def no_passphrase() -> str:
            raise ValueError  # otherwise OpenSSL asks on the terminal

        try:
            context.load_cert_chain(broker.certificate_file, broker.key_file, password=no_passphrase)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            files = f"certificate_file {broker.certificate_file}, with key_file {broker.key_file},"
            raise _unusable(files, error) from error
    return context


def _unusable(files: str, error: OSError | ValueError) -> RelayRefused:
    if isinstance(error, ssl.SSLError):
        reason = f"OpenSSL says {error.reason}" if error.reason else "it is not in PEM"
    elif isinstance(error, OSError):
        reason = f"{error.strerror}"
    else:
        reason = "the key has a passphrase"
    return RelayRefused(
        f"The {files} cannot be used: {reason}.",
        hint="It must be PEM, readable for this user, and a key without passphrase.",
    )
