"""Three organisations and a broker on networks of their own: no peer has a way to another, and one loses its only one.

Needs root, and is never part of CI.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.brokers.namespaces import Link, Namespace, why_not
from tests.processes import processes
from tests.rabbit import RabbitNode
from tests.trials.files import TrialFiles
from tests.trials.test_interruptions import RECOVERY_S, finish

pytestmark = [pytest.mark.rabbitmq, pytest.mark.slow, pytest.mark.xdist_group("namespaces")]

PEERS = ("anna", "bert", "cleo")
LONG = ("--epochs", "10", "--turns-per-epoch", "3", "--batch-size", "4")  # 90 turns: the middle is not missed
PORT = 5672  # nobody else's, in a network of one's own


@pytest.fixture
def sites() -> Iterator[dict[str, Namespace]]:
    """A network for the broker, and one for each peer; skips where there can be none."""
    if reason := why_not():
        pytest.skip(reason)
    with ExitStack() as stack:
        yield {name: stack.enter_context(Namespace()) for name in ("broker", *PEERS)}


@pytest.fixture
def links(sites: dict[str, Namespace], rabbit_is_installed: None) -> Iterator[dict[str, Link]]:
    """Each peer's link to the broker, which runs."""
    links = {peer: Link(number, sites["broker"], sites[peer]) for number, peer in enumerate(PEERS, start=1)}
    config = "loopback_users = none\n"  # `guest` may come over the links
    for number, link in enumerate(links.values(), start=2):  # the first listener is the node's own
        config += f"listeners.tcp.{number} = {link.broker}:{PORT}\n"
    with ExitStack() as stack:
        with sites["broker"].inside():
            stack.enter_context(RabbitNode(config=config))
        yield links


def knock(site: Namespace, address: str) -> int:
    """Return what connecting from there ends with."""
    with site.inside(), socket.socket() as caller:
        caller.settimeout(5.0)
        return caller.connect_ex((address, PORT))


def test_a_peer_whose_link_is_cut_in_the_middle(
    tmp_path: Path, sites: dict[str, Namespace], links: dict[str, Link]
) -> None:
    for peer, other in itertools.product(PEERS, PEERS):  # at one's own address nobody listens, which is not "no way"
        outcome = errno.ECONNREFUSED if peer == other else errno.ENETUNREACH
        assert knock(sites[peer], links[other].peer) == outcome, f"{peer} to {other}"
    urls = {peer: f"amqp://guest@{link.broker}:{PORT}" for peer, link in links.items()}
    files = TrialFiles(tmp_path, PEERS, broker=urls, new=LONG)
    with processes(tmp_path) as started:
        peers = {}
        for peer in PEERS:
            with sites[peer].inside():
                peers[peer] = started.start(*files.run_arguments(peer))
            assert sites[peer].holds(peers[peer].pid)
            assert not sites[peer].holds(os.getpid())
        peers["bert"].wait_for("Turn 20 of 90")
        links["bert"].cut()
        # Heartbeats tell, after 70 s at most; then it tries again, in vain.
        peers["bert"].wait_for("Network is unreachable. Waiting for the relay.", RECOVERY_S)
        links["bert"].mend()
        finish(files, peers)
