"""Copies that people asked for: whole, and on disk when that is said."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ppdl_mq.config import writing
from ppdl_mq.errors import PeerFileError
from tests.writes import noted_writes


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is synced and renamed, in its order; a file is told by what it holds, a folder by its name."""
    return noted_writes(monkeypatch, lambda path: path.name if path.is_dir() else path.read_text())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.write_text("weights")
    (tmp_path / "out").mkdir()
    return path


def test_a_copy_is_on_disk_before_it_has_its_name_and_then_its_name_is(source: Path, done: list[str]) -> None:
    copied = writing.copy(source, source.parent / "out", error=PeerFileError)
    assert copied.read_text() == "weights"
    assert done == ["fsync weights", "rename", "fsync out"]


def test_a_changed_file_as_well(source: Path, done: list[str]) -> None:
    settings = source.parent / "out" / "peer.toml"
    settings.write_text("old")
    writing.replace(settings, "new", error=PeerFileError)
    assert done == ["fsync new", "rename", "fsync out"]


@pytest.mark.parametrize(("number", "is_fine"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_share_that_syncs_no_folders_will_do(
    source: Path, monkeypatch: pytest.MonkeyPatch, number: int, *, is_fine: bool
) -> None:
    def fail(_: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(writing, "sync_folder", fail)
    target = source.parent / "out" / "copy"
    if is_fine:
        writing.copy(source, target, error=PeerFileError)
    else:
        with pytest.raises(PeerFileError, match="cannot be written"):
            writing.copy(source, target, error=PeerFileError)
    assert [path.name for path in target.parent.iterdir()] == ["copy"]


LONG = "x" * 300
NO_SUCH = {"long": LONG, "within long": f"{LONG}/copy", "within a file": "model/copy", "nowhere": "nowhere/copy"}


@pytest.mark.parametrize("out", NO_SUCH.values(), ids=NO_SUCH)
def test_where_nothing_can_be_written_is_said(source: Path, out: str) -> None:
    with pytest.raises(PeerFileError):
        writing.copy(source, source.parent / out, error=PeerFileError)


@pytest.mark.parametrize("fails", ["stat", "lstat"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_where_it_cannot_be_looked_at_is_said(
    source: Path, monkeypatch: pytest.MonkeyPatch, number: int, fails: str
) -> None:
    def fail(*_: object, **__: object) -> os.stat_result:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, fails, fail)
    monkeypatch.setattr(os, fails, fail)
    with pytest.raises(PeerFileError, match=os.strerror(number)):
        writing.copy(source, source.parent / "out", error=PeerFileError)


def test_a_name_may_be_as_long_as_a_name_can_be(source: Path) -> None:
    copied = writing.copy(source, source.parent / ("x" * 255), error=PeerFileError)
    assert copied.read_text() == "weights"
