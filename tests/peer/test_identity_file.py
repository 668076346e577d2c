from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ppdl_mq.crypto.passphrase import Cost
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import IdentityError, PassphraseError
from ppdl_mq.peer.identity_file import (
    create_identity,
    is_sealed,
    passphrase_from,
    read_identity,
    read_public_line,
)

CHEAP = Cost(ops=1, memory_bytes=8192)
PASSPHRASE = Secret(b"open sesame")


def test_an_identity_is_written_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "mercy.key"
    made = create_identity(path, "mercy")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_identity(path) == made
    assert read_public_line(path) == made.line
    before = path.read_bytes()
    with pytest.raises(IdentityError, match="exists"):
        create_identity(path, "mercy")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_every_identity_is_another(tmp_path: Path) -> None:
    assert create_identity(tmp_path / "a", "mercy") != create_identity(tmp_path / "b", "mercy")


def test_a_passphrase_is_needed_and_must_be_right(tmp_path: Path) -> None:
    path = tmp_path / "mercy.key"
    made = create_identity(path, "mercy", passphrase=PASSPHRASE, cost=CHEAP)
    assert is_sealed(path)
    assert read_public_line(path) == made.line
    assert read_identity(path, passphrase=PASSPHRASE) == made
    with pytest.raises(PassphraseError):
        read_identity(path)
    with pytest.raises(PassphraseError):
        read_identity(path, passphrase=Secret(b"guess"))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610])
def test_a_file_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "mercy.key"
    create_identity(path, "mercy")
    path.chmod(mode)
    with pytest.raises(IdentityError) as caught:
        read_identity(path)
    assert caught.value.hint == f"Do: chmod 600 {path}"


def test_a_secret_that_belongs_to_another_line_is_refused(tmp_path: Path) -> None:
    mercy, basel = tmp_path / "mercy.key", tmp_path / "basel.key"
    create_identity(mercy, "mercy")
    line = create_identity(basel, "basel").line
    mercy.write_text(mercy.read_text().replace(read_public_line(mercy), line))
    with pytest.raises(IdentityError, match="does not belong"):
        read_identity(mercy)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ppdl-mq-identity-1", "ppdl-mq-identity-2"),
        ("ppdl-mq-peer-1 mercy", "ppdl-mq-peer-1 merci"),
        ("argon2id_ops = 1", "argon2id_ops = 1000000"),
        ("argon2id_ops = 1", "argon2id_ops = true"),
        ("argon2id_memory_bytes = 8192", "argon2id_memory_bytes = 9999999999999"),
        ("argon2id_memory_bytes = 8192", ""),
        ('salt = "', 'salt = "AAAA'),
        ('salt = "', 'salt = "!'),
        ('sealed = "', 'sealed = "AAAA'),
        ('sealed = "', "sealed = 1 # "),
        ("format", "[format"),
        ("\n", "\nextra = 1\n"),
        ("format", "\x00"),
    ],
)
def test_a_damaged_file(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "mercy.key"
    create_identity(path, "mercy", passphrase=PASSPHRASE, cost=CHEAP)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(IdentityError) as caught:
        read_identity(path, passphrase=PASSPHRASE)
    assert "mercy.key" in caught.value.message or "Argon2id" in caught.value.message


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "large").touch(0o600)
    os.truncate(tmp_path / "large", 10**9)
    for name in ("missing", ".", "pipe", "large"):
        with pytest.raises(IdentityError):
            read_identity(tmp_path / name)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="cannot be written"):
        create_identity(tmp_path / "none" / "mercy.key", "mercy")


def test_a_bad_name_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(IdentityError):
        create_identity(tmp_path / "x.key", "Mercy")
    assert list(tmp_path.iterdir()) == []


def test_where_a_passphrase_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert passphrase_from(None, None) is None
    monkeypatch.setenv("PPDL_TEST", "open sesame")
    assert passphrase_from("PPDL_TEST", None) == PASSPHRASE
    path = tmp_path / "passphrase"
    path.touch(0o600)
    path.write_bytes(b"open sesame\r\nnot this\n")
    assert passphrase_from(None, path) == PASSPHRASE
    path.chmod(0o644)
    with pytest.raises(PassphraseError):
        passphrase_from(None, path)
    monkeypatch.setenv("PPDL_TEST", "")
    for variable in ("PPDL_TEST", "PPDL_TEST_NOT_SET"):
        with pytest.raises(PassphraseError, match=variable):
            passphrase_from(variable, None)
