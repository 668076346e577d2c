"""Names at the relay: what an address within a trial is called there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

WEIGHTS: Final = "weights"  # the address of the resting weights; every other address is a peer's name

_WORD = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """The names of one trial: an exchange, and a queue for each address.

    Words hold no dots, so that a routing key is one word, which neither `*` nor `#` of another binding is.

    Args:
        prefix: first word of every name.
        trial: the trial's name.
    """

    prefix: str
    trial: str

    def __post_init__(self) -> None:
        check_address(self.prefix)
        check_address(self.trial)

    @property
    def exchange(self) -> str:
        """The trial's exchange."""
        return f"{self.prefix}.{self.trial}"

    def queue(self, address: str) -> str:
        """Return the name of the queue of `address`."""
        check_address(address)
        return f"{self.prefix}.{self.trial}.{address}"


def check_address(address: str) -> None:
    """Refuse what is not one word. Names come from the checked manifest, so anything else is our own bug."""
    if not _WORD.fullmatch(address):
        raise ValueError(f"{address!r} is not an address")
