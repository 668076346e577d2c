"""Peers that lie to machines of masked-average, and what the transcripts of the others say about it afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ppdl_mq.audit.verdict import Verdict
from ppdl_mq.errors import Equivocation, SplitView
from ppdl_mq.protocol.effects import Record
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.statements import (
    abandon_statement,
    agreement_statement,
    commitment_statement,
    context_digest,
    final_statement,
    leave_statement,
    receipt_statement,
)
from ppdl_mq.wire import canonical
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.messages import Commit, Leave
from tests.audit.of_worlds import Recorded
from tests.audit.test_verdict import signed_with_chance
from tests.protocol.masked_scene import altered, of, spoilt
from tests.protocol.masked_world import Letter

HONEST = ("anna", "bert")  # where cleo lies
INVENTED = b"\x07" * 32

Found = list[tuple[str, str]]


def found(verdict: Verdict) -> Found:
    return [(finding.kind, finding.peer) for finding in verdict.findings]


def blamed(verdict: Verdict) -> set[str]:
    return {finding.peer for finding in verdict.findings if finding.kind == "contradiction"}


def resigned(scene: Recorded, letter: Letter) -> Letter:
    """A receipt over commitments that nobody made, or an agreement on a result that nobody computed, signed by cleo."""
    message: Any = letter.send.message
    if letter.send.message.kind is Kind.RECEIPT:
        signature = scene.sign("cleo", receipt_statement(message.context, INVENTED))
        return altered(letter, commitments=INVENTED, signature=signature)
    (k,) = (
        record.about["commitments"]
        for record in scene.peers["cleo"].records
        if (record.by, record.says, record.about.get("context")) == ("cleo", "agreement", message.context)
    )
    signature = scene.sign("cleo", agreement_statement(message.context, INVENTED, k))
    return altered(letter, digest=INVENTED, signature=signature)


def with_a_lie(kind: Kind, to: str | None, **options: Any) -> Recorded:
    """A trial in which cleo tells such a lie to one peer, or to all."""
    scene = Recorded(3, **options)
    scene.replace(of(kind, "cleo", to), lambda letter: resigned(scene, letter))
    scene.run()
    for name in HONEST if to is None else [to]:
        assert type(scene.peers[name].failure) is SplitView
    return scene


def signed_by_cleo(says: str) -> Callable[[Record], bool]:
    return lambda record: (record.by, record.says) == ("cleo", says)


SEEDS = range(3)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", [Kind.RECEIPT, Kind.AGREE], ids=lambda kind: kind.name)
def test_a_lie_to_one_peer_is_a_contradiction(kind: Kind, seed: int, tmp_path: Path) -> None:
    scene = with_a_lie(kind, "anna", seed=seed)
    assert found(scene.verdict(tmp_path / "some", *HONEST)) == [("contradiction", "cleo")]
    assert blamed(scene.verdict(tmp_path / "all")) == {"cleo"}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_receipt_over_commitments_that_nobody_made(seed: int, tmp_path: Path) -> None:
    """Told to all alike. Whether somebody showed cleo such commitments, only cleo's own log can tell."""
    scene = with_a_lie(Kind.RECEIPT, None, seed=seed)
    verdict = scene.verdict(tmp_path / "some", *HONEST)
    assert ("question", "cleo") in found(verdict)
    assert not blamed(verdict)
    assert "ask for cleo's whole log" in verdict.findings[-1].text
    verdict = scene.verdict(tmp_path / "all", without=signed_by_cleo("receipt"))
    assert blamed(verdict) == {"cleo"}
    assert "question" not in {kind for kind, _ in found(verdict)}
    (lie,) = (finding for finding in verdict.findings if finding.kind == "contradiction")
    assert "for other commitments than its own log holds" in lie.text


@pytest.mark.parametrize("seed", SEEDS)
def test_a_result_that_the_sums_do_not_come_to(seed: int, tmp_path: Path) -> None:
    scene = with_a_lie(Kind.AGREE, None, seed=seed)
    verdict = scene.verdict(tmp_path / "some", *HONEST)
    assert found(verdict) == [("difference", "cleo")]
    assert "cleo signed another result than anna and bert" in verdict.findings[0].text
    says = [signed_by_cleo(each) for each in ("agreement", "final")]
    verdict = scene.verdict(tmp_path / "all", without=lambda record: any(each(record) for each in says))
    assert ("difference", "cleo") in found(verdict)
    assert "its own log holds the same commitments and sums" in verdict.findings[0].text
    assert not blamed(verdict), "anna and bert may have lied together"


