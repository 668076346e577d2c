"""The short form of `make soak`: trials of real processes over a real RabbitMQ, to which everything happens once.

CHAOS_SEED=2 chooses other victims and other moments.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from ppdl_mq.config import limits
from tests.chaos.faults import CLUSTER_KINDS
from tests.chaos.worlds import disturb, world
from tests.rabbit import RabbitNode, cluster

# The limit is for machines that are busy; on a quiet one a trial takes half a minute.
pytestmark = [pytest.mark.slow, pytest.mark.rabbitmq, pytest.mark.timeout(600)]

SEED = os.environ.get("CHAOS_SEED", "1")
LONGEST_S = 2.0  # of a fault
RECOVERY_S = 0.9 * limits.PATIENCE_FIRST_S  # before a peer asks again for a message: none may be lost


def survive(folder: Path, protocol: str, epochs: int, nodes: Sequence[RabbitNode], *kinds: str) -> None:
    """Run a trial through these faults, one after the other; it ends as if nothing had happened."""
    print(f"CHAOS_SEED={SEED}")
    with world(folder, protocol, epochs, nodes, seed=f"{SEED} {protocol}", name=f"short-{protocol}") as found:
        struck, outcome = disturb(
            found, CLUSTER_KINDS, plan=kinds, calm_s=0.2, longest_s=LONGEST_S, recovery_s=RECOVERY_S
        )
    print(struck, outcome)
    assert [each.kind for each in struck] == list(kinds), "the trial ended before everything had happened"
    assert (outcome.differing_bits, outcome.lost) == (0, 0)


def test_server_aided_through_deaths_and_bad_networks(tmp_path: Path, rabbit: RabbitNode) -> None:
    kinds = ("peer killed", "network silent", "peer terminated", "network cut")
    survive(tmp_path, "server-aided", 30, [rabbit], *kinds)


def test_masked_average_through_deaths_of_peers_and_broker(tmp_path: Path, rabbit: RabbitNode) -> None:
    kinds = ("peer killed", "broker killed, with mail for a dead peer", "5 % packet loss")
    survive(tmp_path, "masked-average", 10, [rabbit], *kinds)


def test_fully_connected_over_a_cluster_that_loses_its_leader(tmp_path: Path, rabbit: RabbitNode) -> None:
    del rabbit  # skips where there is none
    with cluster(3) as nodes:
        survive(tmp_path, "fully-connected", 60, nodes, "leader killed", "peer killed, back later")
