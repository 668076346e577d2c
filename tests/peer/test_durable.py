"""Folders of a peer's state, where it may not look at what lies above them, or cannot sync it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ppdl_mq.peer import durable
from ppdl_mq.peer.durable import make_folder


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EINVAL])
def test_what_others_have_made_need_not_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """As a home folder's parent under an automounter, or a read-only root."""

    def sync(folder: Path) -> None:
        if folder == tmp_path.parent:
            raise OSError(code, os.strerror(code))
        synced.append(folder)

    synced: list[Path] = []
    monkeypatch.setattr(durable, "sync_folder", sync)
    make_folder(tmp_path / "state" / "heart")
    assert (tmp_path / "state" / "heart").is_dir()
    assert synced == [tmp_path, tmp_path / "state"]


@pytest.mark.parametrize("where", ["above", "made"])
def test_a_disk_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def sync(folder: Path) -> None:
        if folder == (tmp_path.parent if where == "above" else tmp_path):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(durable, "sync_folder", sync)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        make_folder(tmp_path / "state")
