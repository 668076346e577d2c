from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import TrainingError
from ppdl_mq.training.loop import Loss
from ppdl_mq.training.models import mlp
from ppdl_mq.training.private.gradient import GRID_BITS, Mechanism, PrivateGradient, check_model, clipped
from ppdl_mq.training.private.randomness import Randomness

Step = Callable[..., torch.Tensor]


def batch(rows: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 6, generator=generator), torch.randint(0, 3, (rows,), generator=generator)


def module_of(seed: int = 1, **arguments) -> nn.Module:
    torch.manual_seed(seed)
    return mlp(inputs=6, hidden=[9], outputs=3, **arguments).train()


def private(module: nn.Module, *, clip: float, noise: float, rows: int = 12, loss: Loss | None = None) -> Step:
    gradient = PrivateGradient(
        Mechanism(clip=clip, noise=noise),
        module,
        loss or functional.cross_entropy,
        Randomness(Secret(b"\1" * 32)),
        expected_rows=rows,
    )

    def step(
        number: int, inputs: torch.Tensor, targets: torch.Tensor, batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        return gradient(number, torch.arange(len(inputs)) if batch is None else batch, inputs, targets)

    return step


def plain(module: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    module.zero_grad()
    functional.cross_entropy(module(inputs), targets).backward()
    return {name: each.grad.clone() for name, each in module.named_parameters()}


def test_without_clip_and_noise_it_is_the_plain_gradient() -> None:
    module, (inputs, targets) = module_of(), batch()
    expected = plain(module, inputs, targets)
    module.zero_grad()
    loss = private(module, clip=100.0, noise=0.0)(0, inputs, targets)
    assert loss.item() == pytest.approx(functional.cross_entropy(module(inputs), targets).item(), rel=1e-6)
    for name, each in module.named_parameters():
        assert each.grad.dtype == torch.float32
        torch.testing.assert_close(each.grad, expected[name], atol=1e-4, rtol=0)  # the grid of so large a clip


def test_each_row_is_shortened_by_itself() -> None:
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
    private(module, clip=clip, noise=0.0)(0, inputs, targets)
    for name, each in module.named_parameters():
        torch.testing.assert_close(each.grad, expected[name], atol=2e-6, rtol=0)


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


values = st.one_of(
    st.floats(width=32, allow_nan=True, allow_infinity=True),
    st.floats(-2, 2, width=32),
    st.sampled_from([0.0, 1.0, -1.0, 0.6, 0.8, 1e-30, 3e38]),
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(gradient=st.lists(values, max_size=6), clip=st.sampled_from([1.0, 0.1, 3.7, 1e-9, 1e9]))
def test_no_gradient_is_longer_than_the_clip(gradient: list[float], clip: float) -> None:
    taken = clipped(torch.tensor(gradient, dtype=torch.float64), clip)
    assert (taken is None) is not all(map(math.isfinite, gradient))
    found = [] if taken is None else taken.tolist()
    assert sum(each**2 for each in found) <= 2 ** (2 * GRID_BITS)  # integers of Python: exact
    if all(map(math.isfinite, gradient)) and any(gradient):
        scale = max(1.0, math.hypot(*gradient) / clip)
        for one, other in zip(found, gradient, strict=True):
            assert one / 2**GRID_BITS == pytest.approx(other / clip / scale, abs=3 * 2**-GRID_BITS)


def test_a_long_gradient_is_made_as_long_as_the_clip() -> None:
    taken = clipped(torch.full((1000,), 1e30, dtype=torch.float64), 1.0)
    assert taken is not None
    found = taken.double()
    assert 0.999 < found.norm().item() / 2**GRID_BITS <= 1.0


# --- one row more or less changes no other ----------------------------------------------------------------------------


class Counting(nn.Module):
    """Keeps in a buffer what it has seen, as BatchNorm does under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.register_buffer("seen", torch.zeros(6))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.seen += inputs.sum(dim=0)
        return self.linear(inputs + self.seen)


class Writing(nn.Module):
    """Writes into what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.linear(inputs.relu_())


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(2, 4, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.out(self.gru(inputs.reshape(-1, 3, 2))[0][:, -1])


class Branching(nn.Module):
    """Looks at a value to decide what to do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.linear(inputs) if inputs.sum() > 0 else -self.linear(inputs)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.out = nn.utils.parametrizations.weight_norm(nn.Linear(6, 3))
        self.nothing = nn.Parameter(torch.zeros(0))
        self.unused = nn.Parameter(torch.zeros(2))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.out(self.second(self.first(inputs).tanh()))


class Renormalising(nn.Module):
    """Shortens the rows of its own weight that it looks up, as word embeddings do."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4, max_norm=1.0)
        with torch.no_grad():
            self.table.weight.mul_(100)
        self.out = nn.Linear(24, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.out(self.table((inputs.abs() * 2).long().clamp(max=4)).flatten(1))


class Averaging(nn.Module):
    """Keeps a running mean in a parameter that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(6), requires_grad=False)
        self.linear = nn.Linear(6, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.mean += 0.5 * (inputs.mean(dim=0) - self.mean)
        return self.linear(inputs - self.mean)


KINDS: dict[str, Callable[[], nn.Module]] = {
    "mlp": module_of,
    "dropout": lambda: module_of(dropout=0.5),
    "random activation": lambda: module_of(activation="rrelu"),
    "cnn": lambda: nn.Sequential(nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 2), nn.Flatten(), nn.Linear(8, 3)),
    "counting": Counting,
    "writing": Writing,
    "recurrent": Recurrent,
    "branching": Branching,
    "tied": Tied,
    "renormalising": Renormalising,
    "averaging": Averaging,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [2, 5, 33])
def test_one_row_changes_the_sum_by_no_more_than_the_clip(kind: str, rows: int) -> None:
    torch.manual_seed(5)
    module, (inputs, targets) = KINDS[kind]().train(), batch(rows)
    step = private(module, clip=0.3, noise=0.0, rows=1)

    def sums(chosen: torch.Tensor) -> torch.Tensor:
        step(2, inputs[chosen], targets[chosen], chosen)
        flat = torch.cat([each.grad.flatten().double() for each in module.parameters() if each.requires_grad])
        return (flat / 0.3 * 2**GRID_BITS).round()

    everybody = sums(torch.arange(rows))
    for missing in (0, rows // 2, rows - 1):
        change = everybody - sums(torch.tensor([row for row in range(rows) if row != missing]))
        assert 0 < change.norm().item() <= 2**GRID_BITS + math.sqrt(len(change)) * rows / 8  # float32 holds 24 bits


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_gradient_of_plain_torch(kind: str) -> None:
    if kind in ("dropout", "random activation", "counting", "renormalising", "averaging"):
        pytest.skip("plain torch draws, or keeps something, over the rows together")
    torch.manual_seed(3)
    module, (inputs, targets) = KINDS[kind]().train(), batch()
    before = inputs.clone()
    private(module, clip=100.0, noise=0.0)(0, inputs, targets)
    assert torch.equal(inputs, before)
    found = {name: each.grad.clone() for name, each in module.named_parameters()}
    expected = {name: torch.zeros_like(each) for name, each in found.items()}
    for row in range(len(inputs)):
        module.zero_grad()
        one = inputs[row : row + 1].clone()
        functional.cross_entropy(module(one), targets[row : row + 1]).backward()
        for name, each in module.named_parameters():
            expected[name] += (0 if each.grad is None else each.grad) / len(inputs)
    for name in found:
        torch.testing.assert_close(found[name], expected[name], atol=2e-4, rtol=0)  # the grid of so large a clip


@pytest.mark.parametrize("kind", KINDS)
def test_rows_leave_nothing_in_the_model(kind: str) -> None:
    module, (inputs, targets) = KINDS[kind]().train(), batch()
    before = {name: each.clone() for name, each in module.state_dict().items()}
    private(module, clip=1.0, noise=1.0)(0, inputs, targets)
    after = module.state_dict()
    assert all(torch.equal(each, after[name]) for name, each in before.items())


def test_dropout_differs_from_row_to_row_and_step_to_step() -> None:
    module = module_of(dropout=0.5)
    inputs, targets = batch(1)
    step = private(module, clip=1.0, noise=0.0)
    found = set()
    for number in range(4):
        for row in range(4):
            step(number, inputs, targets, torch.tensor([row]))
            found.add(tuple(module.get_parameter(next(iter(dict(module.named_parameters())))).grad.flatten().tolist()))
    assert len(found) > 10


# --- nothing of a row stops the peer ----------------------------------------------------------------------------------


def test_losses_that_overflow_together_stop_nothing() -> None:
    module = nn.Linear(1, 1).train()
    with torch.no_grad():
        module.weight.fill_(1.7e19)
    loss = private(module, clip=1.0, noise=0.0, loss=functional.mse_loss)(0, torch.ones(4, 1), torch.zeros(4, 1))
    assert 1e38 < loss.item() < math.inf


class Bad(Exception):
    """A model's own."""


class Failing(nn.Linear):
    """Fails on a row that begins with 9."""

    def __init__(self, fault: BaseException) -> None:
        super().__init__(6, 3)
        self._fault = fault

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if bool((inputs[:, 0] == 9).any()):
            raise self._fault
        return super().forward(inputs)


@pytest.mark.parametrize(
    "fault", [IndexError(), AssertionError(), Bad(), StopIteration(), OSError(), RuntimeError("x")]
)
def test_a_row_on_which_the_model_fails_counts_as_none(fault: Exception, caplog: pytest.LogCaptureFixture) -> None:
    module, (inputs, targets) = Failing(fault).train(), batch(6)
    gradient = PrivateGradient(
        Mechanism(clip=1.0, noise=0.0), module, functional.cross_entropy, Randomness(Secret(bytes(32))), expected_rows=6
    )
    rest = torch.tensor([0, 1, 2, 4, 5])
    expected_loss = gradient(0, rest, inputs[rest], targets[rest]).item()
    expected = [each.grad.clone() for each in module.parameters()]
    gradient.say()
    assert not caplog.text
    inputs[3, 0] = 9
    loss = gradient(0, torch.arange(6), inputs, targets)
    assert loss.item() == expected_loss
    assert all(torch.equal(one, each.grad) for one, each in zip(expected, module.parameters(), strict=True))
    gradient.say()
    assert "Of 11 rows, 1 had no finite gradient, or the model failed on them; they count as none." in caplog.text


def test_a_model_that_only_noise_trains_is_said(caplog: pytest.LogCaptureFixture) -> None:
    module, (inputs, _) = nn.Linear(6, 3).train(), batch()
    with torch.no_grad():
        module.weight.fill_(3e38)
    gradient = PrivateGradient(
        Mechanism(clip=1.0, noise=0.0), module, functional.mse_loss, Randomness(Secret(bytes(32))), expected_rows=6
    )
    assert math.isnan(gradient(0, torch.arange(12), inputs.abs() + 1, torch.zeros(12, 3)).item())
    gradient.say()
    assert "Of 12 rows, 12 had no finite gradient" in caplog.text
    assert "nothing but noise was trained" in caplog.text


@pytest.mark.parametrize(
    "fault",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"),
        MemoryError(),
    ],
)
def test_want_of_memory_is_no_rows_fault(fault: Exception) -> None:
    inputs, targets = batch()
    inputs[3, 0] = 9
    with pytest.raises(type(fault)):
        private(Failing(fault).train(), clip=1.0, noise=0.0)(0, inputs, targets)


# --- which models -----------------------------------------------------------------------------------------------------


def one_row() -> tuple[torch.Tensor, torch.Tensor]:
    inputs, targets = batch(1)
    return inputs[0], targets[0]


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(3), nn.SyncBatchNorm(3), nn.InstanceNorm1d(3, track_running_stats=True)]
)
def test_what_normalises_over_rows_is_refused(norm: nn.Module) -> None:
    module = nn.Sequential(nn.Linear(6, 3), norm).train()
    with pytest.raises(TrainingError, match="needs rows together") as caught:
        check_model(module, functional.cross_entropy, *one_row())
    assert "GroupNorm" in caught.value.hint


@pytest.mark.parametrize("kind", [*KINDS, "group norm"])
def test_other_models_are_taken(kind: str) -> None:
    made = KINDS.get(kind, lambda: nn.Sequential(nn.Linear(6, 4), nn.GroupNorm(2, 4), nn.Linear(4, 3)))
    check_model(made().train(), functional.cross_entropy, *one_row())


def test_a_model_without_a_gradient_is_refused() -> None:
    class Cut(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no way")

    with pytest.raises(TrainingError, match="single row"):
        check_model(Cut(6, 3).train(), functional.cross_entropy, *one_row())
    with pytest.raises(TrainingError, match="no parameter"):
        check_model(nn.Identity(), functional.cross_entropy, *one_row())


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
