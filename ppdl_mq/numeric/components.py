"""The numbers in a flat state: how the elements of each dtype are read and written as NumPy arrays.

A component is one real number or one integer: a complex element has two, the real part first.

Source: docs/PROTOCOL.md, "Numbers".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from ppdl_mq.errors import ModelError
from ppdl_mq.numeric.flatten import Bytes, Entry, Layout

Numbers: TypeAlias = npt.NDArray[Any]

BLOCK: Final = 1 << 15  # components worked on at a time: 256 KiB of float64 stay in the processor's cache

_REALS = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}  # no float8: torch clips what it cannot hold
_COMPLEX = {"complex64": "float32", "complex128": "float64"}
_INTEGERS = {"int8": 1, "int16": 2, "int32": 4, "int64": 8, "uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8}


@dataclass(frozen=True, slots=True)
class Components:
    """How one tensor's bytes hold its numbers.

    Args:
        stored: the dtype in which a component lies in memory.
        size_bytes: of one component.
        count: how many the tensor has.
        integer: integers and truth values; else reals.
        largest: the largest value of an integer dtype; 0 for reals.
        smallest: the smallest one.
    """

    stored: str
    size_bytes: int
    count: int
    integer: bool
    largest: int = 0
    smallest: int = 0

    @classmethod
    def of(cls, entry: Entry) -> Components:
        """Return how a tensor's bytes are read.

        Raises:
            ModelError: its dtype cannot be averaged.
        """
        if entry.dtype == "bool":
            return cls(stored="uint8", size_bytes=1, count=entry.size_bytes, integer=True, largest=1)
        if (size := _INTEGERS.get(entry.dtype, 0)) > 0:
            limits = np.iinfo(entry.dtype)
            count = entry.size_bytes // size
            return cls(entry.dtype, size, count, integer=True, largest=int(limits.max), smallest=int(limits.min))
        stored = _COMPLEX.get(entry.dtype, entry.dtype)
        size = _REALS.get(stored, 0)
        if size == 0:
            raise ModelError(
                f"The model's state has {entry.name!r} of dtype {entry.dtype}, which cannot be averaged.",
                hint="Use float16 or larger, bfloat16, complex64 or larger, integers or bool.",
            )
        return cls(stored=stored, size_bytes=size, count=entry.size_bytes // size, integer=False)

    def read(self, block: Bytes) -> Numbers:
        """Return the numbers in some bytes: a view; float32 for bfloat16, which NumPy lacks.

        Args:
            block: uint8 (components * size_bytes), aligned or not.
        """
        if self.stored != "bfloat16":
            return block.view(self.stored)
        return (block.view(np.uint16).astype(np.uint32) << 16).view(np.float32)  # the upper half of a float32

    def write(self, block: Bytes, values: Numbers) -> None:
        """Round numbers to the dtype, to nearest with ties to even, and put them into some bytes.

        Args:
            block: uint8 (components * size_bytes), aligned or not; written to.
            values: float64 for reals (bfloat16 is rounded by way of float32); integers that fit for integers.
        """
        if self.stored != "bfloat16":
            np.copyto(block.view(self.stored), values, casting="unsafe")
            return
        bits = values.astype(np.float32).view(np.uint32)
        # Adds just less than half of the last place that stays, and the rest of the half where that place is odd.
        np.copyto(block.view(np.uint16), (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, casting="unsafe")


def components(layout: Layout) -> tuple[Components, ...]:
    """Return how each tensor of a layout is read.

    Raises:
        ModelError: there is a dtype that cannot be averaged.
    """
    return tuple(Components.of(entry) for entry in layout.entries)
