"""The user's rights one by one: those that a peer needs, and those that it does not."""

from __future__ import annotations

from collections.abc import Iterator

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.transport.address import WEIGHTS
from ppdl_mq.transport.findings import Finding, Wanted
from ppdl_mq.transport.rabbitmq.doctor import probes
from ppdl_mq.transport.rabbitmq.doctor.lines import ctl, plan_line, rights_line, topics_line, user_of
from ppdl_mq.transport.rabbitmq.doctor.session import Session

_ASK = "Ask the broker's administrator for it."


def _least(session: Session, broker: BrokerAddress, wanted: Wanted) -> str:
    """Return the line with the least rights: to make the inbox, too, where we are to and it is not there yet."""
    is_missing = probes.is_there(session, wanted.names.queue(wanted.me)).missing
    return rights_line(broker, wanted, makes_inbox=broker.declare and is_missing)


def reading(session: Session, broker: BrokerAddress, wanted: Wanted) -> Iterator[Finding]:
    """Look at what we may read. Publishes nothing."""
    for address in wanted.own_addresses:
        queue = wanted.names.queue(address)
        check = "read weights" if address == WEIGHTS else "read inbox"
        if probes.may_read(session, queue):
            yield Finding(check=check, result="pass", says=f"This user may read {queue}.")
        else:
            yield Finding(
                check=check,
                result="fail",
                says=f"This user may not read {queue}.",
                todo=_ASK,
                line=_least(session, broker, wanted),
            )


def binding(session: Session, broker: BrokerAddress, wanted: Wanted) -> Iterator[Finding]:
    """Look, where the peer makes its own inbox, whether it may bind that, too; changes nothing, and needs no inbox.

    One that exists may be bound already, by an administrator: without the right a round trip tells.
    """
    names, me = wanted.names, wanted.me
    inbox = names.queue(me)
    if not broker.declare or not probes.may_make_queue(session, inbox):
        return
    if probes.may_bind(session, inbox, names.exchange, me):
        yield Finding(check="bind", result="pass", says=f"This user may bind {inbox} to {names.exchange}.")
    elif probes.is_there(session, inbox).missing:
        yield unbindable(inbox, names.exchange, me)


def unbindable(inbox: str, exchange: str, key: str) -> Finding:
    """Say that a peer could make its inbox, and would wait in it without an end."""
    return Finding(
        check="bind",
        result="fail",
        says=f"This user may not bind its inbox {inbox} to {exchange} with the key {key!r}: no message would reach it.",
        todo="That takes write on the inbox, read on the exchange, and to read the key as a topic. Ask the broker's "
        "administrator to set up the trial's plan, made with --peers-declare.",
        line=plan_line(),
    )


def too_wide(session: Session, broker: BrokerAddress, wanted: Wanted) -> Iterator[Finding]:
    """Look for rights that no peer needs, as far as they show without publishing."""
    least = _least(session, broker, wanted)
    foreign = [name for name in wanted.others if probes.may_read(session, wanted.names.queue(name))]
    if foreign:
        yield _needless(
            "read others",
            f"This user may read the inbox of {', '.join(foreign)}: it could take their messages away, unread.",
            least,
        )
    if probes.may_remove_anything(session):
        yield _needless("configure", "This user may make and remove queues of any name.", least)
    own = wanted.names.queue(wanted.me)
    bindable = [name for name in wanted.others if probes.may_bind(session, own, wanted.names.exchange, name)]
    if bindable:
        yield _needless(
            "bind others",
            f"This user may bind its inbox to the keys of {', '.join(bindable)}, and so receive copies, unreadable.",
            topics_line(broker, wanted),
        )
    if not (foreign or bindable):
        yield Finding(check="read others", result="pass", says="This user reads no other peer's inbox, nor copies.")


def publishing(session: Session, broker: BrokerAddress, wanted: Wanted) -> Iterator[Finding]:
    """Look at where we may publish to. Its messages are all refused by the broker, whatever the rights are.

    Raises:
        Blocked: the broker takes no messages at all.
    """
    exchange, word = wanted.names.exchange, probes.new_word()
    first = probes.publish_refused(session, exchange, word)
    if first.denied and "topic" not in first.text:
        yield Finding(
            check="publish",
            result="fail",
            says=f"This user may not write to the exchange {exchange}.",
            todo=_ASK,
            line=_least(session, broker, wanted),
        )
    elif first.missing:
        return  # the exchange is not there: told elsewhere
    elif first.ok:
        yield Finding(
            check="publish",
            result="warn",
            says="This user is an impersonator at the broker: it may publish in the name of other users.",
            todo="Have the tag taken away; no peer needs it. Whether every key is open to it was not asked.",
            line=ctl("set_user_tags", user_of(broker)),
        )
    else:
        yield from _keys(session, broker, wanted)
        if not first.denied:
            yield _needless(
                "keys",
                f"This user may publish to {exchange} with any key, not those of the trial's peers only.",
                topics_line(broker, wanted),
            )
    other = probes.publish_refused(session, "", word)
    if not other.denied:
        yield _needless(
            "publish elsewhere",
            "This user may publish to the default exchange, and so into every queue of the vhost.",
            _least(session, broker, wanted),
        )
    elif not probes.publish_refused(session, word, word).denied:
        yield _needless(
            "publish elsewhere", "This user may publish to exchanges of any name.", _least(session, broker, wanted)
        )
    else:
        yield Finding(check="publish elsewhere", result="pass", says="This user publishes to no other exchange.")


def _keys(session: Session, broker: BrokerAddress, wanted: Wanted) -> Iterator[Finding]:
    exchange = wanted.names.exchange
    closed = [key for key in wanted.addresses if probes.publish_refused(session, exchange, key).denied]
    if closed:
        yield Finding(
            check="publish",
            result="fail",
            says=f"This user may not publish to {exchange} with the key {', '.join(closed)}.",
            todo=_ASK,
            line=topics_line(broker, wanted),
        )
    else:
        yield Finding(
            check="publish",
            result="pass",
            says=f"This user may publish to {exchange} for each of the {len(wanted.addresses)} addresses of the trial.",
        )


def _needless(check: str, says: str, line: str) -> Finding:
    todo = "No peer needs that. The line narrows it to what a peer needs where an administrator made the queues."
    return Finding(check=check, result="warn", says=says, todo=todo, line=line)
