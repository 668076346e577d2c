from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import TrainingError
from ppdl_mq.training import determinism
from ppdl_mq.training.models import mlp
from ppdl_mq.training.private import gradient as gradients
from ppdl_mq.training.private.gradient import (
    GRID_BITS,
    Mechanism,
    PrivateGradient,
    clipped_sums,
    needs_single_rows,
)
from ppdl_mq.training.private.randomness import Randomness

CPU = torch.device("cpu")


def batch(rows: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 6, generator=generator), torch.randint(0, 3, (rows,), generator=generator)


def module_of(seed: int = 1, **arguments) -> nn.Module:
    torch.manual_seed(seed)
    return mlp(inputs=6, hidden=[9], outputs=3, **arguments).train()


def private(module: nn.Module, *, clip: float, noise: float, by_rows: bool = False, rows: int = 12) -> PrivateGradient:
    return PrivateGradient(
        Mechanism(clip=clip, noise=noise),
        module,
        functional.cross_entropy,
        Randomness(Secret(b"\1" * 32)),
        expected_rows=rows,
        by_rows=by_rows,
    )


def plain(module: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    module.zero_grad()
    functional.cross_entropy(module(inputs), targets).backward()
    return {name: each.grad.clone() for name, each in module.named_parameters()}


@pytest.mark.parametrize("by_rows", [False, True])
def test_without_clip_and_noise_it_is_the_plain_gradient(by_rows: bool) -> None:
    module, (inputs, targets) = module_of(), batch()
    expected = plain(module, inputs, targets)
    module.zero_grad()
    loss = private(module, clip=100.0, noise=0.0, by_rows=by_rows)(0, inputs, targets)
    assert loss.item() == pytest.approx(functional.cross_entropy(module(inputs), targets).item(), rel=1e-6)
    for name, each in module.named_parameters():
        assert each.grad.dtype == torch.float32
        torch.testing.assert_close(each.grad, expected[name], atol=1e-4, rtol=0)  # the grid of so large a clip


@pytest.mark.parametrize("by_rows", [False, True])
def test_each_row_is_shortened_by_itself(by_rows: bool) -> None:
    module, (inputs, targets) = module_of(), batch()
    inputs[7] *= 1000
    clip = 0.5
    expected = {name: torch.zeros_like(each) for name, each in module.named_parameters()}
    lengths = []
    for row in range(len(inputs)):
        one = plain(module, inputs[row : row + 1], targets[row : row + 1])
        length = math.sqrt(sum(each.square().sum().item() for each in one.values()))
        lengths.append(length)
        for name in expected:
            expected[name] += one[name] * min(1.0, clip / length) / len(inputs)
    assert max(lengths) > 100 * clip
    private(module, clip=clip, noise=0.0, by_rows=by_rows)(0, inputs, targets)
    for name, each in module.named_parameters():
        torch.testing.assert_close(each.grad, expected[name], atol=2e-6, rtol=0)


def test_many_pieces_are_one_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    module, (inputs, targets) = module_of(), batch()
    private(module, clip=1.0, noise=1.0)(4, inputs, targets)
    whole = [each.grad.clone() for each in module.parameters()]
    monkeypatch.setattr(gradients, "_PIECE_BYTES", 24 * 5 * sum(each.numel() for each in module.parameters()))
    private(module, clip=1.0, noise=1.0)(4, inputs, targets)
    for one, other in zip(whole, module.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad, atol=1e-6, rtol=0)


def test_the_noise_is_as_large_as_it_says_with_any_number_of_rows() -> None:
    module, (inputs, targets) = module_of(), batch(0)
    gradient = private(module, clip=0.5, noise=2.0, rows=10)
    drawn: list[float] = []
    for step in range(400):
        assert gradient(step, inputs, targets).item() == 0.0
        drawn += torch.cat([each.grad.flatten() for each in module.parameters()]).tolist()
    assert np.std(drawn) == pytest.approx(2.0 * 0.5 / 10, rel=0.01)
    assert abs(np.mean(drawn)) < 0.001


def test_what_is_divided_by_does_not_tell_how_many_rows_there_were() -> None:
    module, (inputs, targets) = module_of(), batch(6)
    private(module, clip=100.0, noise=0.0, rows=12)(0, inputs, targets)
    half = [each.grad.clone() for each in module.parameters()]
    expected = plain(module, inputs, targets)
    for one, other in zip(half, expected.values(), strict=True):
        torch.testing.assert_close(one, other / 2, atol=1e-4, rtol=0)


def test_a_row_whose_gradient_is_not_finite_counts_as_none() -> None:
    module, (inputs, targets) = module_of(), batch()
    rest = torch.arange(len(inputs)) != 5
    private(module, clip=1.0, noise=0.0)(0, inputs[rest], targets[rest])
    expected = [each.grad.clone() for each in module.parameters()]
    inputs[5] = float("inf")
    loss = private(module, clip=1.0, noise=0.0)(0, inputs, targets)
    assert math.isfinite(loss.item())
    for one, other in zip(expected, module.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad, atol=1e-6, rtol=0)


row_values = st.one_of(
    st.floats(width=32, allow_nan=True, allow_infinity=True),
    st.floats(-2, 2, width=32),
    st.sampled_from([0.0, 1.0, -1.0, 0.6, 0.8, 1e-30, 3e38]),
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.lists(st.lists(row_values, min_size=5, max_size=5), min_size=1, max_size=4),
    clip=st.sampled_from([1.0, 0.1, 3.7, 1e-9, 1e9]),
)
def test_one_row_changes_the_sum_by_no_more_than_the_clip(rows: list[list[float]], clip: float) -> None:
    def sums(some: list[list[float]]) -> list[int]:
        values = torch.tensor(some, dtype=torch.float32).reshape(-1, 5)
        found = clipped_sums({"a": values[:, :2], "b": values[:, 2:].reshape(-1, 3, 1)}, clip)
        return [*found["a"].tolist(), *found["b"].tolist()]

    changes = [one - other for one, other in zip(sums(rows), sums(rows[:-1]), strict=True)]
    assert sum(change**2 for change in changes) <= 2 ** (2 * GRID_BITS)  # integers of Python: exact


def test_a_long_row_is_made_as_long_as_the_clip() -> None:
    long = torch.full((1, 1000), 1e30)
    found = clipped_sums({"a": long}, 1.0)["a"].double()
    assert 0.999 < found.norm().item() / 2**GRID_BITS <= 1.0


class Counting(nn.Module):
    """Keeps in a buffer what it has seen, as BatchNorm does under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.register_buffer("seen", torch.zeros(6))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.seen += inputs.sum(dim=0)
        return self.linear(inputs + self.seen)


def test_rows_do_not_meet_in_a_buffer() -> None:
    module, (inputs, targets) = Counting().train(), batch()
    assert needs_single_rows(module, functional.cross_entropy, inputs[:1], targets[:1])
    gradient = private(module, clip=1.0, noise=0.0, by_rows=True)
    gradient(0, inputs, targets)
    first = module.linear.weight.grad.clone()
    order = torch.arange(len(inputs)).flip(0)
    gradient(0, inputs[order], targets[order])
    assert torch.equal(first, module.linear.weight.grad)
    assert not module.seen.any()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(2, 4, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.out(self.gru(inputs.reshape(-1, 3, 2))[0][:, -1])


class Branching(nn.Module):
    """Looks at a value to decide what to do, which torch.func cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.linear(inputs) if inputs.sum() > 0 else -self.linear(inputs)


@pytest.mark.parametrize("kind", [Recurrent, Branching])
def test_a_model_that_torch_func_cannot_follow_is_asked_row_by_row(kind: type[nn.Module]) -> None:
    torch.manual_seed(3)
    module, (inputs, targets) = kind().train(), batch()
    by_rows = needs_single_rows(module, functional.cross_entropy, inputs[:1], targets[:1])
    private(module, clip=100.0, noise=0.0, by_rows=by_rows)(0, inputs, targets)
    found = {name: each.grad.clone() for name, each in module.named_parameters()}
    expected = {name: torch.zeros_like(each) for name, each in found.items()}
    for row in range(len(inputs)):
        for name, each in plain(module, inputs[row : row + 1], targets[row : row + 1]).items():
            expected[name] += each / len(inputs)
    for name in found:
        torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=0)


