"""A model's state as one flat byte string: tensors in state_dict order, little-endian, C order, no padding.

Source: docs/TRAINING.md, "State".
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from ppdl_mq.crypto import labels
from ppdl_mq.errors import ModelError, NotFinite

Buffer: TypeAlias = bytes | bytearray | memoryview | mmap.mmap
Bytes: TypeAlias = npt.NDArray[np.uint8]

_BLOCK_ELEMENTS = 1 << 16  # stays in the processor's cache
_NUMPY_FLOATS = {"float16", "float32", "float64", "complex64", "complex128"}


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies.

    Args:
        name: its key in the state_dict.
        dtype: as torch writes it: `float32`, `int64`, `bool`.
        shape: its sizes; () for a scalar.
        offset: of its first byte.
        size_bytes: of all its elements.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size_bytes: int

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch's own object."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


@dataclass(frozen=True, slots=True)
class Layout:
    """Names, dtypes, shapes and offsets of a model's state. It is computed from the model, and never travels.

    Args:
        entries: one for each tensor, in state_dict order.
        total_bytes: of the whole flat state.
    """

    entries: tuple[Entry, ...]
    total_bytes: int

    @classmethod
    def of(cls, module: torch.nn.Module) -> Layout:
        """Return the layout of a module.

        Raises:
            ModelError: the state has something else than dense tensors, or nothing.
        """
        entries = []
        offset = 0
        for name, tensor in _state(module):
            entry = Entry(
                name=name,
                dtype=str(tensor.dtype).removeprefix("torch."),
                shape=tuple(tensor.shape),
                offset=offset,
                size_bytes=tensor.numel() * tensor.element_size(),
            )
            entries.append(entry)
            offset += entry.size_bytes
        return cls(entries=tuple(entries), total_bytes=offset)

    def digest(self) -> bytes:
        """Return 32 bytes that two layouts share only if they are equal."""
        description = [[entry.name, entry.dtype, list(entry.shape)] for entry in self.entries]
        text = json.dumps(description, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(labels.LAYOUT + text.encode("ascii")).digest()

    def check_size(self, buffer: Buffer) -> Bytes:
        """Return the buffer as uint8 (total_bytes), without a copy.

        Raises:
            ModelError: the buffer is shorter or longer than the layout.
        """
        flat = np.frombuffer(buffer, dtype=np.uint8) if memoryview(buffer).nbytes else np.empty(0, dtype=np.uint8)
        if flat.size != self.total_bytes:
            raise ModelError(
                f"The weights have {flat.size} bytes, but the manifest's model takes {self.total_bytes}.",
                hint="All peers must have the same version of the model installed.",
            )
        return flat

    def tensors(self, buffer: Buffer) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield name and a copy of each tensor, on the CPU, one at a time.

        Raises:
            ModelError: the buffer has the wrong size.
        """
        flat = self.check_size(buffer)
        for entry in self.entries:
            yield entry.name, _tensor(flat, entry)


def flatten(module: torch.nn.Module) -> bytearray:
    """Return the whole state of a module, from whatever device, as bytes.

    Raises:
        ModelError: the state has something else than dense tensors, or nothing.
    """
    layout = Layout.of(module)
    buffer = bytearray(layout.total_bytes)
    flat = np.frombuffer(buffer, dtype=np.uint8)
    for entry, (_, tensor) in zip(layout.entries, _state(module), strict=True):
        flat[entry.offset : entry.offset + entry.size_bytes] = raw_bytes(tensor.cpu().contiguous())
    return buffer


def load(module: torch.nn.Module, buffer: Buffer) -> None:
    """Copy a flat state into a module, in place, with at most one tensor held twice.

    Raises:
        ModelError: the buffer has the wrong size, or a bool that is neither 0 nor 1. The module is unchanged then.
    """
    layout = Layout.of(module)
    flat = layout.check_size(buffer)
    _check_bools(flat, layout)
    with torch.no_grad():
        for entry, (_, tensor) in zip(layout.entries, _state(module), strict=True):
            if tensor.device.type == "cpu" and tensor.is_contiguous():
                raw_bytes(tensor)[:] = flat[entry.offset : entry.offset + entry.size_bytes]
            else:
                tensor.copy_(_tensor(flat, entry))


