"""Questions that a broker answers with yes or no, and with nothing else: none of them changes or takes anything.

RabbitMQ checks the right first, then whether the request makes sense, and only then acts. So each question is put in a
way that makes no sense: 403 says that the right is missing, 406 (or 404 for what does not exist) that it is there. The
order is that of RabbitMQ 3.10 to 4.x (rabbit_channel); it was tried on 3.10.8 and read in the source of later ones.
"""

from __future__ import annotations

import secrets
from typing import Any, Final

import pika
from pika.adapters.blocking_connection import BlockingChannel

from ppdl_mq.transport.rabbitmq.doctor.session import Reply, Session

_NOBODY: Final = "ppdl-mq-check-nobody"  # no login: the broker refuses a message that claims to be from another user
_NO_NUMBER: Final = "not a number"


def new_word() -> str:
    """Return a name that nothing at the broker has."""
    return f"ppdl-mq-check-{secrets.token_hex(8)}"


def may_read(session: Session, queue: str) -> bool:
    """Tell whether we may consume from a queue, whether it exists or not: asks with a priority that is no number."""
    return not session.ask(
        lambda channel: channel.basic_consume(queue, _ignore, arguments={"x-priority": _NO_NUMBER})
    ).denied


def may_make_queue(session: Session, queue: str) -> bool:
    """Tell whether we may declare a queue: asks for one whose time to live is no number."""
    return not session.ask(
        lambda channel: channel.queue_declare(queue, durable=True, arguments={"x-message-ttl": _NO_NUMBER})
    ).denied


def exchange_differs(session: Session, exchange: str) -> Reply:
    """Ask for a topic exchange with an alternate exchange that is no name: denied, or what differs before that."""
    return session.ask(
        lambda channel: channel.exchange_declare(
            exchange, exchange_type="topic", durable=True, arguments={"alternate-exchange": 1}
        )
    )


def may_remove_anything(session: Session) -> bool:
    """Tell whether we may remove a queue of any name: asks for one that nobody has made."""
    return not session.ask(lambda channel: channel.queue_delete(new_word())).denied


def publish_refused(session: Session, exchange: str, key: str, size_bytes: int = 1) -> Reply:
    """Publish a message that claims to be another user's, so that it goes nowhere whatever our rights are.

    The broker looks at the size first, then at the rights on exchange and key, then at the user. Only an
    `impersonator` gets past that: ask with a key that nobody has before asking with one that somebody has.
    """
    properties = pika.BasicProperties(user_id=_NOBODY)
    body = b"\0" * size_bytes
    return session.ask(lambda channel: channel.basic_publish(exchange, key, body, properties, mandatory=True))


def may_bind(session: Session, queue: str, exchange: str, key: str) -> bool:
    """Tell whether we may bind a queue, there or not, to a key: asks to remove a binding that does not exist."""
    arguments = {"ppdl-mq-check": new_word()}
    return not session.ask(lambda channel: channel.queue_unbind(queue, exchange, key, arguments)).denied


def is_there(session: Session, queue: str) -> Reply:
    """Look at a queue; the value holds the counts of messages and of readers. Needs no right."""
    return session.ask(lambda channel: _counts(channel, queue))


def exchange_is_there(session: Session, exchange: str) -> Reply:
    """Look at an exchange. Needs no right."""
    return session.ask(lambda channel: channel.exchange_declare(exchange, passive=True))


def _counts(channel: BlockingChannel, queue: str) -> tuple[int, int]:
    method = channel.queue_declare(queue, passive=True).method
    return method.message_count, method.consumer_count


def _ignore(*_: Any) -> None:
    """Take no message: none comes."""
