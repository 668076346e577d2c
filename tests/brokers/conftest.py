"""What the tests of brokers share: a node of their own, which has no user `guest`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.rabbit import RabbitNode, why_absent


@pytest.fixture(scope="session")
def bare_node(rabbit_node: RabbitNode) -> Iterator[RabbitNode]:
    """A node without any user; `rabbit_node` is asked for because it skips, or fails, where there is no RabbitMQ."""
    assert why_absent() is None
    with RabbitNode() as node:
        node.delete_user("guest")
        yield node
