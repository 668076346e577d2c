"""The privacy budget: what is charged when, and which trials are refused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppdl_mq.config.manifest import Manifest
from ppdl_mq.config.reading import settings_from_text
from ppdl_mq.config.settings import PeerSettings, Privacy
from ppdl_mq.errors import PeerFileError, PrivacyBudget
from ppdl_mq.peer import spending as spendings
from ppdl_mq.peer.journal import Journal
from ppdl_mq.peer.spending import Spending, spending_of
from ppdl_mq.training.data.samples import Split
from ppdl_mq.training.private.accountant import Steps, epsilon
from ppdl_mq.training.private.gradient import Mechanism
from ppdl_mq.wire.trial_id import trial_id
from tests.people import identity_of, manifest_for
from tests.trial import split_for

ROWS = 200
MANIFEST = manifest_for(training__batch_size=10, training__epochs=3, training__turns_per_epoch=2)  # 10 steps a turn
STEPS = 60


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Have trials count as begun from the call on."""
    return lambda: monkeypatch.setattr(spendings, "has_begun", lambda _: True)


def journal_in(folder: Path, manifest: Manifest = MANIFEST) -> Journal:
    return Journal(folder, trial_id=trial_id(manifest), identity=identity_of("anna"))


def spending_in(journal: Journal, manifest: Manifest = MANIFEST, *, rows: int = ROWS, **privacy: Any) -> Spending:
    settings = Privacy(**{"epsilon": 8.0, "delta": 1e-3, **privacy})
    return Spending(journal, settings, manifest.training, rows=rows)


def settings_in(folder: Path, more: str = "") -> PeerSettings:
    text = (
        'identity = "anna.key"\nstate_dir = "state"\n[broker]\nurl = "embedded:relay.sqlite"\n'
        '[data]\ncallable = "no.such.module:samples"\n[privacy]\nepsilon = 8.0\ndelta = 1e-3\n' + more
    )
    return settings_from_text(text, source="peer.toml", folder=folder)


def without_holdout(split: Split) -> Split:
    return Split(split.train, split.train.take(split.train.targets[:0].long()))


def test_the_noise_is_the_least_that_the_budget_allows(tmp_path: Path) -> None:
    journal = journal_in(tmp_path)
    spending = spending_in(journal)
    planned = Steps(count=STEPS, batch_size=10, rows=ROWS, noise=spending.mechanism.noise)
    assert 7.9 < epsilon([planned], 1e-3) <= 8.0
    assert spending.facts() == {
        "epsilon": 0.0,
        "budget": 8.0,
        "delta": 1e-3,
        "noise": spending.mechanism.noise,
        "steps": 0,
    }


def test_by_the_end_of_the_trial_the_budget_is_spent_and_no_more(tmp_path: Path) -> None:
    spending = spending_in(journal_in(tmp_path))
    spent = []
    for ordinal in range(6):
        spending.charge(ordinal)
        spent.append(spending.facts()["epsilon"])
    assert spent == sorted(set(spent))
    assert 7.9 < spent[-1] <= 8.0
    assert spending.facts()["steps"] == STEPS


def test_a_charge_is_there_with_its_commit_and_not_without(tmp_path: Path, begun: Callable[[], None]) -> None:
    journal = journal_in(tmp_path)
    spending = spending_in(journal)

    def fails() -> None:
        with journal.transaction():
            spending.charge(0)
            assert spending.facts()["steps"] == 10
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert spending.facts()["steps"] == 0
    with journal.transaction():
        spending.charge(0)
    journal.close()
    begun()
    assert spending_in(journal_in(tmp_path)).facts()["steps"] == 10


def test_a_peer_that_comes_back_keeps_its_noise(tmp_path: Path, begun: Callable[[], None]) -> None:
    first = journal_in(tmp_path)
    noise = spending_in(first).mechanism.noise
    first.close()
    begun()
    again = journal_in(tmp_path)
    assert spending_in(again, epsilon=50.0).mechanism.noise == noise
    assert spending_in(again, noise=float(f"{noise:g}")).mechanism.noise == noise  # as it was told
    with pytest.raises(PrivacyBudget, match=f"The noise of this trial is {noise} since it was begun, not 3.5"):
        spending_in(again, noise=3.5)
    with pytest.raises(PrivacyBudget, match=r"The clip of this trial is 1[.]0 since it was begun, not 2[.]0"):
        spending_in(again, clip=2.0)


def test_a_start_that_came_to_nothing_decides_nothing(tmp_path: Path) -> None:
    journal, settings = journal_in(tmp_path), settings_in(tmp_path)
    first = spending_in(journal).mechanism
    assert spending_in(journal, epsilon=4.0).mechanism.noise > first.noise
    assert spending_in(journal, epsilon=20.0, noise=2.0, clip=0.5).mechanism == Mechanism(clip=0.5, noise=2.0)
    without = settings.model_copy(update={"privacy": None})
    assert spending_of(journal, without, MANIFEST, split_for("anna", MANIFEST, rows=ROWS)) is None
    assert journal.secret_fact("privacy") is None


