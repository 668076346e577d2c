"""What is added up: vectors in the ring Z_2^32 or Z_2^64."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Words: TypeAlias = npt.NDArray[np.uint32] | npt.NDArray[np.uint64]
