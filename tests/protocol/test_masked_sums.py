"""Section 16 of docs/PROTOCOL.md, row by row: false sums, and two of one maker."""

from __future__ import annotations

import pytest

from ppdl_mq.errors import (
    Equivocation,
    FalseSum,
    OutOfTurn,
    Unauthentic,
)
from ppdl_mq.protocol.machine import NotYet
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.statements import (
    sum_statement,
)
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.messages import SumShard
from tests.protocol.masked_lies import (
    EVERYBODY,
    HONEST,
    SEEDS,
    contradict,
    ended,
    finished_well,
    said,
)
from tests.protocol.masked_scene import Scene, altered, of, spoilt
from tests.protocol.masked_world import Letter, sha


@pytest.mark.parametrize("seed", SEEDS)
def test_a_sum_that_is_false_for_all_alike_is_not_found_unless_somebody_asks(seed: int) -> None:
    scene = Scene(3, seed=seed)
    scene.false_sums = {"cleo"}
    scene.run()
    assert ended(scene) == set(EVERYBODY)
    assert len({peer.kept for peer in scene.peers.values()}) == 1, "wrong, and the same for all"
    honest = Scene(3, seed=seed)
    honest.run()
    finished_well(honest)
    assert scene.peers["anna"].kept != honest.peers["anna"].kept


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_demand_finds_a_false_sum_and_has_the_evidence(count: int, seed: int) -> None:
    scene = Scene(count, seed=seed)
    shard = min(count - 1, 2)  # of three blocks, the fourth member has none
    liar = list(scene.peers)[shard]
    scene.false_sums, scene.audits = {liar}, shard
    scene.run()
    assert not ended(scene)
    for name in scene.peers:
        if name == liar:
            continue
        failure = scene.peers[name].failure
        assert type(failure) is FalseSum
        assert liar in failure.message
        assert len(said(scene, name, "sum", liar)) == 1


def test_a_maker_that_answers_no_demand_is_waited_for() -> None:
    scene = Scene(3)
    scene.false_sums, scene.audits = {"cleo"}, 2
    scene.tampers = lambda _, letter: None if of(Kind.PROOF, "cleo")(letter) else letter
    scene.run()
    assert not ended(scene)
    for name in HONEST:
        assert scene.state(name).phase is Phase.AUDITING
        assert scene.waiting_for(name) == ("cleo",)
    assert not any(scene.state(name).agreed & {name} for name in HONEST), "nothing is signed while a demand is open"


def test_a_proof_that_was_not_committed_to_is_refused() -> None:
    scene = Scene(3)
    scene.audits = 2
    scene.replace(of(Kind.PROOF, "cleo"), lambda letter: altered(letter, blob=spoilt(letter.blob)))
    scene.run()
    refusals = {(by, sender, kind, why) for by, sender, kind, why in scene.refusals}
    assert refusals == {(name, "cleo", Kind.PROOF, Unauthentic) for name in HONEST}
    assert all(scene.waiting_for(name) == ("cleo",) for name in HONEST)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_sum_that_is_false_for_some_is_an_equivocation_with_its_signatures(seed: int) -> None:
    scene = Scene(3, seed=seed)
    scene.checks_sums = False

    def lie(letter: Letter) -> Letter:
        message, blob = letter.send.message, spoilt(letter.blob)
        assert isinstance(message, SumShard)
        signature = scene.sign("cleo", sum_statement(message.context, message.shard, sha(blob)))
        return altered(letter, blob=blob, signature=signature)

    scene.replace(of(Kind.SUM, "cleo", "anna"), lie)
    scene.run()
    assert not ended(scene)
    for name in HONEST:
        failure = scene.peers[name].failure
        assert type(failure) is Equivocation
        assert "cleo signed a sum" in failure.message
    mine, theirs = (said(scene, name, "sum", "cleo")[0] for name in HONEST)
    assert mine.about["context"] == theirs.about["context"]
    assert mine.about["digest"] != theirs.about["digest"]
    assert contradict(mine, theirs)


def test_two_sums_of_one_maker_stop_whoever_sees_both() -> None:
    scene = Scene(3)
    scene.hold(of(Kind.SUM, "bert", "anna"))
    scene.until(lambda: scene.state("anna").phase is Phase.GATHERING and 2 in scene.state("anna").sums)
    blob = bytes(scene.peers["anna"].machine._shards(scene.state("anna")).size(2))
    context = scene.context("anna")
    signature = scene.sign("cleo", sum_statement(context, 2, sha(blob)))
    with pytest.raises(Equivocation, match="cleo"):
        scene.offer("anna", "cleo", SumShard(context=context, shard=2, maker="cleo", signature=signature), blob=blob)
    with pytest.raises(OutOfTurn, match="not its to make"):
        scene.offer("anna", "bert", SumShard(context=context, shard=2, maker="bert", signature=signature), blob=blob)


def test_only_the_deputy_of_a_lost_member_may_make_its_sum() -> None:
    scene = Scene(4)
    scene.hold(of(Kind.SUM, "cleo"))
    scene.until(lambda: scene.state("anna").phase is Phase.GATHERING and 0 in scene.state("anna").sums)
    blob = bytes(scene.peers["anna"].machine._shards(scene.state("anna")).size(2))

    def offer(sender: str, maker: str) -> object:
        message = SumShard(context=scene.context("anna"), shard=2, maker=maker, signature=bytes(64))
        return scene.offer("anna", sender, message, blob=blob)

    with pytest.raises(NotYet):
        offer("dora", "dora")
    for sender, maker in (("bert", "bert"), ("bert", "cleo"), ("cleo", "dora"), ("dora", "bert")):
        with pytest.raises(OutOfTurn, match="not its to make"):
            offer(sender, maker)
    with pytest.raises(Unauthentic):  # the deputy may pass on what the lost one signed, and nothing else
        offer("dora", "cleo")
    scene.decide("anna", "cleo")
    with pytest.raises(Unauthentic):
        offer("dora", "dora")
