"""What a machine knows from the start: the manifest's facts and who it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Self

from ppdl_mq.config import limits
from ppdl_mq.config.manifest import Averaging, Manifest
from ppdl_mq.crypto.identity import Identity, PublicIdentity
from ppdl_mq.errors import IdentityError
from ppdl_mq.protocol.schedule import Schedule
from ppdl_mq.wire.kinds import Kind, kinds_of
from ppdl_mq.wire.trial_id import manifest_bytes, trial_id

WEIGHTS = "weights"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The terms of a trial, from one peer's point of view.

    Args:
        me: this peer's name.
        protocol: how weights move.
        trial_id: 32 bytes.
        manifest: its canonical bytes.
        layout: 32 bytes, digest of the model's layout at this peer.
        software: for people.
        peers: every peer's pinned public identity.
        schedule: whose turn it is.
        averaging: the manifest's rules of masked-average; None in the other protocols.
        words: of the ring vector that the model's weights become; 0 in the other protocols.
        sign: signs with this peer's identity, 64 bytes; Ed25519 has no randomness, so the machine stays a function.
    """

    me: str
    protocol: Literal["server-aided", "fully-connected", "masked-average"]
    trial_id: bytes
    manifest: bytes
    layout: bytes
    software: str
    peers: Mapping[str, PublicIdentity]
    schedule: Schedule
    averaging: Averaging | None = None
    words: int = 0
    sign: Callable[[bytes], bytes] = field(repr=False, compare=False)

    @classmethod
    def of(cls, manifest: Manifest, identity: Identity, *, layout: bytes, software: str, words: int = 0) -> Self:
        """Return the terms of `manifest` for the peer of this identity.

        Raises:
            IdentityError: these keys are not in the manifest.
        """
        me = cls.name_of(manifest, identity.public)
        peers = {peer.name: PublicIdentity.from_keys(peer.name, peer.keys) for peer in manifest.peers}
        the_id = trial_id(manifest)
        schedule = Schedule(
            trial_id=the_id,
            peers=manifest.peer_names,
            epochs=manifest.training.epochs,
            turns_per_epoch=manifest.training.turns_per_epoch,
            order=manifest.order,
        )
        return cls(
            me=me,
            protocol=manifest.protocol,
            trial_id=the_id,
            manifest=manifest_bytes(manifest),
            layout=layout,
            software=software,
            peers=peers,
            schedule=schedule,
            averaging=manifest.averaging,
            words=words,
            sign=identity.sign,
        )

    @staticmethod
    def name_of(manifest: Manifest, public: PublicIdentity) -> str:
        """Return the name under which the manifest pins these keys.

        Raises:
            IdentityError: it does not.
        """
        for peer in manifest.peers:
            if peer.keys == public.keys:
                return peer.name
        raise IdentityError(
            f"The identity of {public.name} ({public.fingerprint}) is not in the manifest of trial {manifest.name}.",
            hint="Send the line that `ppdl-mq identity show` prints to the trial's coordinator.",
        )

    @property
    def others(self) -> tuple[str, ...]:
        """The names of the other peers, sorted."""
        return tuple(sorted(name for name in self.peers if name != self.me))

    @property
    def addresses(self) -> tuple[str, ...]:
        """Whoever may stand in a header."""
        return (*self.peers, WEIGHTS)

    def is_for_all(self, kind: Kind) -> bool:
        """Tell whether messages of this kind rest at `weights`, sealed with the trial key."""
        return self.uses_trial_key and kind is Kind.TURN

    def kinds(self) -> frozenset[Kind]:
        """Return the kinds of message that this protocol has."""
        return kinds_of(self.protocol)

    @property
    def uses_trial_key(self) -> bool:
        """Whether weights rest at the relay under one key of all peers."""
        return self.protocol == "server-aided"

    @property
    def is_masked(self) -> bool:
        """Whether peers train at once and learn the average only."""
        return self.protocol == "masked-average"

    def may_name(self, kind: Kind, sender: str, turn: int, attempt: int) -> bool:
        """Tell whether a header of this kind and sender may name this turn or step, and attempt.

        Source: docs/PROTOCOL.md, sections 5 and 13.5.
        """
        schedule = self.schedule
        if kind in (Kind.TURN, Kind.NOTICE):
            is_between_us = 1 <= turn < schedule.turns and schedule.turn(turn + 1).peer == self.me
            return is_between_us and schedule.turn(turn).peer == sender and not attempt
        if kind is Kind.DONE and self.is_masked:
            return turn <= self.steps and not attempt
        if kind in (Kind.FINAL, Kind.DONE):
            return turn == schedule.turns and not attempt
        if kind in (Kind.DROP, Kind.LEAVE):
            return 1 <= turn <= self.steps + 1 and not attempt
        if kind.in_attempt:
            return 1 <= turn <= self.steps and attempt <= limits.MAX_ATTEMPTS
        return turn == attempt == 0 and (kind is not Kind.INITIAL or sender == self.first)

    @property
    def first(self) -> str:
        """The first peer by name, which builds the initial weights of masked-average."""
        return min(self.peers)

    @property
    def rounds(self) -> int:
        """How often each peer trains."""
        return self.schedule.epochs * self.schedule.turns_per_epoch

    @property
    def steps(self) -> int:
        """The number of steps of masked-average, and of the last one."""
        return 2 * self.rounds

    @property
    def finisher(self) -> str:
        """The peer of the last turn."""
        return self.schedule.turn(self.schedule.turns).peer

    def my_next_turn(self, after: int) -> int | None:
        """Return the number of this peer's first turn after turn `after`, or None when it has no more."""
        return self.next_turn_of(self.me, after)

    def next_turn_of(self, peer: str, after: int) -> int | None:
        """Return the number of the first turn of `peer` after turn `after`; it is less than two cycles away."""
        last = min(self.schedule.turns, after + 2 * len(self.peers))
        return next((n for n in range(after + 1, last + 1) if self.schedule.turn(n).peer == peer), None)

    def last_turn_of(self, peer: str, before: int) -> int | None:
        """Return the number of the last turn of `peer` before turn `before`, or None."""
        first = max(1, before - 2 * len(self.peers))
        return next((n for n in range(before - 1, first - 1, -1) if self.schedule.turn(n).peer == peer), None)
