"""The trained model as a safetensors file: no code in it, and never half written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import safetensors
from safetensors import SafetensorError
from safetensors.torch import save_file

from ppdl_mq.config.writing import is_for_want_of_room, sync_folder
from ppdl_mq.errors import DiskFull, ModelError
from ppdl_mq.numeric.flatten import Buffer, Layout, raw_bytes


def save_model(path: Path, layout: Layout, weights: Buffer, metadata: Mapping[str, str] | None = None) -> None:
    """Write weights to a file, whole or not at all.

    Args:
        path: the file; an old one is replaced.
        layout: of the weights.
        weights: a flat state.
        metadata: short texts to store beside them.

    Raises:
        ModelError: the weights have the wrong size or cannot be stored, or the file cannot be written.
        DiskFull: there is no room for it.
    """
    tensors = dict(layout.tensors(weights))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A folder of its own beside the target: safetensors writes the file itself, and renames need one disk. Its name
        # is the same each time, so that what a death leaves is removed by the next process.
        folder = path.with_name(f".{path.name}.unfinished")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        try:
            draft = folder / path.name
            save_file(tensors, draft, metadata=dict(metadata or {}))
            with draft.open("rb") as file:
                os.fsync(file.fileno())
            draft.replace(path)
            sync_folder(path.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        if is_for_want_of_room(error):
            raise DiskFull(f"The model {path}", "No space left on device") from error
        raise ModelError(f"The model cannot be written to {path}.", hint="Check the folder and the disk.") from error


def load_model(path: Path, layout: Layout) -> tuple[bytearray, dict[str, str]]:
    """Read what `save_model` wrote.

    Args:
        path: the file.
        layout: what the file must hold, no more and no less.

    Returns:
        The flat state, and the texts beside it.

    Raises:
        ModelError: the file cannot be read, or holds another model.
    """
    weights = bytearray(layout.total_bytes)
    flat = layout.check_size(weights)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            _check_names(path, set(file.keys()), layout)
            for entry in layout.entries:
                tensor = file.get_tensor(entry.name)
                if tensor.dtype != entry.torch_dtype or tuple(tensor.shape) != entry.shape:
                    raise ModelError(f"{path} holds another {entry.name} than the model.", hint="Name the right model.")
                flat[entry.offset : entry.offset + entry.size_bytes] = raw_bytes(tensor)
            metadata = dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} is no readable safetensors file.", hint="Check the path.") from error
    return weights, metadata


def _check_names(path: Path, names: set[str], layout: Layout) -> None:
    if names != {entry.name for entry in layout.entries}:
        raise ModelError(f"{path} holds the tensors of another model.", hint="Name the right model.")
