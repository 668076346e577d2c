from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import IllegalEvent, JournalError
from ppdl_mq.peer import live
from ppdl_mq.peer.birth import born_ns
from ppdl_mq.peer.live import LiveMark, LiveSecrets, live_key
from tests.trial import identity_of

KEY = live_key(identity_of("anna"), bytes(32))
FIRST, SECOND, THIRD = ({"mask": bytes([number]) * 32, "pair_keys": {"bert": [b"k", b"l"]}} for number in range(3))


def opened(folder: Path, mark: LiveMark | None) -> LiveSecrets:
    secrets = LiveSecrets(folder, KEY)
    secrets.load(mark)
    return secrets


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "state"
    made.mkdir()
    return made


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "live").iterdir())


def written(folder: Path) -> LiveMark:
    """Two changes, both committed."""
    secrets = opened(folder, None)
    secrets.drop_others(secrets.write(FIRST))
    mark = secrets.write(SECOND)
    secrets.drop_others(mark)
    return mark


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_what_was_written_is_loaded(folder: Path) -> None:
    mark = written(folder)
    assert LiveMark.from_data(mark.as_data()) == mark
    assert LiveSecrets(folder, KEY).load(mark) == SECOND
    assert LiveSecrets(folder, KEY).load(mark) == SECOND  # loading changes nothing
    assert files(folder) == [mark.name]
    assert mark.generation == 2


def test_a_new_journal_has_none(folder: Path) -> None:
    assert LiveSecrets(folder, KEY).load(None) is None


def test_only_its_owner_can_read_it_and_it_is_sealed(folder: Path) -> None:
    mark = written(folder)
    path = folder / "live" / mark.name
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert bytes([1]) * 32 not in path.read_bytes()
    with pytest.raises(JournalError):
        LiveSecrets(folder, live_key(identity_of("bert"), bytes(32))).load(mark)
    assert live_key(identity_of("anna"), bytes(31) + b"1") != KEY


def test_what_is_dropped_is_overwritten_first(folder: Path) -> None:
    secrets = opened(folder, None)
    first = secrets.write(FIRST)
    os.link(folder / "live" / first.name, folder / "kept")  # as a backup of hard links would
    secrets.drop_others(first)
    secrets.drop_others(secrets.write(SECOND))
    assert not any((folder / "kept").read_bytes())


def test_writing_before_loading_is_a_bug(folder: Path) -> None:
    with pytest.raises(IllegalEvent):
        LiveSecrets(folder, KEY).write(FIRST)


def test_a_folder_that_cannot_be_written_is_named(folder: Path) -> None:
    (folder / "live").write_text("")
    with pytest.raises(JournalError, match="live"):
        LiveSecrets(folder, KEY).load(None)
    (folder / "live").unlink()
    secrets = opened(folder, None)
    (folder / "live").write_text("")
    with pytest.raises(JournalError, match="live"):
        secrets.write(FIRST)


# --- crashes that are allowed ----------------------------------------------------------------------------------------


def test_a_crash_before_the_first_commit(folder: Path) -> None:
    opened(folder, None).write(FIRST)
    assert LiveSecrets(folder, KEY).load(None) is None
    assert files(folder) == []


def test_a_crash_between_write_and_commit(folder: Path) -> None:
    mark = written(folder)
    opened(folder, mark).write(THIRD)
    assert len(files(folder)) == 2
    assert LiveSecrets(folder, KEY).load(mark) == SECOND
    assert files(folder) == [mark.name]


def test_a_crash_between_commit_and_drop(folder: Path) -> None:
    mark = written(folder)
    third = opened(folder, mark).write(THIRD)
    assert LiveSecrets(folder, KEY).load(third) == THIRD
    assert files(folder) == [third.name]


