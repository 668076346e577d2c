"""What arguments and policies do to a queue, whether they were read over AMQP or from the management."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.transport.address import WEIGHTS
from ppdl_mq.transport.findings import Finding
from ppdl_mq.transport.rabbitmq.doctor.certificates import day, now
from ppdl_mq.transport.rabbitmq.doctor.lines import ctl, policies_line

# Long enough for a turn of training, during which server-aided keeps the weights unacknowledged.
_SHORT_TIMEOUT_MS: Final = 3_600_000

# Handed out as often as that, a message would outlive any trial. `relay plan` sets 2147483647, which stands for no
# limit: -1 does so from RabbitMQ 4.0 on, and 3.10.8 refuses it.
_NO_LIMIT: Final = 1_000_000

# So large a queue holds a round of any model that peers train here, where its size is not known.
_PLENTY_BYTES: Final = 100 * 1000**3

USUAL_DELIVERY_LIMIT: Final = 20  # of quorum queues since RabbitMQ 4.0, unless they are told otherwise


def judge_queue(
    broker: BrokerAddress,
    name: str,
    settings: Mapping[str, Any],
    *,
    from_policy: bool,
    enough_bytes: int | None = None,
) -> Iterator[Finding]:
    """Say what a queue's settings mean for a trial.

    Args:
        broker: for the administrator's line.
        name: of the queue.
        settings: arguments (`x-message-ttl`, `durable`, ...) or the effective policy (`message-ttl`, ...).
        from_policy: which of the two.
        enough_bytes: what `relay plan` would let the queue hold; None where that is not known.
    """
    said = {key.removeprefix("x-"): value for key, value in settings.items()}
    where = "a policy of" if from_policy else "the arguments of"
    check = "policy" if from_policy else "arguments"
    losses = list(_losses(said))
    for what in losses:
        yield Finding(
            check=check,
            result="fail",
            says=f"Messages are lost: {where} the queue {name} say {what}.",
            todo="Ask the administrator to change the policy."
            if from_policy
            else "Ask the administrator to remove the queue while it is empty, and declare it anew without that.",
            line=f"{ctl('list_policies', vhost=broker.vhost)}   # find it, then: rabbitmqctl clear_policy -p VHOST NAME"
            if from_policy
            else ctl("delete_queue", name, vhost=broker.vhost),
        )
    for what in _unreadable(said):
        losses.append(what)
        yield Finding(
            check=check,
            result="fail",
            says=f"The queue {name} {what}.",
            todo="Ask the administrator to remove it, and to declare it anew as a quorum or classic queue.",
            line=ctl("delete_queue", name, vhost=broker.vhost),
        )
    if said.get("overflow") == "reject-publish":
        yield from _refusals(check, name, said, enough_bytes)
    yield from _returns(check, name, said)
    if not losses:
        kind = said.get("queue-type")
        yield Finding(
            check=check,
            result="pass",
            says=f"Nothing in {where} the queue {name} loses messages{f'; its type is {kind}' if kind else ''}.",
            figures={key: value for key, value in said.items() if isinstance(value, str | int)},
        )


def has_usual_limit(version: str, settings: Mapping[str, Any]) -> bool:
    """Tell whether a queue has the delivery limit that nobody set.

    Args:
        version: the broker's.
        settings: arguments, the type among them, and the effective policy.
    """
    major = version.partition(".")[0]
    is_new = major.isdecimal() and int(major) >= 4
    return (
        is_new
        and settings.get("x-queue-type") == "quorum"
        and not settings.keys() & {"delivery-limit", "x-delivery-limit"}
    )


def _losses(said: Mapping[str, Any]) -> Iterator[str]:
    if said.get("durable") == "false":
        yield "that it is gone when the broker starts again (durable is false)"
    if said.get("auto_delete") == "true":
        yield "that it goes with its last reader (auto_delete)"
    if "message-ttl" in said:
        yield f"that messages are dropped after {said['message-ttl']} ms (message-ttl)"
    if "expires" in said:
        yield f"that it is removed when nobody reads it for {said['expires']} ms (expires)"
    overflow = said.get("overflow", "drop-head")
    for key in ("max-length", "max-length-bytes"):
        if key in said and overflow != "reject-publish":
            yield f"that beyond {said[key]} ({key}) messages are dropped ({overflow})"


def _unreadable(said: Mapping[str, Any]) -> Iterator[str]:
    if said.get("queue-type") == "stream":
        yield "is a stream: it keeps what was read, and peers cannot fetch from it"
    if said.get("single-active-consumer") is True:
        yield (
            "serves one consumer at a time (x-single-active-consumer), which refuses what peers ask for: to be its "
            "only reader, or to fetch"
        )


def _refusals(check: str, name: str, said: Mapping[str, Any], enough_bytes: int | None) -> Iterator[Finding]:
    """Look at how much a queue takes that refuses what is over its limit, and so loses nothing."""
    limits = [key for key in ("max-length", "max-length-bytes") if key in said]
    most = said.get("max-length-bytes")
    planned = "" if enough_bytes is None else f"; the plan of this trial says {enough_bytes}"
    if isinstance(most, int) and most >= (_PLENTY_BYTES if enough_bytes is None else enough_bytes):
        limits.remove("max-length-bytes")
        yield Finding(
            check=check,
            result="pass",
            says=f"The queue {name} holds {most} bytes (max-length-bytes){planned or ', more than any trial needs'}.",
        )
    if limits:
        yield Finding(
            check=check,
            result="warn",
            says=f"The queue {name} takes no more beyond {', '.join(f'{key} {said[key]}' for key in limits)}; "
            "senders wait then.",
            todo="That loses nothing. It must hold one round of messages of all peers, or the trial stands still"
            f"{planned if 'max-length-bytes' in limits else ''}.",
        )


def _returns(check: str, name: str, said: Mapping[str, Any]) -> Iterator[Finding]:
    """Look at what becomes of messages that a peer has fetched and not acknowledged yet, as weights in training are."""
    limit = said.get("delivery-limit")
    if isinstance(limit, int) and 0 <= limit < _NO_LIMIT:
        yield Finding(
            check=check,
            result="fail" if name.endswith(f".{WEIGHTS}") else "warn",
            says=f"The queue {name} drops a message that was handed out {limit} times (delivery-limit).",
            todo="Ask the administrator for a policy with delivery-limit 2147483647, which every version takes for "
            "none: a peer that restarts often would lose messages.",
        )
    timeout_ms = said.get("consumer-timeout")
    if isinstance(timeout_ms, int) and timeout_ms < _SHORT_TIMEOUT_MS:
        yield Finding(
            check=check,
            result="warn",
            says=f"The queue {name} takes unacknowledged messages back after {timeout_ms} ms (consumer-timeout).",
            todo="Nothing is lost: weights are fetched again after a turn that took longer. More spares that.",
        )


def unseen(broker: BrokerAddress, name: str) -> Iterator[Finding]:
    """Say what AMQP cannot show, and which line would."""
    yield Finding(
        check="policies",
        result="unknown",
        says="Policies (time to live, length limits, expiry, delivery limit) do not show over AMQP.",
        todo="Ask for what the line prints, or give --management URL. Right: no TTL, no expiry, and limits with "
        "reject-publish alone.",
        line=policies_line(broker, name),
    )


def unseen_bindings(broker: BrokerAddress, name: str) -> Finding:
    """Say that nobody sees whether the queues of the others lead anywhere: a peer would wait without an end."""
    return Finding(
        check="bindings",
        result="unknown",
        says=f"Whether the other queues of {name} are bound does not show over AMQP; a round trip tells of the inbox.",
        todo="Ask for what the line prints: each queue bound once, with the last part of its name, and nothing else.",
        line=f"{ctl('list_bindings', 'source_name', 'routing_key', 'destination_name', vhost=broker.vhost)} "
        f"| grep ^{name}",
    )


def unseen_clock() -> Finding:
    """Show this machine's clock, for a person to compare: of a certificate's dates it is noticed only when far off."""
    return Finding(
        check="clock",
        result="unknown",
        says=f"The broker's clock does not show over AMQP; this machine's says {day(now())}.",
        todo="Compare them, or give --management URL: certificates hold from one moment to another.",
        line="date -u",
    )


def unseen_timeout() -> Finding:
    """Say that the delivery timeout is the broker's secret."""
    return Finding(
        check="delivery timeout",
        result="unknown",
        says="When the broker takes unacknowledged messages back does not show over AMQP; after 30 minutes is usual.",
        todo="It loses nothing here: weights are fetched again after a turn that took longer. More spares that.",
        line="rabbitmqctl eval 'application:get_env(rabbit, consumer_timeout).'   # milliseconds; "
        "consumer_timeout in rabbitmq.conf",
    )
