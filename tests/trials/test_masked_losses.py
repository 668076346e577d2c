"""Peers of masked-average that die, are given up, leave or are waited for too long, at every moment of a round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ppdl_mq.config.manifest import Manifest
from ppdl_mq.errors import Dropped, PeerAbsent, TooFewPeers
from ppdl_mq.peer.vectors import Vectors
from ppdl_mq.protocol.effects import AddUp
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.wire.kinds import Kind
from tests.trials.masked import (
    Averaged,
    Died,
    Moment,
    MortalTrial,
    agreed,
    assert_round,
    entries,
    splits_of,
    watch_rounds,
    watch_training,
)

ROUND_2 = 3  # the step of its average; step 4 is its evaluation
OTHERS = ["anna", "cleo"]
ALL = ["anna", "bert", "cleo"]


def three(**rules: Any) -> Manifest:
    return agreed(training__epochs=3, **{f"averaging__{name}": value for name, value in rules.items()})


def members_of(trial: MortalTrial, name: str = "anna") -> list[list[str]]:
    return [entry["members"] for entry in entries(trial, name, "round")]


def check_rounds(trial: MortalTrial, seen: list[Averaged]) -> None:
    for each in seen:
        assert_round(trial.manifest, splits_of(trial.manifest), each)


# --- started again ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The model of a trial in which nothing happens."""
    with pytest.MonkeyPatch.context() as patch:
        trial = MortalTrial(three(), tmp_path_factory.mktemp("undisturbed"), patch)
        trial.begin()
        trial.end(*ALL)
        (model,) = trial.models()
        return model


RESTARTS = [
    *(Moment("bert", kind, when, 0) for kind in (Kind.HELLO, Kind.CONFIRM) for when in ("before", "after")),
    Moment("anna", Phase.BUILDING, step=0),
    *(Moment("anna", Kind.INITIAL, when, 0) for when in ("before", "between", "after")),
    *(
        Moment("bert", kind, when, ROUND_2)
        for kind in (Kind.COMMIT, Kind.MASKED, Kind.RECEIPT, Kind.RELEASE, Kind.SUM, Kind.AGREE)
        for when in ("before", "between", "after")
    ),
    *(
        Moment("bert", phase, step=ROUND_2)
        for phase in (Phase.TRAINING, Phase.MASKING, Phase.ADDING, Phase.AVERAGING, Phase.AGREEING)
    ),
    Moment("anna", Phase.AUDITING, step=ROUND_2),
    *(Moment("anna", phase, step=4) for phase in (Phase.MEASURING, Phase.MASKING, Phase.ADDING, Phase.AVERAGING)),
    *(Moment("bert", kind, "between", 4) for kind in (Kind.COMMIT, Kind.RELEASE, Kind.AGREE)),
    Moment("bert", Phase.CLOSING, step=6),
    *(Moment("bert", Kind.AGREE, when, 6) for when in ("before", "between", "after")),
]


def fresh(moment: Moment) -> Moment:
    """Return the same moment, not yet struck."""
    return Moment(moment.victim, moment.at, moment.when, moment.step)


def is_training(moment: Moment) -> bool:
    """Tell whether a training is under way then, whose result is not yet in the journal."""
    return moment.at in (Phase.TRAINING, Kind.INITIAL)


