"""What every protocol's machine offers to the peer that drives it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, TypeVar

from ppdl_mq.errors import IllegalEvent, OutOfTurn
from ppdl_mq.protocol.effects import Effect
from ppdl_mq.protocol.events import Event, Received
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.session import SessionState
from ppdl_mq.protocol.terms import Terms
from ppdl_mq.wire.kinds import Kind

S = TypeVar("S", bound=SessionState)
Handler = Callable[[Any, Any, Any], tuple[Any, tuple[Effect, ...]]]
Table = Mapping[tuple[Phase, str], Handler]


class NotYet(OutOfTurn):
    """Legal in a state that this peer will reach: keep the message and offer it again."""


class Machine(ABC, Generic[S]):
    """One peer's part in a trial. Holds the terms and no state: `step` is a pure function.

    Args:
        terms: of the trial, from this peer's point of view.
    """

    table: ClassVar[Table]

    def __init__(self, terms: Terms) -> None:
        self.terms = terms

    def step(self, state: S, event: Event) -> tuple[S, tuple[Effect, ...]]:
        """Return the next state and what is to be done.

        Raises:
            NotYet: the message is to be kept and offered again.
            RemoteError: the message is refused; `state` still holds.
            IllegalEvent: an event of our own that the state does not allow.
        """
        handler = self.table.get((state.phase, row_of(event)))
        if handler is not None:
            after: tuple[S, tuple[Effect, ...]] = handler(self, state, event)
            return after
        if isinstance(event, Received):
            raise OutOfTurn(f"A {event.message.kind.name} of {event.sender} has no place while {state.phase.value}.")
        raise IllegalEvent(f"{row_of(event)} while {state.phase.value}.")

    @abstractmethod
    def initial(self) -> S:
        """Return the state of a peer that has not begun."""

    @abstractmethod
    def restored(self, data: dict[str, Any]) -> S:
        """Return the state that `as_data` described."""

    @abstractmethod
    def waiting_for(self, state: S) -> tuple[str, ...]:
        """Return the names of the peers without whom this one cannot go on."""

    @abstractmethod
    def unfinished(self, state: S) -> tuple[Effect, ...]:
        """Return what a peer that was restarted in this state has to begin anew; what it sends is in its outbox."""

    @abstractmethod
    def may_be_gone(self, state: S, kind: Kind, name: str) -> bool:
        """Tell whether a recipient may have left with all it needs, so that its missing inbox is no loss."""

    @abstractmethod
    def progress(self, state: S) -> dict[str, Any]:
        """Return how far the trial is, as plain data for people and programs."""


def row_of(event: Event) -> str:
    """Return the name of the event's row in a table: a message's kind, or the event itself."""
    return event.message.kind.name if isinstance(event, Received) else type(event).__name__
