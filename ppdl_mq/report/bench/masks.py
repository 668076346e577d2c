"""What adding masks costs beside the cipher that they come from: the same bytes of stream, with and without the words.

All figures are of bytes of stream, megabytes of 10**6 bytes a second. The kinds of a repetition run one after another,
in turns forwards and backwards, so that what else the machine does hits all of them; compare ratios, which are formed
within a repetition.
"""

from __future__ import annotations

import secrets
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from ppdl_mq.crypto.prg import SEED_BYTES
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.numeric.masks import Mask, add_masks

_MEGABYTE: Final = 1_000_000
_BARE_BYTES: Final = 1 << 20


def measure_masks(
    *, megabytes: int = 40, masks: int = 4, repeat: int = 9, cores: Sequence[int] = (1, 2)
) -> dict[str, Any]:
    """Return the speed of the bare cipher and of `add_masks`, each on so many cores.

    Args:
        megabytes: of words, uint32.
        masks: how many, half of them taken away.
        repeat: how often everything is measured; median, least and most are told.
        cores: numbers of threads; the first is what the others' gain refers to.

    Returns:
        by number of cores: `bare` and `added` in megabytes a second, `ratio` of the two, and what each gains over the
        first number of cores.
    """
    words = np.zeros(megabytes * _MEGABYTE // 4, dtype=np.uint32)
    summands = [Mask(Secret(secrets.token_bytes(SEED_BYTES)), 1 if at % 2 else -1) for at in range(masks)]
    total_bytes = masks * words.nbytes
    kinds: dict[tuple[str, int], Callable[[], object]] = {}
    for count in cores:
        kinds["bare", count] = _bare(total_bytes, count)
        kinds["added", count] = lambda count=count: add_masks(words, summands, threads=count)  # type: ignore[misc]
    for run in kinds.values():  # the first touch of the memory is nobody's
        run()
    speeds: dict[tuple[str, int], list[float]] = {kind: [] for kind in kinds}
    for repetition in range(repeat):
        for kind in kinds if repetition % 2 == 0 else reversed(kinds):
            began = time.perf_counter()
            kinds[kind]()
            speeds[kind].append(total_bytes / _MEGABYTE / (time.perf_counter() - began))
    first = cores[0]
    return {
        "megabytes": megabytes,
        "masks": masks,
        "cores": {
            str(count): {
                "bare": _spread(speeds["bare", count]),
                "added": _spread(speeds["added", count]),
                "ratio": _ratio(speeds["added", count], speeds["bare", count]),
                "bare_gain": _ratio(speeds["bare", count], speeds["bare", first]),
                "added_gain": _ratio(speeds["added", count], speeds["added", first]),
            }
            for count in cores
        },
    }


def _bare(total_bytes: int, threads: int) -> Callable[[], object]:
    """Return what makes so many bytes of stream with the library alone, in the same memory again and again."""
    zeros = bytes(_BARE_BYTES)
    outs = [bytearray(_BARE_BYTES) for _ in range(threads)]

    def stream(out: bytearray) -> None:
        encryptor = Cipher(ChaCha20(secrets.token_bytes(SEED_BYTES), bytes(16)), mode=None).encryptor()
        for _ in range(total_bytes // (threads * _BARE_BYTES)):
            encryptor.update_into(zeros, out)

    def run() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(stream, outs))

    return run


def _ratio(ours: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    return _spread([own / other for own, other in zip(ours, others, strict=True)])


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "min": round(min(values), 3),
        "median": round(statistics.median(values), 3),
        "max": round(max(values), 3),
    }
