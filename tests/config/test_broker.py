"""The address of a broker: what is accepted, what is refused, and that no password shows."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from ppdl_mq.config.broker import BrokerAddress
from ppdl_mq.config.settings import Broker
from ppdl_mq.errors import ConfigError

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("url", "text", "vhost"),
    [
        ("amqp://mercy@broker.example/heart", "amqp://mercy@broker.example:5672/heart", "heart"),
        ("amqp://mercy@broker.example:1234", "amqp://mercy@broker.example:1234/", "/"),
        ("amqp://broker.example/", "amqp://broker.example:5672/", "/"),
        ("amqp://broker.example/%2F", "amqp://broker.example:5672/", "/"),
        ("amqp://broker.example/a%2Fb", "amqp://broker.example:5672/a/b", "a/b"),
        ("amqps://a%40b@[::1]/x", "amqps://a@b@[::1]:5671/x", "x"),
        ("amqps://mercy@a,b:5673,c/heart", "amqps://mercy@a:5671,b:5673,c:5671/heart", "heart"),
        (
            "amqp://[::1],[FE80::1]:1,10.0.0.1:,Relay-1.example/",
            "amqp://[::1]:5672,[fe80::1]:1,10.0.0.1:5672,relay-1.example:5672/",
            "/",
        ),
        ("AMQP://a_1,b", "amqp://a_1:5672,b:5672/", "/"),
        ("embedded:/tmp/relay.db", "embedded:/tmp/relay.db", "/"),
        ("embedded:relay.db", "embedded:relay.db", "/"),
    ],
)
def test_a_url_is_read(url: str, text: str, vhost: str) -> None:
    address = BrokerAddress.parse(url)
    assert str(address) == text
    assert address.vhost == vhost


@pytest.mark.parametrize(
    "url",
    [
        "",
        "broker.example",
        "http://broker.example",
        "memory:",
        "embedded:",
        "amqp://",
        "amqp://user@",
        "amqp://host:port",
        "amqp://host:99999",
        "amqp://host/a/b",
        "amqp://host/a?heartbeat=0",
        "amqp://host/#x",
        "amqp://[::1",
        "amqp:broker.example",
        "amqp://a,",
        "amqp://,a",
        "amqp://a,,b",
        "amqp://a, b",
        "amqp://a,b:0",
        "amqp://a,b:5672:5672",
        "amqp://a,::1",
        "amqp://[::1]a",
        "amqp://[broker.example]",
        "amqp://a,A:5672",
        "amqp://" + ",".join(f"host{number}" for number in range(33)),
        "amqp://a,b/x@c",
    ],
)
def test_a_malformed_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        BrokerAddress.parse(url)


@pytest.mark.parametrize(
    "url",
    [
        f"amqp://mercy:{SECRET}@broker.example/heart",
        f"amqp://mercy:{SECRET}@broker.example:no-port/heart",
        f"http://mercy:{SECRET}@broker.example",
        f"amqp://:{SECRET}@",
        f"amqp://mercy:{SECRET}@[broken/heart",
        f"amqp://mercy:{SECRET}@a,b:5673/heart",
        f"amqp://a,mercy:{SECRET}@b",
        f"amqp://mercy:1/{SECRET}@b",
        f"amqp://mercy:{SECRET}/{SECRET}@b",
    ],
)
def test_a_password_in_the_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        BrokerAddress.parse(url)
    assert SECRET not in str(caught.value)


def test_a_password_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_PASSWORD", SECRET)
    address = BrokerAddress.from_settings(Broker(url="amqp://mercy@host", password_env="TEST_PASSWORD"))
    password = address.password()
    assert password.get_secret_value() == SECRET
    assert SECRET not in f"{password} {password!r} {address} {address!r}"


def test_a_password_comes_from_the_first_line_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "password").write_text(f"{SECRET}\r\nsomething else\n")
    address = BrokerAddress.from_settings(Broker(url="amqp://mercy@host", password_file=Path("password")), tmp_path)
    assert address.password().get_secret_value() == SECRET


def test_a_password_that_is_not_there_is_our_own_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_PASSWORD", raising=False)
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for broker in (
        Broker(url="amqp://mercy@host"),
        Broker(url="amqp://mercy@host", password_env="TEST_PASSWORD"),
        Broker(url="amqp://mercy@host", password_file=tmp_path / "missing"),
        Broker(url="amqp://mercy@host", password_file=tmp_path / "empty"),
        Broker(url="amqp://mercy@host", password_file=tmp_path / "binary"),
    ):
        with pytest.raises(ConfigError):
            BrokerAddress.from_settings(broker).password()


def test_the_well_known_guest_needs_no_settings() -> None:
    assert BrokerAddress.parse("amqp://localhost").password().get_secret_value() == "guest"


def test_an_address_may_be_narrowed_to_one_host() -> None:
    address = BrokerAddress.parse("amqps://mercy@a,b:5673/heart")
    assert [str(address.at(host)) for host in address.hosts] == [
        "amqps://mercy@a:5671/heart",
        "amqps://mercy@b:5673/heart",
    ]


@pytest.mark.parametrize(
    "entries",
    [
        {"url": "amqp://host", "ca_file": Path("ca.pem")},
        {"url": "embedded:x", "certificate_file": Path("c.pem")},
        {"url": "amqps://host", "key_file": Path("k.pem")},
        {"url": "amqps://host", "password_env": "A", "password_file": Path("b")},
        {"url": "amqps://host", "password_env": "A", "password_keyring": "b"},
        {"url": "amqps://host", "password_file": Path("b"), "password_keyring": "b"},
    ],
)
def test_entries_that_do_not_fit_together_are_refused(entries: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        BrokerAddress.from_settings(Broker(**entries))


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    broker = Broker(url="amqps://host", ca_file=Path("ca.pem"), certificate_file=Path("/etc/c.pem"))
    address = BrokerAddress.from_settings(broker, tmp_path)
    assert address.ca_file == tmp_path / "ca.pem"
    assert address.certificate_file == Path("/etc/c.pem")
    assert address.by_certificate
    assert BrokerAddress.from_settings(Broker(url="embedded:r.db"), tmp_path).path == tmp_path / "r.db"


@dataclass
class StandInKeyring(ModuleType):
    """What of the keyring library is used: the real one is no dependency."""

    passwords: dict[tuple[str, str], str]
    error: Exception | None = None

    def __post_init__(self) -> None:
        ModuleType.__init__(self, "keyring")

    def get_password(self, service: str, user: str) -> str | None:
        if self.error is not None:
            raise self.error
        return self.passwords.get((service, user))


KEYRING = Broker(url="amqp://mercy@host", password_keyring="ppdl-mq")


def test_a_password_from_the_keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    library = StandInKeyring({("ppdl-mq", "mercy"): "s3cret"})
    monkeypatch.setitem(sys.modules, "keyring", library)
    address = BrokerAddress.from_settings(KEYRING)
    assert address.password().get_secret_value() == "s3cret"
    assert "s3cret" not in repr(address)


@pytest.mark.parametrize(
    ("library", "words"),
    [
        (None, ("not installed", "pip install keyring")),
        (StandInKeyring({}), ("no password of 'mercy'", "keyring set ppdl-mq mercy")),
        (StandInKeyring({}, RuntimeError("locked; the hint is s3cret")), ("RuntimeError", "password_file")),
    ],
)
def test_a_keyring_that_gives_none(
    library: ModuleType | None, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "keyring", library)
    with pytest.raises(ConfigError) as refused:
        BrokerAddress.from_settings(KEYRING).password()
    assert all(word in str(refused.value) for word in words)
    assert "s3cret" not in str(refused.value)
