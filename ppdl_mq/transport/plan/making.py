"""From a manifest to the plan of what its broker must have and allow: the least with which a trial can run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Final

from ppdl_mq.config.manifest import Manifest
from ppdl_mq.errors import ConfigError
from ppdl_mq.transport.address import WEIGHTS, Names
from ppdl_mq.transport.plan.objects import Choices, Plan, Policy, Queue, Rights

NOTHING: Final = "^$"  # a pattern that no name has

# More often than any message can be handed out: no delivery limit. Where nothing is set, RabbitMQ 4.x drops what was
# handed out 20 times, and 3.x has no limit. 4.x understands -1, 3.x refuses it. Both take this.
UNLIMITED: Final = 2**31 - 1

# Above the catch-all policies that brokers have: the one that wins applies alone.
PRIORITY: Final = 100

_MAX_NAME_BYTES: Final = 255  # AMQP's short string


def make_plan(manifest: Manifest, choices: Choices) -> Plan:
    """Return what a broker must have and allow for the trial of `manifest`.

    Args:
        manifest: complete.
        choices: of the administrator.

    Raises:
        ConfigError: a name cannot be one at a broker, or two peers would share a user.
    """
    names = Names(prefix=manifest.relay.prefix, trial=manifest.name)
    peers = manifest.peer_names
    has_weights = manifest.shares_weights
    addresses = (*peers, WEIGHTS) if has_weights else peers
    declared = [each for each in addresses if not (choices.peers_declare and each in peers)]
    users = _users(peers, choices.users)
    _check_name("vhost", choices.vhost)
    return Plan(
        trial=manifest.name,
        choices=choices,
        exchange=names.exchange,
        queues=tuple(Queue(name=names.queue(each), key=each) for each in declared),
        inboxes=tuple(names.queue(each) for each in peers),
        weights=names.queue(WEIGHTS) if has_weights else None,
        rights=tuple(rights_of(names, peer, users[peer], addresses, declares=choices.peers_declare) for peer in peers),
        policy=_policy(names, addresses, choices),
    )


def rights_of(names: Names, peer: str, user: str, addresses: tuple[str, ...], *, declares: bool) -> Rights:
    """Return the least rights with which a peer can take part.

    Args:
        names: of the trial.
        peer: its name in the trial.
        user: its name at the broker.
        addresses: of all peers, and `weights` where the trial shares them.
        declares: it makes and binds its inbox itself.
    """
    read = (peer, WEIGHTS) if WEIGHTS in addresses else (peer,)
    given = Rights(
        peer=peer,
        user=user,
        configure=NOTHING,
        write=_any_of([names.exchange]),
        read=_any_of(map(names.queue, read)),
        publish_keys=_any_of(addresses),
        bind_keys=NOTHING,
    )
    if not declares:
        return given
    # Binding takes write on the queue and read on the exchange. Without the topic permission whoever may bind could
    # bind its inbox with another's key, and get a copy of all that is for the other.
    inbox = names.queue(peer)
    return dataclasses.replace(
        given,
        configure=_any_of([inbox]),
        write=_any_of([names.exchange, inbox]),
        read=_any_of([names.exchange, *map(names.queue, read)]),
        bind_keys=_any_of([peer]),
    )


def _policy(names: Names, addresses: tuple[str, ...], choices: Choices) -> Policy:
    # What is over a limit is refused, and its sender tries again; without this the oldest message would be dropped.
    definition: dict[str, int | str] = {"overflow": "reject-publish"}
    if choices.max_queue_bytes is not None:
        definition["max-length-bytes"] = choices.max_queue_bytes
    if choices.queue_type == "quorum":  # a policy with a key that a classic queue does not have is not applied to it
        definition["delivery-limit"] = UNLIMITED
    return Policy(
        name=names.exchange,
        pattern=_any_of(map(names.queue, addresses)),
        definition=definition,
        priority=PRIORITY,
    )


def _users(peers: tuple[str, ...], named: Mapping[str, str]) -> dict[str, str]:
    unknown = sorted(set(named) - set(peers))
    if unknown:
        raise ConfigError(
            f"The trial has no peer {unknown[0]!r}, for which a user is named.", hint=f"It has {', '.join(peers)}."
        )
    users = {peer: named.get(peer, peer) for peer in peers}
    for user in users.values():
        _check_name("user", user)
    if "guest" in users.values():
        raise ConfigError(
            "The user 'guest' is RabbitMQ's own administrator, and would lose its password and rights.",
            hint="Give the peer a user of its own.",
        )
    shared = sorted(user for user in users.values() if list(users.values()).count(user) > 1)
    if shared:
        raise ConfigError(
            f"Two peers would share the user {shared[0]!r}, and so each other's inbox.",
            hint="Give each peer a user of its own.",
        )
    return users


def _check_name(what: str, name: str) -> None:
    # A dash in front would be an option to rabbitmqctl.
    if not name or name.startswith("-") or not name.isprintable() or len(name.encode()) > _MAX_NAME_BYTES:
        raise ConfigError(
            f"{name!r} cannot be the name of a {what}.",
            hint="1 to 255 bytes, no '-' in front, no control characters.",
        )


def _any_of(names: Iterable[str]) -> str:
    """Return the regular expression that these names have and nothing else: of what they hold only dots are special."""
    escaped = [name.replace(".", r"\.") for name in names]
    return f"^{escaped[0]}$" if len(escaped) == 1 else f"^({'|'.join(escaped)})$"
