"""Whole trials of masked-average: equal models over every relay, evaluations, early ends, larger words, audits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ppdl_mq.config.manifest import Manifest
from ppdl_mq.errors import Overflow
from ppdl_mq.peer.rounds import RoundHands
from ppdl_mq.protocol.effects import AddUp
from ppdl_mq.training.data.samples import concatenate
from ppdl_mq.training.worker import Worker
from tests.transport.relays import new_trial
from tests.trials.masked import (
    Averaged,
    MortalTrial,
    agreed,
    assert_round,
    entries,
    is_close,
    splits_of,
    watch_rounds,
)
from tests.trials.relays import opener

SMALLEST_CHUNK = 4096


def run(manifest: Manifest, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> MortalTrial:
    """Run a trial to its end; all peers have the same file, and noted the same rounds."""
    trial = MortalTrial(manifest, folder, monkeypatch, **options)
    trial.begin()
    trial.end(*manifest.peer_names)
    assert len({trial.runners[name].model_path.read_bytes() for name in manifest.peer_names}) == 1
    for event in ("round", "evaluation"):
        noted = [[{**entry, "at": 0} for entry in entries(trial, name, event)] for name in manifest.peer_names]
        assert all(each == noted[0] for each in noted), "the peers were told different things"
    return trial


def rounds_of(trial: MortalTrial) -> list[int]:
    return [entry["round"] for entry in entries(trial, "anna", "round")]


def evaluations_of(trial: MortalTrial) -> list[dict[str, Any]]:
    return entries(trial, "anna", "evaluation")


def check_rounds(manifest: Manifest, seen: list[Averaged]) -> None:
    for each in seen:
        if each.peer == "anna":
            assert_round(manifest, splits_of(manifest), each)


# --- every relay -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", ["equal", "declared", "secret"])
@pytest.mark.parametrize(
    ("kind", "peers"),
    [
        ("memory", 2),
        ("memory", 3),
        ("memory", 5),
        ("embedded", 3),
        pytest.param("classic", 4, marks=pytest.mark.rabbitmq),
    ],
)
def test_equal_models_over_every_relay(
    kind: str,
    peers: int,
    weighting: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest = agreed(
        peers,
        model="batch-norm",
        weighting=weighting,
        name=new_trial(),
        relay={"chunk_bytes": SMALLEST_CHUNK},
        averaging__exponent_floor=1,
    )
    seen = watch_rounds(monkeypatch)
    trial = run(manifest, tmp_path, monkeypatch, transport_for=opener(kind, manifest, tmp_path, request))
    assert rounds_of(trial) == [1, 2]
    check_rounds(manifest, seen)


@pytest.mark.rabbitmq
def test_quorum_queues(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = agreed(name=new_trial())
    run(manifest, tmp_path, monkeypatch, transport_for=opener("quorum", manifest, tmp_path, request))


# --- evaluations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "weighting"), [("tanh", "equal"), ("batch-norm", "secret")])
def test_an_evaluation_is_over_all_hold_outs(
    model: str, weighting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = agreed(4, model=model, weighting=weighting, averaging__exponent_floor=1)
    seen = watch_rounds(monkeypatch)
    trial = run(manifest, tmp_path, monkeypatch)
    splits = splits_of(manifest)
    pooled = concatenate([split.holdout for split in splits.values()])
    worker = Worker(manifest, splits["anna"], device=torch.device("cpu"))
    found = evaluations_of(trial)
    assert [entry["round"] for entry in found] == [1, 2]
    for entry in found:
        average = next(each.result for each in seen if each.round == entry["round"])
        direct = worker.evaluate(average, pooled)
        assert direct.loss is not None
        # Five words of 2^-24 and float32's own roundings of a mean over other groups of rows.
        assert is_close(entry["loss"], direct.loss, 2e-6)
        assert entry["accuracy"] == direct.accuracy
        own = entries(trial, "bert", "measured")[entry["round"] - 1]
        assert own["holdout_loss"] != entry["loss"], "bert's own figure is another"


@pytest.mark.parametrize(("every", "evaluated"), [(0, []), (3, [3, 4]), (4, [4])])
def test_when_rounds_are_evaluated(
    every: int, evaluated: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = run(agreed(training__epochs=4, averaging__evaluate_every=every), tmp_path, monkeypatch)
    assert rounds_of(trial) == [1, 2, 3, 4]
    assert [entry["round"] for entry in evaluations_of(trial)] == evaluated


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The evaluations of a trial that does not end early, whose loss goes down and then up."""
    with pytest.MonkeyPatch.context() as patch:
        return evaluations_of(run(unstable(), tmp_path_factory.mktemp("undisturbed"), patch))