def test_batchnorm_is_refused() -> None:
    with pytest.raises(TrainingError, match="BatchNorm") as caught:
        needs_single_rows(module_of(batch_norm=True), functional.cross_entropy, *[each[:1] for each in batch()])
    assert "batch_norm" in caught.value.hint


def test_a_model_without_a_gradient_is_refused() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no way")

    with pytest.raises(TrainingError, match="single row"):
        needs_single_rows(Cut().train(), functional.cross_entropy, *[each[:1] for each in batch()])


def test_dropout_differs_from_row_to_row() -> None:
    module = module_of(dropout=0.5)
    inputs, targets = batch(1)
    inputs, targets = inputs.repeat(8, 1), targets.repeat(8)
    with determinism.seeded(1, CPU):
        rows, _ = gradients._together(module, functional.cross_entropy)(gradients.trained(module), inputs, targets)
    assert len({tuple(each.flatten().tolist()) for each in next(iter(rows.values()))}) > 1


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.randn(6, 3, dtype=torch.complex64))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return (inputs.to(torch.complex64) @ self.turn).abs() * self.frozen


def test_complex_and_frozen_parameters() -> None:
    torch.manual_seed(0)
    module, (inputs, targets) = Complex().train(), batch()
    functional.cross_entropy(module(inputs), targets).backward()
    expected = module.turn.grad.clone()
    private(module, clip=100.0, noise=0.0)(0, inputs, targets)
    torch.testing.assert_close(module.turn.grad, expected, atol=1e-4, rtol=0)
    assert module.frozen.grad is None


def test_half_precision() -> None:
    module, (inputs, targets) = module_of().to(torch.bfloat16), batch()
    private(module, clip=1.0, noise=1.0)(0, inputs.to(torch.bfloat16), targets)
    assert {each.grad.dtype for each in module.parameters()} == {torch.bfloat16}