@pytest.mark.parametrize("moment", RESTARTS, ids=str)
def test_a_peer_that_dies_and_is_started_again(
    moment: Moment, undisturbed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = fresh(moment)
    trained = watch_training(monkeypatch)
    trial = MortalTrial(three(), tmp_path, monkeypatch, moment, audit_rate=1.0 if moment.at is Phase.AUDITING else 0.0)
    trial.begin()
    trial.end(*ALL)
    assert moment.struck.is_set(), "nobody died"
    assert trial.starts == {name: 1 + (name == moment.victim) for name in ALL}
    assert trial.models() == {undisturbed}
    twice = [(moment.victim, max(1, (moment.step + 1) // 2))] if is_training(moment) else []
    once = [(name, number) for name in ALL for number in (1, 2, 3)]
    assert sorted(trained) in (once, sorted(once + twice)), "what is journalled is not trained again"
    for name in ALL:
        if name != moment.victim:  # what it had noted when it died may lack the line it died over
            assert [entry["attempts"] for entry in entries(trial, name, "round")] == [1, 1, 1]


# --- given up --------------------------------------------------------------------------------------------------------

GOES_BACK = [
    Moment("bert", Phase.TRAINING, step=ROUND_2),
    *(Moment("bert", Kind.COMMIT, when, ROUND_2) for when in ("before", "between", "after")),
    *(Moment("bert", Kind.MASKED, when, ROUND_2) for when in ("between", "after")),
    Moment("bert", Kind.RECEIPT, "before", ROUND_2),
    Moment("anna", Kind.COMMIT, "after", ROUND_2),
    Moment("cleo", Kind.COMMIT, "after", ROUND_2),
    Moment("bert", Kind.COMMIT, "after", 4),
]


@pytest.mark.parametrize("moment", GOES_BACK, ids=str)
def test_a_peer_lost_before_anybody_released_is_left_out(
    moment: Moment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = fresh(moment)
    seen, trained = watch_rounds(monkeypatch), watch_training(monkeypatch)
    trial = MortalTrial(three(), tmp_path, monkeypatch, moment, restarts=False)
    trial.begin()
    trial.until_waiting_for(moment.victim)
    others = [name for name in ALL if name != moment.victim]
    for name in others:
        trial.order(name, drop=moment.victim)
    trial.end(*others)
    assert len(trial.models(*others)) == 1
    second = ALL if moment.step == 4 else others
    assert members_of(trial, others[0]) == [ALL, second, others]
    attempts = [entry["attempts"] for entry in entries(trial, others[0], "round")]
    assert attempts == [1, 1 if moment.step == 4 else 2, 1]
    assert [entry["members"] for entry in entries(trial, others[0], "evaluation")] == [ALL, others, others]
    check_rounds(trial, seen)
    assert sorted(each for each in trained if each[0] in others) == [(name, n) for name in others for n in (1, 2, 3)]


GOES_ON = [
    *(Moment("bert", Kind.RELEASE, when, ROUND_2) for when in ("between", "after")),
    *(Moment("bert", Kind.SUM, when, ROUND_2) for when in ("before", "between", "after")),
    *(Moment("bert", Kind.AGREE, when, ROUND_2) for when in ("before", "between")),
    Moment("anna", Kind.RELEASE, "after", ROUND_2),
    Moment("cleo", Kind.RELEASE, "after", ROUND_2),
    Moment("anna", Kind.RELEASE, "after", 4),  # owner of the only shard of an evaluation
]


@pytest.mark.parametrize("moment", GOES_ON, ids=str)
def test_a_peer_lost_after_its_release_is_in_the_average_and_its_deputy_adds_up(
    moment: Moment, undisturbed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = fresh(moment)
    made: set[tuple[str, int, int]] = set()
    plain = Vectors.add_up

    def add_up(vectors: Vectors, task: AddUp, sources: Any) -> memoryview:
        made.add((vectors._me, task.step, task.shard))
        return plain(vectors, task, sources)

    monkeypatch.setattr(Vectors, "add_up", add_up)
    seen = watch_rounds(monkeypatch)
    trial = MortalTrial(three(), tmp_path, monkeypatch, moment, restarts=False)
    trial.begin()
    others = [name for name in ALL if name != moment.victim]
    lacking = _who_lacks(moment, others)
    trial.until(lambda: moment.struck.is_set() and all(_waits(trial, name, moment.victim) for name in lacking))
    for name in others:
        trial.order(name, drop=moment.victim)
    trial.end(*others)
    assert len(trial.models(*others)) == 1
    assert members_of(trial, others[0]) == [ALL, ALL, others]
    assert {entry["attempts"] for entry in entries(trial, others[0], "round")} == {1}
    evaluations = [entry["members"] for entry in entries(trial, others[0], "evaluation")]
    assert evaluations == [ALL, ALL if moment.step == 4 else others, others]
    check_rounds(trial, seen)
    if moment.at is Kind.RELEASE or moment.when == "before":
        index = ALL.index(moment.victim)
        deputy = ALL[(index + 1) % 3]
        if moment.at is Kind.RELEASE or moment.at is Kind.SUM:
            assert (deputy, moment.step, index) in made, made


def _who_lacks(moment: Moment, others: list[str]) -> list[str]:
    """Return who cannot go on without the dead peer, before anything is decided."""
    if moment.when != "between":
        return others
    return others[1:]  # a peer sends to the others by name; the first has what it needs


def _waits(trial: MortalTrial, name: str, victim: str) -> bool:
    return name in trial.runners and victim in trial.runners[name].driver.waiting_for()


NAMED = [
    Moment("bert", Kind.RECEIPT, "between", ROUND_2),  # who has it releases, and that completes the other's receipts
    Moment("bert", Kind.RECEIPT, "after", ROUND_2),
    Moment("bert", Kind.RELEASE, "before", ROUND_2),
    Moment("anna", Kind.RELEASE, "before", 4),
]


@pytest.mark.parametrize("moment", NAMED, ids=str)
def test_a_peer_lost_between_the_others_release_and_its_own_is_waited_for_by_name(
    moment: Moment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decisions of people do not help here: without its release nobody can have the sum. It has to come back."""
    moment = fresh(moment)
    victim, others = moment.victim, [name for name in ALL if name != moment.victim]
    seen = watch_rounds(monkeypatch)
    trial = MortalTrial(three(), tmp_path, monkeypatch, moment, restarts=False)
    trial.begin()
    trial.until(
        lambda: moment.struck.is_set() and all(trial.runners[name].state.phase is Phase.RELEASED for name in others)
    )
    trial.until_waiting_for(victim)
    for name in others:
        trial.order(name, drop=victim)

    def status(name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((trial.folder / name / "status.json").read_text())
        return found

    named = {"dropped": [victim], "waiting_for": [victim], "phase": Phase.RELEASED.value}
    trial.until(lambda: all(named.items() <= status(name).items() for name in others))
    trial.again(victim)
    trial.end(*others)
    assert len(trial.models(*others)) == 1
    assert members_of(trial, others[0]) == [ALL, ALL, others], "this round is finished with it, the next is without"
    check_rounds(trial, seen)
    trial.threads[victim].join(60)
    assert isinstance(trial.errors.pop(victim), Dropped)


def test_a_peer_that_comes_back_after_it_was_dropped_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = MortalTrial(three(), tmp_path, monkeypatch, Moment("bert", Kind.COMMIT, "before", ROUND_2), restarts=False)
    trial.begin()
    trial.until_waiting_for("bert")
    for name in OTHERS:
        trial.order(name, drop="bert")
    trial.end(*OTHERS)
    trial.again("bert")
    trial.threads["bert"].join(60)
    assert isinstance(trial.errors.pop("bert"), Dropped)


def test_one_organisation_cannot_drop_a_peer_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = Moment("bert", Kind.COMMIT, "after", ROUND_2)
    trial = MortalTrial(three(), tmp_path, monkeypatch, moment, restarts=False)
    trial.begin()
    trial.until_waiting_for("bert")
    trial.order("anna", drop="bert")
    trial.until(lambda: "bert" in trial.runners["anna"].driver.machine.progress(trial.runners["anna"].state)["dropped"])
    assert "bert" in trial.runners["cleo"].driver.waiting_for()
    trial.again("bert")
    trial.end(*ALL)
    assert members_of(trial) == [ALL, ALL, ALL]


def test_fewer_peers_than_the_manifest_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = Moment("bert", Kind.COMMIT, "after", ROUND_2)
    trial = MortalTrial(three(min_peers=3), tmp_path, monkeypatch, moment, restarts=False)
    trial.begin()
    trial.until_waiting_for("bert")
    for name in OTHERS:
        trial.order(name, drop="bert")
    for name in OTHERS:
        trial.threads[name].join(60)
        error = trial.errors.pop(name)
        assert isinstance(error, TooFewPeers)
        assert "after round 1" in error.message
        assert str(trial.runners[name].model_path) in error.hint
        assert [entry["round"] for entry in entries(trial, name, "final")] == [1]
    assert len(trial.models(*OTHERS)) == 1


# --- farewells -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaver", ALL)
@pytest.mark.parametrize("step", [1, ROUND_2, 4])
def test_a_peer_that_leaves(leaver: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is held back before a commitment of the step, gets the order, and says farewell before it goes on."""
    seen = watch_rounds(monkeypatch)
    trial = MortalTrial(three(), tmp_path, monkeypatch, Moment(leaver, Kind.COMMIT, "before", step), restarts=False)
    trial.begin()
    trial.until_waiting_for(leaver)
    trial.order(leaver)
    trial.again(leaver)
    trial.end(*ALL)
    others = [name for name in ALL if name != leaver]
    assert trial.runners[leaver].state.phase is Phase.LEFT
    assert {trial.runners[name].state.phase for name in others} == {Phase.ENDED}
    assert len(trial.models(*others)) == 1
    before = (step - 1) // 2 if step % 2 else step // 2  # rounds that it took part in
    taking_part = [ALL] * before + [others] * (3 - before)
    found = members_of(trial, others[0])
    # It gave its receipt before the order was read, or did not: both are right.
    assert found in (taking_part, [ALL] * (before + 1) + [others] * (2 - before)), found
    assert members_of(trial, leaver) == [members for members in found if leaver in members]
    if found[0] == ALL:
        last = max(each.round for each in seen if each.peer == leaver)
        assert entries(trial, leaver, "final")[0]["round"] == last, "its model is the last that it had a part in"
    else:
        assert not trial.runners[leaver].model_path.exists()
    check_rounds(trial, seen)


def test_the_last_but_one_cannot_leave_a_trial_of_two_going(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = Moment("bert", Kind.COMMIT, "before", ROUND_2)
    trial = MortalTrial(agreed(2, training__epochs=3), tmp_path, monkeypatch, moment, restarts=False)
    trial.begin()
    trial.until_waiting_for("bert")
    trial.order("bert")
    trial.again("bert")
    trial.end("bert")
    trial.threads["anna"].join(60)
    assert isinstance(trial.errors.pop("anna"), TooFewPeers)
    assert len(trial.models("anna", "bert")) == 1, "the last that both agreed on"


# --- deadlines -------------------------------------------------------------------------------------------------------


def test_absence_with_drop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch_rounds(monkeypatch)
    moment = Moment("bert", Kind.COMMIT, "after", ROUND_2)
    trial = MortalTrial(three(on_absent="drop", absent_after_s=1.5), tmp_path, monkeypatch, moment, restarts=False)
    trial.begin()
    trial.end(*OTHERS)
    assert members_of(trial) == [ALL, OTHERS, OTHERS]
    assert len(trial.models(*OTHERS)) == 1
    check_rounds(trial, seen)


@pytest.mark.parametrize(("at", "step"), [(Kind.COMMIT, ROUND_2), (Kind.HELLO, 0)])
def test_absence_with_abort(at: Kind, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = MortalTrial(
        three(on_absent="abort", absent_after_s=1.5),
        tmp_path,
        monkeypatch,
        Moment("bert", at, "before", step),
        restarts=False,
    )
    trial.begin()
    for name in OTHERS:
        trial.threads[name].join(60)
        error = trial.errors.pop(name)
        assert isinstance(error, PeerAbsent)
        assert "bert" in str(error)
    assert isinstance(trial.errors.pop("bert"), Died)
