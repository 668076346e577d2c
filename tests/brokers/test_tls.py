"""TLS with a real RabbitMQ: what goes wrong is found, in one sentence, by the doctor and before a peer trains."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import ssl
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.errors import RelayRefused
from ppdl_mq.transport.base import Transport
from ppdl_mq.transport.findings import Finding, refuse_failures
from ppdl_mq.transport.opening import open_transport
from tests.brokers.planned import PlannedTrial
from tests.brokers.scene import ROOT, TlsNode, look, make_ca, of, wanted
from tests.rabbit import why_absent
from tests.trial import TrialInProcess, manifest_for
from tests.trials.exact import assert_equal_bits, expected_state

pytestmark = pytest.mark.rabbitmq

Authority = make_ca().Authority


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One CA with good and bad certificates, and another that nobody knows."""
    folder = tmp_path_factory.mktemp("tls")
    now = datetime.now(UTC)
    own, other = Authority.new("the trial's CA"), Authority.new("another CA")
    own.write(folder)
    (folder / "elsewhere").mkdir()
    other.write(folder / "elsewhere")
    (folder / "other.pem").write_bytes((folder / "elsewhere" / "ca.pem").read_bytes())
    here = ("localhost", "127.0.0.1")
    own.issue(folder / "good", "localhost", server_names=here)
    own.issue(folder / "soon", "localhost", server_names=here, days=3)
    own.issue(folder / "expired", "localhost", server_names=here, days=1, begin=now - timedelta(days=3))
    own.issue(folder / "future", "localhost", server_names=here, begin=now + timedelta(days=3))
    own.issue(folder / "named-otherwise", "relay.example", server_names=("relay.example",))
    own.issue(folder / "mercy", "mercy")
    own.issue(folder / "nobody", "nobody")
    own.issue(folder / "old-client", "mercy", days=1, begin=now - timedelta(days=3))
    other.issue(folder / "stranger", "mercy")
    return folder


def started(folder: Path, *, asks_certificate: bool) -> Iterator[TlsNode]:
    reason = why_absent()
    if reason is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{reason} (CI=true: the RabbitMQ tests must run)")
        pytest.skip(reason)
    node = TlsNode(folder, asks_certificate=asks_certificate)
    node.use("good")
    with node:
        yield node


@pytest.fixture(scope="module")
def tls_node(certificates: Path) -> Iterator[TlsNode]:
    yield from started(certificates, asks_certificate=False)


@pytest.fixture
def node(tls_node: TlsNode) -> Iterator[TlsNode]:
    """A node with TLS and passwords, with its good certificate again afterwards."""
    yield tls_node
    tls_node.use("good")


