"""The average by way of ring words against the plain average, over models, magnitudes, peers and weightings."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ppdl_mq.numeric import flatten as flat
from ppdl_mq.numeric.exponents import exponents
from ppdl_mq.numeric.fixed_point import FixedPoint, Share
from ppdl_mq.numeric.flatten import Layout
from tests.numeric.test_fixed_point import WAYS, layout_of, shares, state_of, total_of

REALS = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)
INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
LARGEST = {torch.float16: 6e4, torch.bool: 1, torch.uint8: 255, torch.int8: 127, torch.int16: 32767}
FINE = Fraction(1, 2**50)  # the oracle's own float64 arithmetic, relative to the largest value


def draw_tensor(
    numbers: np.random.Generator, dtype: torch.dtype, shape: tuple[int, ...], magnitude: float
) -> torch.Tensor:
    magnitude = min(magnitude, LARGEST.get(dtype, math.inf))
    if dtype in INTEGERS:
        low = 0 if dtype in (torch.bool, torch.uint8) else -int(magnitude)
        return torch.from_numpy(numbers.integers(low, int(magnitude) + 1, size=shape)).to(dtype)
    reals = numbers.uniform(-magnitude, magnitude, size=(*shape, 2 if dtype.is_complex else 1))
    tensor = torch.tensor(reals.tolist(), dtype=torch.float64).reshape(reals.shape)
    return torch.view_as_complex(tensor).to(dtype) if dtype.is_complex else tensor[..., 0].to(dtype)


def as_numbers(tensor: torch.Tensor) -> np.ndarray:
    """All components in float64: (n)."""
    if tensor.dtype.is_complex:
        tensor = torch.view_as_real(tensor)
    return tensor.to(torch.float64).reshape(-1).numpy()


def rounded(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Round float64 to a dtype's components: the last step of the specification."""
    kind = {torch.complex64: torch.float32, torch.complex128: torch.float64}.get(dtype, dtype)
    if dtype in INTEGERS:
        return np.rint(values)
    return torch.from_numpy(values).to(torch.float32 if kind is torch.bfloat16 else kind).to(kind).double().numpy()


def check_average(code: FixedPoint, states: list[bytes], counts: list[int], numbers: np.random.Generator) -> None:
    """Encode, mask, add up in some order, decode; compare each tensor with its float64 average."""
    words = [code.encode(s, share) for s, share in zip(states, shares(code.weighting, counts), strict=True)]
    total = total_of(words)

    # Random masks that cancel, partial sums that wrap, another order: the sum is the same.
    masks = numbers.integers(0, 2**code.word_bits, size=(len(words), code.words), dtype=total.dtype)
    masked = [w + masks[i] - masks[i - 1] for i, w in enumerate(words)]
    again = total_of([masked[i] for i in numbers.permutation(len(words))])
    assert np.array_equal(again, total)
    result = code.decode(again)
    assert result == code.decode(total)

    weights = np.array(counts if code.weighting != "equal" else [1] * len(states), dtype=np.float64)
    tensors = [[t for _, t in code.layout.tensors(state)] for state in states]
    for index, (_, mean) in enumerate(code.layout.tensors(result)):
        if mean.numel() == 0:
            continue
        values = np.stack([as_numbers(each[index]) for each in tensors])  # (N, n)
        plain = np.average(values, axis=0, weights=weights)
        largest = float(np.abs(values).max())
        bound = code.error_bound(index, largest) + float(FINE) * largest
        # Rounding keeps order, so the rounded average lies between the roundings of the bound's two ends.
        found = as_numbers(mean)
        assert (rounded(plain - bound, mean.dtype) <= found).all(), code.layout.entries[index]
        assert (found <= rounded(plain + bound, mean.dtype)).all(), code.layout.entries[index]


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 2**63),
    st.sampled_from(WAYS),
    st.integers(2, 50),
    st.lists(
        st.tuples(
            st.sampled_from(REALS + INTEGERS),
            st.lists(st.integers(0, 5), max_size=3).map(tuple),  # () is a scalar; a zero leaves nothing
            st.sampled_from([1e-8, 1e-3, 1.0, 30.0, 1e4, 1e8]),
        ),
        min_size=1,
        max_size=6,
    ),
)
def test_the_average_is_the_plain_one_within_the_bound(seed, way, peers, described) -> None:
    numbers = np.random.default_rng(seed)
    if way == ("equal", 32) or way == ("declared", 32):  # larger integers need larger words
        described = [(d, s, min(m, 1e6) if d in INTEGERS else m) for d, s, m in described]
    last = [draw_tensor(numbers, *each) for each in described]
    layout = layout_of(*last)
    code = FixedPoint(layout, exponents(state_of(*last), layout, floor=-2, head_room=3), way[1], peers, way[0])
    states = []
    for _ in range(peers):
        # One round of training: some move little, some three times as far as the values were.
        step = numbers.choice([0.01, 1.0, 3.0])
        moved = [draw_tensor(numbers, d, s, m * step if m * step < 1e8 else m) for d, s, m in described]
        moved = [
            t if t.dtype in INTEGERS else _held(t, e) for t, e in zip(moved, code.exponents, strict=True)
        ]  # where the last values happened to be tiny
        states.append(state_of(*moved))
    check_average(code, states, numbers.integers(1, 10_000, size=peers).tolist(), numbers)


