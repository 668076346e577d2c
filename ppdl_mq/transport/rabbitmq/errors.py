"""What the errors of pika and the reply codes of RabbitMQ mean; no exception of pika leaves the adapter."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Sequence
from typing import Final

from pika import exceptions as amqp
from pika.adapters.utils.connection_workflow import AMQPConnectorStackTimeout

from ppdl_mq.config import limits
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

_INTERNAL_ERROR: Final = 541
_IS_IT_UP: Final = "Is the broker up, and the port open on the way?"

# A classic queue is on one node of a cluster: the others say "home node ... is down or inaccessible" of it.
_IS_DOWN: Final = "down or inaccessible"

# Arguments with which a queue drops messages by itself, or goes away.
_LOSSY = ("x-message-ttl", "x-expires", "x-max-length", "x-max-length-bytes", "durable", "auto_delete", "exclusive")


def opening_error(error: BaseException, broker: BrokerAddress, *, where: str = "") -> RelayError:
    """Say why no connection came about.

    Args:
        error: what pika reports; often an onion of several exceptions.
        broker: where to; its text holds no password.
        where: which host of several; without it, the broker as a whole.
    """
    where = where or str(broker)
    layers = list(_layers(error))
    for layer in layers:
        if isinstance(layer, RelayLost):  # ours: it was hung up
            return RelayUnreachable(layer.message, hint=layer.hint)
        if isinstance(layer, ssl.SSLError) or (isinstance(layer, amqp.AMQPError) and "SSL" in str(layer)):
            return RelayRefused(
                f"TLS with {where} fails: {_tls_reason(layer)}.",
                hint="Check ca_file, the host name in the URL, and the client certificate.",
            )
    for layer in layers:
        text = str(layer)
        if isinstance(layer, amqp.AuthenticationError):
            return RelayRefused(
                f"{where} does not offer the login that is asked for.",
                hint="A client certificate needs SASL EXTERNAL at the broker; a password needs PLAIN.",
            )
        if isinstance(layer, amqp.ProbableAuthenticationError) or "ACCESS_REFUSED" in text:
            who = "the client certificate" if broker.by_certificate else f"the password of user {broker.login!r}"
            return RelayRefused(
                f"{where} refuses {who}.", hint="Ask the broker's administrator, or check the settings."
            )
        if "NOT_ALLOWED" in text and "limit" in text:  # before the next: pika takes both for a missing right
            return RelayUnreachable(
                f"{where} takes no more connections of this user, or to the vhost {broker.vhost!r}: "
                "its limit is reached.",
                hint="It may pass: connections that broke count until the broker misses them, a minute or two. "
                "Otherwise the administrator can look: rabbitmqctl list_user_limits, rabbitmqctl list_vhost_limits.",
            )
        if isinstance(layer, amqp.ProbableAccessDeniedError) or "NOT_ALLOWED" in text:
            who = "this organisation" if broker.by_certificate else f"user {broker.login!r}"
            return RelayRefused(
                f"{where} has no vhost {broker.vhost!r} that {who} may enter.",
                hint=f"The administrator can: rabbitmqctl set_permissions -p {broker.vhost} USER CONFIGURE WRITE READ.",
            )
    for layer in layers:
        if isinstance(layer, amqp.IncompatibleProtocolError):
            return RelayUnreachable(
                f"What answers at {where} is no AMQP broker, or hung up.",
                hint="A port with TLS needs amqps:// in the URL, one without needs amqp://.",
            )
    for layer in layers:
        if isinstance(layer, AMQPConnectorStackTimeout):
            return RelayUnreachable(f"{where} does not answer: no login in {limits.LOGIN_S:.0f} s.", hint=_IS_IT_UP)
        if isinstance(layer, OSError) and layer.strerror:
            return RelayUnreachable(f"{where} does not answer: {layer.strerror}.", hint=_IS_IT_UP)
    return RelayUnreachable(f"{where} does not answer.", hint=_IS_IT_UP)


def none_lets_us_in(failures: Sequence[RelayError], broker: BrokerAddress) -> RelayError:
    """Say of several hosts why none let us in.

    The nodes of a cluster have the same users, so what one of them refuses is refused: waiting for the others would not
    help. (A host whose TLS fails is passed over too, and counts as a refusal only when no other lets us in.)

    Args:
        failures: one for each host that was tried.
        broker: all of them.
    """
    if len(failures) == 1:
        return failures[0]
    refused = next((failure for failure in failures if isinstance(failure, RelayRefused)), None)
    reasons = "; ".join(failure.message.rstrip(".") for failure in failures)
    said = f"None of the {len(failures)} hosts of {broker} lets us in: {reasons}."
    if refused is not None:
        return RelayRefused(said, hint=refused.hint)
    return RelayUnreachable(said, hint=failures[0].hint)


def lost(error: BaseException | None) -> RelayLost:
    """Say why the connection is gone."""
    if isinstance(error, RelayLost):  # ours: it was hung up
        return RelayLost(error.message, hint=error.hint)
    if isinstance(error, amqp.ConnectionClosedByBroker):
        said = f"The relay closed the connection: {error.reply_code} {error.reply_text}."
        if error.reply_code == _INTERNAL_ERROR:
            said += " Something within the broker failed, such as a queue without a leader: see docs/CONNECTION.md."
        return RelayLost(said)
    if isinstance(error, amqp.ConnectionClosedByClient):
        return RelayLost("The connection to the relay is closed.")
    if isinstance(error, amqp.AMQPHeartbeatTimeout):
        return RelayLost("The relay went silent: no heartbeats.")
    return RelayLost("The connection to the relay broke.")


def channel_error(error: BaseException, address: str) -> RelayError:
    """Say why the relay refused one request about `address`.

    Source: AMQP 0-9-1, "Reply codes"; the wording is RabbitMQ's, 3.10 to 4.x.
    """
    if isinstance(error, RelayError):
        return error
    if not isinstance(error, amqp.ChannelClosedByBroker):
        return lost(error)
    code, text = error.reply_code, error.reply_text
    if code == 403 and "exclusive use" in text:
        return InboxTaken(
            f"Another process reads the inbox {address!r} already.",
            hint="This identity runs elsewhere, too. Stop one of them.",
        )
    if code == 403:
        return RelayRefused(
            f"The relay refuses a right on {address!r}: {text}.", hint="Ask the broker's administrator."
        )
    if code == 404 and "no exchange" in text:
        return RelayRefused(
            f"The trial's exchange does not exist: {text}.",
            hint="Ask the administrator to declare it, or set declare = true where this user may.",
        )
    if code == 404 and _IS_DOWN in text:
        return RelayLost(f"The node of the relay that keeps the queue of {address!r} is down: {text}.")
    if code == 404:
        return Unroutable(address)
    if code == 311 or (code == 406 and "message size" in text):
        return MessageTooLarge(
            f"A message is over the relay's limit: {text}.",
            hint="Agree on a smaller relay.chunk_bytes in the manifest.",
        )
    if code == 406 and "timeout" in text.replace("timed out", "timeout"):
        return RelayLost(f"The relay took back what was not acknowledged in time: {text}.")
    if code in (405, 406):
        return RelayRefused(
            f"The relay has {address!r} with other properties: {text}.",
            hint="Ask the administrator to declare it anew.",
        )
    return RelayError(f"The relay refuses a request about {address!r}: {code} {text}.")


def is_code(error: BaseException, *codes: int) -> bool:
    """Tell whether the broker closed a channel with one of these reply codes."""
    return isinstance(error, amqp.ChannelClosedByBroker) and error.reply_code in codes


def is_missing(error: BaseException) -> bool:
    """Tell whether the broker knows no such queue or exchange, rather than not reaching it now."""
    return is_code(error, 404) and _IS_DOWN not in str(error)


def loses_messages(error: amqp.ChannelClosedByBroker) -> bool:
    """Tell whether an existing queue differs from what was declared in a way that loses messages.

    The broker names only the first difference it finds; policies never show here.
    """
    return any(f"inequivalent arg '{name}'" in error.reply_text for name in _LOSSY)


def _layers(error: BaseException) -> Iterator[BaseException]:
    """Walk through the exceptions that pika wraps into one another, from the outside in."""
    yield error
    inner = [*getattr(error, "exceptions", ()), getattr(error, "exception", None), error.__cause__, *error.args]
    for layer in inner:
        if isinstance(layer, BaseException):
            yield from _layers(layer)


def _tls_reason(error: BaseException) -> str:
    """OpenSSL's own words; where pika kept only the text of its exception, the reason in brackets."""
    said = getattr(error, "verify_message", None) or getattr(error, "reason", None)
    quoted = re.search(r"\[SSL: (\w+)\]", str(error))
    return str(said or (quoted and quoted[1]) or error).rstrip(".")
