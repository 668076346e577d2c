"""One node of the broker: the host that a question goes to."""

from __future__ import annotations

from dataclasses import dataclass

from ppdl_mq.config.broker import BrokerAddress


@dataclass(frozen=True, slots=True)
class Node:
    """One host of the broker.

    Args:
        broker: with this host alone.
    """

    broker: BrokerAddress

    @property
    def host(self) -> str:
        """Name or IP address, without brackets."""
        return self.broker.hosts[0].name

    @property
    def port(self) -> int:
        """TCP port."""
        return self.broker.hosts[0].port

    def __str__(self) -> str:
        return str(self.broker.hosts[0])


def nodes_of(broker: BrokerAddress) -> tuple[Node, ...]:
    """Return the nodes in the order of the URL."""
    return tuple(Node(broker.at(host)) for host in broker.hosts)
