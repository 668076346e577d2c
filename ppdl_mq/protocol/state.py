"""Where a peer stands in a trial: one frozen value, that the journal can keep."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Self

from ppdl_mq.crypto.secret import Secret
from ppdl_mq.wire.messages import Statement


class Phase(enum.Enum):
    """What the peer knows and what it waits for."""

    NEW = "new"
    AWAITING_HELLOS = "awaiting hellos"
    AWAITING_CONFIRMS = "awaiting confirms"
    BUILDING = "building the initial weights"
    AWAITING_TURN = "awaiting turn"
    FETCHING = "fetching the weights"
    TRAINING = "training"
    HANDING_OVER = "handing over"
    AWAITING_FINAL = "awaiting final"
    ANSWERING_FINAL = "answering final"
    AWAITING_DONES = "awaiting dones"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionKey:
    """A peer's signed key for the session: 32 and 64 bytes."""

    key: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Consecutive statements up to the newest one that this peer knows.

    Args:
        before: digest of the turn before the first of them; zeros before turn 0.
        first_turn: number of the turn of the first.
        statements: one a turn.
    """

    before: bytes = bytes(32)
    first_turn: int = 0
    statements: tuple[Statement, ...] = ()

    @property
    def last_turn(self) -> int:
        """The number of the newest turn; -1 when empty from the start."""
        return self.first_turn + len(self.statements) - 1

    def digest_of(self, turn: int) -> bytes:
        """Return the digest of a turn from the one before the first on."""
        return self.before if turn == self.first_turn - 1 else self.statements[turn - self.first_turn].digest

    def since(self, turn: int) -> tuple[Statement, ...]:
        """Return the statements of all turns after `turn`."""
        return self.statements[turn + 1 - self.first_turn :]

    def extended(self, statements: tuple[Statement, ...], *, keep: int) -> Chain:
        """Return the chain with these added, cut to its newest `keep` statements."""
        joined = self.statements + statements
        cut = max(0, len(joined) - keep)
        return Chain(
            before=joined[cut - 1].digest if cut else self.before,
            first_turn=self.first_turn + cut,
            statements=joined[cut:],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Everything a machine remembers.

    Args:
        phase: where it stands.
        session_secret: this peer's X25519 secret for the session; None before the start and after the end.
        session_keys: by name, as they come in; this peer's own from the start.
        contributions: to the trial key, by name; secret, and dropped at the end.
        session_id: 32 bytes once all session keys are known.
        turn: the turn of this peer that it awaits, trains or hands over; 0 while building.
        notice: message id of the TURN that rests at `weights` for this peer; 16 bytes, or none.
        chain: the newest statements.
        finals_confirmed: peers whose FINAL the relay has.
        dones: peers that answered.
        resends: how often others were asked to send again; makes each request a new message.
    """

    phase: Phase = Phase.NEW
    session_secret: Secret | None = None
    session_keys: Mapping[str, SessionKey] = field(default_factory=lambda: MappingProxyType({}))
    contributions: Mapping[str, Secret] = field(default_factory=lambda: MappingProxyType({}))
    session_id: bytes = b""
    turn: int = 0
    notice: bytes = b""
    chain: Chain = Chain()
    finals_confirmed: frozenset[str] = frozenset()
    dones: frozenset[str] = frozenset()
    resends: int = 0

    def replace(self, **changes: Any) -> Self:
        """Return this state with some fields changed."""
        return dataclasses.replace(self, **changes)

    def as_data(self) -> dict[str, Any]:
        """Return the state as plain data, secrets included: it is for the sealed journal only."""
        return {
            "phase": self.phase.value,
            "session_secret": self.session_secret.reveal() if self.session_secret else b"",
            "session_keys": {name: [held.key, held.signature] for name, held in self.session_keys.items()},
            "contributions": {name: held.reveal() for name, held in self.contributions.items()},
            "session_id": self.session_id,
            "turn": self.turn,
            "notice": self.notice,
            "chain_before": self.chain.before,
            "chain_first": self.chain.first_turn,
            "chain": [[statement.digest, statement.signature] for statement in self.chain.statements],
            "finals_confirmed": sorted(self.finals_confirmed),
            "dones": sorted(self.dones),
            "resends": self.resends,
        }

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Self:
        """Return the state that `as_data` described."""
        return cls(
            phase=Phase(data["phase"]),
            session_secret=Secret(data["session_secret"]) if data["session_secret"] else None,
            session_keys={
                name: SessionKey(key=key, signature=signature)
                for name, (key, signature) in data["session_keys"].items()
            },
            contributions={name: Secret(held) for name, held in data["contributions"].items()},
            session_id=data["session_id"],
            turn=data["turn"],
            notice=data["notice"],
            chain=Chain(
                before=data["chain_before"],
                first_turn=data["chain_first"],
                statements=tuple(Statement(digest=digest, signature=signature) for digest, signature in data["chain"]),
            ),
            finals_confirmed=frozenset(data["finals_confirmed"]),
            dones=frozenset(data["dones"]),
            resends=data["resends"],
        )
