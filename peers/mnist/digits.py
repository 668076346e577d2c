"""A data plug-in: MNIST's files, of which this organisation has only some of the digits.

It is the pattern for your own: a function that takes the arguments of `[data.arguments]` in peer.toml and returns the
organisation's samples. It runs at this organisation alone, and what it reads never leaves it.
"""

from __future__ import annotations

import torch

from ppdl_mq.errors import DataError
from ppdl_mq.training.data import Samples, idx


def some_digits(images_path: str, labels_path: str, *, digits: list[int], rows: int | None = None) -> Samples:
    """Return the images of some digits.

    Args:
        images_path: of MNIST's form, (rows, height, width); relative to peer.toml.
        labels_path: likewise, (rows).
        digits: which to keep, 0 to 9.
        rows: how many at most; all without it.

    Raises:
        DataError: the files are none of MNIST's, or there is no such digit in them.
    """
    everything = idx(images_path, labels_path)
    assert isinstance(everything, Samples), "no hold-out was asked for"
    kept = torch.isin(everything.targets, torch.tensor(digits)).nonzero().flatten()[:rows]
    if not len(kept):
        raise DataError("The files hold none of these digits.", hint="Correct `digits` in peer.toml.")
    return everything.take(kept)
