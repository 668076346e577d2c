"""Whose turn it is: a public function of the manifest that every peer computes for itself.

Source: docs/PROTOCOL.md, "Schedule"; Phong and Phuong (arXiv 1809.03272), sections 3 and 4.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ppdl_mq.crypto import labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One peer's local SGD.

    Args:
        number: 1 for the first turn of the trial; turn 0 is the initial weights.
        epoch: counted from 0; the learning rate depends on it alone.
        cycle: which of the epoch's turns of this peer, counted from 0.
        ordinal: which of all turns of this peer, counted from 0.
        peer: whose turn it is.
    """

    number: int
    epoch: int
    cycle: int
    ordinal: int
    peer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The turns of one trial, in constant memory.

    Args:
        trial_id: 32 bytes; seeds the public shuffle.
        peers: sorted names.
        epochs: number of epochs.
        turns_per_epoch: turns of each peer in one epoch.
        order: `fixed` or `shuffled`.
    """

    trial_id: bytes
    peers: tuple[str, ...]
    epochs: int
    turns_per_epoch: int
    order: Literal["fixed", "shuffled"]

    @property
    def turns(self) -> int:
        """The number of turns of the whole trial; also the number of the last one."""
        return self.epochs * self.turns_per_epoch * len(self.peers)

    @property
    def founder(self) -> str:
        """The peer that builds the initial weights: the one whose turn is the first."""
        return self.turn(1).peer

    def turn(self, number: int) -> Turn:
        """Return turn `number`, from 1 to `turns`."""
        if not 1 <= number <= self.turns:
            raise ValueError(f"turn {number} is not in 1..{self.turns}")
        position = (number - 1) % len(self.peers)
        cycle_of_trial = (number - 1) // len(self.peers)  # in every cycle each peer has exactly one turn
        epoch, cycle = divmod(cycle_of_trial, self.turns_per_epoch)
        peer = self.epoch_order(epoch)[position]
        return Turn(number=number, epoch=epoch, cycle=cycle, ordinal=cycle_of_trial, peer=peer)

    def turns_of(self, peer: str) -> Iterator[Turn]:
        """Yield every turn of one peer, in order."""
        for number in range(1, self.turns + 1):
            turn = self.turn(number)
            if turn.peer == peer:
                yield turn

    def epoch_order(self, epoch: int) -> tuple[str, ...]:
        """Return the order of the peers in an epoch, the same in each of its cycles."""
        if self.order == "fixed":
            return self.peers
        return tuple(_shuffled(self.peers, labels.SCHEDULE + self.trial_id + epoch.to_bytes(8, "big")))


def _shuffled(names: Sequence[str], seed: bytes) -> list[str]:
    """Fisher-Yates over 64-bit words of SHA-256(seed || counter); the bias of the remainder is below 2**-56."""
    shuffled = list(names)
    for counter, last in enumerate(range(len(shuffled) - 1, 0, -1)):
        word = hashlib.sha256(seed + counter.to_bytes(8, "big")).digest()[:8]
        chosen = int.from_bytes(word, "big") % (last + 1)
        shuffled[last], shuffled[chosen] = shuffled[chosen], shuffled[last]
    return shuffled
