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
        folder: with ca.pem; `use` copies the certificate in use to it.
        asks_certificate: whether clients must show one, to log in with (SASL EXTERNAL).
    """

    def __init__(self, folder: Path, *, asks_certificate: bool) -> None:
        self.tls_port = free_port()
        self.folder = folder
        asks = "true" if asks_certificate else "false"
        verify = "verify_peer" if asks_certificate else "verify_none"
        super().__init__(
            config=(
                f"listeners.ssl.1 = 127.0.0.1:{self.tls_port}\n"
                f"ssl_options.cacertfile = {folder / 'ca.pem'}\n"
                f"ssl_options.certfile = {folder / 'current.pem'}\n"
                f"ssl_options.keyfile = {folder / 'current.key'}\n"
                f"ssl_options.verify = {verify}\n"
                f"ssl_options.fail_if_no_peer_cert = {asks}\n"
                "ssl_cert_login_from = common_name\n"
                "auth_mechanisms.1 = PLAIN\n" + ("auth_mechanisms.2 = EXTERNAL\n" if asks_certificate else "")
            ),
            plugins=("rabbitmq_auth_mechanism_ssl",) if asks_certificate else (),
        )

    def use(self, name: str) -> None:
        """Show the certificate NAME.pem from now on."""
        for suffix in (".pem", ".key"):
            (self.folder / f"current{suffix}").write_bytes((self.folder / f"{name}{suffix}").read_bytes())
        if self.is_running:
            self.ctl("eval", "ssl:clear_pem_cache().")

    def address(self, *, host: str = "localhost", client: str | None = None, ca: str = "ca") -> BrokerAddress:
        """Return its TLS address, with the client certificate CLIENT.pem where one is named."""
        address = BrokerAddress.parse(f"amqps://{'' if client else 'guest@'}{host}:{self.tls_port}")
        return BrokerAddress(
            scheme="amqps",
            hosts=address.hosts,
            user=address.user,
            ca_file=self.folder / f"{ca}.pem",
            certificate_file=None if client is None else self.folder / f"{client}.pem",
            key_file=None if client is None else self.folder / f"{client}.key",
        )
