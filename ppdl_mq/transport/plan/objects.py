"""What an administrator of RabbitMQ sets up for a trial, as plain values in RabbitMQ's own words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

QueueType: TypeAlias = Literal["classic", "quorum"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What the administrator decides, and the manifest does not say.

    Args:
        vhost: virtual host of the trial.
        queue_type: of all queues; given at declaration, since a policy cannot set it.
        users: name at the broker by peer, where it is not the peer's own; a certificate's name, for instance.
        peers_declare: each peer makes, binds and removes its own inbox, and nothing else; otherwise all is made here.
        existing_vhost: the vhost is there, and is left as it is.
        existing_users: the users are there (or come from LDAP, OAuth or certificates), and are left as they are.
        max_queue_bytes: how much may wait in one queue; None for no limit.
    """

    vhost: str = "ppdl"
    queue_type: QueueType = "quorum"
    users: Mapping[str, str] = field(default_factory=dict)
    peers_declare: bool = False
    existing_vhost: bool = False
    existing_users: bool = False
    max_queue_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """One durable queue, and its one binding to the trial's exchange.

    Args:
        name: of the queue.
        key: routing key of the binding; the address within the trial.
    """

    name: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """What one peer's user may do. The patterns are RabbitMQ's: regular expressions on names and routing keys.

    Args:
        peer: of the trial.
        user: its name at the broker.
        configure: what it may make and remove.
        write: where it may publish, and, of queues, which it may bind.
        read: what it may consume and purge, and, of exchanges, where it may bind from.
        publish_keys: the routing keys with which it may publish to the trial's exchange (topic permission).
        bind_keys: the routing keys with which it may bind a queue to that (topic permission).
    """

    peer: str
    user: str
    configure: str
    write: str
    read: str
    publish_keys: str
    bind_keys: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The one policy that holds for the trial's queues.

    Args:
        name: of the policy.
        pattern: regular expression on the names of queues.
        definition: what it sets.
        priority: of several policies that match RabbitMQ applies the one with the highest, and nothing of the others.
    """

    name: str
    pattern: str
    definition: Mapping[str, int | str]
    priority: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that a broker needs for one trial. It holds no secret.

    Args:
        trial: name of the trial.
        choices: from which it was made.
        exchange: the trial's durable topic exchange.
        queues: what is declared beforehand; with `peers_declare`, without the inboxes.
        inboxes: names of the peers' inboxes, whoever declares them.
        weights: name of the queue of the resting weights; None where the protocol has none.
        rights: of each peer's user, sorted by peer.
        policy: for all queues of the trial.
    """

    trial: str
    choices: Choices
    exchange: str
    queues: tuple[Queue, ...]
    inboxes: tuple[str, ...]
    weights: str | None
    rights: tuple[Rights, ...]
    policy: Policy
