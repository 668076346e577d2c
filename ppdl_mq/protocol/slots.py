"""Names of the byte strings that a peer keeps for a machine: weights, masked vectors, shards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

What = Literal["turn", "agreed", "local", "masked", "shard", "sum"]


@dataclass(frozen=True, slots=True)
class Slot:
    """One byte string.

    Args:
        what: `turn`, weights of a sequential turn; `agreed`, an agreed average; `local`, what this peer trained from
            it; `masked`, its masked vector y; `shard`, a masked shard of a member; `sum`, a sum shard.
        step: number of the turn or step.
        attempt: of the step.
        member: whose masked shard.
        shard: its index.
    """

    what: What
    step: int
    attempt: int = 0
    member: str = ""
    shard: int = 0


@dataclass(frozen=True, slots=True)
class Cut:
    """A run of bytes of a slot.

    Args:
        slot: which.
        digest: SHA-256 of the run.
        start: its first byte.
        size: how many bytes; None for all from there on.
    """

    slot: Slot
    digest: bytes
    start: int = 0
    size: int | None = None
