"""Data plug-ins for arrays: NumPy's npz, and MNIST's idx."""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ppdl_mq.errors import DataError
from ppdl_mq.training.data.samples import Samples, Split

Array = npt.NDArray[Any]

# Third byte of an idx file. Source: Y. LeCun, "The IDX file format".
_IDX_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def npz(
    path: str,
    *,
    inputs: str = "x",
    targets: str = "y",
    holdout_inputs: str | None = None,
    holdout_targets: str | None = None,
    channels_last: bool = False,
) -> Samples | Split:
    """Read arrays from a NumPy archive. Pickled objects are refused.

    Args:
        path: the file.
        inputs: name of the array (rows, ...); uint8 is divided by 255.
        targets: name of the array (rows) or (rows, 1).
        holdout_inputs: name of the hold-out's array, if there is one.
        holdout_targets: and of its targets.
        channels_last: whether images are stored (rows, height, width, channels).
    """
    _both_or_none("holdout_inputs", holdout_inputs, "holdout_targets", holdout_targets)
    try:
        # Opened here, since NumPy leaves the file open where it finds no archive in it.
        with Path(path).open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{path} is a single array, not an npz archive.", hint="Save with numpy.savez.")
            with archive:
                train = _pair(archive, inputs, targets, channels_last)
                if holdout_inputs is None or holdout_targets is None:
                    return train
                return Split(train, _pair(archive, holdout_inputs, holdout_targets, channels_last))
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is no npz archive of plain arrays.", hint="Save it anew, without objects.") from error


def idx(
    images_path: str,
    labels_path: str,
    *,
    holdout_images_path: str | None = None,
    holdout_labels_path: str | None = None,
) -> Samples | Split:
    """Read MNIST's files, gzipped or not.

    Args:
        images_path: (rows, height, width), divided by 255 where uint8.
        labels_path: (rows).
        holdout_images_path: a second pair of files for evaluation.
        holdout_labels_path: and its labels.
    """
    _both_or_none("holdout_images_path", holdout_images_path, "holdout_labels_path", holdout_labels_path)
    train = Samples(_scaled(_read_idx(images_path)), _tensor(_read_idx(labels_path)))
    if holdout_images_path is None or holdout_labels_path is None:
        return train
    return Split(train, Samples(_scaled(_read_idx(holdout_images_path)), _tensor(_read_idx(holdout_labels_path))))


def _both_or_none(first: str, first_value: str | None, second: str, second_value: str | None) -> None:
    if (first_value is None) != (second_value is None):
        raise DataError(f"{first} and {second} belong together, and only one is given.", hint="Give both or none.")


def _pair(archive: Any, inputs: str, targets: str, channels_last: bool) -> Samples:
    for name in (inputs, targets):
        if name not in archive:
            raise DataError(f"The archive has no array {name!r}.", hint=f"It has {', '.join(archive.files)}.")
    x = _scaled(archive[inputs])
    if channels_last:
        x = x.movedim(-1, 1)
    return Samples(x, _tensor(archive[targets]))


def _scaled(array: Array) -> torch.Tensor:
    """Return inputs as float32; bytes are grey values and go to 0..1."""
    if array.dtype == np.uint8:
        return torch.from_numpy(array.astype(np.float32) / np.float32(255))
    return _tensor(array).to(torch.float32)


def _tensor(array: Array) -> torch.Tensor:
    if array.dtype.kind not in "biuf":
        raise DataError("An array of the data holds no numbers.", hint="Save numbers; map labels to 0, 1, 2, ...")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:  # torch counts with signed integers
        array = array.astype(np.int64)
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), ndmin=1))


def _read_idx(path: str) -> Array:
    """Read one idx file: two zero bytes, dtype, number of axes, sizes as u32 big-endian, values in C order."""
    raw = Path(path).read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} is a damaged gzip file.", hint="Fetch it again.") from error
    code = raw[2] if len(raw) >= 4 else 0
    if raw[:2] != b"\0\0" or code not in _IDX_DTYPES or len(raw) < 4 + 4 * raw[3]:
        raise DataError(f"{path} is not an idx file.", hint="MNIST's files end in -ubyte or -ubyte.gz.")
    sizes = [int(size) for size in np.frombuffer(raw, dtype=">u4", offset=4, count=raw[3])]
    dtype = np.dtype(_IDX_DTYPES[code])
    start = 4 + 4 * raw[3]
    if len(raw) - start != math.prod(sizes) * dtype.itemsize or not sizes:
        raise DataError(f"{path} has not the length that its header says.", hint="Fetch it again.")
    return np.frombuffer(raw, dtype=dtype, offset=start).reshape(sizes)
