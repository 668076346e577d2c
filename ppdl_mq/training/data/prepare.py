"""From what a plug-in returns to what the worker trains on: check, split, standardise.

Source: docs/TRAINING.md, "Data".
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ppdl_mq.config.manifest import Data, Manifest
from ppdl_mq.config.settings import OwnData
from ppdl_mq.errors import DataError, ManifestError
from ppdl_mq.training import order, plugin
from ppdl_mq.training.data.samples import Samples, Split


def load_split(settings: OwnData, manifest: Manifest, sample_seed: bytes, *, folder: Path) -> Split:
    """Call the organisation's data plug-in and return its samples, ready for training.

    Args:
        settings: from peer.toml.
        manifest: what the samples must look like.
        sample_seed: the peer's secret, 32 bytes; chooses the hold-out.
        folder: what relative paths are relative to.

    Raises:
        DataError: the plug-in cannot be used, or its samples are not what the manifest says.
    """
    function = plugin.find(settings.callable, DataError)
    arguments = {name: _absolute(name, value, folder) for name, value in settings.arguments.items()}
    loaded = plugin.call(settings.callable, function, arguments, DataError)
    if not isinstance(loaded, Samples | Split):
        raise DataError(f"{settings.callable} returned neither Samples nor a Split.", hint="Correct the plug-in.")
    return prepare(loaded, manifest, sample_seed, holdout=settings.holdout)


def prepare(loaded: Samples | Split, manifest: Manifest, sample_seed: bytes, *, holdout: float) -> Split:
    """Return checked, split and standardised samples.

    Args:
        loaded: all rows, or an own split of them.
        manifest: what the samples must look like.
        sample_seed: the peer's secret, 32 bytes; chooses the hold-out.
        holdout: share of the rows kept for evaluation, unless `loaded` is a split already.

    Raises:
        DataError: the samples are not what the manifest says.
    """
    if isinstance(loaded, Split):
        train = check(loaded.train, manifest, "training row")
        kept = check(loaded.holdout, manifest, "hold-out row", may_be_empty=True)
    else:
        train, kept = _hold_out(check(loaded, manifest, "row"), holdout, sample_seed)
    return _standardised(Split(train, kept), manifest.data)


def check(samples: Samples, manifest: Manifest, row_name: str, *, may_be_empty: bool = False) -> Samples:
    """Hold samples to the manifest.

    Args:
        samples: numbers of any dtype.
        manifest: shape, classes and loss.
        row_name: what to call a row in messages.
        may_be_empty: whether no rows are fine.

    Returns:
        inputs float32 (rows, *shape); targets as the loss takes them.

    Raises:
        DataError: no rows, another shape, a value that is not finite, an unknown label.
    """
    if not len(samples) and not may_be_empty:
        raise DataError("The data has no rows.", hint="Check the path, `where` and `drop_missing` of the data plug-in.")
    inputs = _shaped(samples.inputs, manifest.data.shape).to("cpu", torch.float32)
    wrong = _first_wrong_row(torch.isfinite(inputs))
    if wrong is not None:
        row, column = wrong
        raise DataError(
            f"The value in {row_name} {row + 1}, column {column + 1} of the inputs is NaN or infinite.",
            hint="Correct the row or leave it out.",
        )
    return Samples(inputs.contiguous(), _targets(samples.targets.to("cpu"), manifest, row_name))


def _targets(targets: torch.Tensor, manifest: Manifest, row_name: str) -> torch.Tensor:
    loss = manifest.training.loss
    wrong = _first_wrong_row(torch.isfinite(targets))
    if wrong is not None:
        raise DataError(
            f"The target in {row_name} {wrong[0] + 1} is NaN or infinite.", hint="Correct the row or leave it out."
        )
    if loss == "mse":
        return targets.to(torch.float32).reshape(len(targets), math.prod(targets.shape[1:]))
    classes = 2 if loss == "binary-cross-entropy" else manifest.data.classes
    if classes is None:
        raise ManifestError(f"The loss {loss} needs a number of classes.", hint="Set classes in [data].")
    if math.prod(targets.shape[1:]) != 1:
        raise DataError("The data has more than one label a row.", hint="Give class numbers, not one-hot rows.")
    labels = targets.reshape(len(targets))
    known = (labels == labels.to(torch.int64)) & (labels >= 0) & (labels < classes)
    wrong = _first_wrong_row(known)
    if wrong is not None:
        raise DataError(
            f"The label in {row_name} {wrong[0] + 1} is none of the manifest's classes, 0 to {classes - 1}.",
            hint="Map the labels in the data plug-in (for tables: `labels`), or correct classes in the manifest.",
        )
    return labels.to(torch.int64) if loss == "cross-entropy" else labels.to(torch.float32).reshape(-1, 1)


def _shaped(inputs: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Reshape where nothing can be confused: axes of size 1, or flattening altogether."""
    given = tuple(inputs.shape[1:])
    same = [size for size in given if size != 1] == [size for size in shape if size != 1]
    if same or (len(shape) == 1 and math.prod(given) == shape[0]):
        return inputs.reshape(len(inputs), *shape)
    if len(given) == len(shape) == 1:
        raise DataError(
            f"The data has {given[0]} columns of inputs, but the manifest says {shape[0]}.",
            hint="Choose columns with `features`, or correct shape in the manifest.",
        )
    raise DataError(
        f"One sample of the data has the shape {list(given)}, but the manifest says {list(shape)}.",
        hint="Correct the data plug-in's arguments, or shape in the manifest.",
    )


