"""Network namespaces of Linux: networks for those processes only that are started inside.

    with Namespace() as broker, Namespace() as anna:
        link = Link(1, broker, anna)
        with anna.inside():
            ...             # what is opened and started here sees its end of the link, and no other way
        link.cut()

They have no name and leave nothing behind: Linux takes one away, with its devices, when neither a process nor an open
file holds it any more, however that came about. The machine's own interfaces, routes and firewall are not touched.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_OURS: Final = Path("/proc/thread-self/ns/net")
_NETWORK: Final = 0x40000000  # CLONE_NEWNET
_SOON_S: Final = 30.0


def why_not() -> str | None:
    """Say in one line why there are no namespaces here; None when there are."""
    if os.environ.get("CI") == "true":
        return "CI=true: network namespaces need root, and CI is not to"
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux, and root"
    for program in ("ip", "unshare"):
        if shutil.which(program) is None:
            return f"{program} is not on the PATH (iproute2, util-linux)"
    command = ["unshare", "--net", "ip", "link", "add", "type", "veth"]
    tried = subprocess.run(command, capture_output=True, text=True, timeout=_SOON_S, check=False)
    return f"no network namespaces here: {tried.stderr.strip()}" if tried.returncode else None


class Namespace:
    """A network with nothing in it but its loopback."""

    def __init__(self) -> None:
        with _and_back():
            _system("unshare", _NETWORK)
            self._file = os.open(_OURS, os.O_RDONLY)
        self.ip("link", "set", "lo", "up")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    @property
    def path(self) -> Path:
        """Where other programs find it."""
        return Path(f"/proc/{os.getpid()}/fd/{self._file}")

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Have this thread in it for a while, and for good what it opens and starts meanwhile."""
        with _and_back():
            _system("setns", self._file, _NETWORK)
            yield

    def holds(self, pid: int) -> bool:
        """Say whether a process is in it."""
        return Path(f"/proc/{pid}/ns/net").samefile(self.path)

    def ip(self, *arguments: str) -> None:
        """Run `ip` in it."""
        with self.inside():
            subprocess.run(["ip", *arguments], timeout=_SOON_S, check=True)


class Link:
    """A cable between two namespaces, and a net of four addresses for it alone, which no other network has (RFC 5737).

    Args:
        number: differs from that of every other link of the two.
        broker: one end.
        peer: the other end.
    """

    def __init__(self, number: int, broker: Namespace, peer: Namespace) -> None:
        self.broker, self.peer = (f"192.0.2.{4 * number + end}" for end in (1, 2))
        self._device, self._at = f"link{number}", peer
        ends = ("name", self._device, "type", "veth", "peer", "name", self._device)
        broker.ip("link", "add", *ends, "netns", str(peer.path))
        for namespace, address in ((broker, self.broker), (peer, self.peer)):
            namespace.ip("address", "add", f"{address}/30", "dev", self._device)
            namespace.ip("link", "set", self._device, "up")

    def cut(self) -> None:
        """Take the peer's end down."""
        self._at.ip("link", "set", self._device, "down")

    def mend(self) -> None:
        """Have it up again."""
        self._at.ip("link", "set", self._device, "up")


@contextmanager
def _and_back() -> Iterator[None]:
    """Bring this thread back to where it was."""
    before = os.open(_OURS, os.O_RDONLY)
    try:
        yield
    finally:
        _system("setns", before, _NETWORK)
        os.close(before)


def _system(call: str, *arguments: int) -> None:
    """Call the system; Python has these in `os` from 3.12 on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, call)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{call}: {os.strerror(ctypes.get_errno())}")