@pytest.mark.parametrize("evaluate_every", [0, 1])
@pytest.mark.parametrize("to", [None, "anna"])
def test_who_says_that_it_finished_with_other_weights_contradicts_itself(
    to: str | None, evaluate_every: int, tmp_path: Path
) -> None:
    """One log is enough: cleo's AGREE stands in it as well."""
    scene = Recorded(3, averaging__evaluate_every=evaluate_every)

    def lie(letter: Letter) -> Letter:
        statement = final_statement(scene.state("cleo").session_id, letter.send.turn, INVENTED)
        return altered(letter, digest=INVENTED, signature=scene.sign("cleo", statement))

    scene.replace(of(Kind.DONE, "cleo", to), lie)
    scene.run()
    assert type(scene.peers["anna"].failure) is Equivocation
    verdict = scene.verdict(tmp_path / "one", "anna")
    assert found(verdict)[0] == ("contradiction", "cleo")
    assert "for other weights than it agreed on before" in verdict.findings[0].text
    assert blamed(scene.verdict(tmp_path / "all")) == {"cleo"}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_result_of_an_evaluation_is_its_sum(seed: int, tmp_path: Path) -> None:
    """Where the sum is the result, a liar's own log proves the lie."""
    scene = Recorded(3, seed=seed, averaging__evaluate_every=1)

    contexts: set[bytes] = set()

    def lie(letter: Letter) -> Letter:
        message: Any = letter.send.message
        contexts.add(message.context)
        return resigned(scene, letter)

    scene.replace(lambda letter: of(Kind.AGREE, "cleo")(letter) and letter.send.turn == 2, lie)
    scene.run()
    truth = signed_by_cleo("agreement")
    verdict = scene.verdict(tmp_path / "all", without=lambda each: truth(each) and each.about["context"] in contexts)
    assert blamed(verdict) == {"cleo"}
    assert "another result than the sum that its own log holds" in verdict.findings[0].text


@pytest.mark.parametrize("seed", SEEDS)
def test_a_second_signature_of_one_commitment_changes_nothing(seed: int, tmp_path: Path) -> None:
    scene = Recorded(3, seed=seed)

    def again(letter: Letter) -> Letter:
        commit: Any = letter.send.message
        statement = commitment_statement(context_digest(commit.context), commit.mask, commit.shards)
        return altered(letter, signature=signed_with_chance("cleo", statement))

    scene.replace(of(Kind.COMMIT, "cleo", "anna"), again)
    scene.run()
    assert set(scene.phases().values()) == {Phase.ENDED}
    assert scene.verdict(tmp_path / "all").holds


@pytest.mark.parametrize("seed", SEEDS)
def test_two_commitments_name_their_signer_and_nobody_else(seed: int, tmp_path: Path) -> None:
    """Anna's and bert's receipts differ, each over what it was shown."""
    scene = Recorded(3, seed=seed)

    def other(letter: Letter) -> Letter:
        commit: Any = letter.send.message
        statement = commitment_statement(context_digest(commit.context), INVENTED, commit.shards)
        return altered(letter, mask=INVENTED, signature=scene.sign("cleo", statement))

    scene.replace(of(Kind.COMMIT, "cleo", "anna"), other)
    scene.run()
    verdict = scene.verdict(tmp_path / "some", *HONEST)
    assert blamed(verdict) == {"cleo"}
    # One honest log, with the receipt of the other honest peer: that one is asked, and not blamed.
    for name, asked in (HONEST, HONEST[::-1]):
        verdict = scene.verdict(tmp_path / "one", name)
        assert not blamed(verdict)
        has_receipt = any(each.says == "receipt" and each.by == asked for each in scene.peers[name].records)
        assert (("question", asked) in found(verdict)) == has_receipt


def knows_farewell(scene: Recorded, name: str) -> bool:
    return "cleo" in scene.state(name).leaves


@pytest.mark.parametrize("seed", SEEDS)
def test_two_farewells(seed: int, tmp_path: Path) -> None:
    scene = Recorded(3, seed=seed, averaging__min_peers=2)
    scene.until(lambda: all(scene.state(name).step for name in scene.peers))  # nobody ends step 1 alone
    session = scene.state("anna").session_id
    scene.peers["cleo"].is_dead = True
    for to, step in (("bert", 3), ("anna", 1)):  # the later one first: a peer that knows the earlier passes it over
        farewell = Leave(name="cleo", signature=scene.sign("cleo", leave_statement(session, step)))
        scene.say("cleo", to, farewell, turn=step)
        scene.until(partial(knows_farewell, scene, to))
    scene.run()
    assert found(scene.verdict(tmp_path / "some", *HONEST)) == [("contradiction", "cleo")]


def on_other_weights(scene: Recorded, letter: Letter, sign: Callable[[bytes], bytes]) -> Letter:
    commit: Any = letter.send.message
    plain: Any = canonical.decode(commit.context, limit_bytes=4096)
    context = canonical.encode(plain | {"base": INVENTED})
    signature = sign(commitment_statement(context_digest(context), commit.mask, commit.shards))
    return altered(letter, context=context, signature=signature)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_commitment_on_other_weights_is_signed_or_stops_nobody(seed: int, tmp_path: Path) -> None:
    scene = Recorded(3, seed=seed)
    scene.replace(of(Kind.COMMIT, "cleo", "anna"), lambda letter: on_other_weights(scene, letter, lambda _: bytes(64)))
    scene.run()
    assert scene.peers["anna"].failure is None
    assert scene.verdict(tmp_path / "forged").holds

    lied = Recorded(3, seed=seed)
    lied.replace(
        of(Kind.COMMIT, "cleo", "anna"), lambda letter: on_other_weights(lied, letter, partial(lied.sign, "cleo"))
    )
    lied.run()
    assert type(lied.peers["anna"].failure) is SplitView
    assert blamed(lied.verdict(tmp_path / "some", *HONEST)) == {"cleo"}  # bert was shown the other one


