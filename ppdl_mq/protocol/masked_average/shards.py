"""How a vector is cut into one shard a member. Source: docs/PROTOCOL.md, section 13.2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

BLOCK_BYTES: Final = 64  # of the key stream, which can be entered at its blocks only


@dataclass(frozen=True, slots=True)
class Shards:
    """Where each shard of a vector lies.

    Args:
        total_bytes: of the vector.
        count: of shards, one a member.
    """

    total_bytes: int
    count: int

    def start(self, shard: int) -> int:
        """Return the offset of the first byte of a shard."""
        blocks, more = divmod(-(-self.total_bytes // BLOCK_BYTES), self.count)
        return min((shard * blocks + min(shard, more)) * BLOCK_BYTES, self.total_bytes)

    def size(self, shard: int) -> int:
        """Return the size of a shard in bytes; 0 where there are fewer blocks than members."""
        return self.start(shard + 1) - self.start(shard)

    @property
    def filled(self) -> tuple[int, ...]:
        """The indices of the shards that are not empty."""
        return tuple(shard for shard in range(self.count) if self.size(shard))