def test_other_rows_are_counted_as_what_they_are(tmp_path: Path, begun: Callable[[], None]) -> None:
    journal = journal_in(tmp_path)
    spending_in(journal, epsilon=20.0, noise=2.0).charge(0)
    begun()
    fewer = spending_in(journal, epsilon=20.0, rows=100)
    fewer.charge(1)
    both = [Steps(count=10, batch_size=10, rows=200, noise=2.0), Steps(count=5, batch_size=10, rows=100, noise=2.0)]
    assert fewer.facts()["epsilon"] == epsilon(both, 1e-3)


def test_a_turn_that_is_charged_again_counts_again(tmp_path: Path) -> None:
    spending = spending_in(journal_in(tmp_path))
    spending.charge(3)
    spending.charge(3)
    assert spending.facts()["steps"] == 20


def test_few_rows_are_one_batch(tmp_path: Path) -> None:
    spending = spending_in(journal_in(tmp_path), rows=7, delta=1e-2)
    spending.charge(0)
    assert spending.facts()["epsilon"] == epsilon(
        [Steps(count=spending.facts()["steps"], batch_size=7, rows=7, noise=spending.mechanism.noise)], 1e-2
    )


@pytest.mark.parametrize(
    ("privacy", "says"),
    [({"noise": 0.5}, "would cost epsilon"), ({"epsilon": 0.001, "delta": 1e-9}, "No noise keeps 60 steps")],
)
def test_a_trial_that_costs_too_much_is_refused_before_anything_is_kept(
    tmp_path: Path, privacy: dict[str, Any], says: str
) -> None:
    journal = journal_in(tmp_path)
    with pytest.raises(PrivacyBudget, match=says):
        spending_in(journal, **privacy)
    assert journal.secret_fact("privacy") is None


def test_a_budget_that_was_lowered_is_held_to_while_something_is_to_come(
    tmp_path: Path, begun: Callable[[], None]
) -> None:
    journal = journal_in(tmp_path)
    spending = spending_in(journal)
    spending.charge(0)
    begun()
    with pytest.raises(
        PrivacyBudget, match=r"would cost epsilon 7[.]999 at delta 0[.]001, and the settings allow 7[.]5"
    ):
        spending_in(journal, epsilon=7.5)
    for ordinal in range(1, 6):
        spending.charge(ordinal)
    assert spending_in(journal, epsilon=7.5).facts()["epsilon"] > 7.5  # the others may need its last words


def test_it_cannot_be_turned_on_in_the_middle(tmp_path: Path, begun: Callable[[], None]) -> None:
    begun()
    with pytest.raises(PrivacyBudget, match="begun without"):
        spending_in(journal_in(tmp_path))


def test_it_cannot_be_turned_off_in_the_middle(tmp_path: Path, begun: Callable[[], None]) -> None:
    journal, split = journal_in(tmp_path), split_for("anna", MANIFEST, rows=ROWS)
    settings = settings_in(tmp_path)
    without = settings.model_copy(update={"privacy": None})
    assert spending_of(journal, without, MANIFEST, split) is None
    assert spending_of(journal, settings, MANIFEST, split) is not None
    begun()
    with pytest.raises(PrivacyBudget, match="no \\[privacy\\] any more"):
        spending_of(journal, without, MANIFEST, split)


def test_a_delta_of_one_row_is_refused(tmp_path: Path) -> None:
    split = split_for("anna", MANIFEST, rows=1000)
    with pytest.raises(PeerFileError, match="promises nothing"):
        spending_of(journal_in(tmp_path), settings_in(tmp_path), MANIFEST, split)


def test_own_standardisation_is_refused(tmp_path: Path) -> None:
    own = manifest_for(data__standardise="own")
    with pytest.raises(PeerFileError, match="own"):
        spending_of(journal_in(tmp_path, own), settings_in(tmp_path), own, split_for("anna", own, rows=ROWS))


def test_a_holdout_that_is_shared_is_refused_unless_the_settings_allow_it(tmp_path: Path) -> None:
    masked = manifest_for(protocol="masked-average")
    assert masked.averaging is not None
    journal, split = journal_in(tmp_path, masked), split_for("anna", masked, rows=ROWS)
    with pytest.raises(PeerFileError, match="hold-outs"):
        spending_of(journal, settings_in(tmp_path), masked, split)
    assert spending_of(journal, settings_in(tmp_path), masked, without_holdout(split))
    assert spending_of(journal, settings_in(tmp_path, "unprotected_holdout = true\n"), masked, split)
    never = manifest_for(protocol="masked-average", averaging__evaluate_every=0)
    assert spending_of(journal_in(tmp_path / "never", never), settings_in(tmp_path), never, split)


def test_a_rehearsal_says_that_it_protects_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = settings_in(tmp_path).model_copy(update={"mode": "rehearsal", "sample_seed": 1})
    spending_of(journal_in(tmp_path), settings, MANIFEST, split_for("anna", MANIFEST, rows=ROWS))
    assert "protects no row" in caplog.text


def test_the_log_says_what_the_trial_costs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    spending = spending_in(journal_in(tmp_path))
    spending.charge(0)
    spending.say()
    assert "each of 200 training rows: by its end this trial costs epsilon 7.999 of 8, at delta 0.001" in caplog.text


def test_settings_that_promise_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PeerFileError, match="noise"):
        settings_in(tmp_path, "noise = 0.0\n")
