"""The trial's id: the hash of the manifest's one encoding.

Source: docs/PROTOCOL.md, "Trial".
"""

from __future__ import annotations

import hashlib

from ppdl_mq.config import limits
from ppdl_mq.config.manifest import Manifest
from ppdl_mq.config.reading import manifest_from_data
from ppdl_mq.crypto import labels
from ppdl_mq.errors import Malformed, ManifestError
from ppdl_mq.wire import canonical


def trial_id(manifest: Manifest) -> bytes:
    """Return 32 bytes: SHA-256 of the label and the canonical manifest."""
    return hashlib.sha256(labels.TRIAL_ID + manifest_bytes(manifest)).digest()


def manifest_bytes(manifest: Manifest) -> bytes:
    """Return the canonical manifest: all fields, defaults filled in, peers sorted by name."""
    return canonical.encode(manifest.as_data())


def manifest_from_bytes(raw: bytes) -> Manifest:
    """Return the manifest that another peer sent, held to the rules of our own.

    Raises:
        Malformed: not a canonical manifest, or a nonsensical one.
        TooLarge: over `limits.MAX_MANIFEST_BYTES`.
    """
    data = canonical.decode(raw, limit_bytes=limits.MAX_MANIFEST_BYTES)
    if not isinstance(data, dict):
        raise Malformed("A manifest must be a map.")
    try:
        manifest = manifest_from_data(data)
    except ManifestError as fault:
        raise Malformed(f"Another peer's {fault.message}") from None
    if manifest_bytes(manifest) != raw:
        raise Malformed("A manifest is not in its one encoding: fields left out, or peers not sorted.")
    return manifest


def short_id(identifier: bytes) -> str:
    """Return the first 16 hex digits of a trial's id in groups of four, to compare by eye."""
    digits = identifier.hex()[:16]
    return "-".join(digits[at : at + 4] for at in range(0, len(digits), 4))
