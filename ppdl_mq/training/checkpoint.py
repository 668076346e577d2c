"""A turn in its middle, as bytes: what a later process needs to go on with it to the same bits.

    magic | length of the header, 4 bytes | header (canonical) | state | momentum | generators | SHA-256 of all before

The state is the flat one; momentum is the buffer of each parameter that has one, in the optimizer's order and in the
parameter's dtype and shape. Nothing in it is unpickled.

Source: docs/TRAINING.md, "In the middle of a turn".
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import torch

from ppdl_mq.errors import Malformed, ModelError
from ppdl_mq.numeric import flatten
from ppdl_mq.numeric.flatten import Buffer
from ppdl_mq.training.loop import Standing
from ppdl_mq.wire import canonical

log = logging.getLogger("ppdl_mq.training")

_MAGIC: Final = b"ppdl-mq turn 1\n"
_LENGTH_BYTES: Final = 4
_DIGEST_BYTES: Final = 32
_MAX_HEADER_BYTES: Final = 1 << 20
_PIECE_BYTES: Final = 1 << 20
_PAUSES: Final = 100  # a pause lasts at least this many times what the writing before it took: at most 1 % is spent


class Shelf(Protocol):
    """Where a worker's checkpoints lie, one at a time.

    Args:
        every_s: the shortest time between two of a turn, in seconds.
    """

    every_s: float

    def view(self, number: int) -> AbstractContextManager[memoryview | None]:
        """Give read access to the checkpoint of a turn, if there is one, and remove those of others."""

    def save(self, number: int, pieces: Iterable[Buffer]) -> bool:
        """Put a checkpoint in the place of the one before, whole or not at all; tell whether that went well."""

    def discard(self, number: int) -> None:
        """Remove the checkpoint of a turn whose result is safe; nothing to remove is fine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a turn's result follows from. A checkpoint of any other is not gone on with.

    Args:
        trial_id: 32 bytes.
        number: of the turn or round.
        base: the flat state that it begins from.
        layout: digest of the state's layout.
        seed_mark: a number that follows from the sample seed, and from which nothing of use follows.
        rows: of the peer's training samples. (Which ones, nobody checks without differential privacy.)
        device: where it is computed.
        private: clip, noise and digest of the rows where there is differential privacy; else empty.
    """

    trial_id: bytes
    number: int
    base: Buffer = field(repr=False)
    layout: bytes
    seed_mark: int
    rows: int
    device: torch.device
    private: tuple[float | bytes, ...] = ()

    def as_data(self) -> dict[str, Any]:
        """Return plain data that only equal origins share."""
        return {
            "trial": self.trial_id,
            "number": self.number,
            "base": flatten.digest(self.base),
            "layout": self.layout,
            "seed": self.seed_mark,
            "rows": self.rows,
            "device": self.device.type,
            "private": list(self.private),
            "torch": str(torch.__version__),  # another build comes to other bits anyway
        }


class Unusable(Exception):
    """A checkpoint that is damaged or foreign; says which. It never leaves this module."""


class Keeper:
    """Keeps one turn's checkpoints, and takes up the one that there is. For one thread.

    Args:
        shelf: where they lie.
        origin: of the turn.
        module: on the origin's device, with the state that the turn begins from.
        optimizer: of its parameters, new.
    """

    def __init__(self, shelf: Shelf, origin: Origin, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._shelf = shelf
        self._origin = origin
        self._module = module
        self._optimizer = optimizer
        self._device = origin.device
        self._data: dict[str, Any] | None = None
        self._kept_steps = 0
        self._due_at = time.monotonic() + shelf.every_s

    def resume(self) -> Standing | None:
        """Put module, optimizer and generators where the checkpoint left them; None, and nothing, without a good one.

        Call it with the generators seeded for the turn.
        """
        number = self._origin.number
        with self._shelf.view(number) as view:
            if view is None:
                return None
            try:
                standing = self._taken_up(view)
            except Unusable as reason:
                # As text: an exception that somebody kept would keep the view.
                log.warning("The checkpoint of turn %d is passed over: %s. The turn begins anew.", number, str(reason))
                return None
        self._kept_steps = standing.steps
        log.info("Going on in the middle of turn %d, after %d batches.", number, standing.steps)
        return standing

    def keep(self, standing: Standing, *, is_stopping: bool) -> None:
        """Write a checkpoint, if it is time to or the turn is about to be left, and there is something new.

        Args:
            standing: where the turn stands.
            is_stopping: nothing more will be trained now.
        """
        if standing.steps == self._kept_steps:
            return
        began = time.monotonic()
        if began < self._due_at and not is_stopping:
            return
        is_kept = self._shelf.save(self._origin.number, self._pieces(standing))
        took_s = time.monotonic() - began
        self._due_at = began + took_s + max(self._shelf.every_s, _PAUSES * took_s)
        self._kept_steps = standing.steps
        if is_kept:
            level = logging.INFO if is_stopping else logging.DEBUG
            log.log(level, "Kept turn %d as it is after %d batches.", self._origin.number, standing.steps)

    def _origin_data(self) -> dict[str, Any]:
        """Return the origin's data, made when it is first asked for: most turns end before their first checkpoint."""
        if self._data is None:
            self._data = self._origin.as_data()
        return self._data

    # --- writing -------------------------------------------------------------------------------------------------

    def _pieces(self, standing: Standing) -> Iterator[Buffer]:
        """Yield the checkpoint piece by piece: with at most one tensor copied at a time."""
        digest = hashlib.sha256()
        for piece in self._content(standing):
            digest.update(piece)
            yield piece
        yield digest.digest()

    def _content(self, standing: Standing) -> Iterator[Buffer]:
        buffers = [self._optimizer.state[each].get("momentum_buffer") for each in self._parameters()]
        generators = _generator_states(self._device)
        header = canonical.encode(
            {
                "origin": self._origin_data(),
                "steps": standing.steps,
                "rows": standing.rows,
                "loss": bytes(_raw(standing.total)),  # as it is: it may be infinite
                "momentum": bytes(buffer is not None for buffer in buffers),
                "generators": [len(state) for state in generators],
            }
        )
        yield _MAGIC + len(header).to_bytes(_LENGTH_BYTES, "big") + header
        for tensor in (*self._module.state_dict().values(), *buffers):
            if tensor is not None and tensor.numel():
                yield _raw(tensor)
        yield from generators

    # --- reading -------------------------------------------------------------------------------------------------

    def _taken_up(self, view: memoryview) -> Standing:
        """Check everything, and only then change anything.

        Raises:
            Unusable: nothing is changed.
        """
        header, at = _opened(view)
        if header["origin"] != self._origin_data():
            raise Unusable("it belongs to something else")
        try:
            flags = [bool(flag) for flag in header["momentum"]]
            states = [int(size) for size in header["generators"]]
            standing = self._standing(header)
        except (KeyError, TypeError, ValueError):
            raise Unusable("its header is damaged") from None
        parameters = self._parameters()
        layout = flatten.Layout.of(self._module)
        if len(flags) != len(parameters):
            raise Unusable("its header is damaged")
        with_buffers = [each for each, flag in zip(parameters, flags, strict=True) if flag]
        sizes = [layout.total_bytes, *(each.numel() * each.element_size() for each in with_buffers), *states]
        if at + sum(sizes) + _DIGEST_BYTES != len(view):
            raise Unusable("its size is wrong")
        ends = [at := at + size for size in sizes]
        parts = [view[end - size : end] for end, size in zip(ends, sizes, strict=True)]
        tried = _tried(parts[1 + len(with_buffers) :], self._device)
        try:
            flatten.load(self._module, parts[0])
        except ModelError:  # a truth value that is none; the module is unchanged then
            raise Unusable("its weights are damaged") from None
        for parameter, part in zip(with_buffers, parts[1:], strict=False):
            self._optimizer.state[parameter]["momentum_buffer"] = _like(parameter, part)
        _set_generators(tried, self._device)
        return standing

    def _standing(self, header: dict[str, Any]) -> Standing:
        standing = Standing.start(self._device)
        standing.steps, standing.rows = int(header["steps"]), int(header["rows"])
        if standing.steps < 1 or standing.rows < 0:  # private steps may have none
            raise ValueError("a checkpoint is written after a step")
        standing.total = _like(standing.total, header["loss"])
        return standing

    def _parameters(self) -> list[torch.Tensor]:
        return [each for group in self._optimizer.param_groups for each in group["params"]]


