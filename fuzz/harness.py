"""Run a decoder on one input and hold it to its promises: its errors, and its memory.

The same targets run under Hypothesis (tests/fuzz) and under atheris (`make fuzz`).
"""

from __future__ import annotations

import atexit
import enum
import os
import shutil
import tempfile
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ppdl_mq.errors import PpdlError

SCRATCH: Final = "ppdl-mq-fuzz-"  # begins the name of a folder for files; the number of its process follows
MEMORY: Final = Path("/dev/shm")


class Form(enum.Enum):
    """How an input is built, so that a mutation can change what it says and not only its bytes."""

    BYTES = "bytes"
    CANONICAL = "canonical"
    JSON = "json"
    TOML = "toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One decoder.

    Args:
        name: of the target; its corpus has a folder of this name.
        run: decodes; raises what the decoder raises, and AssertionError where a promise of its own is broken.
        form: of the inputs.
        prefix_bytes: at the beginning of an input, before what is of this form: for the target itself.
        errors: what may escape.
        fixed_bytes: Python memory that a run may take whatever the input ...
        bytes_per_byte: ... and for each byte of it.
        longest_bytes: no longer input is tried.
    """

    name: str
    run: Callable[[bytes], None]
    form: Form = Form.BYTES
    prefix_bytes: int = 0
    errors: tuple[type[PpdlError], ...] = (PpdlError,)
    fixed_bytes: int = 512 * 1024
    bytes_per_byte: int = 256
    longest_bytes: int = 4_096

    def limit_bytes(self, size_bytes: int) -> int:
        """Return how much Python memory a run on an input of this size may take."""
        return self.fixed_bytes + self.bytes_per_byte * size_bytes


def scratch_folder() -> Path:
    """Return a new folder, in memory where the system has such a place; it goes when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{os.getpid()}-", dir=MEMORY if MEMORY.is_dir() else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


class OutOfMemoryLimit(AssertionError):
    """A decoder took more memory than its limit."""


def execute(target: Target, data: bytes) -> type[PpdlError] | None:
    """Run the decoder; return the class of the allowed error that it raised, or None.

    Raises:
        BaseException: whatever else escapes it. That is a finding.
    """
    try:
        target.run(data)
    except target.errors as error:
        assert str(error), "an error without a sentence"
        return type(error)
    return None


def execute_measured(target: Target, data: bytes) -> type[PpdlError] | None:
    """As `execute`, and hold the peak of Python's memory to the target's limit.

    C libraries (libsodium, SQLite) allocate beside it: the process as a whole has a limit of its own under atheris.

    Raises:
        OutOfMemoryLimit: it took more.
    """
    tracemalloc.start()
    try:
        outcome = execute(target, data)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    limit_bytes = target.limit_bytes(len(data))
    if peak_bytes > limit_bytes:
        raise OutOfMemoryLimit(
            f"{target.name}: {len(data)} bytes of input took {peak_bytes} bytes, over the limit of {limit_bytes}"
        )
    return outcome
