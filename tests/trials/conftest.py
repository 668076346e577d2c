"""What the tests of whole trials share: a small trial's files, and a process that the command line leaves as it was."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import Processes, processes
from tests.trials.files import TrialFiles


@pytest.fixture(autouse=True)
def _leave_no_trace() -> Iterator[None]:
    """Put back the log's handlers and the signals', which `peer run` sets for a process of its own."""
    logger = logging.getLogger("ppdl_mq")
    log = (list(logger.handlers), logger.propagate, logger.level)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    logger.handlers[:], logger.propagate = log[0], log[1]
    logger.setLevel(log[2])
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def files(tmp_path: Path) -> TrialFiles:
    """A trial of two peers over an embedded relay."""
    return TrialFiles(tmp_path, ("anna", "bert"), new=("--epochs", "2"))


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Processes]:
    """Starts processes, none of which outlives the test."""
    with processes(tmp_path) as group:
        yield group
