"""The decoders, one target each."""

from __future__ import annotations

from typing import Final

from fuzz.harness import Target
from fuzz.targets import files, journal, memory, wire

TARGETS: Final[dict[str, Target]] = {
    target.name: target for module in (wire, files, memory, journal) for target in module.TARGETS
}
