"""Messages that a relay gives back although their inbox is there: its binding is gone, or its node is down."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from ppdl_mq.errors import Unroutable
from ppdl_mq.transport.memory import MemoryRelay, MemoryTransport
from ppdl_mq.wire.header import decode_header
from ppdl_mq.wire.kinds import Kind
from tests.trial import TrialInProcess, manifest_for


@pytest.mark.parametrize("protocol", ["fully-connected", "server-aided"])
def test_the_last_word_is_not_taken_for_said(tmp_path: Path, protocol: str) -> None:
    """Who has ended may leave when the last peer is gone, but not when only the way to it is broken."""
    relay = MemoryRelay()
    returned: list[str] = []

    class Returning(MemoryTransport):
        """Gives back the DONE of each peer to the last one, three times."""

        def __init__(self, name: str) -> None:
            super().__init__(relay)
            self.name = name
            self.left = 3

        def publish(self, address: str, bodies: Iterable[bytes]) -> None:
            parts = list(bodies)
            if decode_header(parts[0])[0].kind is Kind.DONE and self.left:
                self.left -= 1
                returned.append(self.name)
                raise Unroutable(address)
            super().publish(address, parts)

    trial = TrialInProcess(manifest_for(protocol=protocol), tmp_path, Returning)
    trial.run()
    last = next(iter(trial.runners.values())).terms.finisher
    assert sorted(set(returned)) == sorted(set(trial.runners) - {last})
    assert len(returned) == 3 * (len(trial.runners) - 1)
