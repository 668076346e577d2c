"""What a failed TLS handshake means, and who can mend it."""

from __future__ import annotations

import ssl
from typing import Final

from cryptography import x509

from ppdl_mq.transport.findings import Finding
from ppdl_mq.transport.rabbitmq.doctor.certificates import day, names_of, now, shown_certificate
from ppdl_mq.transport.rabbitmq.doctor.node import Node

# OpenSSL's numbers, X509_V_ERR_*.
_NOT_YET: Final = 9
_EXPIRED: Final = 10
_UNKNOWN_ISSUER: Final = (2, 18, 19, 20, 21, 27)
_OTHER_NAME: Final = (62, 64)

_WANTS_OURS: Final = ("ALERT_CERTIFICATE_REQUIRED", "ALERT_HANDSHAKE_FAILURE")
_REFUSES_OURS: Final = ("UNKNOWN_CA", "BAD_CERTIFICATE", "CERTIFICATE_UNKNOWN", "CERTIFICATE_EXPIRED", "ACCESS_DENIED")
_NO_TLS: Final = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG")


def tls_fault(error: OSError, node: Node) -> Finding:
    """Turn what OpenSSL said into a finding.

    Args:
        error: of the handshake, or of the first bytes after it.
        node: that was talked to.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return _not_verified(error, node)
    reason = getattr(error, "reason", None) or ""
    if any(word in reason for word in _REFUSES_OURS):
        return _fault(
            f"The broker at {node.host} does not accept this organisation's certificate ({_plain(reason)}).",
            "Ask its administrator to trust the CA that issued it, or use a certificate of a CA that it trusts.",
            "ssl_options.cacertfile = FILE   # in rabbitmq.conf: must hold the CA of the peers' certificates",
        )
    if any(word in reason for word in _WANTS_OURS) and not node.broker.by_certificate:
        return _fault(
            f"The broker at {node.host} wants a client certificate, and none is set.",
            "Set certificate_file and key_file under [broker] of peer.toml; the administrator names the CA to ask.",
            "ssl_options.fail_if_no_peer_cert = false   # in rabbitmq.conf, to let peers in that have a password",
        )
    if isinstance(error, ssl.SSLEOFError | ConnectionError):
        return Finding(
            check="tls",
            result="fail",
            says=f"{node} hangs up in the middle of the TLS handshake.",
            todo="Is it a port with TLS, and the broker up? A proxy in between may hang up when it is not.",
            line="rabbitmq-diagnostics listeners   # and the broker's log",
            passes=True,
        )
    if any(word in reason for word in _NO_TLS):
        return _fault(
            f"{node} does not speak TLS, and the URL says amqps://.",
            "Give the port of the TLS listener, mostly 5671; amqp:// is for ports without TLS.",
            "listeners.ssl.default = 5671   # in rabbitmq.conf, with ssl_options.*",
        )
    if "PROTOCOL_VERSION" in reason or "UNSUPPORTED_PROTOCOL" in reason:
        return _fault(
            f"The broker at {node.host} has no version of TLS that is new enough.",
            "ppdl-mq asks for TLS 1.2 or 1.3.",
            "ssl_options.versions.1 = tlsv1.3   # in rabbitmq.conf; and .2 = tlsv1.2",
        )
    if isinstance(error, TimeoutError):
        return Finding(
            check="tls",
            result="fail",
            says=f"{node} does not answer the TLS handshake.",
            todo="Is it a port with TLS, and the broker not overloaded?",
            passes=True,
        )
    return _fault(
        f"TLS with {node} fails: {_plain(reason) or error.strerror or 'for no stated reason'}.",
        "Check ca_file, certificate_file and key_file, and the broker's log.",
        "rabbitmq-diagnostics listeners",
    )


def spoken_to_in_the_clear(node: Node) -> Finding:
    """Say that an amqp:// URL leads to a port with TLS."""
    return _fault(
        f"{node} speaks TLS, and the URL says amqp://.",
        "Write amqps:// in the URL.",
        "",
    )


def _not_verified(error: ssl.SSLCertVerificationError, node: Node) -> Finding:
    code = error.verify_code
    shown = shown_certificate(node)
    if code in (_NOT_YET, _EXPIRED):
        return _out_of_time(code, shown, node)
    if code in _OTHER_NAME:
        names = "another name" if shown is None else names_of(shown)
        return _fault(
            f"The certificate that {node.host} shows is for {names}, not for {node.host}.",
            "Write the name from the certificate in the URL, or have a certificate issued for this one. If you know "
            "neither, somebody may sit in between: do not go on.",
            f"ssl_options.certfile = FILE   # in rabbitmq.conf: with {node.host} among its subjectAltNames",
        )
    if code in _UNKNOWN_ISSUER:
        issuer = "" if shown is None else f" ({shown.issuer.rfc4514_string()})"
        trusted = f"those in {node.broker.ca_file}" if node.broker.ca_file else "those that this machine trusts"
        return _fault(
            f"The issuer{issuer} of the certificate that {node.host} shows is not among {trusted}.",
            "Ask the broker's administrator for the CA's certificate and name it as ca_file under [broker] of "
            "peer.toml; compare its fingerprint over the telephone.",
            "openssl x509 -in CA -noout -subject -fingerprint -sha256   # of the CA that issued ssl_options.certfile: "
            "send that file; the intermediate certificates, where there are any, belong into certfile",
        )
    return _fault(
        f"The certificate that {node.host} shows does not hold: {error.verify_message}.",
        "Ask the broker's administrator for a certificate that holds.",
        f"openssl s_client -connect {node} -showcerts",
    )


def _out_of_time(code: int, shown: x509.Certificate | None, node: Node) -> Finding:
    """Say that it is the certificate, or this machine's clock; which of the two nobody can tell from here."""
    when = ""
    if shown is not None:
        when = f": it holds from {day(shown.not_valid_before_utc)} to {day(shown.not_valid_after_utc)}"
    what = "is not valid yet" if code == _NOT_YET else "has expired"
    return _fault(
        f"The certificate of {node.host}, or of its CA, {what}{when}, and this machine's clock says {day(now())}.",
        "Check this machine's clock (timedatectl); where it is right, the broker's certificate must be renewed.",
        "ssl_options.certfile = FILE   # in rabbitmq.conf: a renewed certificate; then: rabbitmqctl eval "
        "'ssl:clear_pem_cache().'",
    )


def _fault(says: str, todo: str, line: str) -> Finding:
    return Finding(check="tls", result="fail", says=says, todo=todo, line=line)


def _plain(reason: str) -> str:
    """Return OpenSSL's constant as words."""
    return reason.replace("_", " ").lower()
