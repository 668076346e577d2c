"""The data plug-in for folders of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ppdl_mq.errors import DataError
from ppdl_mq.training.data.samples import Samples

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}


def image_folder(path: str, *, classes: Sequence[str], size: Sequence[int], channels: int = 3) -> Samples:
    """Read one folder of images for each class. Needs Pillow.

    Args:
        path: the folder with the classes' folders.
        classes: their names, in the order of the class numbers; a peer may lack some.
        size: [height, width] that every image is resized to (bilinear).
        channels: 3 for RGB, 1 for grey.

    Returns:
        inputs float32 (rows, channels, height, width), 0 to 1; targets int64 (rows).
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise DataError("Images need Pillow, which is not installed.", hint="pip install 'ppdl-mq[images]'") from error
    if channels not in (1, 3) or len(size) != 2:
        raise DataError("channels is not 1 or 3, or size not [height, width].", hint="Correct the data arguments.")
    height, width = size
    root = Path(path)
    for folder in sorted(each.name for each in root.iterdir() if each.is_dir()):
        if folder not in classes:
            raise DataError(f"{path} has a folder {folder!r} that is no class.", hint="Add it to `classes` or move it.")
    files = [
        (file, number)
        for number, name in enumerate(classes)
        if (root / name).is_dir()
        for file in sorted((root / name).iterdir())
        if file.suffix.lower() in _SUFFIXES
    ]
    if not files:
        raise DataError(f"{path} has no images.", hint="It needs one folder for each class.")
    pixels = np.empty((len(files), channels, height, width), dtype=np.float32)
    for row, (file, _) in enumerate(files):
        try:
            with Image.open(file) as image:
                colours = image.convert("L" if channels == 1 else "RGB")
        except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{file} cannot be read as an image.", hint="Replace it or take it out.") from error
        if colours.size != (width, height):
            colours = colours.resize((width, height), Image.Resampling.BILINEAR)
        grid = np.asarray(colours, dtype=np.float32).reshape(height, width, channels)
        pixels[row] = grid.transpose(2, 0, 1) / np.float32(255)
    return Samples(torch.from_numpy(pixels), torch.tensor([number for _, number in files]))
