from __future__ import annotations

import math
import threading

import pytest
import torch

from ppdl_mq.errors import Interrupted, ModelError, NotFinite, TrainingError
from ppdl_mq.numeric import flatten
from ppdl_mq.training import baselines
from ppdl_mq.training.data import Samples, Split
from ppdl_mq.training.worker import Worker

from .trials import CPU, NAMES, SEEDS, ZOO, manifest, samples, schedule, split

SEED = SEEDS["ash"]


def worker_of(agreed, rows: int = 40, **kind) -> Worker:
    return Worker(agreed, split(rows, **kind), device=CPU)


def test_initial_weights_depend_on_the_seed_alone() -> None:
    first = worker_of(manifest(seed=1)).initial()
    torch.manual_seed(777)
    worker = worker_of(manifest(seed=1), rows=30)
    worker.train(schedule(worker.manifest).turn(1), first, SEED)
    assert worker.initial() == first
    assert worker_of(manifest(seed=2)).initial() != first


def test_the_callers_random_numbers_are_left_alone() -> None:
    worker = worker_of(manifest())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    worker.train(schedule(worker.manifest).turn(1), worker.initial(), SEED)
    assert torch.equal(torch.rand(3), expected)


def test_a_turn_is_counted_and_learns() -> None:
    agreed = manifest(turn_steps=30, epochs=2, learning_rate=0.3)
    worker = worker_of(agreed)
    before = worker.evaluate(worker.initial())
    result = worker.train(schedule(agreed).turn(1), worker.initial(), SEED)
    after = worker.evaluate(result.weights)
    assert (result.steps, result.samples) == (30, 6 * 40)
    assert result.loss is not None
    assert after.loss < before.loss
    assert after.accuracy > before.accuracy
    assert after.samples == 20


def test_evaluation_is_the_mean_over_the_holdout() -> None:
    agreed = manifest(arguments={"inputs": 6, "hidden": [9], "outputs": 3, "dropout": 0.5})
    many = samples(1100, seed=3)
    worker = Worker(agreed, Split(samples(9), many), device=CPU)
    weights = worker.initial()
    flatten.load(worker.module, weights)
    logits = worker.module.eval()(many.inputs)
    expected = torch.nn.functional.cross_entropy(logits, many.targets).item()
    worker.module.train()  # as a turn leaves it
    found = worker.evaluate(weights)
    assert found.loss == pytest.approx(expected, rel=1e-5)
    assert found.accuracy == pytest.approx((logits.argmax(1) == many.targets).float().mean().item())
    assert worker.evaluate(weights, many) == found
    assert worker.evaluate(weights, samples(7)).samples == 7


