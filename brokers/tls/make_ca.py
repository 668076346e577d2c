#!/usr/bin/env python3
"""Make a private certificate authority for one broker, and certificates signed by it. Needs `cryptography` alone.

    brokers/tls/make_ca.py FOLDER --server relay.example --client mercy --client charite

Writes into FOLDER: ca.pem and ca.key, server.pem and server.key, and for each client NAME.pem and NAME.key. Run again
with other names it adds to what is there and overwrites nothing. Keys have mode 0600 and no passphrase: ca.key can
issue certificates that the broker takes for any peer's, so keep it off the broker.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_DAYS = 3650
DAYS = 397  # what browsers and appliances still accept
TAKEN = ("ca", "server", "guest")  # names of files here; and RabbitMQ's own administrator, whom no peer may be


class Authority:
    """A certificate authority.

    Args:
        certificate: its own.
        key: what it signs with.
    """

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate = certificate
        self._key = key

    @classmethod
    def new(cls, name: str, *, days: int = CA_DAYS) -> Authority:
        """Make one, self-signed, that issues certificates and no further authorities."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _subject(name)
        builder = (
            _builder(subject, subject, key.public_key(), begin=None, days=days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
        )
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """Read ca.pem and ca.key."""
        certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise SystemExit(f"{folder / 'ca.key'} is not a key that this script made")
        return cls(certificate, key)

    def write(self, folder: Path) -> None:
        """Write ca.pem and ca.key."""
        _write(folder / "ca", self.certificate, self._key)

    def issue(
        self,
        file: Path,
        name: str,
        *,
        server_names: tuple[str, ...] = (),
        days: int = DAYS,
        begin: datetime | None = None,
    ) -> None:
        """Write FILE.pem and FILE.key.

        Args:
            file: where to, without suffix.
            name: the common name; of a client, the name of its user at the broker.
            server_names: DNS names and IP addresses of a server; none for a client.
            days: how long it holds.
            begin: from when on it holds; by default from an hour ago, for clocks that are slow.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if server_names else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            _builder(_subject(name), self.certificate.subject, key.public_key(), begin=begin, days=days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if server_names:
            names = x509.SubjectAlternativeName([_alternative(each) for each in server_names])
            builder = builder.add_extension(names, critical=False)
        _write(file, builder.sign(self._key, hashes.SHA256()), key)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    *,
    begin: datetime | None,
    days: int,
) -> x509.CertificateBuilder:
    start = begin or datetime.now(UTC) - timedelta(hours=1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write(file: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    """Write the key first, readable by its owner alone from the start; refuse to overwrite either."""
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    handle = os.open(f"{file}.key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as output:
        output.write(pem)
    with Path(f"{file}.pem").open("xb") as output:
        output.write(certificate.public_bytes(serialization.Encoding.PEM))


def main() -> int:
    """Read the command line, write the files, and print the fingerprint to compare over the telephone."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where to; made if it does not exist")
    parser.add_argument("--server", action="append", default=[], metavar="NAME", help="DNS name or IP; may be repeated")
    parser.add_argument("--client", action="append", default=[], metavar="USER", help="a peer's user; may be repeated")
    parser.add_argument("--ca-name", default="ppdl-mq test CA", help="common name of the authority")
    parser.add_argument("--days", type=int, default=DAYS, help=f"how long certificates hold ({DAYS})")
    options = parser.parse_args()
    for client in options.client:
        if not client or "/" in client or client.startswith(".") or client in TAKEN:
            parser.error(f"{client!r} cannot be a peer's user: not {', '.join(TAKEN)}, no slash, no dot in front.")
    folder: Path = options.folder
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        if (folder / "ca.key").exists():
            authority = Authority.open(folder)
        else:
            authority = Authority.new(options.ca_name)
            authority.write(folder)
        if options.server:
            names = tuple(options.server)
            authority.issue(folder / "server", names[0], server_names=names, days=options.days)
        for client in options.client:
            authority.issue(folder / client, client, days=options.days)
    except FileExistsError as error:
        print(f"{error.filename} exists already; nothing is overwritten.", file=sys.stderr)
        return 1
    fingerprint = authority.certificate.fingerprint(hashes.SHA256()).hex(":").upper()
    print(f"Give {folder / 'ca.pem'} to everybody. Its SHA-256, to compare over the telephone: {fingerprint}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
