"""One public exponent for each tensor, from weights that everybody has.

Source: docs/PROTOCOL.md, "Numbers".
"""

from __future__ import annotations

import math
from typing import Final

from ppdl_mq.crypto import labels
from ppdl_mq.crypto.hashing import sha256
from ppdl_mq.errors import NotFinite, Overflow
from ppdl_mq.numeric.components import BLOCK, Components, components
from ppdl_mq.numeric.flatten import Buffer, Bytes, Layout

SMALLEST: Final = -512  # between these bounds no scale and no average leaves the normal range of float64
LARGEST: Final = 512


def exponents(weights: Buffer, layout: Layout, *, floor: int, head_room: int) -> tuple[int, ...]:
    """Return e for each tensor: its values are expected to stay below 2**e in magnitude until the next average.

    Args:
        weights: the last agreed ones, as a flat state; the same bytes at every peer.
        layout: of the flat state.
        floor: the smallest e, and that of an empty or all-zero tensor (a new BatchNorm bias).
        head_room: added to the smallest k with max |v| < 2**k.

    Raises:
        NotFinite: the weights hold NaN or infinity.
        Overflow: an exponent is above 512.
        ModelError: the buffer has the wrong size, or there is a dtype that cannot be averaged.
    """
    assert SMALLEST <= floor <= LARGEST
    assert head_room >= 0
    flat = layout.check_size(weights)
    result = []
    for entry, numbers in zip(layout.entries, components(layout), strict=True):
        if numbers.integer:
            result.append(0)  # integers take none: their words do not depend on an exponent
            continue
        largest = _largest(flat[entry.offset : entry.offset + entry.size_bytes], numbers)
        exponent = floor if largest == 0 else max(floor, math.frexp(largest)[1] + head_room)
        if exponent > LARGEST:
            raise Overflow("A weight is too large for fixed point.", hint="Weights must stay below 2**500.")
        result.append(exponent)
    return tuple(result)


def exponents_digest(exponents: tuple[int, ...]) -> bytes:
    """Return 32 bytes that two lists of exponents share only if they are equal.

    Args:
        exponents: one for each tensor; each is hashed as i16, big-endian.
    """
    return sha256(labels.EXPONENTS, b"".join(exponent.to_bytes(2, "big", signed=True) for exponent in exponents))


def _largest(tensor: Bytes, numbers: Components) -> float:
    """Return max |v|, 0 for no values.

    Args:
        tensor: uint8 (components * size_bytes).
    """
    largest = 0.0
    step = BLOCK * numbers.size_bytes
    for start in range(0, tensor.size, step):
        values = numbers.read(tensor[start : start + step])
        for value in (float(values.max()), -float(values.min())):
            if not math.isfinite(value):
                raise NotFinite("The weights became NaN or infinite.")
            largest = max(largest, value)
    return largest
