"""The hosts in a broker's URL: one, or the nodes of a cluster, any of which will do."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import unquote

from ppdl_mq.config import limits
from ppdl_mq.errors import ConfigError

_FORM = "Write HOST, HOST:PORT or [IPV6]:PORT, several with commas between them: amqps://USER@a,b:5673,c/VHOST."
_NAME = re.compile(r"[^\s\x00-\x20\x7f@,:/?#%\[\]]{1,253}")
_ENTRY = re.compile(r"(\[(?P<six>[^\[\]]*)\]|(?P<name>[^\[\]:]*))(:(?P<port>[0-9]{0,5}))?")


@dataclass(frozen=True, slots=True)
class Host:
    """One node of the broker.

    Args:
        name: name or IP address, without brackets.
        port: TCP port.
    """

    name: str
    port: int

    def __str__(self) -> str:
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"


def hosts_of(text: str, *, port: int) -> tuple[Host, ...]:
    """Read what stands between the user and the vhost of a URL.

    Args:
        text: `a,b:5673,[::1]:5674`.
        port: of hosts that name none.

    Raises:
        ConfigError: there is none, one is malformed, twice there, or there are too many. Its text quotes nothing of
            `text`, where a misplaced password may stand.
    """
    if not text:
        raise ConfigError("The broker's URL names no host.", hint=_FORM)
    entries = text.split(",")
    if len(entries) > limits.MAX_BROKER_HOSTS:
        raise ConfigError(f"The broker's URL names more than {limits.MAX_BROKER_HOSTS} hosts.")
    hosts = [_host(entry, number, port) for number, entry in enumerate(entries, start=1)]
    if len(set(hosts)) < len(hosts):
        raise ConfigError("The broker's URL names the same host twice.", hint="Leave one of them out.")
    return tuple(hosts)


def is_this_machine(name: str) -> bool:
    """Tell whether a host's name or address, of IPv6 with or without a zone, never leaves this machine."""
    try:
        return ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return name == "localhost"


def _host(entry: str, number: int, port: int) -> Host:
    found = _ENTRY.fullmatch(entry)
    if found is None:
        raise _malformed(number)
    if found["six"] is not None:
        name = unquote(found["six"]).lower()
        try:
            ipaddress.IPv6Address(name)
        except ValueError:
            raise _malformed(number) from None
    else:
        name = found["name"].lower()
        if not _NAME.fullmatch(name):
            raise _malformed(number)
    named_port = int(found["port"]) if found["port"] else port
    if not 0 < named_port < 2**16:
        raise _malformed(number)
    return Host(name, named_port)


def _malformed(number: int) -> ConfigError:
    return ConfigError(f"Host {number} in the broker's URL is malformed.", hint=_FORM)
