"""The seam by which a test makes the relay in memory hostile."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from ppdl_mq.errors import RelayLost, RelayUnreachable
from ppdl_mq.transport.memory import MemoryRelay, MemoryTransport, Tamper


def relay_with(on_publish: Tamper) -> tuple[MemoryRelay, MemoryTransport]:
    relay = MemoryRelay(on_publish)
    transport = MemoryTransport(relay)
    transport.connect()
    transport.declare("a")
    transport.declare("b")
    return relay, transport


def test_it_drops_duplicates_flips_and_misdirects() -> None:
    def tamper(address: str, body: bytes) -> Iterable[tuple[str, bytes]]:
        if body == b"drop":
            return []
        if body == b"twice":
            return [(address, body)] * 2
        if body == b"flip":
            return [(address, bytes([body[0] ^ 1]) + body[1:])]
        return [("b", body)]

    relay, transport = relay_with(tamper)
    transport.publish("a", [b"drop", b"twice", b"flip", b"elsewhere"])
    assert relay.ready("a") == [b"twice", b"twice", b"glip"]
    assert relay.ready("b") == [b"elsewhere"]


def test_it_replays_and_holds_back() -> None:
    kept: list[tuple[str, bytes]] = []

    def last_two_swapped(address: str, body: bytes) -> Iterable[tuple[str, bytes]]:
        kept.append((address, body))
        return [] if len(kept) % 2 else [kept[-1], kept[-2]]

    relay, transport = relay_with(last_two_swapped)
    transport.publish("a", [b"1", b"2"])
    assert relay.ready("a") == [b"2", b"1"]
    relay.put("a", kept[0][1])
    assert relay.ready("a") == [b"2", b"1", b"1"]


def test_it_cuts_connections_and_goes_away() -> None:
    relay, transport = relay_with(lambda address, body: [(address, body)])
    transport.publish("a", [b"1"])
    transport.get("a")
    relay.cut(reachable=False)
    with pytest.raises(RelayLost):
        transport.depth("a")
    with pytest.raises(RelayUnreachable):
        transport.connect()
    relay.reachable = True
    transport.connect()
    assert transport.get("a").body == b"1"
