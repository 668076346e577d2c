"""The whole examination, in the order in which one thing needs the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Final

from ppdl_mq.config import limits
from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.errors import RelayError
from ppdl_mq.transport.findings import Finding, Wanted, verdict
from ppdl_mq.transport.rabbitmq.adapter import RabbitMQTransport
from ppdl_mq.transport.rabbitmq.doctor import judgement, probes, queues, rights, sizes
from ppdl_mq.transport.rabbitmq.doctor.login import log_in, mechanism
from ppdl_mq.transport.rabbitmq.doctor.management import Management, ask_management
from ppdl_mq.transport.rabbitmq.doctor.node import Node, nodes_of
from ppdl_mq.transport.rabbitmq.doctor.reach import Greeting, reach
from ppdl_mq.transport.rabbitmq.doctor.round_trip import round_trip, short_trip
from ppdl_mq.transport.rabbitmq.doctor.session import Blocked, Session

_NOBODY: Final = "ppdl-mq-check"  # stands for a trial where none is given
_ME: Final = "check"  # by which the administrator sees that it is no peer
_MANAGEMENT_SHOWS: Final = ("exchange", "inbox arguments", "weights arguments", "policies", "clock")


def examine(
    broker: BrokerAddress, wanted: Wanted | None, *, thorough: bool = True, management: Management | None = None
) -> Iterator[Finding]:
    """Look at a broker; each finding comes as soon as it is known.

    Args:
        broker: where it is and how to log in.
        wanted: what a trial needs of it, or None.
        thorough: also measure, look for needless rights and the limit on messages. Without, only what would keep the
            trial from running, within a second or two; a few small messages pass the own inbox where nobody uses it.
        management: of the broker, which shows what AMQP does not; or None.

    Raises:
        ConfigError: no password can be found.
        RelayRefused: the TLS files cannot be used.
    """
    node: Node | None = None
    ways: list[Finding] = []
    for each in nodes_of(broker):
        greeting = Greeting()
        ways += reach(each, greeting)
        if not greeting.is_there:
            continue
        ways.append(mechanism(each, greeting))
        if ways[-1].result != "fail":
            node = node or each
            if not thorough:
                break  # one that answers will do
    yield from ways if node is None else map(_one_of_several, ways)
    if node is None:
        return
    session = log_in(node, wanted, trial=_NOBODY if wanted is None else wanted.names.trial, peer=_ME)
    if isinstance(session, Finding):
        yield session
        return
    told = [] if management is None else list(ask_management(management, broker, wanted))
    yield from told
    hidden = _MANAGEMENT_SHOWS if told and told[-1].result == "pass" else ()
    said = {finding.says for finding in told}
    with session:
        yield Finding(check="login", result="pass", says=f"The broker lets us in, to the vhost {broker.vhost!r}.")
        try:
            is_fine = True
            for finding in _inside(session, broker, wanted, thorough=thorough):
                is_fine &= finding.result != "fail"
                if finding.says not in said and (finding.result != "unknown" or finding.check not in hidden):
                    yield finding
            if is_fine and not thorough and wanted is not None:
                yield from short_trip(session, broker, wanted)
        except Blocked as blocked:
            yield _full(str(blocked))
        except RelayError as error:
            yield Finding(
                check="connection", result="fail", says=error.message, todo=error.hint or "Look again.", passes=True
            )


def _one_of_several(finding: Finding) -> Finding:
    """What fails at one host while another answers is no more than a warning."""
    return dataclasses.replace(finding, result="warn") if finding.result == "fail" else finding


def _inside(session: Session, broker: BrokerAddress, wanted: Wanted | None, *, thorough: bool) -> Iterator[Finding]:
    """Look at what shows after the login: first what needs no message to be taken, then what does."""
    may_read_inbox = True
    if wanted is not None:
        yield from queues.exchange(session, broker, wanted)
        for finding in rights.reading(session, broker, wanted):
            may_read_inbox &= finding.check != "read inbox" or finding.result != "fail"
            yield finding
        for address in wanted.own_addresses:
            yield from queues.queue(session, broker, wanted, address)
        bound = list(rights.binding(session, broker, wanted))
        yield from bound
        if thorough:
            is_missing = probes.is_there(session, wanted.names.queue(wanted.me)).missing
            if broker.declare and is_missing and verdict(bound) != "fail":
                yield _make_inbox(broker, wanted)
            yield queues.others(session, wanted)
            yield from rights.too_wide(session, broker, wanted)
            yield from judgement.unseen(broker, wanted.names.exchange)
            yield judgement.unseen_bindings(broker, wanted.names.exchange)
            yield judgement.unseen_timeout()
            yield judgement.unseen_clock()
        yield from rights.publishing(session, broker, wanted)
    exchange = probes.new_word() if wanted is None else wanted.names.exchange
    chunk_bytes = None if wanted is None else wanted.chunk_bytes
    yield from sizes.largest(session, chunk_bytes, exchange=exchange, thorough=thorough)
    if thorough and may_read_inbox:  # otherwise what was sent would stay there
        yield from round_trip(session, broker, wanted, chunk_bytes or limits.USUAL_CHUNK_BYTES)


def _make_inbox(broker: BrokerAddress, wanted: Wanted) -> Finding:
    """Make the inbox as the peer does when it starts, so that the others' messages wait for it there."""
    try:
        with RabbitMQTransport(broker, wanted.names, peer=_ME) as transport:
            transport.declare(wanted.me)
    except RelayError as error:
        return Finding(check="inbox", result="fail", says=error.message, todo=error.hint)
    return Finding(
        check="inbox", result="pass", says=f"The inbox {wanted.names.queue(wanted.me)} has been made, and waits."
    )


def _full(reason: str) -> Finding:
    return Finding(
        check="room",
        result="fail",
        says=f"The broker takes no messages at the moment: {reason}.",
        todo="It is short of memory or disk. Peers wait until it has room again; ask the administrator to make some.",
        line="rabbitmq-diagnostics alarms   # and: rabbitmqctl status",
        passes=True,
    )
