"""What the tests of brokers share: a node of their own, which has no user `guest`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.rabbit import RabbitNode


@pytest.fixture(scope="session")
def bare_node(rabbit_is_installed: None) -> Iterator[RabbitNode]:
    """A node without any user."""
    with RabbitNode() as node:
        node.delete_user("guest")
        yield node
