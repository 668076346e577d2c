"""What a look at a relay found, in words for a person, with the line to give to the relay's administrator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ppdl_mq.errors import RelayRefused
from ppdl_mq.transport.address import WEIGHTS, Names

Result = Literal["pass", "warn", "fail", "unknown"]

_WORST_FIRST: Final[tuple[Result, ...]] = ("fail", "unknown", "warn", "pass")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Args:
        check: what, in two or three words.
        result: `unknown` where AMQP, or the rights we have, cannot show it.
        says: one sentence. Holds no secret.
        todo: what to do about it; empty where nothing is to be done.
        line: the very line for the broker's administrator, a command or a setting; empty without one.
        passes: of a failure: it may pass by itself, so that waiting helps.
        figures: numbers for a program, with their unit in the name.
    """

    check: str
    result: Result
    says: str
    todo: str = ""
    line: str = ""
    passes: bool = False
    figures: Mapping[str, float | int | str] = field(default_factory=dict)

    @property
    def advice(self) -> str:
        """What to do, and the line to send on, in one text."""
        line = f"For the broker's administrator: {self.line}" if self.line else ""
        return f"{self.todo} {line}".strip()

    def data(self) -> dict[str, Any]:
        """Return it for a program."""
        said: dict[str, Any] = {"check": self.check, "result": self.result, "says": self.says}
        said |= {key: value for key, value in (("todo", self.todo), ("line", self.line)) if value}
        return said | ({"figures": dict(self.figures)} if self.figures else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What one peer needs of the relay in one trial.

    Args:
        names: of the trial's exchange and queues.
        me: this peer's name.
        peers: everybody's name, this peer's among them.
        shares_weights: whether the trial keeps its weights at the relay (server-aided).
        chunk_bytes: the largest message.
        queue_bytes: what `relay plan` would let each queue hold; None where the size of the model is not known.
    """

    names: Names
    me: str
    peers: tuple[str, ...]
    shares_weights: bool
    chunk_bytes: int
    queue_bytes: int | None = None

    @property
    def others(self) -> tuple[str, ...]:
        """The names of the other peers."""
        return tuple(name for name in self.peers if name != self.me)

    @property
    def own_addresses(self) -> tuple[str, ...]:
        """What this peer reads: its inbox, and the weights where they rest at the relay."""
        return (self.me, WEIGHTS) if self.shares_weights else (self.me,)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where this peer publishes to."""
        return (*self.peers, WEIGHTS) if self.shares_weights else self.peers


def verdict(findings: Iterable[Finding]) -> Result:
    """Return the worst result; `pass` without any finding."""
    results = {finding.result for finding in findings}
    return next((result for result in _WORST_FIRST if result in results), "pass")


def refuse_failures(findings: Iterable[Finding]) -> None:
    """Raise the first failure that waiting does not mend.

    Raises:
        RelayRefused: what the finding says, and what to do.
    """
    for finding in findings:
        if finding.result == "fail" and not finding.passes:
            raise RelayRefused(finding.says, hint=finding.advice)
