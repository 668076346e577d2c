"""Where a peer stands in a sequential trial: one frozen value, that the journal can keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from ppdl_mq.protocol.session import SessionState
from ppdl_mq.wire.messages import Statement


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
class State(SessionState):
    """Everything a sequential machine remembers.

    Args:
        turn: the turn of this peer that it awaits, trains or hands over; 0 while building.
        notice: message id of the TURN that rests at `weights` for this peer; 16 bytes, or none.
        chain: the newest statements.
        finals_confirmed: peers whose FINAL the relay has.
        dones: peers that answered.
    """

    turn: int = 0
    notice: bytes = b""
    chain: Chain = Chain()
    finals_confirmed: frozenset[str] = frozenset()
    dones: frozenset[str] = frozenset()

    def as_data(self) -> dict[str, Any]:
        """Return the state as plain data; what must be erased in time stands under `secrets`."""
        return SessionState.as_data(self) | {
            "turn": self.turn,
            "notice": self.notice,
            "chain_before": self.chain.before,
            "chain_first": self.chain.first_turn,
            "chain": [[statement.digest, statement.signature] for statement in self.chain.statements],
            "finals_confirmed": sorted(self.finals_confirmed),
            "dones": sorted(self.dones),
        }

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Self:
        """Return the state that `as_data` described."""
        return cls(
            **cls.session_fields(data),
            turn=data["turn"],
            notice=data["notice"],
            chain=Chain(
                before=data["chain_before"],
                first_turn=data["chain_first"],
                statements=tuple(Statement(digest=digest, signature=signature) for digest, signature in data["chain"]),
            ),
            finals_confirmed=frozenset(data["finals_confirmed"]),
            dones=frozenset(data["dones"]),
        )