def _opened(view: memoryview) -> tuple[dict[str, Any], int]:
    """Return the header, and where it ends.

    Raises:
        Unusable: the file is not what was written.
    """
    begins = len(_MAGIC) + _LENGTH_BYTES
    if len(view) < begins + _DIGEST_BYTES or bytes(view[: len(_MAGIC)]) != _MAGIC:
        raise Unusable("it is damaged, or of another version")
    digest = hashlib.sha256()
    for start in range(0, len(view) - _DIGEST_BYTES, _PIECE_BYTES):
        digest.update(view[start : min(start + _PIECE_BYTES, len(view) - _DIGEST_BYTES)])
    if digest.digest() != view[-_DIGEST_BYTES:]:
        raise Unusable("it is damaged")
    ends = begins + int.from_bytes(view[len(_MAGIC) : begins], "big")
    try:
        header = canonical.decode(bytes(view[begins:ends]), limit_bytes=_MAX_HEADER_BYTES)
    except Malformed:
        raise Unusable("its header is damaged") from None
    if not isinstance(header, dict) or "origin" not in header:
        raise Unusable("its header is damaged")
    return header, ends


def _raw(tensor: torch.Tensor) -> memoryview:
    """Return a tensor's elements as bytes, in C order; its own memory where that is possible."""
    return flatten.raw_bytes(tensor.detach().cpu().contiguous()).data


