from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser

from ppdl_mq.report.page import page
from ppdl_mq.report.result import Curve, Outcome, Result, Share, TurnLength

OUTCOME = Outcome(
    accuracy=0.9713,
    differing_bits=0,
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
    protocols={"server-aided": OUTCOME, "fully-connected": dataclasses.replace(OUTCOME, accuracy=0.9629)},
    curves=(
        Curve(name="trial", points=((0.0, 0.1), (1.0, 0.9713))),
        Curve(name="pooled, shuffled", points=((0.0, 0.1), (1.0, 0.9823))),
        Curve(name="alder alone", points=((0.0, 0.1), (1.0, 0.5317))),
    ),
    turn_lengths=(
        TurnLength(passes=0.25, turns=180, accuracy=0.9713, is_own=True),
        TurnLength(passes=5.0, turns=9, accuracy=0.8609, is_own=False),
    ),
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
    for number in ("97.1%", "98.2%", "53.2%", "41.3%", "96.3%", "86.1%", "8,642", "4,321", "12.6 MB", "633", "702"):
        assert number in shown, number
    assert "Digits &amp; &lt;letters&gt;" in shown
    assert shown.count("0 differing bits") == 2
    assert len(shown.encode()) < 40_000


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
