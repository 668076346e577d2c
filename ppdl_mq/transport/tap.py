"""What a curious relay could do: keep a copy of everything that passes. For demonstrations and tests.

A tap is set on the relay itself, by whoever runs it; the peers neither help nor notice.
"""

from __future__ import annotations

import abc
from types import TracebackType
from typing import Self


class Tap(abc.ABC):
    """Copies every message of one trial, from its making to `close`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abc.abstractmethod
    def read(self) -> list[bytes]:
        """Return the messages that have passed since the last call. Call it at least every few seconds.

        Raises:
            RelayLost: the relay is gone.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Take the tap off; harmless when it is off already."""
