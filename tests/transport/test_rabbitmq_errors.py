"""Each exception of pika, and each reply code, becomes one of ours."""

from __future__ import annotations

import inspect
import socket
import ssl

import pytest
from pika import exceptions as amqp
from pika.adapters.utils import connection_workflow as workflow

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.errors import (
    InboxTaken,
    MessageTooLarge,
    RelayError,
    RelayLost,
    RelayRefused,
    RelayUnreachable,
    Unroutable,
)
from ppdl_mq.transport.rabbitmq.errors import channel_error, lost, opening_error

BROKER = BrokerAddress.parse("amqp://mercy@broker.example/heart")


def onion(error: BaseException) -> amqp.AMQPConnectionError:
    """Wrap an error as pika does when a connection does not come about."""
    inner = workflow.AMQPConnectorSocketConnectError(error)
    return amqp.AMQPConnectionError(workflow.AMQPConnectionWorkflowFailed([inner]))


OPENING = [
    (onion(ConnectionRefusedError(111, "Connection refused")), RelayUnreachable),
    (onion(socket.gaierror(-2, "Name or service not known")), RelayUnreachable),
    (onion(TimeoutError("timed out")), RelayUnreachable),
    (onion(OSError(101, "Network is unreachable")), RelayUnreachable),
    (workflow.AMQPConnectionWorkflowFailed([workflow.AMQPConnectorStackTimeout()]), RelayUnreachable),
    (workflow.AMQPConnectionWorkflowFailed([socket.gaierror(-2, "Name or service not known")]), RelayUnreachable),
    (amqp.IncompatibleProtocolError("StreamLostError: ('Transport indicated EOF',)"), RelayUnreachable),
    (amqp.StreamLostError("Stream connection lost"), RelayUnreachable),
    (amqp.ConnectionOpenAborted("closed before it opened"), RelayUnreachable),
    (amqp.AMQPHeartbeatTimeout(), RelayUnreachable),
    (amqp.AuthenticationError("EXTERNAL"), RelayRefused),
    (amqp.ProbableAuthenticationError("(403) ACCESS_REFUSED"), RelayRefused),
    (amqp.ProbableAccessDeniedError("(530) NOT_ALLOWED"), RelayRefused),
    (amqp.ConnectionClosedByBroker(403, "ACCESS_REFUSED - login was refused"), RelayRefused),
    (amqp.ConnectionClosedByBroker(530, "NOT_ALLOWED - vhost heart not found"), RelayRefused),
    (
        workflow.AMQPConnectionWorkflowFailed(
            [workflow.AMQPConnectorTransportSetupError(ssl.SSLCertVerificationError(1, "certificate verify failed"))]
        ),
        RelayRefused,
    ),
    (amqp.IncompatibleProtocolError("Stream connection lost: SSLError(1, 'alert certificate required')"), RelayRefused),
]


@pytest.mark.parametrize(("error", "expected"), OPENING, ids=lambda value: getattr(value, "__name__", repr(value)[:60]))
def test_while_opening(error: BaseException, expected: type[RelayError]) -> None:
    assert type(opening_error(error, BROKER)) is expected


CHANNEL = [
    (403, "ACCESS_REFUSED - queue 'q' in vhost '/' in exclusive use", InboxTaken),
    (403, "ACCESS_REFUSED - read access to queue 'q' refused", RelayRefused),
    (404, "NOT_FOUND - no queue 'q' in vhost '/'", Unroutable),
    (404, "NOT_FOUND - home node 'r@b' of durable queue 'q' in vhost '/' is down or inaccessible", RelayLost),
    (404, "NOT_FOUND - no exchange 'e' in vhost '/'", RelayRefused),
    (405, "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue", RelayRefused),
    (406, "PRECONDITION_FAILED - message size 5 is larger than configured max size 4", MessageTooLarge),
    (406, "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out", RelayLost),
    (406, "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q'", RelayRefused),
    (311, "CONTENT_TOO_LARGE", MessageTooLarge),
    (506, "RESOURCE_ERROR", RelayError),
    (540, "NOT_IMPLEMENTED", RelayError),
]


@pytest.mark.parametrize(("code", "text", "expected"), CHANNEL)
def test_a_closed_channel(code: int, text: str, expected: type[RelayError]) -> None:
    assert type(channel_error(amqp.ChannelClosedByBroker(code, text), "a")) is expected


def _every_exception_of_pika() -> list[BaseException]:
    made = []
    for _, kind in inspect.getmembers(amqp, inspect.isclass):
        if issubclass(kind, Exception) and kind.__module__ == amqp.__name__:
            arguments = (320, "text") if issubclass(kind, amqp.ConnectionClosed | amqp.ChannelClosed) else ([],)
            made.append(kind(*arguments))
    return made


@pytest.mark.parametrize("error", _every_exception_of_pika(), ids=lambda error: type(error).__name__)
def test_no_exception_of_pika_leaves_the_adapter(error: BaseException) -> None:
    assert isinstance(opening_error(error, BROKER), RelayError)
    assert isinstance(channel_error(error, "a"), RelayError)
    assert type(lost(error)) is RelayLost


def test_an_error_within_the_broker_says_where_to_read_on() -> None:
    assert "docs/CONNECTION.md" in lost(amqp.ConnectionClosedByBroker(541, "INTERNAL_ERROR")).message
    assert "docs" not in lost(amqp.ConnectionClosedByBroker(320, "CONNECTION_FORCED")).message


def test_there_are_exceptions_to_map() -> None:
    assert len(_every_exception_of_pika()) > 20


def test_our_own_errors_pass_unchanged() -> None:
    error = RelayLost("gone")
    assert channel_error(error, "a") is error