def unstable(**rules: Any) -> Manifest:
    training = {"learning_rate": 0.6, "batch_size": 4, "epochs": 6, "momentum": 0.5}
    return agreed(training=training, **{f"averaging__{name}": value for name, value in rules.items()})


def assert_ends_after(number: int, rules: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= number < 6, "a rule that ends it early"
    trial = run(unstable(**rules), folder, monkeypatch)
    assert rounds_of(trial)[-1] == number
    assert entries(trial, "anna", "final")[0]["round"] == number
    assert not entries(trial, "anna", "trained")[number:], "nobody trains on"


def test_an_early_end_by_loss(
    undisturbed: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = [entry["loss"] for entry in undisturbed]
    goal = sorted(losses[:-1])[1]  # the very loss of a round: as low as it is low enough
    number = next(index + 1 for index, loss in enumerate(losses) if loss <= goal)
    assert_ends_after(number, {"stop_at_loss": goal}, tmp_path, monkeypatch)


def test_an_early_end_by_accuracy(
    undisturbed: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = [entry["accuracy"] for entry in undisturbed]
    goal = max(shares[:-1])
    assert_ends_after(shares.index(goal) + 1, {"stop_at_accuracy": goal}, tmp_path, monkeypatch)


def test_an_early_end_by_patience(
    undisturbed: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = [entry["loss"] for entry in undisturbed]
    is_better = [loss < min(losses[:index], default=loss + 1) for index, loss in enumerate(losses)]
    number = next(index + 2 for index in range(1, 6) if not is_better[index] and not is_better[index + 1])
    assert_ends_after(number, {"stop_patience": 2}, tmp_path, monkeypatch)


# --- larger words ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "weighting", "rules", "training"),
    [
        ("tanh", "equal", {"head_room": 0}, {"learning_rate": 3.0}),
        ("tanh", "declared", {"head_room": 0}, {"learning_rate": 3.0}),
        ("batch-norm", "equal", {"exponent_floor": -15}, {"learning_rate": 0.1}),  # its bias is all zeros
    ],
)
def test_what_does_not_fit_goes_into_larger_words(
    model: str,
    weighting: str,
    rules: dict[str, int],
    training: dict[str, float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest = agreed(
        model=model,
        weighting=weighting,
        training={"batch_size": 4, "epochs": 2, **training},
        **{f"averaging__{name}": value for name, value in rules.items()},
    )
    seen = watch_rounds(monkeypatch)
    trial = run(manifest, tmp_path, monkeypatch)
    first = entries(trial, "anna", "round")[0]
    assert (first["round"], first["attempts"]) == (1, 2)
    assert {each.task.word for each in seen if each.round == 1} == {64}
    assert all(entry["attempts"] == 1 for entry in evaluations_of(trial))
    assert [entry["round"] for entry in entries(trial, "anna", "trained")] == [1, 2], "trained once for both attempts"
    check_rounds(manifest, seen)


def test_one_peer_alone_that_needs_larger_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = agreed(training={"batch_size": 4, "epochs": 2, "learning_rate": 0.1}, averaging__head_room=0)
    seen = watch_rounds(monkeypatch)
    trial = MortalTrial(manifest, tmp_path, monkeypatch)
    trial.splits["cleo"].train.inputs.mul_(30.0)  # its weights move far
    trial.begin()
    trial.end(*manifest.peer_names)
    assert len(trial.models()) == 1
    assert entries(trial, "anna", "round")[0]["attempts"] == 2
    for each in seen:
        assert_round(manifest, trial.splits, each)


def test_what_does_not_fit_the_largest_words_ends_the_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = agreed(2, model="batch-norm", averaging__exponent_floor=-60)
    trial = MortalTrial(manifest, tmp_path, monkeypatch)
    trial.begin()
    with pytest.raises(Overflow):
        trial.until(lambda: False)
    trial.stop()


# --- recomputation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peers", [2, 3, 4])
def test_sums_are_recomputed(peers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recomputed: list[tuple[int, int]] = []
    plain = RoundHands._add_up

    def add_up(hands: RoundHands, task: AddUp, views: Any) -> Any:
        if task.into is None:
            recomputed.append((task.step, task.shard))
        return plain(hands, task, views)

    monkeypatch.setattr(RoundHands, "_add_up", add_up)
    manifest = agreed(peers)
    model = run(manifest, tmp_path / "plain", monkeypatch).models()
    assert not recomputed
    assert run(manifest, tmp_path / "audited", monkeypatch, audit_rate=1.0).models() == model
    assert {step for step, _ in recomputed} == {1, 2, 3, 4}
