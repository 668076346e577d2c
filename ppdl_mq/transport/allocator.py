"""How the process's memory is handed back to the system: not after every chunk."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from typing import Final

_M_TRIM_THRESHOLD: Final = -1  # of glibc's <malloc.h>
_M_MMAP_THRESHOLD: Final = -3
_CHUNK_BYTES: Final = 4 * 1024 * 1024
_KEPT_BYTES: Final = 64 * 1024 * 1024


def keep_freed_chunks() -> None:
    """Let the C library keep what a freed chunk occupied, so that the next one finds its pages in place.

    A chunk passes through half a dozen buffers of about a megabyte. By default glibc returns each to the system and
    asks for it again, and the system then clears every page: that costs more than sealing (measured:
    docs/BENCHMARKS.md). At most `_KEPT_BYTES` are kept; models and tensors, being larger than `_CHUNK_BYTES`, are
    still returned at once. Without glibc nothing happens.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):  # no such library, or another than glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _CHUNK_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
