from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser

from ppdl_mq.report.page import page
from ppdl_mq.report.result import (
    ALL_HOLDOUTS,
    MASKED,
    SAME_ORDER,
    SHUFFLED,
    Averaged,
    Curve,
    Outcome,
    Result,
    Share,
    TurnLength,
)

OUTCOME = Outcome(
    accuracy=0.9713,
    differing_bits=0,
    distinct_models=1,
    relay_messages=4321,
    relay_bytes=12_600_000,
    relay_readable=0,
    relay_counted_by="tap",
    relay_findings={"unsealed": 0, "shrinkable": 0, "known": 0},
    seconds=7.25,
    turns=180,
    seconds_a_turn=0.01,
    holdout={"alder": 1.0, "birch": None},
)
AVERAGED = Averaged(
    a_round="A round is a round.",
    largest_difference=1.788e-7,
    values=288_600,
    values_off=0,
    holdouts=(
        Curve(name=ALL_HOLDOUTS, points=((4.0, 0.7203), (8.0, 0.8881))),
        Curve(name="alder", points=((4.0, 0.6714), (8.0, 0.4286))),
    ),
)
MASKED_OUTCOME = dataclasses.replace(
    OUTCOME, accuracy=0.9554, differing_bits=None, averaged=AVERAGED, relay_messages=2813, turns=60
)
RESULT = Result(
    dataset="digits",
    title="Digits & <letters>",
    skew="each has its own",
    classes=("0", "1"),
    public_rows=359,
    shares=(
        Share(name="alder", rows=703, training_rows=633, counts=(702, 1)),
        Share(name="birch", rows=245, training_rows=221, counts=(0, 245)),
    ),
    activation="gelu",
    model_bytes=19_240,
    relay="a SQLite file",
    pooled_accuracy=0.9823,
    pooled_same_order_accuracy=0.9711,
    alone={"alder": 0.5317, "birch": 0.4129},
    protocols={
        "server-aided": OUTCOME,
        "fully-connected": dataclasses.replace(OUTCOME, accuracy=0.9629),
        MASKED: MASKED_OUTCOME,
    },
    curves=(
        Curve(name=MASKED, points=((0.0, 0.1), (1.0, 0.9554))),
        Curve(name=SAME_ORDER, points=((0.0, 0.1), (1.0, 0.9713))),
        Curve(name=SHUFFLED, points=((0.0, 0.1), (1.0, 0.9823))),
        Curve(name="alder alone", points=((0.0, 0.1), (1.0, 0.5317))),
    ),
    turn_lengths=(
        TurnLength(passes=0.25, turns=180, accuracy=0.9713, is_own=True),
        TurnLength(passes=5.0, turns=9, accuracy=0.8609, is_own=False),
    ),
    round_lengths=(
        TurnLength(passes=0.25, turns=60, accuracy=0.9554, is_own=True),
        TurnLength(passes=15.0, turns=1, accuracy=0.6769, is_own=False),
    ),
    cautions=(),
    software="ppdl-mq 0.1.0",
)


class Balance(HTMLParser):
    """Fails where an element is closed that is not the last one opened."""

    VOID = frozenset({"meta", "path", "circle"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_holds_the_numbers() -> None:
    shown = page(RESULT)
    numbers = ("97.1%", "98.2%", "53.2%", "41.3%", "96.3%", "86.1%", "11,455", "4,321", "12.6 MB", "633", "702")
    for number in (*numbers, "95.5%", "67.7%", "1.8e-7", "0 of 288,600", "2,813"):
        assert number in shown, number
    assert "Digits &amp; &lt;letters&gt;" in shown
    assert shown.count("0 differing bits") == 2
    assert shown.count("A round is a round.") == 1
    assert len(shown.encode()) < 40_000


def test_the_page_without_turns_or_without_rounds_leaves_out_what_there_is_not() -> None:
    rounds = page(dataclasses.replace(RESULT, protocols={MASKED: MASKED_OUTCOME}, turn_lengths=()))
    assert "differing bits" not in rounds
    assert "bit for bit" not in rounds
    assert "bits differ" not in rounds
    assert "67.7%" in rounds
    protocols = {"server-aided": OUTCOME}
    turns = page(dataclasses.replace(RESULT, protocols=protocols, round_lengths=(), curves=RESULT.curves[1:]))
    assert "masked-average" not in turns
    assert "86.1%" in turns


def test_the_page_says_what_two_organisations_hide_from_each_other_and_which_models_differ() -> None:
    assert "which can subtract its own part" in page(RESULT)
    third = Share(name="cedar", rows=70, training_rows=63, counts=(35, 35))
    three = dataclasses.replace(RESULT, shares=(*RESULT.shares, third), alone={**RESULT.alone, "cedar": 0.3})
    assert "subtract" not in page(three)
    assert "2 different models" not in page(RESULT)
    apart = dataclasses.replace(MASKED_OUTCOME, distinct_models=2)
    assert "2 different models" in page(dataclasses.replace(RESULT, protocols={MASKED: apart}))


def test_the_page_is_sound_and_needs_nothing_else() -> None:
    shown = page(RESULT)
    parser = Balance()
    parser.feed(shown)
    assert parser.open == []
    assert not parser.seen & {"script", "link", "img", "iframe", "object"}
    assert not re.search(r"https?:|//|\bsrc=|\bhref=|url\(|@import", shown)
    assert "prefers-color-scheme:dark" in shown


def test_the_page_does_not_claim_what_nobody_looked_at_or_what_is_not_so() -> None:
    unseen = dataclasses.replace(OUTCOME, relay_readable=None, relay_counted_by="peers")
    shown = page(dataclasses.replace(RESULT, protocols={"server-aided": unseen}))
    assert "not looked at" in shown
    assert "0 readable" not in shown
    wrong = dataclasses.replace(OUTCOME, differing_bits=17, relay_readable=3)
    shown = page(dataclasses.replace(RESULT, protocols={"server-aided": wrong}))
    assert "17 differing bits" in shown
    assert "3 readable" in shown
    assert "bit for bit" not in shown


def test_the_result_is_what_the_issue_asks_for() -> None:
    data = json.loads(json.dumps(RESULT.as_data()))
    assert data["alone"] == {"alder": 0.5317, "birch": 0.4129}
    assert {"pooled_accuracy", "pooled_same_order_accuracy", "alone", "protocols"} <= data.keys()
    needed = {"accuracy", "differing_bits", "relay_messages", "relay_bytes", "seconds"}
    assert all(needed <= outcome.keys() for outcome in data["protocols"].values())
