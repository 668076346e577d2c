"""A peer's own, private order of samples.

Source: docs/TRAINING.md, "Order of samples".
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch

from ppdl_mq.config.manifest import Training
from ppdl_mq.crypto import labels
from ppdl_mq.crypto.hashing import sha256
from ppdl_mq.protocol.schedule import Turn

SEED_BYTES = 32


def derive(sample_seed: bytes, purpose: bytes) -> int:
    """Return a generator's seed, 0 to 2**63 - 1.

    Args:
        sample_seed: the peer's secret, 32 bytes.
        purpose: what the generator is for; distinct uses have distinct purposes.
    """
    if len(sample_seed) != SEED_BYTES:
        raise ValueError(f"a sample seed has {SEED_BYTES} bytes")
    first = hashlib.sha256(labels.SAMPLE_SEED + sample_seed + purpose).digest()[:8]
    return int.from_bytes(first, "big") & (2**63 - 1)


def turn_seed(sample_seed: bytes, turn: Turn) -> int:
    """Return the seed of torch's generators (dropout) for one turn."""
    return derive(sample_seed, b"turn" + turn.number.to_bytes(8, "big"))


def permutation(sample_seed: bytes, purpose: bytes, rows: int) -> torch.Tensor:
    """Return a secret permutation of the rows: int64 (rows), on the CPU."""
    generator = torch.Generator("cpu").manual_seed(derive(sample_seed, purpose))
    return torch.randperm(rows, generator=generator)


def batch_run(sample_seed: bytes, first: int, last: int, *, rows: int, batch_size: int) -> Iterator[torch.Tensor]:
    """Yield batches first ... last - 1 of the endless row of all local epochs' batches.

    Args:
        sample_seed: the peer's secret, 32 bytes.
        first: number of the first batch, counted from 0.
        last: number of the one after the last.
        rows: how many rows there are.
        batch_size: rows in each batch; the last of a local epoch may be shorter.

    Yields:
        int64 indices (k), on the CPU.
    """
    count = batches_of_epoch(rows, batch_size)
    while first < last:
        epoch, start = divmod(first, count)
        stop = min(count, start + last - first)
        shuffled = permutation(sample_seed, b"order" + epoch.to_bytes(8, "big"), rows)
        yield from torch.split(shuffled, batch_size)[start:stop]
        first += stop - start


def batches_of_epoch(rows: int, batch_size: int) -> int:
    """Return the number of batches of one local epoch."""
    return -(-rows // batch_size)


def turn_batches(training: Training, turn: Turn, sample_seed: bytes, *, rows: int) -> Iterator[torch.Tensor]:
    """Yield the batches of one turn, in order: int64 indices (k), on the CPU.

    Args:
        training: turn kind and batch size.
        turn: of this peer.
        sample_seed: the peer's secret, 32 bytes.
        rows: the peer's training rows.
    """
    first, last = turn_run(training, turn.ordinal, rows=rows)
    return batch_run(sample_seed, first, last, rows=rows, batch_size=training.batch_size)


def turn_run(training: Training, ordinal: int, *, rows: int) -> tuple[int, int]:
    """Return the numbers of a turn's first batch and of the one after its last, in the endless row of all batches.

    Args:
        training: turn kind and batch size.
        ordinal: of the turn among all of its peer, from 0.
        rows: the peer's training rows.
    """
    count = batches_of_epoch(rows, training.batch_size)
    if training.turn_epochs is not None:
        return ordinal * training.turn_epochs * count, (ordinal + 1) * training.turn_epochs * count
    if training.turn_steps is not None:
        return ordinal * training.turn_steps, (ordinal + 1) * training.turn_steps
    epoch, cycle = divmod(ordinal, training.turns_per_epoch)
    cuts = training.turns_per_epoch
    return epoch * count + count * cycle // cuts, epoch * count + count * (cycle + 1) // cuts


def rehearsal_seed(sample_seed: int, peer: str) -> bytes:
    """Return the 32-byte seed of a peer in a rehearsal, where people fix it so that a run can be repeated.

    Args:
        sample_seed: from peer.toml, 0 to 2**63 - 1.
        peer: its name, so that peers with the same number still differ.
    """
    return sha256(labels.SAMPLE_SEED, b"rehearsal", peer.encode(), sample_seed.to_bytes(8, "big"))
