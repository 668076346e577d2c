"""Where the relay is and how to log in, as the adapters need it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, Self
from urllib.parse import unquote

from pydantic import SecretStr

from ppdl_mq.config.hosts import Host, hosts_of
from ppdl_mq.config.keyring_password import keyring_password
from ppdl_mq.config.settings import Broker
from ppdl_mq.errors import ConfigError

_PORTS: Final = {"amqp": 5672, "amqps": 5671}
_FORMS: Final = "Write amqp://USER@HOST:PORT/VHOST, amqps://USER@HOST:PORT/VHOST or embedded:PATH."
_AUTHORITY_ENDS: Final = re.compile("[/?#]")


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerAddress:
    """One relay. Holds no password, only where to find it, so that it may be printed.

    Args:
        scheme: which adapter, and whether with TLS.
        hosts: the nodes of one broker, any of which will do; none for `embedded`.
        user: name at the broker; None where a client certificate says who we are.
        vhost: virtual host of the broker.
        path: the file of an embedded relay.
        password_env: name of the environment variable that holds the password.
        password_file: file whose first line is the password.
        password_keyring: service under which the keyring holds the password.
        ca_file: PEM certificates to trust instead of the system's.
        certificate_file: PEM client certificate.
        key_file: its private key, where it is not in the same file.
        declare: False where an administrator made the queues beforehand.
        queue_type: what to ask for when declaring; a queue that exists stays of its type.
    """

    scheme: Literal["amqp", "amqps", "embedded"]
    hosts: tuple[Host, ...] = ()
    user: str | None = None
    vhost: str = "/"
    path: Path | None = None
    password_env: str | None = None
    password_file: Path | None = None
    password_keyring: str | None = None
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    declare: bool = True
    queue_type: Literal["classic", "quorum"] = "quorum"

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read `amqp://user@host:port/vhost`, `amqps://...` or `embedded:PATH`.

        Instead of one host there may be several nodes of one cluster, `amqps://user@a,b:5673,[::1]/vhost`. Without a
        user and a client certificate it is `guest`, which brokers admit from their own machine only.

        Raises:
            ConfigError: the URL is malformed, or holds a password. Its text quotes nothing that may be one.
        """
        scheme, colon, rest = url.partition(":")
        scheme = scheme.lower()
        if colon and scheme == "embedded":
            if not rest:
                raise ConfigError("The broker's URL names no file.", hint=_FORMS)
            try:
                return cls(scheme="embedded", path=Path(rest).expanduser())
            except RuntimeError:
                raise ConfigError("The broker's URL names the home of a user who has none here.", hint=_FORMS) from None
        rest, slashes = rest.removeprefix("//"), rest.startswith("//")
        end = _AUTHORITY_ENDS.search(rest)
        authority, behind = (rest, "") if end is None else (rest[: end.start()], rest[end.start() :])
        user, _, hosts = authority.rpartition("@")
        if ":" in user:  # checked first, so that no later message quotes it
            raise ConfigError(
                "The broker's URL holds a password, which would end up in shell histories and logs.",
                hint="Take it out, and set password_env or password_file under [broker] of peer.toml.",
            )
        if scheme not in _PORTS or not slashes:
            raise ConfigError(f"The broker's URL begins with {scheme[:20]!r}, which is unknown.", hint=_FORMS)
        if "?" in behind or "#" in behind:
            raise ConfigError("The broker's URL has a '?' or '#' part; options go into [broker] of peer.toml.")
        return cls(
            scheme="amqps" if scheme == "amqps" else "amqp",
            hosts=hosts_of(hosts, port=_PORTS[scheme]),
            user=unquote(user) or None,
            vhost=_vhost(behind),
        )

    @classmethod
    def from_settings(cls, broker: Broker, folder: Path | None = None) -> Self:
        """Join the URL and the other entries of `[broker]`.

        Args:
            broker: the settings.
            folder: what relative paths are relative to; the folder of peer.toml.

        Raises:
            ConfigError: the URL is malformed, or the entries do not fit together.
        """
        folder = folder or Path()

        def resolved(path: Path | None) -> Path | None:
            return None if path is None else folder / path.expanduser()

        address = cls.parse(broker.url)
        if address.scheme != "amqps" and (broker.ca_file or broker.certificate_file or broker.key_file):
            raise ConfigError(
                "ca_file, certificate_file and key_file need an amqps:// URL.", hint="Change the URL, or take them out."
            )
        if broker.key_file and not broker.certificate_file:
            raise ConfigError("key_file is given without certificate_file.", hint="Give both, or neither.")
        sources = ("password_env", "password_file", "password_keyring")
        given = [name for name in sources if getattr(broker, name)]
        if len(given) > 1:
            raise ConfigError(f"Both {given[0]} and {given[1]} are given.", hint="Keep one of them.")
        return replace(
            address,
            path=resolved(address.path),
            password_env=broker.password_env,
            password_file=resolved(broker.password_file),
            password_keyring=broker.password_keyring,
            ca_file=resolved(broker.ca_file),
            certificate_file=resolved(broker.certificate_file),
            key_file=resolved(broker.key_file),
            declare=broker.declare,
            queue_type=broker.queue_type,
        )

    @property
    def login(self) -> str:
        """The user to log in as where a password, not a certificate, says who we are."""
        return self.user or "guest"

    @property
    def by_certificate(self) -> bool:
        """Whether the client certificate says who we are (SASL EXTERNAL)."""
        return self.certificate_file is not None

    def password(self) -> SecretStr:
        """Read the password from where the settings say; call this as late as possible.

        Raises:
            ConfigError: no source is named, or the named one holds nothing.
        """
        if self.password_env is not None:
            value = os.environ.get(self.password_env, "")
            if not value:
                raise ConfigError(
                    f"The environment variable {self.password_env} with the broker's password is not set.",
                    hint=f"Set it, for instance with `read -rs {self.password_env}; export {self.password_env}`.",
                )
            return SecretStr(value)
        if self.password_file is not None:
            try:
                lines = self.password_file.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
                raise ConfigError(
                    f"The broker's password cannot be read from {self.password_file}: {reason}."
                ) from None
            if not lines or not lines[0]:
                raise ConfigError(
                    f"The first line of {self.password_file} should be the broker's password; it is empty."
                )
            return SecretStr(lines[0])
        if self.password_keyring is not None:
            return keyring_password(self.password_keyring, self.login)
        if self.login == "guest":
            return SecretStr("guest")  # RabbitMQ's well-known default, admitted from the broker's own machine only
        raise ConfigError(
            f"No password is given for the broker's user {self.login!r}.",
            hint="Set password_env, password_file or password_keyring under [broker] of peer.toml.",
        )

    def at(self, host: Host) -> Self:
        """Return the same broker with this node alone."""
        return replace(self, hosts=(host,))

    def __str__(self) -> str:
        if self.scheme == "embedded":
            return f"embedded:{self.path}"
        user = f"{self.user}@" if self.user else ""
        hosts = ",".join(map(str, self.hosts))
        return f"{self.scheme}://{user}{hosts}/{'' if self.vhost == '/' else self.vhost}"


def _vhost(path: str) -> str:
    """`/`, and nothing at all, mean the vhost `/`, as people expect; a slash in a name is written %2F."""
    name = path.removeprefix("/")
    if "/" in name:
        raise ConfigError(
            "The broker's URL has more than one '/' after the host.", hint="Write a '/' in a vhost as %2F."
        )
    if "@" in name:  # what is before it may be a password with a '/' in it
        raise ConfigError("The broker's URL has an '@' behind the host.", hint="Write an '@' in a vhost as %40.")
    return unquote(name) or "/"
