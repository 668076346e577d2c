"""The relay loses the last word of a peer of a sequential trial: people end the wait for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppdl_mq.peer.orders import Order, give_order
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.transport.memory import MemoryRelay, MemoryTransport
from ppdl_mq.wire.header import split_part
from ppdl_mq.wire.kinds import Kind
from tests.trial import PEERS, TrialInProcess, manifest_for, until


@pytest.mark.parametrize("protocol", ["fully-connected", "server-aided"])
def test_the_finisher_ends_when_people_say_so(protocol: str, tmp_path: Path) -> None:
    finisher = PEERS[2]
    lost = []

    def publish(address: str, body: bytes) -> list[tuple[str, bytes]]:
        header, _, _ = split_part(body)
        if header.kind is Kind.DONE and not lost:
            lost.append(header.sender)
            return []
        return [(address, body)]

    relay = MemoryRelay(on_publish=publish)
    manifest = manifest_for(PEERS[:3], protocol=protocol, training__epochs=1)
    trial = TrialInProcess(manifest, tmp_path, lambda _: MemoryTransport(relay), patience_s=0.3)
    threads = {thread.name: thread for thread in trial.start()}
    try:
        until(lambda: all(not thread.is_alive() for name, thread in threads.items() if name != finisher))
        until(lambda: trial.runners[finisher].driver.waiting_for() == tuple(lost))
        assert trial.runners[finisher].state.phase is Phase.AWAITING_DONES
        give_order(tmp_path / finisher, Order(drop=lost[0]))
        threads[finisher].join(20)
        assert not threads[finisher].is_alive()
    finally:
        for runner in trial.runners.values():
            runner.stop()
    assert not trial.errors
    assert len({(tmp_path / name / "model.safetensors").read_bytes() for name in PEERS[:3]}) == 1
    assert not relay.queues, "inboxes and weights are removed"