@pytest.fixture(scope="module")
def strict_node(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Iterator[TlsNode]:
    """A node that lets in whoever shows a certificate: `mercy` is a user there, without a password."""
    folder = tmp_path_factory.mktemp("strict")
    for file in certificates.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    for node in started(folder, asks_certificate=True):
        node.ctl("add_user", "mercy", "")
        node.ctl("clear_password", "mercy")
        node.ctl("set_permissions", "mercy", ".*", ".*", ".*")
        yield node


def the_failure(broker: BrokerAddress) -> Finding:
    """Return the one failure, and see that a peer that begins would end by it."""
    findings = look(broker, wanted("tls"), thorough=False)
    (failure,) = [finding for finding in findings if finding.result == "fail"]
    with pytest.raises(RelayRefused) as refused:
        refuse_failures(findings)
    assert refused.value.message == failure.says
    assert failure.line in str(refused.value)
    return failure


def test_a_good_certificate_is_all_it_takes(node: TlsNode) -> None:
    findings = look(node.address())
    assert not of(findings, "fail"), findings
    assert {"tls", "certificate", "login", "round trip"} <= of(findings, "pass").keys()
    with open_transport(node.address(), trial="tls", prefix="test", peer="mercy") as transport:
        transport.declare("mercy")
        transport.publish("mercy", [b"sealed"])
        transport.delete("mercy")


def test_the_address_will_do_as_a_name(node: TlsNode) -> None:
    assert not of(look(node.address(host="127.0.0.1")), "fail")


def test_an_authority_that_is_not_ours(node: TlsNode) -> None:
    failure = the_failure(node.address(ca="other"))
    assert "CN=the trial's CA" in failure.says
    assert "other.pem" in failure.says
    assert "ca_file" in failure.todo


def test_without_a_ca_file_the_systems_authorities_decide(node: TlsNode) -> None:
    failure = the_failure(dataclasses.replace(node.address(), ca_file=None))
    assert "those that this machine trusts" in failure.says


def test_an_expired_certificate(node: TlsNode) -> None:
    node.use("expired")
    failure = the_failure(node.address())
    assert "has expired: it holds from" in failure.says
    assert "clock" in failure.says
    assert "certfile" in failure.line


def test_a_certificate_of_the_future_or_a_clock_of_the_past(node: TlsNode) -> None:
    node.use("future")
    failure = the_failure(node.address())
    assert "is not valid yet: it holds from" in failure.says
    assert f"clock says {datetime.now(UTC):%Y-%m-%d}" in failure.says
    assert "timedatectl" in failure.todo


def test_a_certificate_that_will_expire_during_the_trial(node: TlsNode) -> None:
    node.use("soon")
    findings = look(node.address())
    assert not of(findings, "fail")
    assert "in 2 days" in of(findings, "warn")["certificate"].says


def test_a_certificate_for_another_host(node: TlsNode) -> None:
    node.use("named-otherwise")
    failure = the_failure(node.address())
    assert failure.says == "The certificate that localhost shows is for relay.example, not for localhost."
    assert "subjectAltNames" in failure.line
    assert "127.0.0.1" in the_failure(node.address(host="127.0.0.1")).says


def test_tls_spoken_to_a_plain_port(node: TlsNode) -> None:
    plain = BrokerAddress.parse(f"amqps://guest@localhost:{node.port}")
    failure = the_failure(plain)
    assert failure.says == f"localhost:{node.port} does not speak TLS, and the URL says amqps://."
    assert "listeners.ssl" in failure.line


def test_plain_spoken_to_a_tls_port(node: TlsNode) -> None:
    failure = the_failure(BrokerAddress.parse(f"amqp://guest@localhost:{node.tls_port}"))
    assert failure.says == f"localhost:{node.tls_port} speaks TLS, and the URL says amqp://."


def test_a_client_certificate_logs_in(strict_node: TlsNode) -> None:
    findings = look(strict_node.address(client="mercy"), wanted("external"))
    assert not of(findings, "fail"), findings
    assert "EXTERNAL is used" in of(findings, "pass")["mechanism"].says
    assert "CN=mercy" in of(findings, "pass")["own certificate"].says


@pytest.mark.slow
def test_a_whole_trial_of_peers_that_log_in_by_certificate_under_the_plans_rights(
    strict_node: TlsNode, certificates: Path, tmp_path: Path
) -> None:
    """As the pages say it: the definitions imported, no password set, and the common name is the user's."""
    manifest = manifest_for(("anna", "bert"), name="by-certificate", protocol="server-aided")
    planned = PlannedTrial(strict_node, manifest, tmp_path)
    planned.import_definitions()
    authority = Authority.open(certificates)
    for user in planned.users.values():
        authority.issue(strict_node.files / user, user)

    def opened(peer: str) -> Transport:
        address = strict_node.address(client=planned.users[peer])
        address = dataclasses.replace(address, vhost=planned.vhost, declare=False)
        return open_transport(address, trial=manifest.name, prefix=manifest.relay.prefix, peer=peer)

    trial = TrialInProcess(manifest, tmp_path / "peers", opened)
    trial.run(timeout_s=120)
    expected = expected_state(manifest, trial.splits)
    for runner in trial.runners.values():
        assert_equal_bits(runner.model_path, expected)


def test_where_certificates_log_in_passwords_do_not(strict_node: TlsNode) -> None:
    """The configuration for people offers EXTERNAL alone, on the plain port of this test as well."""
    failure = the_failure(BrokerAddress.parse(strict_node.url()))
    assert failure.check == "mechanism"
    assert failure.line.startswith("auth_mechanisms.1 = PLAIN")


def test_a_missing_client_certificate(strict_node: TlsNode) -> None:
    failure = the_failure(strict_node.address())
    assert failure.says == "The broker at localhost wants a client certificate, and none is set."
    assert "certificate_file" in failure.todo
    assert "fail_if_no_peer_cert" in failure.line


def test_a_refusal_that_was_lost_is_asked_for_again(certificates: Path) -> None:
    """With TLS 1.3 the alert comes after the handshake; a reset that overtakes it swallows it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for asks in (False, True):
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.minimum_version = ssl.TLSVersion.TLSv1_3
                context.load_cert_chain(certificates / "good.pem", certificates / "good.key")
                context.load_verify_locations(certificates / "ca.pem")
                context.verify_mode = ssl.CERT_REQUIRED if asks else ssl.CERT_NONE
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    try:
                        stream = context.wrap_socket(connection, server_side=True)
                    except ssl.SSLError:  # the alert is on its way
                        continue
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    stream.close()  # with a reset, and without a word

        server = threading.Thread(target=serve, daemon=True)
        server.start()
        broker = BrokerAddress(
            scheme="amqps",
            hosts=BrokerAddress.parse(f"amqps://guest@localhost:{listener.getsockname()[1]}").hosts,
            user="guest",
            ca_file=certificates / "ca.pem",
        )
        failure = the_failure(broker)
    server.join(10.0)
    assert not server.is_alive()
    assert "wants a client certificate" in failure.says


def test_a_client_certificate_of_a_stranger(strict_node: TlsNode) -> None:
    failure = the_failure(strict_node.address(client="stranger"))
    assert "does not accept this organisation's certificate" in failure.says
    assert "cacertfile" in failure.line


def test_an_expired_client_certificate_is_told_by_its_dates(strict_node: TlsNode) -> None:
    findings = look(strict_node.address(client="old-client"), thorough=False)
    failures = of(findings, "fail")
    assert "(CN=mercy) holds from" in failures["own certificate"].says
    with pytest.raises(RelayRefused, match="this machine's clock says"):
        refuse_failures(findings)


def test_a_certificate_that_is_no_user_of_the_broker(strict_node: TlsNode) -> None:
    failure = the_failure(strict_node.address(client="nobody"))
    assert failure.check == "login"
    assert "refuses the client certificate" in failure.says
    assert failure.line.startswith("rabbitmqctl add_user USER ''")


def test_a_broker_without_external(node: TlsNode) -> None:
    failure = the_failure(node.address(client="mercy"))
    assert failure.check == "mechanism"
    assert "rabbitmq-plugins enable rabbitmq_auth_mechanism_ssl" in failure.line


def test_files_that_are_no_certificates_are_told_before_anybody_is_reached(node: TlsNode, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    for name in ("ca.pem", "missing.pem"):
        with pytest.raises(RelayRefused, match=f"ca_file .*{name} cannot be used"):
            look(dataclasses.replace(node.address(), ca_file=tmp_path / name))
    mercy = node.address(client="mercy")
    with pytest.raises(
        RelayRefused, match=r"certificate_file .*missing\.pem, with key_file .* cannot be used: No such file"
    ):
        look(dataclasses.replace(mercy, certificate_file=tmp_path / "missing.pem"))


def test_nothing_of_ours_reaches_a_server_that_is_not_verified(certificates: Path) -> None:
    """Every connection ends with the handshake: no greeting, no user, no password, no certificate of ours."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "named-otherwise.pem", certificates / "named-otherwise.key")
    context.load_verify_locations(certificates / "ca.pem")
    context.verify_mode = ssl.CERT_OPTIONAL
    heard: list[tuple[bytes, object]] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as stream:
                    shown = stream.getpeercert()
                    heard.append((stream.recv(4096), shown))

        server = threading.Thread(target=serve, daemon=True)
        server.start()
        broker = BrokerAddress(
            scheme="amqps",
            hosts=BrokerAddress.parse(f"amqps://localhost:{listener.getsockname()[1]}").hosts,
            ca_file=certificates / "ca.pem",
            certificate_file=certificates / "mercy.pem",
            key_file=certificates / "mercy.key",
        )
        failure = the_failure(broker)
        listener.shutdown(socket.SHUT_RDWR)
    server.join(10.0)
    assert not server.is_alive()
    assert "relay.example" in failure.says  # so the second, unverified look has taken place
    assert heard
    assert all(came == (b"", None) or came == (b"", {}) for came in heard), heard


def test_the_script_for_people_writes_what_a_broker_takes(tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    script = [sys.executable, str(ROOT / "brokers" / "tls" / "make_ca.py"), str(folder)]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*script, *arguments], capture_output=True, text=True, timeout=60, check=False)

    first = run("--server", "relay.example", "--server", "10.0.0.1", "--client", "mercy")
    assert first.returncode == 0, first.stderr
    assert "SHA-256" in first.stdout
    authority = (folder / "ca.pem").read_bytes()
    assert run("--client", "charite").returncode == 0
    assert (folder / "ca.pem").read_bytes() == authority
    again = run("--client", "mercy")
    assert again.returncode == 1
    assert "exists already" in again.stderr
    for name in ("../mallory", "guest", "server", "ca", ""):
        refused = run("--client", name)
        assert refused.returncode == 2
        assert "cannot be a peer's user" in refused.stderr
    assert {file.name for file in tmp_path.iterdir()} == {"tls"}
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in folder.glob("*.key"))
    assert {file.stem for file in folder.glob("*.pem")} == {"ca", "server", "mercy", "charite"}
