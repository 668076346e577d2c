"""Which device trains."""

from __future__ import annotations

import torch

from ppdl_mq.errors import PeerFileError


def choose(name: str) -> torch.device:
    """Return the device that a name of peer.toml or `--device` means.

    Args:
        name: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises:
        PeerFileError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise PeerFileError("This machine has no MPS device.", hint="Set device to auto or cpu.")
        return torch.device("mps")
    kind, _, index = name.partition(":")
    if kind != "cuda" or (index == "") != (name == "cuda") or not (index.isdecimal() or name == "cuda"):
        raise PeerFileError(f"{name!r} is no device.", hint="Use auto, cpu, cuda, cuda:N or mps.")
    if not torch.cuda.is_available():
        raise PeerFileError(
            "No CUDA device can be used here.", hint="Check the driver and the build of torch, or set device to auto."
        )
    number = int(index or 0)
    count = torch.cuda.device_count()
    if number >= count:
        raise PeerFileError(
            f"There is no device cuda:{number} here.", hint=f"The last one is cuda:{count - 1}; or set device to auto."
        )
    return torch.device("cuda", number)
