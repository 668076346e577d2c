"""Certificates and the clock: the broker's, and our own client certificate."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509

from ppdl_mq.config import limits
from ppdl_mq.transport.findings import Finding
from ppdl_mq.transport.rabbitmq.doctor.node import Node

_SOON: Final = timedelta(days=30)


def now() -> datetime:
    """Return this machine's time; the one place, so that a test can set the clock."""
    return datetime.now(UTC)


def day(moment: datetime) -> str:
    """Return a moment as people write it, in UTC."""
    return moment.strftime("%Y-%m-%d %H:%M UTC")


def expiry(stream: socket.socket, node: Node) -> Finding:
    """Say for how long the broker's certificate will do. The handshake has checked that it holds now."""
    assert isinstance(stream, ssl.SSLSocket), "of a TLS connection"
    raw = stream.getpeercert(binary_form=True)
    assert raw is not None, "a verified peer has a certificate"
    end = x509.load_der_x509_certificate(raw).not_valid_after_utc
    left = end - now()
    figures = {"days_left": left.days}
    if left < _SOON:
        return Finding(
            check="certificate",
            result="warn",
            says=f"The certificate of {node.host} expires on {day(end)}, in {left.days} days.",
            todo="A trial may last longer: have the broker's administrator renew it before.",
            figures=figures,
        )
    return Finding(
        check="certificate", result="pass", says=f"The broker's certificate holds until {day(end)}.", figures=figures
    )


def own_certificate(node: Node) -> Iterator[Finding]:
    """Look at our own client certificate, where there is one. Files that do not open are the TLS context's to tell."""
    if node.broker.certificate_file is None:
        return
    try:
        certificate = x509.load_pem_x509_certificate(node.broker.certificate_file.read_bytes())
    except (OSError, ValueError):
        return
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    check, who = "own certificate", f"This organisation's certificate ({certificate.subject.rfc4514_string()})"
    if not begin <= now() <= end:
        yield Finding(
            check=check,
            result="fail",
            says=f"{who} holds from {day(begin)} to {day(end)}, and this machine's clock says {day(now())}.",
            todo="Check this machine's clock; where it is right, ask whoever issued the certificate for a new one.",
        )
    elif end - now() < _SOON:
        yield Finding(
            check=check,
            result="warn",
            says=f"{who} expires on {day(end)}, in {(end - now()).days} days.",
            todo="A trial may last longer: ask whoever issued it for a new one.",
        )
    else:
        yield Finding(check=check, result="pass", says=f"{who} holds until {day(end)}.")


def shown_certificate(node: Node) -> x509.Certificate | None:
    """Fetch the certificate that a node shows, after its verification has failed, to say what is wrong with it.

    This connection trusts nobody: it sends no password, no certificate of ours, not even the AMQP greeting, and ends
    with the handshake. None where the node shows nothing to a stranger.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        contextlib.suppress(OSError, ValueError),  # ssl.SSLError is an OSError
        socket.create_connection((node.host, node.port), limits.TCP_S) as connection,
        context.wrap_socket(connection, server_hostname=node.host) as stream,
    ):
        raw = stream.getpeercert(binary_form=True)
        return None if raw is None else x509.load_der_x509_certificate(raw)
    return None


def names_of(certificate: x509.Certificate) -> str:
    """List the names that a server's certificate is for."""
    names: list[str] = []
    with contextlib.suppress(x509.ExtensionNotFound, ValueError):
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names += extension.value.get_values_for_type(x509.DNSName)
        names += map(str, extension.value.get_values_for_type(x509.IPAddress))
    return ", ".join(names[:8]) or "no name at all"
