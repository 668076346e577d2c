"""What the comparison of logs found, as sentences for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ppdl_mq.audit.database import Conflict, Place
from ppdl_mq.audit.ledger import Difference, Ledger, View
from ppdl_mq.audit.reading import Log
from ppdl_mq.audit.results import Sums

MAX_FINDINGS: Final = 20  # of each kind
_SAID_TWICE: Final = {
    "session key": "two session keys",
    "turn": "two results of one turn",
    "final": "two sets of final weights",
    "commitment": "two commitments in one attempt",
    "base": "commitments on two different weights in one step",
    "exponents": "commitments with two sets of exponents in one step",
    "receipt": "two receipts in one attempt",
    "sum": "two sums of one shard",
    "agreement": "two results of one step",
    "abandon": "two different ABANDONs of one attempt",
    "leave": "two farewells from different steps on",
    "own commitments": "for other commitments than its own log holds",
    "two sets": "a receipt and an agreement over different commitments",
    "own sum": "another result than the sum that its own log holds",
    "own result": "for other weights than it agreed on before",
}
_DIFFERS: Final = {
    "final": "the final weights",
    "receipt": "the commitments of an attempt",
    "sum": "the sum of a shard",
    "agreement": "the result of a step",
    "base": "the weights that a step stands on",
    "exponents": "the exponents of a step",
}
_STANDS_ALONE: Final = {
    "agreement": "signed another result than",
    "base": "stands on other weights than",
    "exponents": "stands on other exponents than",
}

_NO_STATEMENT: Final = "INITIAL messages are no statements, so no log tells whether"

Kind = Literal["broken log", "other trial", "contradiction", "difference", "question"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that does not hold.

    Args:
        kind: `broken log`: an entry of it is not genuine. `other trial`: the logs are not to be compared.
            `contradiction`: a peer signed what cannot all be honest. `difference`: peers signed different results, and
            none of them signed two. `question`: a peer signed for commitments that stand in none of the logs: it lies,
            or another one showed them to it alone, and its own log says which.
        peer: in a contradiction, whose fault it is; in a difference, who stands alone against all others, which is no
            proof: they may lie together; in a question, whose log is wanted. Empty where there is none.
        text: a sentence for people.
        places: file and number of the entries that prove it.
    """

    kind: Kind
    peer: str
    text: str
    places: tuple[tuple[str, int], ...]


class Comparison:
    """Puts into words what a ledger holds.

    Args:
        ledger: with all logs, closed.
        logs: in the order in which they were added.
    """

    def __init__(self, ledger: Ledger, logs: Sequence[Log]) -> None:
        self._ledger = ledger
        self._logs = logs

    def findings(self) -> list[Finding]:
        """Return what contradicts or differs, at most some of each kind."""
        ledger = self._ledger
        contradictions = [
            self._finding("contradiction", each.signer, f"{each.signer} signed {_SAID_TWICE[each.what]}", each.places)
            for each in ledger.contradictions(MAX_FINDINGS)
        ]
        forks = [
            self._finding("contradiction", each.signer, f"{each.signer} kept two different transcripts", each.places)
            for each in ledger.forks(MAX_FINDINGS)
        ]
        differences = [self._difference(each) for each in ledger.differences(MAX_FINDINGS)]
        named = {finding.peer for finding in contradictions}  # of whom nothing is left to ask
        questions = [self._question(each) for each in ledger.commitments.unexplained(MAX_FINDINGS, named)]
        return contradictions + forks + differences + questions

    def _finding(self, kind: Kind, peer: str, what: str, places: Sequence[Place]) -> Finding:
        shown = " and ".join(f"entry {place.entry} of {self._logs[place.log].path}" for place in places)
        named = tuple((str(self._logs[place.log].path), place.entry) for place in places)
        return Finding(kind=kind, peer=peer, text=f"{what}: {shown}.", places=named)

    def _question(self, conflict: Conflict) -> Finding:
        name, signed = conflict.signer, "a receipt" if conflict.what == "receipt" else "an agreement"
        text = f"{name} signed {signed} over commitments that these logs do not hold; ask for {name}'s whole log"
        return self._finding("question", name, text, conflict.places)

    def _difference(self, found: Difference) -> Finding:
        lone, others = _lone(found.views)
        if lone is not None and found.says in _STANDS_ALONE and self._is_named(found.says, lone, others):
            name = lone.place.signer
            text = f"{name} {_STANDS_ALONE[found.says]} {_listed(others)}; {self._conclusion(found, lone, others)}"
            return self._finding("difference", name, text, (lone.place, others[0].place))
        first = found.views[0]
        other = next(view for view in found.views if view.result != first.result)
        text = f"{first.place.signer} and {other.place.signer} differ about {_DIFFERS[found.says]}"
        if found.says == "base" and found.step == 1:
            text += f"; {_NO_STATEMENT} {self._founder(first)} sent different ones, or who else lies"
        return self._finding("difference", "", text, (first.place, other.place))

    def _is_named(self, says: str, lone: View, others: Sequence[View]) -> bool:
        """Tell whether all went by the same things as whoever stands alone, as far as the logs tell."""
        if says != "agreement":
            return True
        went_by = {(view.context, view.result[32:]) for view in (lone, *others)}  # attempt and commitments
        return len(went_by) == 1 and self._sums(lone, others) != "other"

    def _conclusion(self, found: Difference, lone: View, others: Sequence[View]) -> str:
        """Return what follows from one peer standing alone, which proves nothing by itself."""
        name, founder = lone.place.signer, self._founder(lone)
        if found.says == "agreement":
            if self._sums(lone, others) == "same":
                return "its own log holds the same commitments and sums: it lies, or all the others do"
            return f"over the same commitments; whether from the same sums, {name}'s whole log shows"
        if found.says == "base" and found.step == 1:
            if name == founder:
                return f"{_NO_STATEMENT} it sent the others different ones, or all of them lie"
            return f"{_NO_STATEMENT} {founder} sent it different ones, or it lies, or all the others do"
        return f"it lies, or all the others do; {name}'s whole log shows what it agreed on before"

    def _sums(self, lone: View, others: Sequence[View]) -> Sums:
        assert lone.context is not None, "an agreement names its context"
        return self._ledger.results.sums_of(lone.place.signer, [view.place.signer for view in others], lone.context)

    def _founder(self, view: View) -> str:
        return self._logs[view.place.log].first


def _lone(views: Sequence[View]) -> tuple[View | None, list[View]]:
    """Return who stands alone against all others, at least two, that came to one result; and those."""
    counted = Counter(view.result for view in views)
    (most, count), *rest = counted.most_common()
    if count < 2 or len(views) != count + 1 or len(rest) != 1:
        return None, []
    (lone,) = (view for view in views if view.result != most)
    return lone, [view for view in views if view.result == most]


def _listed(views: Sequence[View]) -> str:
    names = sorted(view.place.signer for view in views)
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
