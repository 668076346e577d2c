"""What all tests share: the private RabbitMQ node, and logging as it was before each."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator

import pytest

from tests.rabbit import RabbitNode, why_absent


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give all tests of the broker to one worker under `-n N --dist loadgroup`, so that one node is started.

    A module with nodes of its own may name another group.
    """
    for item in items:
        if "rabbit" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.rabbitmq)
        if item.get_closest_marker("rabbitmq") and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group("rabbitmq"))


@pytest.fixture(scope="session")
def rabbit_is_installed() -> None:
    """Skips, or in CI fails, where no node can be started."""
    reason = why_absent()
    if reason is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason} (CI=true: the RabbitMQ tests must run)")
        pytest.skip(reason)


@pytest.fixture(scope="session")
def rabbit_node(rabbit_is_installed: None) -> Iterator[RabbitNode]:
    """The session's node; use `rabbit` instead."""
    with RabbitNode() as node:
        yield node


@pytest.fixture
def rabbit(rabbit_node: RabbitNode) -> RabbitNode:
    """A running RabbitMQ node, started once; started again if a test before ended it."""
    rabbit_node.start()
    return rabbit_node


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Takes back what a command that ran in this process set up: its log goes to a stderr that ends with its test."""
    loggers = [logging.getLogger(name) for name in ("ppdl_mq", "py.warnings")]
    before = [(each.handlers[:], each.level, each.propagate) for each in loggers]
    of_threads = threading.excepthook
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)
    logging.captureWarnings(False)
    threading.excepthook = of_threads
