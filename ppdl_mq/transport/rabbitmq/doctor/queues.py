"""The trial's exchange and queues: are they there, and of a kind that loses nothing?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.transport.address import WEIGHTS
from ppdl_mq.transport.findings import Finding, Wanted
from ppdl_mq.transport.plan.lines import exchange_removal
from ppdl_mq.transport.rabbitmq.doctor import probes
from ppdl_mq.transport.rabbitmq.doctor.judgement import judge_queue
from ppdl_mq.transport.rabbitmq.doctor.lines import ctl, plan_line
from ppdl_mq.transport.rabbitmq.doctor.session import Session

_DIFFERENT: Final = re.compile(r"inequivalent arg '([^']+)' for .*current is (.*)$", re.DOTALL)
_VALUE: Final = re.compile(r"^(?:the value )?'(.*?)'(?: of type '(\w+)')?$", re.DOTALL)
_MAX_ARGUMENTS: Final = 20
_QUOTE: Final = "'"


def exchange(session: Session, broker: BrokerAddress, wanted: Wanted) -> Iterator[Finding]:
    """Look at the exchange."""
    name = wanted.names.exchange
    there = not probes.exchange_is_there(session, name).missing
    reply = probes.exchange_differs(session, name)
    if not there:
        yield _missing("exchange", f"exchange {name}", broker, may_make=broker.declare and not reply.denied)
        return
    different = _DIFFERENT.search(reply.text)
    if reply.denied:
        yield Finding(
            check="exchange",
            result="unknown",
            says=f"The exchange {name} is there; whether it is durable and of type topic shows to its makers only.",
            todo="Ask for what the line prints; topic and true are right.",
            line=f"{ctl('list_exchanges', 'name', 'type', 'durable', vhost=broker.vhost)} | grep {name}",
        )
    elif (diverts := _diverts_to(different)) is not None:
        yield Finding(
            check="exchange",
            result="warn",
            says=f"What the exchange {name} cannot deliver goes on to {diverts} (alternate-exchange): a peer takes "
            "what it sent to an inbox that is not there yet for delivered.",
            todo="It is sent again when the other asks for it, a minute or more later. Have the exchange declared anew "
            "without that.",
            line=exchange_removal(broker.vhost, name),
        )
    elif different is None or different[1] == "alternate-exchange":
        yield Finding(check="exchange", result="pass", says=f"The exchange {name} is there: topic, durable.")
    else:
        has = f"{different[1]} {different[2].strip(_QUOTE)}"
        yield Finding(
            check="exchange",
            result="fail",
            says=f"The exchange {name} has {has}; a durable topic exchange is needed.",
            todo="Ask the administrator to remove it and declare it anew, before the trial begins.",
            line=exchange_removal(broker.vhost, name),
        )


def _diverts_to(different: re.Match[str] | None) -> str | None:
    """Return the alternate exchange that stands where our question had none that is a name."""
    return None if different is None or different[1] != "alternate-exchange" else _value(different[2].strip())


def queue(session: Session, broker: BrokerAddress, wanted: Wanted, address: str) -> Iterator[Finding]:
    """Look at a queue of our own: the inbox, or the weights."""
    name = wanted.names.queue(address)
    check = "weights" if address == WEIGHTS else "inbox"
    there = probes.is_there(session, name)
    may_make = broker.declare and probes.may_make_queue(session, name)
    if there.missing:
        yield _missing(check, f"queue {name}", broker, may_make=may_make)
        return
    if not there.ok:
        yield Finding(
            check=check,
            result="fail",
            says=f"The queue {name} cannot be looked at: {there.text}.",
            todo="Ask the broker's administrator.",
            line=ctl("list_queues", "name", "state", "type", vhost=broker.vhost),
        )
        return
    messages, readers = there.value
    yield Finding(
        check=check,
        result="pass",
        says=f"The queue {name} is there; {messages} messages wait in it, {_readers(readers)}.",
        figures={"messages": messages, "readers": readers},
    )
    if may_make:
        arguments = arguments_of(session, name, broker.queue_type)
        yield from judge_queue(broker, name, arguments, from_policy=False, enough_bytes=wanted.queue_bytes)
    else:
        yield Finding(
            check=f"{check} arguments",
            result="unknown",
            says=f"The type and the arguments of {name} do not show without the right to declare it.",
            todo="Ask for what the line prints: no x-message-ttl, x-expires, x-max-length without reject-publish.",
            line=f"{ctl('list_queues', 'name', 'type', 'durable', 'arguments', vhost=broker.vhost)} | grep {name}",
        )


def others(session: Session, wanted: Wanted) -> Finding:
    """Count the inboxes of the other peers."""
    absent = [name for name in wanted.others if probes.is_there(session, wanted.names.queue(name)).missing]
    if not absent:
        return Finding(check="other inboxes", result="pass", says="The inboxes of all other peers are there.")
    return Finding(
        check="other inboxes",
        result="warn",
        says=f"There is no inbox yet of {', '.join(absent)}.",
        todo="Peers that declare their own make it when they start; where the administrator makes them, ask for it.",
    )


def arguments_of(session: Session, name: str, queue_type: str) -> dict[str, Any]:
    """Read the properties and arguments of a queue that we may declare and that exists.

    The broker refuses a declaration that differs and names the first difference and its own value. That value is taken
    over and the declaration repeated, until it is accepted, which changes nothing.
    """
    properties: dict[str, Any] = {"durable": True, "auto_delete": False, "exclusive": False}
    arguments: dict[str, Any] = {"x-queue-type": queue_type}
    found: dict[str, Any] = {}
    for _ in range(_MAX_ARGUMENTS):
        reply = session.ask(lambda channel: channel.queue_declare(name, arguments=dict(arguments), **properties))
        different = _DIFFERENT.search(reply.text)
        if different is None:
            break
        key, said = different[1], different[2].strip()
        if key in found:
            break  # its value cannot be given back as we read it
        found[key] = value = _value(said)
        if key in properties:
            properties[key] = value == "true"
        elif value is None:
            arguments.pop(key, None)
        else:
            arguments[key] = value
    return {"x-queue-type": "classic" if arguments.get("x-queue-type") is None else arguments["x-queue-type"]} | {
        key: value for key, value in found.items() if value is not None
    }


def _value(said: str) -> Any:
    if said == "none":
        return None
    match = _VALUE.match(said)
    text = match[1] if match else said
    if match is not None and match[2] == "bool":
        return text == "true"
    is_number = match is not None and match[2] not in (None, "longstr", "shortstr")
    return int(text) if is_number and re.fullmatch(r"-?\d+", text) else text


def _readers(count: int) -> str:
    return {0: "nobody reads it", 1: "one process reads it"}.get(count, f"{count} processes read it")


def _missing(check: str, what: str, broker: BrokerAddress, *, may_make: bool) -> Finding:
    if may_make:
        return Finding(check=check, result="pass", says=f"The {what} is not there yet; this peer may make it.")
    why = "this user may not make it" if broker.declare else "declare = false says that an administrator makes it"
    return Finding(
        check=check,
        result="fail",
        says=f"The {what} does not exist, and {why}.",
        todo="Ask the broker's administrator to set up the trial's plan; of two sites, each its own part.",
        line=plan_line(),
    )