class Writes(torch.nn.Linear):
    """Writes into what it is given, as an activation in place does where it comes first."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs.relu_())


@pytest.mark.parametrize("batch_size", [8, 13])  # of 40 rows 13 leave one
def test_a_model_that_writes_into_its_inputs_changes_no_sample(batch_size: int) -> None:
    model = (f"{__name__}:Writes", {"in_features": 6, "out_features": 3})
    agreed = manifest(*model, turn_steps=3, batch_size=batch_size)
    given = split(40)
    before = [part.inputs.clone() for part in (given.train, given.holdout)]
    worker = Worker(agreed, given, device=CPU)
    worker.train(schedule(agreed).turn(1), worker.initial(), SEED)
    worker.evaluate(worker.initial())
    for part, expected in zip((given.train, given.holdout), before, strict=True):
        assert torch.equal(part.inputs, expected)


def test_without_a_holdout_there_is_nothing_to_measure() -> None:
    worker = Worker(manifest(), Split(samples(9), samples(0)), device=CPU)
    found = worker.evaluate(worker.initial())
    assert (found.loss, found.accuracy, found.samples) == (None, None, 0)


def test_regression_has_no_accuracy() -> None:
    agreed = manifest(arguments={"inputs": 6, "hidden": [4], "outputs": 2}, classes=None, loss="mse")
    worker = worker_of(agreed, classes=None)
    found = worker.evaluate(worker.initial())
    assert found.accuracy is None
    assert found.loss > 0


def test_one_logit_has_an_accuracy() -> None:
    agreed = manifest(ZOO + "logistic_regression", {"inputs": 6, "outputs": 1}, loss="binary-cross-entropy")
    rows = samples(40, classes=2)
    rows = Samples(rows.inputs, rows.targets.float().reshape(-1, 1))
    worker = Worker(agreed, Split(rows, rows), device=CPU)
    weights = worker.initial()
    for turn in schedule(agreed).turns_of("ash"):
        weights = worker.train(turn, weights, SEED).weights
    assert worker.evaluate(weights).accuracy > 0.7


def test_a_turn_without_batches_changes_nothing() -> None:
    agreed = manifest(turns_per_epoch=4)
    worker = worker_of(agreed, rows=8)
    results = [worker.train(turn, worker.initial(), SEED) for turn in schedule(agreed).turns_of("ash")][:4]
    assert [result.steps for result in results] == [0, 0, 0, 1]
    assert results[0].weights == worker.initial()
    assert results[0].loss is None
    assert results[3].weights != worker.initial()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_received_weights_that_are_not_finite_are_refused(bad: float) -> None:
    worker = worker_of(manifest())
    weights = worker.initial()
    torch.frombuffer(weights, dtype=torch.float32)[-1] = bad
    for use in (
        lambda: worker.evaluate(weights),
        lambda: worker.train(schedule(worker.manifest).turn(1), weights, SEED),
    ):
        with pytest.raises(NotFinite):
            use()


def test_weights_that_explode_say_what_to_do() -> None:
    agreed = manifest(learning_rate=1e30, turn_steps=20)
    worker = worker_of(agreed)
    with pytest.raises(NotFinite) as caught:
        worker.train(schedule(agreed).turn(1), worker.initial(), SEED)
    assert "learning_rate" in caught.value.hint
    good = worker.initial()
    assert worker.evaluate(good).samples == 20  # the worker still works


def test_weights_that_explode_in_the_last_step_are_found_though_the_loss_is_finite() -> None:
    agreed = manifest(learning_rate=1e38, turn_steps=1)
    rows = samples(40)
    worker = Worker(agreed, Split(Samples(rows.inputs * 1000, rows.targets), rows), device=CPU)
    with pytest.raises(NotFinite):
        worker.train(schedule(agreed).turn(1), worker.initial(), SEED)


def test_weights_of_another_size_are_refused() -> None:
    worker = worker_of(manifest())
    with pytest.raises(ModelError):
        worker.train(schedule(worker.manifest).turn(1), worker.initial()[:-4], SEED)


def test_stop_ends_a_turn_and_keeps_nothing() -> None:
    worker = worker_of(manifest())
    plan = schedule(worker.manifest)
    expected = worker.train(plan.turn(1), worker.initial(), SEED).weights
    stop = threading.Event()
    stop.set()
    with pytest.raises(Interrupted):
        worker.train(plan.turn(1), worker.initial(), SEED, stop=stop)
    stop.clear()
    assert worker.train(plan.turn(1), worker.initial(), SEED, stop=stop).weights == expected


BATCH_NORM = {"inputs": 6, "hidden": [9], "outputs": 3, "batch_norm": True}


@pytest.mark.parametrize(("rows", "batch_size"), [(41, 8), (41, 40), (40, 1), (1, 8)])
def test_batch_norm_with_one_row_left_is_found_before_the_trial(rows: int, batch_size: int) -> None:
    with pytest.raises(TrainingError) as caught:
        worker_of(manifest(arguments=BATCH_NORM, batch_size=batch_size), rows=rows)
    assert str(batch_size) in caught.value.message
    worker_of(manifest(batch_size=batch_size), rows=rows)  # without BatchNorm one row is fine


@pytest.mark.parametrize(("rows", "batch_size"), [(40, 8), (42, 8), (40, 40), (2, 8)])
def test_batch_norm_with_more_rows_left_is_fine(rows: int, batch_size: int) -> None:
    worker = worker_of(manifest(arguments=BATCH_NORM, batch_size=batch_size), rows=rows)
    assert worker.train(schedule(worker.manifest).turn(1), worker.initial(), SEED).steps == -(-rows // batch_size)


def test_batch_norm_over_pixels_can_take_one_row() -> None:
    agreed = manifest(ZOO + "resnet20", {"channels": 1, "outputs": 3}, shape=(1, 8, 8))
    worker = worker_of(agreed, rows=9, shape=(1, 8, 8))
    assert worker.train(schedule(agreed).turn(1), worker.initial(), SEED).steps == 2


@pytest.mark.parametrize(
    ("arguments", "training"),
    [
        ({"inputs": 7, "hidden": [9], "outputs": 3}, {}),
        ({"inputs": 6, "hidden": [9], "outputs": 4}, {}),
        ({"inputs": 6, "hidden": [9], "outputs": 3}, {"loss": "binary-cross-entropy"}),
        ({"inputs": 6, "hidden": [9], "outputs": 3}, {"loss": "mse"}),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_found_before_the_trial(arguments, training) -> None:
    with pytest.raises(TrainingError):
        worker_of(manifest(arguments=arguments, **training))


def test_results_and_samples_do_not_show_themselves() -> None:
    worker = worker_of(manifest())
    result = worker.train(schedule(worker.manifest).turn(1), worker.initial(), SEED)
    assert "bytearray" not in repr(result)
    assert "tensor" not in repr(worker.split)


def test_the_comparisons_come_out_in_the_expected_order() -> None:
    """With one class at each peer, alone is hopeless and the pool is not."""
    agreed = manifest(epochs=4, turn_steps=2, turns_per_epoch=4, momentum=0.5)
    everybody = samples(300)
    splits = {}
    for label, name in enumerate(NAMES):
        rows = (everybody.targets == label).nonzero().flatten()
        splits[name] = Split(everybody.take(rows), everybody)
    workers = {name: Worker(agreed, each, device=CPU) for name, each in splits.items()}
    plan = schedule(agreed)
    told: list[int] = []
    lonely = baselines.alone(plan, "ash", workers["ash"], SEED, after_epoch=lambda epoch, _: told.append(epoch))
    pooled = baselines.pooled_shuffled(
        agreed, list(splits.values()), SEED, device=CPU, after_epoch=lambda epoch, _: told.append(epoch)
    )
    same = baselines.pooled_same_order(plan, workers, SEEDS, after_epoch=lambda epoch, _: told.append(epoch))
    assert told == [0, 1, 2, 3] * 3
    accuracy = [workers["ash"].evaluate(weights).accuracy for weights in (lonely, same, pooled)]
    assert accuracy[0] < 0.45
    assert accuracy[1] > accuracy[0]
    assert accuracy[2] > accuracy[0] + 0.2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("arguments", [BATCH_NORM, {"inputs": 6, "hidden": [64], "outputs": 3, "dropout": 0.5}])
def test_cuda_repeats_itself(arguments) -> None:
    agreed = manifest(arguments=arguments, momentum=0.9)
    turn = schedule(agreed).turn(1)
    workers = [Worker(agreed, split(40), device=torch.device("cuda:0")) for _ in range(2)]
    results = [worker.train(turn, worker.initial(), SEED).weights for worker in workers]
    assert results[0] == results[1]
    assert workers[0].initial() == worker_of(agreed).initial()
