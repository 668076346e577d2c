"""A round trip of chunks through the broker: does it work, how long, how fast? And a short one: does it work?

Through the own inbox while nobody uses it, or through a queue of the doctor's own that goes with the connection. Every
message is marked. One that is not ours is given back at once, and ends the measurement.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pika
from pika import exceptions as amqp
from pika.adapters.blocking_connection import BlockingChannel

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.errors import RelayLost, RelayUnreachable
from ppdl_mq.transport.findings import Finding, Wanted
from ppdl_mq.transport.rabbitmq.check_message import MARK, SMALL
from ppdl_mq.transport.rabbitmq.doctor import probes
from ppdl_mq.transport.rabbitmq.doctor.lines import ctl, plan_line, policies_line
from ppdl_mq.transport.rabbitmq.doctor.rights import unbindable
from ppdl_mq.transport.rabbitmq.doctor.session import Blocked, Late, Session
from ppdl_mq.transport.rabbitmq.errors import channel_error

_SMALL: Final = 5  # messages for the latency
_TOTAL_BYTES: Final = 8 * 1024 * 1024
_MOST_CHUNKS: Final = 32
_PATIENCE_S: Final = 10.0
_SOON_S: Final = 20.0  # more than _PATIENCE_S: a limit for small messages
_LONG_S: Final = 300.0  # and for chunks over a slow line
_NOT_IMPLEMENTED: Final = 540  # what a stream says to a fetch, and closes the connection


@dataclass(frozen=True, slots=True)
class _Way:
    """From where to where.

    Args:
        exchange: published to.
        key: published with.
        queue: fetched from.
    """

    exchange: str
    key: str
    queue: str


class _Foreign(Exception):
    """A message that is not ours stands first in the queue: somebody has begun to use it."""


def round_trip(session: Session, broker: BrokerAddress, wanted: Wanted | None, chunk_bytes: int) -> Iterator[Finding]:
    """Send chunks and fetch them again.

    Raises:
        Blocked: the broker takes no messages.
    """
    channel = session.channel()
    way = _way(session, channel, wanted)
    if isinstance(way, Finding):
        yield way
        return
    what = f"{_chunks(chunk_bytes)} chunks of {chunk_bytes} bytes"
    yield _in_time(
        session,
        way,
        what,
        _LONG_S,
        lambda: _tried(session, channel, way, broker, what, lambda: _measure(channel, way, broker, chunk_bytes)),
    )


def short_trip(session: Session, broker: BrokerAddress, wanted: Wanted) -> Iterator[Finding]:
    """Send a few small messages through the own inbox, where nobody uses it, and say only what is wrong.

    Raises:
        Blocked: the broker takes no messages.
    """
    channel = session.channel()
    way = _way(session, channel, wanted)
    if isinstance(way, Finding):
        return
    what = f"{_SMALL} small messages"
    finding = _in_time(
        session,
        way,
        what,
        _SOON_S,
        lambda: _tried(session, channel, way, broker, what, lambda: _pass_through(channel, way, broker)),
    )
    if finding.result in ("warn", "fail"):
        yield finding


def _in_time(session: Session, way: _Way, what: str, seconds: float, tries: Callable[[], Finding]) -> Finding:
    """Return what a try finds, or that it took longer, wherever in it that was noticed."""
    try:
        with session.within(seconds):
            return tries()
    except Late:  # nothing can be taken back either
        return Finding(
            check="round trip",
            result="fail",
            says=f"The queue {way.queue} does not take {what}: it does not answer.",
            todo="Peers wait until it does. Is a node of the broker down, and with it most copies of the queue?",
            line="rabbitmq-diagnostics cluster_status",
            passes=True,
        )


def _tried(
    session: Session,
    channel: BlockingChannel,
    way: _Way,
    broker: BrokerAddress,
    what: str,
    sends: Callable[[], Finding],
) -> Finding:
    """Send, turn whatever comes in between into a finding, and leave nothing of ours in the queue."""
    try:
        channel.confirm_delivery()
        _fetch_nothing(channel, way)
        finding = sends()
    except _Foreign:
        finding = Finding(
            check="round trip",
            result="unknown",
            says="Somebody began to use the inbox during the measurement, which gave way.",
            todo="Look again while no peer of the trial runs.",
        )
    except amqp.ConnectionBlockedTimeout as error:
        raise Blocked("it does not say why") from error
    except amqp.UnroutableError:
        finding = _unroutable(session, way, broker)
    except amqp.AMQPError as error:
        finding = _fault(error, way, broker, what)
    if finding.result != "pass" and channel.is_open:
        with contextlib.suppress(amqp.AMQPError, Late):  # what was found is to be told
            _take_back(channel, way)
    return finding


def _unroutable(session: Session, way: _Way, broker: BrokerAddress) -> Finding:
    """Say what an inbox that is not bound means: a peer binds only what it may also make."""
    says = f"The exchange {way.exchange} leads no message to {way.queue}: there is no binding with {way.key!r}."
    if not broker.declare or not probes.may_make_queue(session, way.queue):
        return Finding(
            check="round trip",
            result="fail",
            says=says,
            todo="Ask the broker's administrator to set up the trial's plan; of two sites, each its own part.",
            line=plan_line(),
        )
    if not probes.may_bind(session, way.queue, way.exchange, way.key):
        return unbindable(way.queue, way.exchange, way.key)
    return Finding(check="round trip", result="warn", says=says, todo="The peer binds its inbox when it starts.")


def _fault(error: amqp.AMQPError, way: _Way, broker: BrokerAddress, what: str) -> Finding:
    if isinstance(error, amqp.NackError):
        return Finding(
            check="round trip",
            result="fail",
            says=f"The queue {way.queue} does not hold {what}: it is limited, or its node is down.",
            todo="It must hold one round of messages of all peers. Have the limit raised.",
            line=f"{ctl('list_queues', 'name', 'policy', 'arguments', vhost=broker.vhost)} | grep {way.queue}",
            passes=True,
        )
    if isinstance(error, amqp.ConnectionClosedByBroker) and error.reply_code == _NOT_IMPLEMENTED:
        return Finding(
            check="round trip",
            result="fail",
            says=f"The queue {way.queue} is of a type from which peers cannot fetch: {error.reply_text}.",
            todo="Ask the administrator to remove it, and to declare it anew as a quorum or classic queue.",
            line=f"{ctl('list_queues', 'name', 'type', 'arguments', vhost=broker.vhost)} | grep {way.queue}",
        )
    fault = channel_error(error, way.key)
    return Finding(
        check="round trip",
        result="fail",
        says=fault.message,
        todo=fault.hint,
        passes=isinstance(fault, RelayLost | RelayUnreachable),
    )


def _way(session: Session, channel: BlockingChannel, wanted: Wanted | None) -> _Way | Finding:
    if wanted is None:
        return _own_queue(session, channel)
    queue = wanted.names.queue(wanted.me)
    there = probes.is_there(session, queue)
    if there.ok and there.value == (0, 0):
        return _Way(wanted.names.exchange, wanted.me, queue)
    why = "is in use" if there.ok else "is not there"
    return Finding(
        check="round trip",
        result="unknown",
        says=f"Not measured: the inbox {queue} {why}, and it is not for the doctor to disturb it.",
        todo="Look again before the trial, while no message waits in it." if there.ok else "",
    )


def _own_queue(session: Session, channel: BlockingChannel) -> _Way | Finding:
    name = probes.new_word()
    if probes.may_make_queue(session, name) and not probes.publish_refused(session, "", name).denied:
        try:
            channel.queue_declare(name, exclusive=True)
        except amqp.AMQPError as error:
            raise channel_error(error, name) from error
        return _Way("", name, name)
    return Finding(
        check="round trip",
        result="unknown",
        says="Not measured: this user has no queue to measure with, which is right for a user with few rights.",
        todo="Give --trial, so that the own inbox can be used.",
    )


def _chunks(chunk_bytes: int) -> int:
    return max(2, min(_MOST_CHUNKS, _TOTAL_BYTES // chunk_bytes))


def _measure(channel: BlockingChannel, way: _Way, broker: BrokerAddress, chunk_bytes: int) -> Finding:
    latencies = []
    for number in range(_SMALL):
        began = time.monotonic()
        _send(channel, way, SMALL, str(number))
        if not _fetch(channel, way, str(number)):
            return _dropped(way, broker, "a small message")
        latencies.append(time.monotonic() - began)
    latency_ms = round(sorted(latencies)[len(latencies) // 2] * 1000, 1)
    count, body = _chunks(chunk_bytes), secrets.token_bytes(chunk_bytes)  # nothing that compresses on the way
    began = time.monotonic()
    for number in range(count):
        _send(channel, way, body, str(number))
    for number in range(count):
        if not _fetch(channel, way, str(number)):
            return _dropped(way, broker, f"one of {count} chunks of {chunk_bytes} bytes")
    rate = round(2 * count * chunk_bytes / (time.monotonic() - began) / 1e6, 1)  # out and back
    return Finding(
        check="round trip",
        result="pass",
        says=f"A small message is confirmed and back within {latency_ms} ms (median of {_SMALL}); {count} chunks of "
        f"{chunk_bytes} bytes went out, one confirm after the other, and came back at {rate} MB/s.",
        figures={"latency_ms": latency_ms, "mb_per_s": rate, "chunks": count, "chunk_bytes": chunk_bytes},
    )


def _pass_through(channel: BlockingChannel, way: _Way, broker: BrokerAddress) -> Finding:
    """Have all of them wait at the same time, as a limit on the queue's length shows only then."""
    for number in range(_SMALL):
        _send(channel, way, SMALL, str(number))
    for number in range(_SMALL):
        if not _fetch(channel, way, str(number)):
            return _dropped(way, broker, f"one of {_SMALL} small messages")
    return Finding(check="round trip", result="pass", says=f"{_SMALL} small messages came back.")


