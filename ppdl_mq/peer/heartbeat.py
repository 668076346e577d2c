"""Tells the service manager that the peer's loop goes round: systemd's notification protocol, one datagram a message.

Source: sd_notify(3) and systemd.service(5), "WatchdogSec=".
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Mapping
from typing import Final

_SOCKET: Final = "NOTIFY_SOCKET"
_WATCHDOG: Final = "WATCHDOG_USEC"


class Heartbeat:
    """What a service manager is told; nothing where none listens.

    Args:
        environment: of the process.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        path = environment.get(_SOCKET, "")
        self._path = "\0" + path[1:] if path.startswith("@") else path  # @: a name that is in no folder (Linux)
        given = environment.get(_WATCHDOG, "")
        # Twice as often as it has to be, as the manual advises.
        self._every_s = int(given) / 2e6 if given.isdecimal() and len(given) < 20 else 0.0
        self._beaten_at: float | None = None
        self._said = ""

    def beat(self, said: str) -> None:
        """Tell that the loop goes round, as often as the service manager wants, and what it does.

        Args:
            said: one line for `systemctl status`.
        """
        lines = [] if self._beaten_at is not None else ["READY=1"]
        now = time.monotonic()
        is_due = self._beaten_at is None or (self._every_s and now - self._beaten_at >= self._every_s)
        if is_due:
            self._beaten_at = now
            lines += ["WATCHDOG=1"] if self._every_s else []
        if said != self._said:
            self._said = said
            lines.append(f"STATUS={said}")
        self._send(lines)

    def end(self) -> None:
        """Tell that the peer is about to end by itself."""
        self._send(["STOPPING=1"])

    def _send(self, lines: list[str]) -> None:
        if not self._path or not lines:
            return
        # Whoever listens may have gone: that is no reason to stop training.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
            to.setblocking(False)
            to.sendto("\n".join(lines).encode(), self._path)