def _held(tensor: torch.Tensor, exponent: int) -> torch.Tensor:
    """Scale a tensor down until it fits below 2**exponent."""
    largest = float(np.abs(as_numbers(tensor)).max(initial=0))
    return tensor if largest < 0.99 * 2.0**exponent else tensor * (0.9 * 2.0**exponent / largest)


@pytest.mark.parametrize("peers", [2, 5, 128, 129, 200, 256])
@pytest.mark.parametrize("exponent", [-30, -2, 0, 7, 30])
def test_the_bound_is_one_float32_rounding_of_the_exponents_range(peers: int, exponent: int) -> None:
    layout = layout_of(torch.zeros(1))
    rounding = 2.0 ** (exponent - 24)
    for weighting, bits in WAYS:
        bound = FixedPoint(layout, (exponent,), bits, peers, weighting).error_bound(0)
        if bits == 32:
            assert bound <= rounding * (1 + 2.0**-26)  # that little is float64's own rounding, from 129 peers on
            assert peers > 128 or bound < rounding
        else:
            assert bound < rounding / (2 if weighting == "secret" else 128) * (1 + 2.0**-20)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**63), st.sampled_from(WAYS), st.integers(2, 50), st.integers(-30, 60))
def test_the_bound_holds_in_exact_arithmetic(seed, way, peers, exponent) -> None:
    numbers = np.random.default_rng(seed)
    layout = layout_of(torch.zeros(20, dtype=torch.float64))
    code = FixedPoint(layout, (exponent,), way[1], peers, way[0])
    counts = numbers.integers(1, 10_000, size=peers).tolist()
    weights = counts if way[0] != "equal" else [1] * peers
    room = 2.0**exponent * (1 - 2.0**-20)
    values = numbers.uniform(-room, room, size=(peers, 20))
    # Halves of the last place, all rounded the same way: as bad as it gets.
    values[:, :5] = (4 * numbers.integers(-50, 50, size=(1, 5)) + 0.5) * 2.0 ** -code._fraction_bits(0)
    words = [code.encode(v.tobytes(), s) for v, s in zip(values, shares(way[0], counts), strict=True)]
    found = np.frombuffer(code.decode(total_of(words)))
    worst = Fraction(0)
    for column, mean in enumerate(found.tolist()):
        exact = sum(Fraction(v) * w for v, w in zip(values[:, column].tolist(), weights, strict=True)) / sum(weights)
        worst = max(worst, abs(Fraction(mean) - exact))
    assert worst <= Fraction(code.error_bound(0))
    if way[0] == "equal":
        assert worst >= Fraction(code.error_bound(0)) / 2  # the bound is not idle


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5), nn.BatchNorm1d(5)
        )


def trained(start: bytes, seed: int, steps: int) -> bytes:
    model = network(0)
    flat.load(model, start)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(steps):
        inputs = torch.randn(16, 1, 8, 8, generator=generator)
        targets = torch.randint(0, 5, (16,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return bytes(flat.flatten(model))


@pytest.mark.parametrize("way", WAYS)
def test_a_model_with_batch_norm_is_averaged_from_its_first_weights_on(way: tuple[str, int]) -> None:
    layout = Layout.of(network(0))
    agreed = bytes(flat.flatten(network(0)))
    counts = [320, 64, 48]
    for round_number in range(3):
        states = [trained(agreed, 10 * round_number + peer, steps=3 + peer) for peer in range(3)]
        fitted = exponents(agreed, layout, floor=-2, head_room=3)
        biases = [e for e, entry in zip(fitted, layout.entries, strict=True) if entry.name == "1.bias"]
        assert biases == [-2] or round_number > 0  # all zeros at first
        code = FixedPoint(layout, fitted, way[1], 3, way[0])
        check_average(code, states, counts, np.random.default_rng(round_number))
        total = total_of([code.encode(s, share) for s, share in zip(states, shares(way[0], counts), strict=True)])
        agreed = bytes(code.decode(total))
        flat.check_finite(agreed, layout)
        model = network(1)
        flat.load(model, agreed)
        if way[0] == "equal":  # 3, 4 and 5 batches a round
            assert int(model[1].num_batches_tracked) == 4 * (round_number + 1)


@pytest.mark.parametrize("way", WAYS)
def test_a_model_of_empty_tensors_is_averaged(way: tuple[str, int]) -> None:
    layout = layout_of(torch.empty(0), torch.empty(3, 0, dtype=torch.int64), torch.empty(0, dtype=torch.bfloat16))
    fitted = exponents(b"", layout, floor=-2, head_room=3)
    assert fitted == (-2, 0, -2)
    code = FixedPoint(layout, fitted, way[1], 2, way[0])
    total = total_of([code.encode(b"", share) for share in shares(way[0], [3, 4])])
    assert total.tolist() == ([7] if way[0] == "secret" else [])
    assert code.decode(total) == b""


def test_values_on_the_grid_are_averaged_without_an_error() -> None:
    layout = layout_of(torch.zeros(3))
    code = FixedPoint(layout, (4,), 32, 4, "equal")
    words = [code.encode(state_of(torch.tensor([1.5, -0.25, 3.0]) * (i + 1)), Share()) for i in range(4)]
    assert np.frombuffer(code.decode(total_of(words)), dtype=np.float32).tolist() == [3.75, -0.625, 7.5]
