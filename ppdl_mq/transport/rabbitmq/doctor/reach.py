"""The way to one node of the broker, before anybody logs in: name, TCP, TLS, the AMQP greeting."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pika
from pika import exceptions as amqp
from pika import frame as frames

from ppdl_mq.config import limits
from ppdl_mq.config.hosts import is_this_machine
from ppdl_mq.transport.findings import Finding
from ppdl_mq.transport.rabbitmq.doctor.certificates import expiry, own_certificate, shown_certificate
from ppdl_mq.transport.rabbitmq.doctor.node import Node
from ppdl_mq.transport.rabbitmq.doctor.tls_faults import spoken_to_in_the_clear, tls_fault
from ppdl_mq.transport.rabbitmq.parameters import tls_context

_HELLO: Final = b"AMQP\x00\x00\x09\x01"
_MAX_GREETING_BYTES: Final = 64 * 1024
_TLS_RECORDS: Final = (0x14, 0x15, 0x16)
_OLDEST: Final = (3, 10)
_LATE_S: Final = 5.0  # for what a broker says of its own accord after the handshake


@dataclass(slots=True)
class Greeting:
    """What the broker says of itself before the login.

    Args:
        is_there: whether a broker answered at all.
        mechanisms: SASL mechanisms that it offers; without TLS none, where it wants certificates.
        properties: name, version, cluster.
    """

    is_there: bool = False
    mechanisms: tuple[str, ...] = ()
    properties: dict[str, Any] = field(default_factory=dict)


def reach(node: Node, greeting: Greeting) -> Iterator[Finding]:
    """Look at the way to a node.

    Args:
        node: one host of the broker.
        greeting: filled in where the way leads to a broker.
    """
    place = str(node)
    try:
        found = socket.getaddrinfo(node.host, node.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no host name"
        yield Finding(
            check="name",
            result="fail",
            says=f"The host name {node.host!r} is not known here: {reason}.",
            todo="Check the URL, and this machine's DNS and VPN.",
            passes=True,
        )
        return
    began = time.monotonic()
    connection, reason = _connect([address for *_, address in found])
    if connection is None:
        yield Finding(
            check="reach",
            result="fail",
            says=f"Nobody answers at {place}: {reason}.",
            todo="Is the broker up, and does every firewall on the way let this machine out to that port?",
            passes=True,
        )
        return
    milliseconds = round((time.monotonic() - began) * 1000, 1)
    with contextlib.closing(connection):
        yield Finding(
            check="reach",
            result="pass",
            says=f"{place} answers at {connection.getpeername()[0]} within {milliseconds} ms.",
            figures={"connect_ms": milliseconds},
        )
        yield from _greet(connection, node, greeting)


def _connect(addresses: list[Any]) -> tuple[socket.socket | None, str]:
    """Try all addresses of a name; return a connection, or why there is none."""
    reason = "it has no address"
    for address in addresses:
        try:
            return socket.create_connection(address[:2], limits.TCP_S), ""
        except OSError as error:
            reason = "timed out" if isinstance(error, TimeoutError) else error.strerror or str(error)
    return None, reason


def _greet(connection: socket.socket, node: Node, greeting: Greeting) -> Iterator[Finding]:
    stream = connection
    try:
        if node.broker.scheme == "amqps":
            yield from own_certificate(node)
            try:
                stream = tls_context(node.broker).wrap_socket(connection, server_hostname=node.host)
            except (ssl.SSLError, OSError) as error:
                yield tls_fault(error, node)
                return
            yield _tls(stream, node)
            yield expiry(stream, node)
        else:
            yield _in_the_clear(node)
        with contextlib.closing(stream):
            answer = _first_frame(stream)
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
        answer = error
    except ssl.SSLError as error:
        yield tls_fault(error, node)
        return
    except OSError as error:
        answer = error
    if isinstance(answer, pika.spec.Connection.Start):
        greeting.is_there = True
        greeting.mechanisms = tuple(_text(answer.mechanisms).split())
        greeting.properties = dict(answer.server_properties or {})
        yield _version(greeting)
        return
    is_silent = not answer or isinstance(answer, OSError)
    if node.broker.scheme == "amqps":
        refusal = _late_refusal(node) if is_silent else None
        if refusal is not None:
            yield tls_fault(refusal, node)
            return
    elif _is_tls(answer) or (is_silent and shown_certificate(node) is not None):
        yield spoken_to_in_the_clear(node)
        return
    if isinstance(answer, bytes) and answer.startswith(b"HTTP/"):
        what = "is an HTTP server, perhaps the broker's management"
    elif isinstance(answer, bytes) and answer.startswith(b"AMQP"):
        what = "speaks another version of AMQP, no 0-9-1"
    else:
        what = "accepts the connection and hangs up without a word" if is_silent else "is no AMQP broker"
    yield Finding(
        check="greeting",
        result="fail",
        says=f"What answers at {node} {what}.",
        todo="Check host and port of the URL: brokers listen on 5672 for amqp://, on 5671 for amqps://.",
        line="rabbitmq-diagnostics listeners",
        passes=is_silent,  # as a proxy does whose broker is down
    )


def _late_refusal(node: Node) -> ssl.SSLError | None:
    """Connect once more and only listen.

    With TLS 1.3 a broker refuses our certificate, or that there is none, after the handshake, and its words are lost
    where we have begun to talk.
    """
    try:
        with (
            socket.create_connection((node.host, node.port), limits.TCP_S) as connection,
            tls_context(node.broker).wrap_socket(connection, server_hostname=node.host) as stream,
        ):
            stream.settimeout(_LATE_S)
            stream.recv(1)
    except ssl.SSLError as error:
        return error
    except OSError:
        return None
    return None


def _is_tls(answer: object) -> bool:
    return isinstance(answer, bytes) and answer[:1] != b"" and answer[0] in _TLS_RECORDS


def _first_frame(stream: socket.socket) -> object:
    """Send AMQP's protocol header; return the method that comes back, or the bytes where they are none."""
    stream.settimeout(limits.TCP_S)
    stream.sendall(_HELLO)
    came = b""
    while len(came) < _MAX_GREETING_BYTES:
        piece = stream.recv(4096)
        came += piece
        if came[:1] != b"\x01":  # a method frame begins with it
            return came
        with contextlib.suppress(amqp.AMQPError, ValueError, KeyError, IndexError, UnicodeDecodeError):
            consumed, frame = frames.decode_frame(came)
            if consumed:
                return getattr(frame, "method", came)
        if not piece:
            break
    return came


