"""Same bytes in, same bytes out: threads, deterministic algorithms, seeds.

Source: docs/TRAINING.md, "One turn".
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# torch's generators belong to the process, so whoever seeds them for a turn needs them alone until its end.
_GENERATORS = threading.Lock()


def apply(threads: int) -> None:
    """Make this process deterministic, and set the CPU threads of the calling thread.

    Call it before CUDA starts, and again in the thread that trains: OpenMP keeps the number of threads for each
    calling thread.

    Args:
        threads: CPU threads of one operation.
    """
    if os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in (":4096:8", ":16:8"):  # the two deterministic settings
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_num_threads(threads)


def reseed(seed: int, device: torch.device) -> None:
    """Seed the generators of the CPU and of one device anew, within a block of `seeded`.

    `torch.manual_seed` looks at every kind of device there may be, which takes a hundred times as long.

    Args:
        seed: 0 to 2**63 - 1.
        device: where the model is.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators for the block, and put them back as they were afterwards.

    Args:
        seed: 0 to 2**63 - 1.
        device: the accelerator whose generator is put back too.
    """
    devices = [device] if device.type == "cuda" else []
    with _GENERATORS, torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
