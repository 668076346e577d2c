"""The relay that a contract test runs on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.transport.base import Transport
from ppdl_mq.transport.memory import MemoryRelay, MemoryTransport
from ppdl_mq.transport.opening import open_transport
from tests.rabbit import RabbitNode
from tests.transport.relays import RELAYS, Relay, new_trial, rabbit_address


def _marked(kind: str) -> object:
    return pytest.param(kind, marks=pytest.mark.rabbitmq) if kind in ("classic", "quorum") else kind


@pytest.fixture(params=[_marked(kind) for kind in RELAYS])
def relay(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Relay]:
    """Each kind of relay in turn, with the inbox of `a` declared."""
    trial = new_trial()
    if request.param == "memory":
        shared = MemoryRelay()
        relay = Relay("memory", lambda _, **changes: MemoryTransport(shared, **changes))
    else:
        if request.param == "embedded":
            broker = BrokerAddress.parse(f"embedded:{tmp_path / 'new' / 'relay.db'}")
        else:
            node: RabbitNode = request.getfixturevalue("rabbit")
            broker = rabbit_address(node, queue_type=request.param)

        def make(peer: str, **changes: int) -> Transport:
            return open_transport(broker, trial=trial, prefix="test", peer=peer, **changes)

        relay = Relay(request.param, make)
    relay.open().declare("a")
    yield relay
    relay.close()
    cleaner = relay.open()
    for address in ("a", "b", "weights"):
        cleaner.delete(address)
    cleaner.close()
