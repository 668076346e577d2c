"""The trial's exchange and queues at the broker: make them, or check what an administrator made.

One durable topic exchange for the trial, and for each address one durable queue bound with the address as key. Never
the default exchange: a user with few rights cannot write to it, and topic permissions do not cover it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Literal

from pika import exceptions as amqp
from pika.channel import Channel

from ppdl_mq.errors import RelayRefused, Unroutable
from ppdl_mq.transport.address import WEIGHTS, Names
from ppdl_mq.transport.rabbitmq.errors import channel_error, is_code, is_missing, loses_messages
from ppdl_mq.transport.rabbitmq.lane import Lane
from ppdl_mq.transport.rabbitmq.link import Link, give

_MISSING_RIGHT, _DIFFERENT = 403, 406

Call = Callable[[Channel, Callable[[Any], None]], object]


class Topology:
    """Declaring, checking, counting and emptying queues, on a channel of its own.

    Args:
        link: the connection.
        names: of the trial.
        declare: False: check only, an administrator declares.
        queue_type: what to ask for.
    """

    def __init__(self, link: Link, names: Names, *, declare: bool, queue_type: Literal["classic", "quorum"]) -> None:
        self._link = link
        self._lane = Lane(link)
        self._names = names
        self._declare = declare
        self._queue_type = queue_type

    def declare(self, address: str) -> None:
        """Make sure that exchange, queue and binding exist, as far as our rights go."""
        self._ensure_exchange(address)  # each time: somebody may have removed it since
        if self._ensure_queue(address):
            self._bind(address)

    def depth(self, address: str) -> int:
        """Count the ready messages of `address`."""
        return int(self._call(address, self._queue_check(address)).method.message_count)

    def purge(self, address: str) -> int:
        """Drop the ready messages of `address`; needs the right to read it."""
        queue = self._names.queue(address)
        frame = self._call(address, lambda channel, done: channel.queue_purge(queue, callback=done))
        return int(frame.method.message_count)

    def delete(self, address: str) -> None:
        """Remove the queue, or empty it where there is no right to."""
        queue = self._names.queue(address)
        try:
            self._ask(lambda channel, done: channel.queue_delete(queue, callback=done))
        except amqp.AMQPError as error:
            if not is_code(error, _MISSING_RIGHT):
                raise channel_error(error, address) from error
            with contextlib.suppress(Unroutable):  # nothing to empty
                self.purge(address)

    def _ensure_exchange(self, address: str) -> None:
        exchange = self._names.exchange
        if self._declare:
            try:
                self._ask(
                    lambda channel, done: channel.exchange_declare(
                        exchange, exchange_type="topic", durable=True, callback=done
                    )
                )
                return
            except amqp.AMQPError as error:
                # Additional arguments (an alternate exchange, say) do no harm; another type or a transient one does.
                if is_code(error, _DIFFERENT) and not any(f"arg '{arg}'" in str(error) for arg in ("type", "durable")):
                    return
                if not is_code(error, _MISSING_RIGHT):
                    raise channel_error(error, address) from error
        self._call(address, lambda channel, done: channel.exchange_declare(exchange, passive=True, callback=done))

    def _ensure_queue(self, address: str) -> bool:
        """Return whether we may make it, and so should bind it."""
        queue = self._names.queue(address)
        may_make = False
        if self._declare:
            try:
                self._ask(
                    lambda channel, done: channel.queue_declare(
                        queue, durable=True, arguments=self._arguments(), callback=done
                    )
                )
                return True
            except amqp.AMQPError as error:
                if isinstance(error, amqp.ChannelClosedByBroker) and is_code(error, _DIFFERENT):
                    if loses_messages(error):
                        raise RelayRefused(
                            f"The queue {queue!r} exists with arguments that lose messages: {error.reply_text}.",
                            hint=f"The administrator can: rabbitmqctl delete_queue {queue}; policies may set limits.",
                        ) from error
                    may_make = True  # the right is looked at first
                elif not is_code(error, _MISSING_RIGHT):
                    raise channel_error(error, address) from error
        try:
            self._ask(self._queue_check(address))
        except amqp.AMQPError as error:
            if is_missing(error):
                hint = "Ask the broker's administrator to declare and bind it."
                if address == WEIGHTS:  # a second broker may be why: a get crosses neither federation nor shovel
                    hint += " All peers of a server-aided trial need one broker in common."
                raise RelayRefused(
                    f"The queue {queue!r} does not exist, and this user may not make it.", hint=hint
                ) from error
            raise channel_error(error, address) from error
        return may_make

    def _bind(self, address: str) -> None:
        queue = self._names.queue(address)
        try:
            self._ask(lambda channel, done: channel.queue_bind(queue, self._names.exchange, address, callback=done))
        except amqp.AMQPError as error:
            # Without the right to bind it is bound already, or publishing says that it is unroutable.
            if not is_code(error, _MISSING_RIGHT):
                raise channel_error(error, address) from error

    def _arguments(self) -> dict[str, Any]:
        """Only what a policy cannot set.

        Quorum queues of RabbitMQ 4.x drop a message that was handed out 20 times, unless told otherwise; -1 tells
        them, and is not understood before 4.0, where there is no limit by default.
        """
        arguments: dict[str, Any] = {"x-queue-type": self._queue_type}
        if self._queue_type == "quorum" and self._major_version() >= 4:
            arguments["x-delivery-limit"] = -1
        return arguments

    def _major_version(self) -> int:
        said = (self._link.connection.server_properties or {}).get("version", b"")
        text = said.decode("ascii", "replace") if isinstance(said, bytes) else str(said)
        major = text.partition(".")[0]
        return int(major) if major.isdecimal() else 0

    def _queue_check(self, address: str) -> Call:
        queue = self._names.queue(address)
        return lambda channel, done: channel.queue_declare(queue, passive=True, callback=done)

    def _ask(self, call: Call) -> Any:
        def question(channel: Channel, answer: Future[Any]) -> None:
            call(channel, lambda frame: give(answer, frame))

        return self._lane.ask(question)

    def _call(self, address: str, call: Call) -> Any:
        try:
            return self._ask(call)
        except amqp.AMQPError as error:
            raise channel_error(error, address) from error