def _first_wrong_row(good: torch.Tensor) -> tuple[int, int] | None:
    """Return row and column (of the flattened row) of the first False, or None."""
    flat = good.reshape(len(good), -1) if good.numel() else good.reshape(len(good), 0)
    rows = flat.all(dim=1).logical_not().nonzero()
    if not len(rows):
        return None
    row = int(rows[0])
    return row, int(flat[row].logical_not().nonzero()[0])


def _hold_out(samples: Samples, share: float, sample_seed: bytes) -> tuple[Samples, Samples]:
    rows = len(samples)
    shuffled = order.permutation(sample_seed, b"holdout", rows)
    kept = shuffled[: round(rows * share)]
    if len(kept) == rows:
        raise DataError("The hold-out leaves no rows for training.", hint="Lower holdout, or bring more rows.")
    stays = torch.ones(rows, dtype=torch.bool)
    stays[kept] = False
    return samples.take(stays.nonzero().flatten()), samples.take(kept)


def _standardised(split: Split, data: Data) -> Split:
    if data.standardise == "none":
        return split
    if data.standardise == "manifest":
        mean, std = _constants(data.mean, data.shape), _constants(data.std, data.shape)
        if not bool((std > 0).all()):
            raise ManifestError("A std in [data] is not above 0.", hint="Leave such a feature out, or use 1.")
    else:
        mean, std = _own_constants(split.train.inputs.numpy())
    scaled = Split(*(Samples((part.inputs - mean) / std, part.targets) for part in (split.train, split.holdout)))
    for part in (scaled.train, scaled.holdout):
        if not bool(torch.isfinite(part.inputs).all()):
            raise DataError("Standardising made a value infinite.", hint="Check mean and std, and look for outliers.")
    return scaled


def _constants(values: tuple[float, ...], shape: tuple[int, ...]) -> torch.Tensor:
    """Return the manifest's constants as float32 that broadcasts over (rows, *shape)."""
    tensor = torch.tensor(values, dtype=torch.float32)
    if len(values) == 1:
        return tensor
    if len(values) == math.prod(shape):
        return tensor.reshape(shape)
    if len(shape) > 1 and len(values) == shape[0]:
        return tensor.reshape(-1, *[1] * (len(shape) - 1))
    raise ManifestError(
        f"mean and std in [data] have {len(values)} values, which fits no shape {list(shape)}.",
        hint="Give one for each feature, one for each channel, or one for all.",
    )


def _own_constants(inputs: npt.NDArray[np.float32]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and std of (rows, features), (rows, channels, ...) or (rows, height, width) as float32."""
    # A two-axis image has no channels; its rows of pixels are not features either.
    axes = {2: (0,), 3: (0, 1, 2)}.get(inputs.ndim, (0, *range(2, inputs.ndim)))
    mean = inputs.mean(axis=axes, dtype=np.float64, keepdims=True)[0]
    std = inputs.std(axis=axes, dtype=np.float64, keepdims=True)[0]
    std = np.where(std > 0, std, 1.0)
    return torch.from_numpy(mean.astype(np.float32)), torch.from_numpy(std.astype(np.float32))


def _absolute(name: str, value: Any, folder: Path) -> Any:
    is_path = (name == "path" or name.endswith("_path")) and isinstance(value, str)
    return str(folder / Path(value).expanduser()) if is_path else value
