from __future__ import annotations

import hashlib
import mmap
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ppdl_mq.errors import ModelError, NotFinite
from ppdl_mq.numeric import flatten as flat
from ppdl_mq.numeric.flatten import Layout


class Odd(nn.Module):
    """Every kind of tensor that a state can hold; the odd-sized ones leave the rest misaligned."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("flag", torch.tensor([True, False, bool(seed % 2)]))
        self.weight = nn.Parameter(torch.randn(3, 5, generator=generator))
        self.register_buffer("empty", torch.empty(0, 4))
        self.register_buffer("count", torch.tensor(seed))
        self.register_buffer("f16", torch.randn(7, generator=generator).to(torch.float16))
        self.register_buffer("bf16", torch.randn(7, generator=generator).to(torch.bfloat16))
        self.register_buffer("f64", torch.randn(2, 2, generator=generator).to(torch.float64))
        self.register_buffer("f8", torch.randn(5, generator=generator).to(torch.float8_e4m3fn))
        self.register_buffer("c64", torch.randn(2, generator=generator).to(torch.complex64))
        turned = torch.randn(2, 3, 4, 5, generator=generator).to(memory_format=torch.channels_last)
        self.image = nn.Parameter(turned)
        self.register_buffer("bytes", torch.arange(3, dtype=torch.uint8))


def equal(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(left.state_dict().items(), right.state_dict().items(), strict=True)
    return all(a == b and x.dtype == y.dtype and torch.equal(x.cpu(), y.cpu()) for (a, x), (b, y) in pairs)


def test_the_bytes_are_the_tensors_in_order_little_endian_without_padding() -> None:
    module = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0, -2.0]]))
        module[0].bias.fill_(0.5)
    expected = struct.pack("<3f", 1, -2, 0.5) + struct.pack("<4f", 1, 0, 0, 1) + struct.pack("<q", 0)
    assert bytes(flat.flatten(module)) == expected
    assert flat.digest(expected) == hashlib.sha256(expected).digest()


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, lambda b: memoryview(bytes(b)).toreadonly()])
def test_every_dtype_comes_back_bit_for_bit_from_any_buffer(wrap) -> None:
    source, target = Odd(1), Odd(2)
    assert not equal(source, target)
    flat.load(target, wrap(flat.flatten(source)))
    assert equal(source, target)
    assert target.image.is_contiguous(memory_format=torch.channels_last)
    assert bytes(flat.flatten(target)) == bytes(flat.flatten(source))


def test_a_memory_map_can_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(flat.flatten(Odd(3)))
    target = Odd(4)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        flat.load(target, mapped)
        flat.check_finite(mapped, Layout.of(target))
    assert equal(target, Odd(3))


def test_the_layout_tells_models_apart() -> None:
    one = Layout.of(nn.Linear(3, 2))
    assert one == Layout.of(nn.Linear(3, 2))
    assert one.digest() == Layout.of(nn.Linear(3, 2)).digest()
    others = [
        nn.Linear(2, 3),
        nn.Linear(3, 2, dtype=torch.float64),
        nn.Sequential(nn.Linear(3, 2)),
        nn.Linear(3, 2, bias=False),
    ]
    assert len({one.digest(), *(Layout.of(other).digest() for other in others)}) == 5
    assert one.total_bytes == 32
    assert [entry.offset for entry in one.entries] == [0, 24]


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b""])
def test_a_buffer_of_another_size_is_refused_and_changes_nothing(change) -> None:
    module = Odd(1)
    before = bytes(flat.flatten(module))
    other = change(bytes(flat.flatten(Odd(2))))
    for use in (lambda: flat.load(module, other), lambda: flat.check_finite(other, Layout.of(module))):
        with pytest.raises(ModelError):
            use()
    assert bytes(flat.flatten(module)) == before


def test_a_bool_that_is_no_bool_is_refused_and_changes_nothing() -> None:
    module = Odd(1)
    before = bytes(flat.flatten(module))
    buffer = flat.flatten(Odd(2))
    flag = next(entry for entry in Layout.of(module).entries if entry.name == "flag")
    buffer[flag.offset + 1] = 2
    with pytest.raises(ModelError):
        flat.load(module, buffer)
    assert bytes(flat.flatten(module)) == before


@pytest.mark.parametrize("name", ["weight", "f16", "bf16", "f64", "f8", "c64", "image"])
def test_one_value_that_is_not_finite_is_found_in_any_float(name: str) -> None:
    module = Odd(1)
    flat.check_finite(flat.flatten(module), Layout.of(module))
    with torch.no_grad():
        tensor = module.state_dict()[name]
        tensor[(-1,) * tensor.dim()] = float("nan")
    with pytest.raises(NotFinite):
        flat.check_finite(flat.flatten(module), Layout.of(module))


def test_infinity_in_the_last_block_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat, "_BLOCK_ELEMENTS", 4)
    module = nn.Linear(3, 3)
    flat.check_finite(flat.flatten(module), Layout.of(module))
    with torch.no_grad():
        module.weight[2, 2] = float("-inf")
    with pytest.raises(NotFinite):
        flat.check_finite(flat.flatten(module), Layout.of(module))


class Extra(nn.Linear):
    def get_extra_state(self) -> str:
        return "code"

    def set_extra_state(self, state: object) -> None:
        pass


def test_what_cannot_be_flattened_is_refused() -> None:
    sparse = nn.Linear(1, 1)
    sparse.register_buffer("s", torch.eye(2).to_sparse())
    for module in (nn.ReLU(), Extra(1, 1), sparse):
        with pytest.raises(ModelError):
            flat.flatten(module)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_lazy_module_is_refused() -> None:
    with pytest.raises(ModelError):
        Layout.of(nn.LazyLinear(2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_weights_come_from_and_go_to_cuda() -> None:
    source, target = Odd(1).cuda(), Odd(2).cuda()
    assert bytes(flat.flatten(source)) == bytes(flat.flatten(Odd(1)))
    flat.load(target, flat.flatten(source))
    assert equal(source, target)


def test_an_empty_tensor_that_was_an_empty_array() -> None:
    module = torch.nn.Module()
    module.register_buffer("nothing", torch.from_numpy(np.empty(0, dtype=np.float32)))
    module.register_buffer("one", torch.ones(1))
    state = flat.flatten(module)
    assert len(state) == 4
    flat.load(module, state)