def digest(buffer: Buffer) -> bytes:
    """Return the plain SHA-256 of a flat state, as the wire has it."""
    return hashlib.sha256(buffer).digest()


def check_finite(buffer: Buffer, layout: Layout) -> None:
    """Look for NaN and infinity in a flat state, and for bools that are none, in bounded memory.

    Raises:
        NotFinite: there is one; the message names the tensor and no value.
        ModelError: the buffer has the wrong size, or a bool that is neither 0 nor 1.
    """
    flat = layout.check_size(buffer)
    _check_bools(flat, layout)
    for entry in layout.entries:
        dtype = entry.torch_dtype
        if not (dtype.is_floating_point or dtype.is_complex):
            continue
        block_bytes = _BLOCK_ELEMENTS * dtype.itemsize
        for start in range(0, entry.size_bytes, block_bytes):
            size = min(block_bytes, entry.size_bytes - start)
            if not _all_finite(flat[entry.offset + start :][:size], entry.dtype, dtype):
                raise NotFinite(f"The weights became NaN or infinite (in {entry.name}).")


def _check_bools(flat: Bytes, layout: Layout) -> None:
    for entry in layout.entries:
        if entry.dtype == "bool" and np.any(flat[entry.offset : entry.offset + entry.size_bytes] > 1):
            raise ModelError("The weights hold a truth value that is neither 0 nor 1.")


def _all_finite(block: Bytes, name: str, dtype: torch.dtype) -> bool:
    """Look at one block of values: uint8 (size_bytes)."""
    if name in _NUMPY_FLOATS:  # NumPy's test is some twenty times faster than torch's, and takes misaligned values
        return bool(np.isfinite(block.view(name)).all())
    if name == "bfloat16":  # NumPy has none, but its exponent's bits tell: all ones are NaN and infinity
        return not bool(np.any((block.view(np.uint16) & 0x7F80) == 0x7F80))
    values = torch.empty(block.size // dtype.itemsize, dtype=dtype)
    raw_bytes(values)[:] = block
    return bool(torch.isfinite(values.float()).all())


def _state(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the state_dict's tensors, held to what can be flattened."""
    if sys.byteorder != "little":
        raise ModelError("Weights travel little-endian, and this machine is big-endian.", hint="Use x86-64 or ARM.")
    state = module.state_dict()
    if not state:
        raise ModelError("The model has no weights.", hint="Name a model with parameters in the manifest.")
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor) or torch.nn.parameter.is_lazy(tensor):
            raise ModelError(
                f"The model's state has {name!r}, which is not a tensor with a size.",
                hint="Use no lazy modules and no extra state.",
            )
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise ModelError(f"The model's state has {name!r}, which is not a dense tensor.", hint="Make it dense.")
        yield name, tensor.detach()


def raw_bytes(tensor: torch.Tensor) -> Bytes:
    """Return a contiguous CPU tensor's own memory, not a copy, as uint8 (size_bytes)."""
    if not tensor.numel():  # one made from an empty array has strides of 0, which torch does not view as bytes
        return np.empty(0, dtype=np.uint8)
    # By way of NumPy, since torch warns about buffers that cannot be written to, and wants aligned ones.
    array: Bytes = tensor.reshape(-1).view(torch.uint8).numpy()
    return array


def _tensor(flat: Bytes, entry: Entry) -> torch.Tensor:
    """Return an aligned copy of one tensor."""
    tensor = torch.empty(math.prod(entry.shape), dtype=entry.torch_dtype)
    raw_bytes(tensor)[:] = flat[entry.offset : entry.offset + entry.size_bytes]
    return tensor.reshape(entry.shape)
