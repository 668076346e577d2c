"""What the tests of the doctor share: a test CA, nodes with TLS, and shorthand for findings."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.transport.address import Names
from ppdl_mq.transport.findings import Finding, Result, Wanted
from ppdl_mq.transport.opening import examine_relay
from tests.rabbit import RabbitNode

ROOT = Path(__file__).resolve().parents[2]
CHUNK_BYTES = 100_000


def make_ca() -> ModuleType:
    """Load brokers/tls/make_ca.py, which is a script and no part of the package."""
    spec = importlib.util.spec_from_file_location("make_ca", ROOT / "brokers" / "tls" / "make_ca.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wanted(trial: str, *, chunk_bytes: int = CHUNK_BYTES, shares_weights: bool = True) -> Wanted:
    """What `mercy` needs in a trial with `basel`."""
    return Wanted(
        names=Names(prefix="test", trial=trial),
        me="mercy",
        peers=("basel", "mercy"),
        shares_weights=shares_weights,
        chunk_bytes=chunk_bytes,
    )


def look(broker: BrokerAddress, needs: Wanted | None = None, *, thorough: bool = True) -> list[Finding]:
    """Examine, and return everything that was found."""
    return list(examine_relay(broker, needs, thorough=thorough))


def of(findings: Iterable[Finding], result: Result) -> dict[str, Finding]:
    """Return the findings with this result by their check; the first of each."""
    found: dict[str, Finding] = {}
    for finding in findings:
        if finding.result == result:
            found.setdefault(finding.check, finding)
    return found


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class TlsNode(RabbitNode):
    """A node with a TLS listener, whose certificate a test can change.

    Args:
        files: folder with ca.pem; `use` copies the certificate in use to it.
        asks_certificate: whether clients must show one, to log in with (SASL EXTERNAL).
    """

    def __init__(self, files: Path, *, asks_certificate: bool) -> None:
        self.tls_port = free_port()
        self.files = files
        super().__init__(
            config=self._config(asks_certificate=asks_certificate),
            plugins=("rabbitmq_auth_mechanism_ssl",) if asks_certificate else (),
        )

    def _config(self, *, asks_certificate: bool) -> str:
        """The lines of brokers/tls/rabbitmq.conf for people, with the paths and ports of a test."""
        changed = {
            "listeners.tcp": None,  # the tests look at the plain port, too
            "listeners.ssl.default": None,
            "ssl_options.cacertfile": self.files / "ca.pem",
            "ssl_options.certfile": self.files / "current.pem",
            "ssl_options.keyfile": self.files / "current.key",
        }
        if not asks_certificate:  # as the comment in the file says
            changed |= {
                "ssl_options.verify": "verify_none",
                "ssl_options.fail_if_no_peer_cert": "false",
                "auth_mechanisms.1": "PLAIN",
            }
        lines = (ROOT / "brokers" / "tls" / "rabbitmq.conf").read_text().splitlines()
        settings = dict(line.split(" = ", 1) for line in lines if line and not line.startswith("#"))
        assert changed.keys() <= settings.keys()
        settings = {key: str(value) for key, value in (settings | changed).items() if value is not None}
        settings["listeners.ssl.1"] = f"127.0.0.1:{self.tls_port}"
        return "".join(f"{key} = {value}\n" for key, value in settings.items())

    def use(self, name: str) -> None:
        """Show the certificate NAME.pem from now on."""
        for suffix in (".pem", ".key"):
            (self.files / f"current{suffix}").write_bytes((self.files / f"{name}{suffix}").read_bytes())
        if self.is_running:
            self.ctl("eval", "ssl:clear_pem_cache().")

    def address(self, *, host: str = "localhost", client: str | None = None, ca: str = "ca") -> BrokerAddress:
        """Return its TLS address, with the client certificate CLIENT.pem where one is named."""
        address = BrokerAddress.parse(f"amqps://{'' if client else 'guest@'}{host}:{self.tls_port}")
        return BrokerAddress(
            scheme="amqps",
            hosts=address.hosts,
            user=address.user,
            ca_file=self.files / f"{ca}.pem",
            certificate_file=None if client is None else self.files / f"{client}.pem",
            key_file=None if client is None else self.files / f"{client}.key",
        )
