from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ppdl_mq.errors import DataError
from ppdl_mq.training.data import Split, idx, image_folder, npz

PIXELS = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


def test_npz(tmp_path: Path) -> None:
    path = str(tmp_path / "a.npz")
    np.savez(path, x=PIXELS, y=np.array([[1], [0]], dtype=np.uint16), t=PIXELS.astype(">f8"), u=np.array([3, 4]))
    found = npz(path)
    assert torch.equal(found.inputs, torch.from_numpy(PIXELS) / 255)
    assert found.targets.tolist() == [[1], [0]]
    both = npz(path, holdout_inputs="t", holdout_targets="u")
    assert isinstance(both, Split)
    assert torch.equal(both.holdout.inputs, torch.from_numpy(PIXELS).float())
    assert npz(path, channels_last=True).inputs.shape == (2, 4, 3)
    for arguments in ({"inputs": "nope"}, {"holdout_inputs": "t"}, {"targets": "nope"}):
        with pytest.raises(DataError):
            npz(path, **arguments)


def test_npz_is_never_unpickled(tmp_path: Path) -> None:
    path = str(tmp_path / "a.npz")
    np.savez(path, x=np.array([{"a": 1}], dtype=object), y=np.array([1]))
    with pytest.raises(DataError):
        npz(path)
    np.savez(path, x=np.array([[1.0]]), y=np.array(["yes"]))
    with pytest.raises(DataError):
        npz(path)


@pytest.mark.parametrize("content", [b"", b"PK\3\4 broken", b"not an archive at all"])
def test_what_is_no_archive(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(DataError):
        npz(str(path))


def test_a_single_array_is_no_archive(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", PIXELS)
    with pytest.raises(DataError, match="single array"):
        npz(str(tmp_path / "a.npy"))


def idx_bytes(array: np.ndarray, code: int = 8) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape) + array.tobytes()


def test_idx_gzipped_or_not(tmp_path: Path) -> None:
    images, labels = tmp_path / "i", tmp_path / "l"
    images.write_bytes(gzip.compress(idx_bytes(PIXELS)))
    labels.write_bytes(idx_bytes(np.array([7, 300], dtype=">i4"), 0x0C))
    found = idx(str(images), str(labels))
    assert torch.equal(found.inputs, torch.from_numpy(PIXELS) / 255)
    assert found.targets.tolist() == [7, 300]
    both = idx(str(images), str(labels), holdout_images_path=str(images), holdout_labels_path=str(labels))
    assert len(both.holdout) == 2
    with pytest.raises(DataError):
        idx(str(images), str(labels), holdout_images_path=str(images))


WHOLE = idx_bytes(PIXELS)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        WHOLE[:3],
        WHOLE[:9],
        WHOLE[:-1],
        WHOLE + b"\0",
        b"\1" + WHOLE[1:],
        b"\0\0\7" + WHOLE[3:],
        b"\0\0\x08\0\1",
        gzip.compress(WHOLE, mtime=0)[:-9],  # the time would make another test of it in each worker
    ],
)
def test_what_is_no_idx_file(tmp_path: Path, content: bytes) -> None:
    images, labels = tmp_path / "i", tmp_path / "l"
    images.write_bytes(content)
    labels.write_bytes(idx_bytes(np.array([7, 3], dtype=np.uint8)))
    with pytest.raises(DataError):
        idx(str(images), str(labels))


def test_idx_with_unequal_rows(tmp_path: Path) -> None:
    images, labels = tmp_path / "i", tmp_path / "l"
    images.write_bytes(WHOLE)
    labels.write_bytes(idx_bytes(np.array([7], dtype=np.uint8)))
    with pytest.raises(DataError, match="2 rows"):
        idx(str(images), str(labels))


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (4, 2)) -> None:
    image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(exist_ok=True)
    image.new("RGB", size, colour).save(path)


def test_image_folder(tmp_path: Path) -> None:
    paint(tmp_path / "sick" / "b.png", (255, 0, 51))
    paint(tmp_path / "sick" / "a.png", (0, 255, 0), size=(9, 9))
    paint(tmp_path / "well" / "c.png", (0, 0, 0))
    (tmp_path / "well" / "notes.txt").write_text("no image")
    found = image_folder(str(tmp_path), classes=["well", "sick", "unseen"], size=[2, 4])
    assert found.inputs.shape == (3, 3, 2, 4)
    assert found.targets.tolist() == [0, 1, 1]
    assert found.inputs[:, :, 0, 0].tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, pytest.approx(0.2)]]
    assert image_folder(str(tmp_path), classes=["well", "sick"], size=[2, 4], channels=1).inputs.shape == (3, 1, 2, 4)


def test_image_folder_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paint(tmp_path / "sick" / "b.png", (255, 0, 51))
    for arguments in ({"classes": ["well"]}, {"classes": ["sick"], "channels": 2}):
        with pytest.raises(DataError):
            image_folder(str(tmp_path), size=[2, 2], **arguments)
    (tmp_path / "sick" / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.png"):
        image_folder(str(tmp_path), classes=["sick"], size=[2, 2])
    (tmp_path / "sick" / "a.png").unlink()
    (tmp_path / "sick" / "b.png").unlink()
    with pytest.raises(DataError, match="no images"):
        image_folder(str(tmp_path), classes=["sick"], size=[2, 2])
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match="pip install"):
        image_folder(str(tmp_path), classes=["sick"], size=[2, 2])
