"""The address at which a peer shows its metrics."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from ppdl_mq.errors import PeerFileError

# HOST:PORT, an IPv6 address in brackets; the host is never left out, since that would mean everybody.
PATTERN: Final = r"^(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?):[0-9]{1,5}$"
FORM: Final = "HOST:PORT, such as 127.0.0.1:9464 or [::1]:9464"

_MAX_PORT: Final = 65_535


class Listening(NamedTuple):
    """Where to listen.

    Args:
        host: name or address, without brackets.
        port: TCP port; 0 for any that is free.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_listening(text: str) -> Listening:
    """Read `HOST:PORT`.

    Raises:
        PeerFileError: it is none.
    """
    host, _, port = text.rpartition(":")
    if re.fullmatch(PATTERN, text, re.ASCII) is None or int(port) > _MAX_PORT:
        raise PeerFileError(f"Metrics cannot be shown at {text[:60]!r}.", hint=f"Write {FORM}.")
    return Listening(host.strip("[]"), int(port))