@pytest.mark.parametrize(
    ("fields", "shards"),
    [
        ({"base": INVENTED[:31]}, 3),
        ({"base": "x"}, 3),
        ({"exponents": None}, 3),
        ({"base": INVENTED}, 1),
        ({"base": INVENTED, "members": ["anna", "bert", "cleo", "dora"]}, 4),
        ({"base": INVENTED, "members": ["anna", "bert"]}, 2),
        ({"base": INVENTED, "word": 33}, 3),
    ],
)
def test_no_commitment_makes_the_log_of_whoever_was_shown_it_a_broken_one(
    fields: dict[str, Any], shards: int, tmp_path: Path
) -> None:
    scene = Recorded(3)

    def lie(letter: Letter) -> Letter:
        commit: Any = letter.send.message
        plain: Any = canonical.decode(commit.context, limit_bytes=4096)
        context, digests = canonical.encode(plain | fields), (INVENTED,) * shards
        signature = scene.sign("cleo", commitment_statement(context_digest(context), commit.mask, digests))
        return altered(letter, context=context, shards=digests, signature=signature)

    scene.replace(of(Kind.COMMIT, "cleo", "anna"), lie)
    scene.run()
    assert scene.verdict(tmp_path / "all").holds, "it was refused, and stands in no log"
    assert scene.waiting_for("anna") == ("cleo",)
    scene.tampers = lambda _, letter: letter
    scene._asked_in_vain = 0
    scene.run()
    assert set(scene.phases().values()) == {Phase.ENDED}, "the right one came when it was asked for again"


@pytest.mark.parametrize("seed", SEEDS)
def test_an_overflow_said_to_some_stands_in_the_logs_with_what_made_others_say_it(seed: int, tmp_path: Path) -> None:
    """The commitment that made them is one of an honest peer, and blames nobody."""
    scene = Recorded(3, seed=seed)
    scene.false_overflows = {"cleo"}

    def lie(letter: Letter) -> Letter:
        statement = abandon_statement(scene.state("bert").session_id, 1, 0, False)
        return altered(letter, overflow=False, signature=scene.sign("cleo", statement))

    is_first = of(Kind.ABANDON, "cleo", "bert")
    scene.replace(lambda letter: is_first(letter) and letter.send.attempt == 0, lie)
    scene.run()
    said = scene.peers["bert"].records
    at = next(index for index, each in enumerate(said) if each.says == "abandon" and each.about["overflow"])
    assert said[at].by == "bert"
    cause: Any = canonical.decode(said[at - 1].about["context"], limit_bytes=4096)
    assert (said[at - 1].says, cause["word"], cause["attempt"]) == ("commitment", 64, 1)
    assert found(scene.verdict(tmp_path / "bert", "bert")) == []
    assert blamed(scene.verdict(tmp_path / "all")) == {"cleo"}, "of two ABANDONs"
    assert blamed(scene.verdict(tmp_path / "some", *HONEST)) == {"cleo"}


def test_whose_fault_other_initial_weights_are_no_log_tells(tmp_path: Path) -> None:
    """Cleo may stop before it has committed itself: then no statement shows on what it stood."""
    named: set[str] = set()
    for seed in range(12):
        scene = Recorded(3, seed=seed)
        scene.replace(of(Kind.INITIAL, "anna", "cleo"), lambda letter: altered(letter, blob=spoilt(letter.blob)))
        scene.run()
        assert any(type(peer.failure) is SplitView for peer in scene.peers.values())
        committed = {each.by for peer in scene.peers.values() for each in peer.records if each.says == "commitment"}
        verdict = scene.verdict(tmp_path / "all")
        if "cleo" not in committed or committed == {"cleo"}:
            assert verdict.holds
            continue
        (finding,) = verdict.findings
        named.add(finding.peer)
        assert (finding.kind, finding.peer) == ("difference", "cleo" if len(committed) == 3 else "")
        assert "INITIAL messages are no statements, so no log tells whether anna" in finding.text
    assert "cleo" in named


def test_messages_are_those_that_a_liar_would_send() -> None:
    """The helper above changes the base and nothing else."""
    scene = Recorded(3)
    scene.until(lambda: any(of(Kind.COMMIT, "cleo")(letter) for _, letter in scene.everything))
    letter = next(letter for _, letter in scene.everything if of(Kind.COMMIT, "cleo")(letter))
    lie = on_other_weights(scene, letter, lambda _: bytes(64)).send.message
    truth = letter.send.message
    assert isinstance(lie, Commit)
    assert isinstance(truth, Commit)
    assert dataclasses.replace(lie, context=truth.context, signature=truth.signature) == truth
