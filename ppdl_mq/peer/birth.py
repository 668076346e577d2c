"""When a file came to be: the one mark of a file that neither copying nor restoring can set.

An inode's number does not tell a file from a copy: ext4 gives the number of a removed file to the next one. The time
of a change does not either: `chmod -R` and link-based backups change it, and a trial must not be lost to those.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Final

_AT_EMPTY_PATH: Final = 0x1000
_STATX_BTIME: Final = 0x800
_STATX_BYTES: Final = 256
_MASK_AT: Final = 0  # u32, which fields hold
_SECONDS_AT: Final = 0x50  # i64, then u32 nanoseconds


def born_ns(handle: int) -> int:
    """Return the birth time of an open file, in nanoseconds since 1970; 0 where the file system does not keep it.

    Python's `os.stat` lacks it on Linux, so this calls `statx` of the C library.
    Source: statx(2), "struct statx".
    """
    on_other_systems = getattr(os.fstat(handle), "st_birthtime", None)  # macOS, BSD
    if on_other_systems is not None:
        return int(on_other_systems * 1_000_000_000)
    try:
        statx = ctypes.CDLL(None, use_errno=True).statx
    except (AttributeError, OSError):
        return 0
    raw = ctypes.create_string_buffer(_STATX_BYTES)
    if statx(handle, b"", _AT_EMPTY_PATH, _STATX_BTIME, raw) != 0:
        return 0
    if not _number(raw.raw, _MASK_AT, 4) & _STATX_BTIME:
        return 0
    return _number(raw.raw, _SECONDS_AT, 8) * 1_000_000_000 + _number(raw.raw, _SECONDS_AT + 8, 4)


def _number(raw: bytes, at: int, size_bytes: int) -> int:
    return int.from_bytes(raw[at : at + size_bytes], sys.byteorder)
