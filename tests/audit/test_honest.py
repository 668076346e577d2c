"""Whoever follows the protocol is never named, whatever the relay does."""

from __future__ import annotations

import os
import random

import pytest

from tests.audit.of_worlds import findings_in
from tests.protocol.masked_world import cheap_signatures
from tests.protocol.test_release_once import Story

SCHEDULES = int(os.environ.get("HONEST_SCHEDULES", "200"))
BLOCK = 50


@pytest.mark.parametrize("block", range(-(-SCHEDULES // BLOCK)))
def test_no_schedule_frames_anybody(block: int) -> None:
    """With all logs, with some, and with copies that were made in the middle."""
    statements: set[str] = set()
    with cheap_signatures():
        for number in range(block * BLOCK, min((block + 1) * BLOCK, SCHEDULES)):
            peers = Story(number).run().peers
            whole = {name: peer.records for name, peer in peers.items()}
            statements |= {record.says for said in whole.values() for record in said}
            assert findings_in(whole) == [], f"schedule {number}"
            chance = random.Random(number)
            for _ in range(3):
                names = chance.sample(sorted(whole), chance.randint(1, len(whole)))
                cut = {name: whole[name][: chance.randint(0, len(whole[name]))] for name in names}
                lengths = {name: len(said) for name, said in cut.items()}
                assert findings_in(cut) == [], f"schedule {number}, cut to {lengths}"
    assert statements >= {"commitment", "receipt", "sum", "agreement", "abandon", "leave", "drop", "final"}
