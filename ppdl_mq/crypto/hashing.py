"""Hashing several values at once so that no two lists of values hash alike."""

from __future__ import annotations

import hashlib


def framed(label: bytes, *parts: bytes) -> bytes:
    """Return label || (u64 big-endian length || part) for each part."""
    return label + b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def sha256(label: bytes, *parts: bytes) -> bytes:
    """Return the 32 bytes of SHA-256 over the framed parts.

    Args:
        label: from `labels`; ends in a zero byte, so none is the beginning of another.
        parts: any bytes.
    """
    return hashlib.sha256(framed(label, *parts)).digest()
