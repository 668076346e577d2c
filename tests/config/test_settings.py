from __future__ import annotations

from pathlib import Path

import pytest

from ppdl_mq.config.reading import read_settings
from ppdl_mq.config.settings_text import settings_text
from ppdl_mq.errors import PeerFileError

VALID = """
identity = "mercy.key"
state_dir = "/var/ppdl"
[broker]
url = "embedded:relay.sqlite"
password_file = "secrets/password"
[data]
callable = "company.data:rows"
arguments = { path = "rows.csv", columns = ["a", "b"] }
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "peer.toml"
    path.write_text(text)
    return path


def test_relative_paths_start_from_the_file(tmp_path: Path) -> None:
    settings = read_settings(write(tmp_path, VALID))
    assert settings.identity == tmp_path / "mercy.key"
    assert settings.state_dir == Path("/var/ppdl")
    assert settings.broker.password_file == tmp_path / "secrets/password"
    assert settings.broker.url == f"embedded:{tmp_path}/relay.sqlite"
    assert settings.data.arguments == {"path": "rows.csv", "columns": ["a", "b"]}


def test_the_order_of_samples_is_fixed_in_a_rehearsal_only(tmp_path: Path) -> None:
    with pytest.raises(PeerFileError, match="sample_seed"):
        read_settings(write(tmp_path, "sample_seed = 1\n" + VALID))
    settings = read_settings(write(tmp_path, 'sample_seed = 1\nmode = "rehearsal"\n' + VALID))
    assert settings.sample_seed == 1


def test_how_often_sums_are_recomputed(tmp_path: Path) -> None:
    assert read_settings(write(tmp_path, VALID)).audit_rate == 0.05
    for rate in (0, 0.5, 1):
        assert read_settings(write(tmp_path, f"audit_rate = {rate}\n{VALID}")).audit_rate == rate


def test_the_commented_settings_show_the_defaults(tmp_path: Path) -> None:
    text = written().replace("# audit_rate", "audit_rate")
    assert read_settings(write(tmp_path, text)) == read_settings(write(tmp_path, written()))


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("audit_rate = 1.1\n" + VALID, "audit_rate"),
        ("audit_rate = -0.1\n" + VALID, "audit_rate"),
        ("audit_rate = nan\n" + VALID, "audit_rate"),
        ('audit_rate = "often"\n' + VALID, "audit_rate"),
        ('device = "gpu"\n' + VALID, "device"),
        ("colour = 1\n" + VALID, "colour"),
        (VALID.replace('"embedded:relay.sqlite"', "5"), "broker.url"),
        (VALID.replace("company.data:rows", "company.data"), "data.callable"),
        (VALID.replace("[broker]", '[broker]\npassword_env = "X"'), "password_env"),
        ('models = "company.models"\n' + VALID, "models"),
        ('models = ["company/models.py"]\n' + VALID, "models.0"),
        ('models = ["company.models:zoo.net"]\n' + VALID, "models.0"),
        (VALID.replace("[broker]", "[broker]\nwait_s = inf"), "broker.wait_s"),
        (VALID.replace('identity = "mercy.key"', ""), "identity"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, field: str) -> None:
    with pytest.raises(PeerFileError) as caught:
        read_settings(write(tmp_path, text))
    assert f"peer.toml: {field} " in caught.value.message


def test_a_mistyped_password_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(PeerFileError) as caught:
        read_settings(write(tmp_path, VALID.replace("[broker]", '[broker]\npassword = "hunter2"')))
    assert "hunter2" not in str(caught.value)
    assert caught.value.hint == "Did you mean broker.password_env?"


def written() -> str:
    """What `ppdl-mq peer new` writes for odd names."""
    return settings_text(
        identity=Path('odd "name".key'),
        state_dir=Path("state"),
        device="cuda:1",
        broker="amqp://mercy@relay/ppdl",
        login={"password_env": "BROKER_PASSWORD", "ca_file": "the ca.pem"},
        declare=False,
        data="company.data:rows",
        data_arguments={"path": "a b.csv", "label": -1, "odd key": {"x": [1, "é"]}},
    )


def test_the_written_settings_are_read_back(tmp_path: Path) -> None:
    settings = read_settings(write(tmp_path, written()))
    assert settings.identity == tmp_path / 'odd "name".key'
    assert settings.broker.password_env == "BROKER_PASSWORD"
    assert settings.broker.ca_file == tmp_path / "the ca.pem"
    assert (settings.broker.password_file, settings.broker.key_file) == (None, None)
    assert settings.broker.declare is False
    assert settings.models == ("ppdl_mq.training.models",)
    assert settings.data.arguments == {"path": "a b.csv", "label": -1, "odd key": {"x": [1, "é"]}}