def _take_back(channel: BlockingChannel, way: _Way) -> None:
    """Take off the queue what is left of ours, wherever it stands, and give back what is not ours."""
    foreign = []
    for _ in range(2 * _MOST_CHUNKS):
        found: Any = channel.basic_get(way.queue)
        method, properties, _body = found
        if method is None:
            break
        if properties.type == MARK:
            channel.basic_ack(method.delivery_tag)
        else:
            foreign.append(method.delivery_tag)
    for tag in foreign:
        channel.basic_nack(tag, requeue=True)


def _fetch_nothing(channel: BlockingChannel, way: _Way) -> None:
    """Fetch from the empty queue before the first message is sent: some queues refuse it, and would keep ours."""
    found: Any = channel.basic_get(way.queue)
    if found[0] is not None:
        channel.basic_nack(found[0].delivery_tag, requeue=True)
        raise _Foreign


def _send(channel: BlockingChannel, way: _Way, body: bytes, mark: str) -> None:
    properties = pika.BasicProperties(delivery_mode=2, type=MARK, message_id=mark)
    channel.basic_publish(way.exchange, way.key, body, properties, mandatory=True)


def _fetch(channel: BlockingChannel, way: _Way, mark: str) -> bool:
    """Take our message off the queue; False where it is not there although the broker has confirmed it."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        found: Any = channel.basic_get(way.queue)
        method, properties, _ = found
        if method is not None:
            break
        if time.monotonic() >= deadline:
            return False
        channel.connection.process_data_events(0.05)
    if properties.type != MARK:
        channel.basic_nack(method.delivery_tag, requeue=True)
        raise _Foreign
    channel.basic_ack(method.delivery_tag)
    return bool(properties.message_id == mark)


def _dropped(way: _Way, broker: BrokerAddress, what: str) -> Finding:
    return Finding(
        check="round trip",
        result="fail",
        says=f"The broker confirmed {what} and dropped it again: a limit or a time to live of the queue {way.queue}.",
        todo="Ask the administrator for a policy without limits, or with overflow reject-publish, and without TTL.",
        line=policies_line(broker, way.queue),
    )
