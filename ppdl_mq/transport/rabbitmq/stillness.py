"""For how long nothing has come of what the relay was asked or sent."""

from __future__ import annotations

import datetime
import time
from typing import Final

# An answer or a confirm takes a fraction of a second, on a slow disk some seconds. First its absence is said; in the
# end the connection is given up, so that the peer can go round and see to everything else. Not sooner than a slow line
# is done with what the system holds of ours (4 MB at most, where nobody set it otherwise: 280 kbit/s do): it would be
# sent again, and again.
SAID_AFTER_S: Final = 30.0
LOST_AFTER_S: Final = 120.0


class Stillness:
    """A clock that begins anew whenever something moves. Not locked: its owner does that."""

    def __init__(self) -> None:
        self.moves()

    def moves(self) -> None:
        """Begin anew."""
        self._moved_at, self._moved_on = time.monotonic(), time.time()

    @property
    def is_to_be_said(self) -> bool:
        """Whether it is so long that people want to know."""
        return time.monotonic() - self._moved_at >= SAID_AFTER_S

    @property
    def is_a_loss(self) -> bool:
        """Whether it is so long that the connection counts as lost."""
        return time.monotonic() - self._moved_at >= LOST_AFTER_S

    @property
    def since(self) -> str:
        """When something moved last, in words, which do not change while it lasts."""
        return f"{datetime.datetime.fromtimestamp(self._moved_on, datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"
