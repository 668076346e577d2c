from __future__ import annotations

import json
from pathlib import Path

from ppdl_mq.peer.progress import PROGRESS_NAME, STATUS_NAME, Progress
from ppdl_mq.peer.tally import Tally


def test_turns_are_added_up() -> None:
    tally = Tally()
    assert tally.facts() == {"training": {"times": 0}}
    tally.add("turn", {"turn": 0, "digest": "ab"})  # the initial weights
    assert tally.facts() == {"training": {"times": 0}}
    for turn, loss in ((1, 0.5), (3, None)):
        facts = {"turn": turn, "steps": 4, "samples": 100, "seconds": 0.25, "loss": loss}
        tally.add("turn", facts | ({"holdout_loss": 0.7, "holdout_accuracy": 0.9} if turn == 1 else {}))
    assert tally.facts()["training"] == {
        "times": 2,
        "seconds": 0.5,
        "steps": 8,
        "samples": 200,
        "loss": None,  # infinite, which progress.jsonl writes so
        "holdout_loss": 0.7,
        "holdout_accuracy": 0.9,
    }


def test_rounds_are_added_up_and_evaluations_kept() -> None:
    tally = Tally()
    tally.add("trained", {"round": 1, "epoch": 0, "steps": 2, "samples": 50, "loss": 0.6, "seconds": 1.5})
    tally.add("round", {"round": 1, "members": ["a", "b"], "attempts": 1})
    tally.add("measured", {"round": 1, "holdout_loss": 0.4, "holdout_accuracy": None, "holdout_samples": 9})
    tally.add("evaluation", {"round": 1, "members": ["a", "b"], "attempts": 1, "loss": 0.3, "accuracy": 0.8})
    assert tally.facts() == {
        "training": {
            "times": 1,
            "seconds": 1.5,
            "steps": 2,
            "samples": 50,
            "loss": 0.6,
            "holdout_loss": 0.4,
            "holdout_accuracy": None,
        },
        "evaluation": {"round": 1, "loss": 0.3, "accuracy": 0.8},
    }


def test_what_was_told_can_be_changed_by_nobody() -> None:
    tally = Tally()
    told = tally.facts()
    tally.add("turn", {"steps": 1, "samples": 2, "seconds": 3.0, "loss": 0.1})
    assert told == {"training": {"times": 0}}


def test_the_latest_is_newer_than_the_file(tmp_path: Path) -> None:
    progress = Progress(tmp_path)
    progress.show({"turn": 1}, now=True)
    progress.show({"turn": 2})
    assert progress.latest["turn"] == 2
    assert json.loads((tmp_path / STATUS_NAME).read_text())["turn"] == 1
    progress.note("turn", steps=1, samples=2, seconds=3.0, loss=float("inf"))
    assert json.loads((tmp_path / PROGRESS_NAME).read_text())["loss"] is None
    assert progress.tally.facts()["training"]["loss"] is None
