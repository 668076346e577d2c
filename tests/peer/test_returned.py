"""Messages that a relay gives back although their inbox is there: its binding is gone, or its node is down."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ppdl_mq.errors import RelayLost, Unroutable
from ppdl_mq.peer.outbox import Fate
from ppdl_mq.peer.runner import Runner
from ppdl_mq.protocol.phases import Phase
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


def test_what_was_confirmed_is_noted_although_it_cannot_be_told_what_became_of_another_inbox() -> None:
    """Else the letters of a whole group would be sent again, for as long as the node with one inbox is down."""
    letters = [SimpleNamespace(recipient=name, kind=Kind.DONE) for name in ("bert", "cleo")]
    rounds, noted = [letters, []], []

    def is_gone(address: str) -> bool:
        raise RelayLost(f"The node of the relay that keeps the queue of {address!r} is down.")

    runner = cast(
        "Any",
        SimpleNamespace(
            outbox=SimpleNamespace(
                due=lambda but_for: rounds.pop(0), publish_all=lambda *_: [Fate.CONFIRMED, Fate.NO_INBOX]
            ),
            link=SimpleNamespace(transport=None, is_gone=is_gone),
            hands=SimpleNamespace(shared_addresses=tuple),
            state=SimpleNamespace(phase=Phase.CLOSING),
            driver=SimpleNamespace(machine=SimpleNamespace(may_be_gone=lambda *_: True)),
            _note_sent=lambda pairs: noted.extend(letter.recipient for letter, _ in pairs),
        ),
    )
    runner._is_settled = lambda letter, fate: Runner._is_settled(runner, letter, fate)
    Runner._publish(runner)
    assert noted == ["bert"]