def _like(model: torch.Tensor, raw: Buffer) -> torch.Tensor:
    """Return a tensor with these bytes, and otherwise like another: on its device, with its strides.

    The strides are part of it: torch may round the elements of a tensor in another order of memory in another way.

    Raises:
        ValueError: the bytes are too few or too many.
    """
    on_cpu = torch.empty(model.shape, dtype=model.dtype)
    memory = flatten.raw_bytes(on_cpu)
    if memory.size != memoryview(raw).nbytes:
        raise ValueError("a tensor's bytes are too few or too many")
    if memory.size:
        memory[:] = memoryview(raw)
    return torch.empty_like(model, memory_format=torch.preserve_format, requires_grad=False).copy_(on_cpu)


# --- torch's generators: they belong to the process, and `determinism.seeded` holds them for the turn ----------------


def _generator_states(device: torch.device) -> list[memoryview]:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    elif device.type == "mps":
        states.append(torch.mps.get_rng_state())
    return [_raw(state) for state in states]


def _tried(raw: list[memoryview], device: torch.device) -> list[torch.Tensor]:
    """Return the states of the generators as tensors, each having been accepted by a generator of no account.

    Raises:
        Unusable: there are others than the device has, or torch does not take one.
    """
    kinds = ["cpu"] if device.type == "cpu" else ["cpu", str(device)]
    if len(raw) != len(kinds):
        raise Unusable("it has other generators than this device")
    states = [_like(torch.empty(len(each), dtype=torch.uint8), each) for each in raw]
    try:
        for kind, state in zip(kinds, states, strict=True):
            torch.Generator(kind).set_state(state)
    except (RuntimeError, TypeError, ValueError):
        raise Unusable("torch does not take the state of its generators") from None
    return states


def _set_generators(states: list[torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
    elif device.type == "mps":
        torch.mps.set_rng_state(states[1])
