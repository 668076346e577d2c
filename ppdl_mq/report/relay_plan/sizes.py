"""How much of a trial waits at the relay, from the manifest and the size of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ppdl_mq.config.manifest import Manifest
from ppdl_mq.wire.header import stride_for

_SMALL_MESSAGES_BYTES: Final = 64 * 1024**2  # HELLO, CONFIRM, NOTICE, receipts, requests to send again: in one queue
_ROOM: Final = 4  # a queue may hold so many times what an honest trial leaves in it
_WORST_WORDS: Final = 2  # words of 64 bits, where 32 do not hold a value: twice the bytes
_LONGEST_NAME: Final = "a" * 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes in bytes; all of them are sealed messages, and so a little more than what they carry.

    Args:
        weights: the model's whole state.
        largest_message: of one message, all parts together.
        parts: of the largest message, each at most the manifest's `chunk_bytes`.
        inbox_peak: what waits in an inbox in an honest trial, while its owner is away.
        weights_peak: the same of the queue of the weights; 0 where the protocol has none.
        queue_limit: over it, a queue takes nothing more; far above both.
    """

    weights: int
    largest_message: int
    parts: int
    inbox_peak: int
    weights_peak: int
    queue_limit: int


def sizes_of(manifest: Manifest, *, weights_bytes: int, vector_words: int) -> Sizes:
    """Work out what a trial needs.

    Args:
        manifest: of the trial.
        weights_bytes: of the model's whole state.
        vector_words: how many ring words that becomes; 0 where the protocol has none.
    """
    stride = stride_for(manifest.relay.chunk_bytes, _LONGEST_NAME, _LONGEST_NAME)
    vector = vector_words * (manifest.averaging.word // 8 if manifest.averaging else 0)
    count = len(manifest.peers)
    if manifest.averaging is None:
        # A TURN or the FINAL; in `weights`, the state that is being trained on and its successor.
        largest = inbox = weights_bytes
        resting = 2 * weights_bytes if manifest.shares_weights else 0
    else:
        # The initial weights, or of one round a shard of the vector and one of the sum from everybody else.
        shard = -(-vector // count)
        largest = max(weights_bytes, shard)
        inbox = max(weights_bytes, 2 * count * shard)
        resting = 0
    limit = _ROOM * max(inbox * (_WORST_WORDS if manifest.averaging else 1), resting) + _SMALL_MESSAGES_BYTES
    return Sizes(
        weights=weights_bytes,
        largest_message=largest,
        parts=max(1, -(-largest // stride)),
        inbox_peak=inbox,
        weights_peak=resting,
        queue_limit=limit,
    )


def readable(size_bytes: int) -> str:
    """Return a size as people say it: 1234567 is `1.2 MB`."""
    size: float = size_bytes
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("the last unit takes everything")
