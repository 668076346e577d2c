from __future__ import annotations

import pytest
import torch

from ppdl_mq.report.comparison import Comparer, differing_bits
from ppdl_mq.report.result import SAME_ORDER, SHUFFLED
from ppdl_mq.training.baselines import federated_averaging
from ppdl_mq.training.order import rehearsal_seed
from ppdl_mq.training.worker import Worker
from tests.trial import PEERS, manifest_for, split_for


def comparer_for(protocol: str) -> Comparer:
    manifest = manifest_for(protocol=protocol, training__epochs=4, training__turns_per_epoch=2)
    workers = {name: Worker(manifest, split_for(name, manifest), device=torch.device("cpu")) for name in PEERS}
    public = split_for("public", manifest, rows=40).train
    return Comparer(manifest, workers, {name: rehearsal_seed(7, name) for name in PEERS}, public)


@pytest.fixture(scope="module")
def comparer() -> Comparer:
    return comparer_for("fully-connected")


def test_differing_bits_are_counted_one_by_one() -> None:
    assert differing_bits(b"\x00\xff\x0f", bytearray(b"\x00\xff\x0f")) == 0
    assert differing_bits(b"\x00\xff\x0f", b"\x01\x00\x0f") == 9


def test_the_curves_end_where_the_final_weights_are(comparer: Comparer) -> None:
    said: list[str] = []
    comparison = comparer.compare(said.append)
    assert len(said) == 2 + len(PEERS)
    assert len(comparison.states) == 1 + 4
    assert comparison.states[0] == bytes(comparer.workers["anna"].initial())
    assert comparison.states[-1] == comparison.weights
    ends = {curve.name: curve.points[-1] for curve in comparison.curves}
    assert ends[SAME_ORDER] == (4.0, comparison.same_order)
    assert ends[SHUFFLED] == (4.0, comparison.shuffled)
    assert {name: ends[f"{name} alone"][1] for name in PEERS} == dict(comparison.alone)


def test_every_turn_length_makes_as_many_passes(comparer: Comparer) -> None:
    lengths = list(comparer.turn_lengths())
    assert [each.passes for each in lengths] == [0.1, 0.5, 1.0, 2.0, 4.0]
    assert [each.turns * each.passes for each in lengths] == pytest.approx([4 * len(PEERS)] * 5)
    own = [each for each in lengths if each.is_own]
    assert [(each.passes, each.accuracy) for each in own] == [(0.5, comparer.compare().same_order)]


def test_every_round_length_is_one_of_federated_averaging() -> None:
    comparer = comparer_for("masked-average")
    lengths = list(comparer.turn_lengths())
    assert [each.turns * each.passes for each in lengths] == pytest.approx([4] * 5)
    plain = federated_averaging(comparer.manifest, comparer.workers, comparer.seeds)
    assert [(each.passes, each.accuracy) for each in lengths if each.is_own] == [(0.5, comparer.accuracy(plain))]
