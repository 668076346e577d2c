"""The relays on which whole trials run, each as a way to open a peer's connection."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.config.manifest import Manifest
from ppdl_mq.transport.base import Transport
from ppdl_mq.transport.memory import MemoryRelay, MemoryTransport
from ppdl_mq.transport.opening import open_transport
from tests.rabbit import RabbitNode
from tests.transport.relays import rabbit_address

Open = Callable[[str], Transport]
RELAYS = ("memory", "embedded", "classic", "quorum")


def marked(kind: str) -> object:
    """Return a relay as a parameter; those of RabbitMQ are marked, so that one worker runs them all."""
    return pytest.param(kind, marks=pytest.mark.rabbitmq) if kind in ("classic", "quorum") else kind


def opener(kind: str, manifest: Manifest, folder: Path, request: pytest.FixtureRequest) -> Open:
    """Return what opens a connection, not yet connected, for a peer of this trial.

    Args:
        kind: one of `RELAYS`.
        manifest: of the trial; its name must be its own where the relay is shared.
        folder: for the file of an embedded relay.
        request: finds RabbitMQ where it is needed.
    """
    if kind == "memory":
        shared = MemoryRelay()
        return lambda _: MemoryTransport(shared)
    if kind == "embedded":
        broker = BrokerAddress.parse(f"embedded:{folder / 'relay.sqlite'}")
    else:
        node: RabbitNode = request.getfixturevalue("rabbit")
        broker = rabbit_address(node, queue_type=kind)
    return lambda peer: open_transport(broker, trial=manifest.name, prefix=manifest.relay.prefix, peer=peer)
