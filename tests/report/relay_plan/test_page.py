"""The administrator's page, and the sizes on it."""

from __future__ import annotations

import pytest

from ppdl_mq.report.relay_plan.page import page
from ppdl_mq.report.relay_plan.sizes import readable, sizes_of
from ppdl_mq.transport.plan.making import make_plan
from ppdl_mq.transport.plan.objects import Choices
from tests.people import PEERS, manifest_for

MB = 10**6


def test_a_queue_may_hold_more_than_an_honest_trial_leaves_in_it() -> None:
    for protocol in ("server-aided", "fully-connected"):
        sizes = sizes_of(manifest_for(protocol=protocol), weights_bytes=100 * MB, vector_words=0)
        assert sizes.inbox_peak == 100 * MB
        assert sizes.weights_peak == (200 * MB if protocol == "server-aided" else 0)
        assert sizes.queue_limit >= 4 * max(sizes.inbox_peak, sizes.weights_peak)
        assert sizes.parts == 112  # of less than 900,000 bytes


@pytest.mark.parametrize(("weighting", "word_bytes"), [("equal", 4), ("secret", 8)])
def test_a_masked_round_leaves_two_vectors_in_an_inbox(weighting: str, word_bytes: int) -> None:
    manifest = manifest_for(protocol="masked-average", averaging__weighting=weighting)
    sizes = sizes_of(manifest, weights_bytes=100 * MB, vector_words=25 * MB)
    assert sizes.inbox_peak == pytest.approx(2 * 25 * MB * word_bytes, rel=1e-6)
    assert sizes.queue_limit >= 4 * 2 * 25 * MB * 8  # also where the words become twice as wide


def test_sizes_are_readable() -> None:
    assert [readable(size) for size in (999, 1_000, 1_234_567, 2 * 10**12)] == [
        "999 bytes",
        "1.0 kB",
        "1.2 MB",
        "2000.0 GB",
    ]


@pytest.mark.parametrize("peers_declare", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_the_page_names_every_thing_and_right(peers_declare: bool, known: bool) -> None:
    manifest = manifest_for(protocol="server-aided", name="heart")
    plan = make_plan(manifest, Choices(peers_declare=peers_declare))
    sizes = sizes_of(manifest, weights_bytes=MB, vector_words=0) if known else None
    text = page(plan, manifest, sizes)
    for name in (plan.exchange, *plan.inboxes, plan.weights, plan.policy.name):
        assert f"`{name}`" in text
    assert all(f"\n    {user}\n" in text for user in PEERS)
    for rights in plan.rights:
        for pattern in {rights.configure, rights.write, rights.read, rights.publish_keys, rights.bind_keys} - {"^$"}:
            assert pattern in text, "as it can be copied"
    assert "includes to purge it" in text
    assert (
        "one connection to your AMQP port, 5671 with TLS, and on it 4 channels" in text
    )  # as tests/brokers/test_single.py
    assert ("copies: do not leave it out" in text) == peers_declare
    assert ("--weights-bytes" in text) != known


def test_without_weights_at_rest_the_page_says_nothing_of_them() -> None:
    manifest = manifest_for(protocol="fully-connected")
    text = page(make_plan(manifest, Choices()), manifest, None)
    assert "purge" not in text
    assert "longer than the longest turn" not in text