def _tls(stream: ssl.SSLSocket | socket.socket, node: Node) -> Finding:
    assert isinstance(stream, ssl.SSLSocket), "wrapped above"
    return Finding(
        check="tls",
        result="pass",
        says=f"{stream.version()}: the certificate's chain holds, and it is for {node.host}.",
        figures={"tls": str(stream.version())},
    )


def _in_the_clear(node: Node) -> Finding:
    if is_this_machine(node.host):
        return Finding(check="tls", result="pass", says="Without TLS, and within this machine.")
    return Finding(
        check="tls",
        result="warn",
        says="Without TLS: whoever listens on the way sees the password and the names of queues; messages are sealed.",
        todo="Use amqps://, or a VPN.",
    )


def _version(greeting: Greeting) -> Finding:
    said = {key: _text(greeting.properties.get(key)) for key in ("product", "version", "cluster_name")}
    numbers = tuple(int(word) if word.isdecimal() else 0 for word in said["version"].split(".")[:2])
    name = f"{said['product'] or 'A broker'} {said['version'] or 'of unknown version'}"
    figures = {key: value for key, value in said.items() if value}
    if said["product"] == "RabbitMQ" and numbers >= _OLDEST:
        of_cluster = f" (cluster {said['cluster_name']})" if said["cluster_name"] else ""
        return Finding(check="greeting", result="pass", says=f"{name}{of_cluster}.", figures=figures)
    return Finding(
        check="greeting",
        result="warn",
        says=f"{name}; ppdl-mq is made for RabbitMQ 3.10 to 4.x.",
        todo="Rehearse the trial there before you rely on it.",
        figures=figures,
    )


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")