def test_a_crash_while_writing_or_overwriting(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = written(folder)
    secrets = opened(folder, mark)

    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", crash)
        with pytest.raises(KeyboardInterrupt):
            secrets.write(THIRD)
    assert len(files(folder)) == 2
    third = opened(folder, mark).write(THIRD)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", crash)
        with pytest.raises(KeyboardInterrupt):
            secrets.drop_others(third)
    assert len(files(folder)) == 2
    assert LiveSecrets(folder, KEY).load(third) == THIRD
    assert files(folder) == [third.name]


def test_transactions_that_were_rolled_back_do_not_count(folder: Path) -> None:
    """Three writes of which none was committed leave nothing that looks newer than the journal."""
    mark = written(folder)
    secrets = opened(folder, mark)
    assert [secrets.write(THIRD).generation for _ in range(3)] == [3, 3, 3]
    assert LiveSecrets(folder, KEY).load(mark) == SECOND


def test_a_change_of_rights_is_no_copy(folder: Path) -> None:
    mark = written(folder)
    (folder / "live" / mark.name).chmod(0o640)
    os.utime(folder / "live" / mark.name, (1, 1))
    assert LiveSecrets(folder, KEY).load(mark) == SECOND
    moved = folder.parent / "moved"
    folder.rename(moved)
    assert LiveSecrets(moved, KEY).load(mark) == SECOND


def test_a_crash_between_the_first_commit_and_the_note_that_there_was_one(folder: Path) -> None:
    mark = opened(folder, None).write(FIRST)
    assert not (folder / "spoken").exists()
    assert LiveSecrets(folder, KEY).load(mark) == FIRST
    assert (folder / "spoken").exists()  # before the next process sends anything
    assert "begun" in refused(folder, None)


# --- copies and roll-backs -------------------------------------------------------------------------------------------


def copied_by(*command: str) -> Callable[[Path, Path], None]:
    def copy(source: Path, target: Path) -> None:
        subprocess.run([word.format(source=source, target=target) for word in command], check=True)

    return copy


def by_tar(source: Path, target: Path) -> None:
    archive = source.parent / "backup.tar"
    subprocess.run(["tar", "-cpf", archive, "-C", source, "."], check=True)
    target.mkdir(exist_ok=True)
    subprocess.run(["tar", "-xpf", archive, "-C", target], check=True)


COPIES = {
    "copytree": lambda source, target: shutil.copytree(source, target),
    "cp -a": copied_by("cp", "-a", "{source}", "{target}"),
    "tar": by_tar,
}


def refused(folder: Path, mark: LiveMark | None) -> str:
    before = sorted((path.name, path.read_bytes()) for path in (folder / "live").glob("*"))
    with pytest.raises(JournalError) as caught:
        LiveSecrets(folder, KEY).load(mark)
    assert "peer drop" in caught.value.hint
    assert before == sorted((path.name, path.read_bytes()) for path in (folder / "live").glob("*"))  # nothing removed
    return caught.value.message


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_does_not_resume(folder: Path, how: str) -> None:
    mark = written(folder)
    COPIES[how](folder, folder.parent / "copy")
    assert "copy" in refused(folder.parent / "copy", mark)
    assert LiveSecrets(folder, KEY).load(mark) == SECOND


@pytest.mark.parametrize("how", COPIES)
def test_a_folder_removed_and_restored_does_not_resume(folder: Path, how: str) -> None:
    """Ten times, since file systems give the inode of a removed file to a new one."""
    backup = folder.parent / "backup"
    for _ in range(10):
        mark = written(folder)
        COPIES[how](folder, backup)
        shutil.rmtree(folder)
        COPIES[how](backup, folder)
        assert "copy" in refused(folder, mark)
        shutil.rmtree(folder)
        shutil.rmtree(backup)
        folder.mkdir()


def test_the_same_inode_alone_is_not_enough(folder: Path) -> None:
    mark = written(folder)
    path = folder / "live" / mark.name
    with path.open("rb") as file:
        if not born_ns(file.fileno()):
            pytest.skip("this file system keeps no birth time")
    again = LiveMark(mark.name, mark.inode, mark.generation, mark.born_ns - 1)
    assert "copy" in refused(folder, again)
    assert "copy" in refused(folder, LiveMark(mark.name, mark.inode + 1, mark.generation, mark.born_ns))


@pytest.mark.parametrize("changes", [1, 2, 5])
def test_a_backup_copied_over_the_folder_does_not_resume(folder: Path, changes: int) -> None:
    """`cp -a` over a folder writes into the files that are there, and leaves the rest."""
    mark = written(folder)
    backup = folder.parent / "backup"
    shutil.copytree(folder, backup)
    secrets = opened(folder, mark)
    for _ in range(changes):
        secrets.drop_others(secrets.write(THIRD))
    subprocess.run(["cp", "-a", f"{backup}/.", folder], check=True)
    refused(folder, mark)


@pytest.mark.parametrize("changes", [1, 2])
def test_a_journal_put_back_does_not_resume(folder: Path, changes: int) -> None:
    mark = written(folder)
    secrets = opened(folder, mark)
    for _ in range(changes):
        secrets.drop_others(secrets.write(THIRD))
    assert "missing" in refused(folder, mark)


def test_a_newer_file_beside_the_right_one_is_refused(folder: Path) -> None:
    mark = written(folder)
    kept = folder / "kept"
    (folder / "live" / mark.name).rename(kept)  # as somebody might who means to put it back
    secrets = LiveSecrets(folder, KEY)
    secrets._committed = mark.generation
    for _ in range(2):
        secrets._committed = secrets.write(THIRD).generation
    kept.rename(folder / "live" / mark.name)
    assert "newer" in refused(folder, mark)


def test_a_journal_that_is_gone_does_not_begin_anew(folder: Path) -> None:
    written(folder)
    assert "newer" in refused(folder, None)


def test_a_journal_that_lost_even_its_first_commit_does_not_begin_anew(folder: Path) -> None:
    """As one does whose write-ahead log is gone after HELLO went out, and before any secret has changed."""
    secrets = opened(folder, None)
    first = secrets.write(FIRST)
    secrets.drop_others(first)
    assert (folder / "spoken").read_bytes() == b""
    assert stat.S_IMODE((folder / "spoken").stat().st_mode) == 0o600
    assert "begun" in refused(folder, None)
    shutil.rmtree(folder / "live")
    assert "begun" in refused(folder, None)


def test_the_note_is_on_disk_when_the_others_are_dropped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noted(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    secrets = opened(folder, None)
    mark = secrets.write(FIRST)
    monkeypatch.setattr(os, "fsync", noted)
    secrets.drop_others(mark)
    assert synced[:2] == ["spoken", folder.name]
    synced.clear()
    secrets.drop_others(secrets.write(SECOND))
    assert "spoken" not in synced  # once for each process
    LiveSecrets(folder, KEY).load(secrets.write(THIRD))
    assert "spoken" in synced  # the one before may have died before it was on disk


def test_a_note_that_cannot_be_written_is_named(folder: Path) -> None:
    secrets = opened(folder, None)
    mark = secrets.write(FIRST)
    (folder / "spoken").mkdir()
    with pytest.raises(JournalError, match="spoken"):
        secrets.drop_others(mark)


def test_a_file_that_does_not_open_does_not_resume(folder: Path) -> None:
    mark = written(folder)
    path = folder / "live" / mark.name
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[:20], bytes(len(whole)), whole[:-1] + bytes([whole[-1] ^ 1]), whole * 9):
        with path.open("r+b") as file:  # in place: the inode stays
            file.truncate(0)
            file.write(damaged)
        assert "does not open" in refused(folder, mark)
    with path.open("r+b") as file:
        file.write(whole)
        file.truncate(len(whole))
    assert LiveSecrets(folder, KEY).load(mark) == SECOND


def test_a_file_under_another_name_or_generation_does_not_resume(folder: Path) -> None:
    mark = written(folder)
    path = folder / "live" / mark.name
    assert "another state" in refused(folder, LiveMark(mark.name, mark.inode, mark.generation + 1, mark.born_ns))
    renamed = LiveMark("0" * 16, mark.inode, mark.generation, mark.born_ns)
    path.rename(path.with_name(renamed.name))
    assert "does not open" in refused(folder, renamed)


def test_neither_links_nor_folders_are_followed(folder: Path) -> None:
    mark = written(folder)
    path = folder / "live" / mark.name
    path.rename(folder / "elsewhere")
    path.symlink_to(folder / "elsewhere")
    assert "cannot be opened" in refused(folder, mark)


def test_files_of_others_are_left_alone(folder: Path) -> None:
    mark = written(folder)
    (folder / "live" / "README").write_text("hello")
    LiveSecrets(folder, KEY).load(mark)
    assert files(folder) == sorted(["README", mark.name])


def test_neither_secrets_nor_the_key_show(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark = written(folder)
    for shown in (repr(LiveSecrets(folder, KEY)), repr(mark), repr(vars(LiveSecrets(folder, KEY)))):
        assert KEY.reveal().hex() not in shown
        assert repr(KEY.reveal()) not in shown
    assert isinstance(KEY, Secret)
    assert live.__doc__ is not None
    assert "Not detected" in live.__doc__
