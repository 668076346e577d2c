"""What each row of docs/PROTOCOL.md, section 16, comes to; machines get their messages directly, so seals are below."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import pytest
from nacl import bindings

from ppdl_mq.config import limits
from ppdl_mq.crypto.agreement import mask_commitment
from ppdl_mq.crypto.identity import verify
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import (
    Dropped,
    Equivocation,
    FalseSum,
    Malformed,
    Misdirected,
    OutOfTurn,
    RemoteError,
    SplitView,
    Unauthentic,
)
from ppdl_mq.protocol.effects import PublishHeld, Record, Send
from ppdl_mq.protocol.events import Decided
from ppdl_mq.protocol.machine import NotYet
from ppdl_mq.protocol.masked_average.membership import remaining
from ppdl_mq.protocol.masked_average.state import Commitment, RoundState
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.statements import (
    abandon_statement,
    commitment_statement,
    context_digest,
    drop_statement,
    leave_statement,
    receipt_statement,
    statement_bytes,
    sum_statement,
)
from ppdl_mq.wire import canonical
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.messages import Abandon, Commit, Drop, Leave, MaskedShard, Receipt, Release, SignedSum, SumShard
from tests.people import identity_of
from tests.protocol.masked_scene import Scene, altered, of, spoilt
from tests.protocol.masked_world import Letter, sha

EVERYBODY = ("anna", "bert", "cleo")
HONEST = ("anna", "bert")  # where cleo lies
SEEDS = range(2)


def ended(scene: Scene) -> set[str]:
    return {name for name, phase in scene.phases().items() if phase is Phase.ENDED}


def finished_well(scene: Scene) -> None:
    scene.check()
    assert ended(scene) == set(scene.peers), scene.phases()
    assert not scene.refusals


def said(scene: Scene, name: str, says: str, by: str) -> list[Record]:
    """What a peer has written down of another one; its signatures hold."""
    found = [record for record in scene.peers[name].records if (record.says, record.by) == (says, by)]
    for record in found:
        public = scene.peers[name].machine.terms.peers[by]
        verify(public, record.signature, statement_bytes(says, record.about))
    return found


def contradict(one: Record, other: Record) -> bool:
    """Whether two statements of one signer about one attempt cannot both be honest."""
    return (
        one.by == other.by and one.says == other.says and (one.about, one.signature) != (other.about, other.signature)
    )


# --- a relay that withholds, splits, replays -------------------------------------------------------------------------


def undisturbed(kind: Kind, seed: int) -> Scene:
    """A trial in which messages of this kind are sent."""
    audits = 0 if kind in (Kind.DEMAND, Kind.PROOF) else None
    scene = Scene(4 if kind is Kind.DROP else 3, seed=seed, training__epochs=2)
    scene.audits = audits
    if kind is Kind.ABANDON:
        scene.false_overflows = {"cleo"}
    return scene


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "kind",
    [
        Kind.INITIAL,
        Kind.COMMIT,
        Kind.MASKED,
        Kind.RECEIPT,
        Kind.RELEASE,
        Kind.SUM,
        Kind.AGREE,
        Kind.ABANDON,
        Kind.DROP,
        Kind.LEAVE,
        Kind.DEMAND,
        Kind.PROOF,
    ],
    ids=lambda kind: kind.name,
)
def test_what_the_relay_withholds_is_waited_for_and_named(kind: Kind, seed: int) -> None:
    scene = undisturbed(kind, seed)
    scene.hold(of(kind))
    gone = set()
    if kind is Kind.DROP:
        scene.until(lambda: all(peer.state.step for peer in scene.peers.values()))
        scene.peers["dora"].is_dead = True
        for name in EVERYBODY:
            scene.decide(name, "dora")
        gone = {"dora"}
    if kind is Kind.LEAVE:
        scene.until(lambda: all(peer.state.step for peer in scene.peers.values()))
        scene.leave("cleo")
        gone = {"cleo"}
    scene.run()
    assert scene.held
    waiting = {name: scene.waiting_for(name) for name in scene.peers if name not in gone}
    assert not ended(scene)
    # A founder awaits commitments, an auditor whom it asked: nobody stands still without a name.
    assert all(waiting.values()), waiting
    senders = {letter.sender for letter in scene.held}
    assert {name for names in waiting.values() for name in names} & (senders | gone)
    scene.let_go()
    scene.run()
    scene.check()
    assert ended(scene) == set(scene.peers) - gone, scene.phases()
    assert not scene.refusals


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", [Kind.COMMIT, Kind.MASKED, Kind.RELEASE, Kind.SUM, Kind.AGREE])
def test_one_letter_withheld_is_one_name(kind: Kind, seed: int) -> None:
    scene = Scene(3, seed=seed)
    scene.hold(of(kind, "cleo", "anna"))
    scene.run()
    assert scene.waiting_for("anna") == ("cleo",)
    scene.let_go()
    scene.run()
    finished_well(scene)


def test_a_receipt_withheld_from_one_comes_with_the_release_of_another() -> None:
    scene = Scene(3)
    scene.hold(of(Kind.RECEIPT, "cleo", "anna"))
    scene.run()
    assert scene.held
    finished_well(scene)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("at", [1, 2])
def test_two_halves_that_cannot_see_each_other_both_wait(at: int, seed: int) -> None:
    halves = ({"anna", "bert"}, {"cleo", "dora"})
    scene = Scene(4, seed=seed, training__epochs=2)
    scene.until(lambda: all(peer.state.round >= at for peer in scene.peers.values()))
    before = {key for key in scene.released if key[1] == 2 * at - 1}
    scene.partition = lambda one, other: any((one in half) != (other in half) for half in halves)
    scene.run()
    for half, other in (halves, halves[::-1]):
        for name in half:
            assert set(scene.waiting_for(name)) & other
    if not before:
        assert not {key for key in scene.released if key[1] == 2 * at - 1}, "nobody releases in half a trial"
    scene.partition = lambda _, __: False
    scene._asked_in_vain = 0
    scene.run()
    finished_well(scene)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_was_said_in_an_earlier_step_or_attempt_is_dropped_silently(seed: int) -> None:
    scene = Scene(3, seed=seed, training__epochs=2, averaging__evaluate_every=1)
    scene.false_overflows = {"cleo"}
    scene.audits = 0
    tried: set[Kind] = set()

    def look_back() -> bool:
        for name, peer in scene.peers.items():
            state = peer.state
            if not state.step or state.phase in (Phase.CLOSING, Phase.ENDED):
                continue
            for to, letter in scene.everything[-60:]:
                old = (letter.send.turn, letter.send.attempt) < (state.step, state.attempt)
                if to == name and letter.send.message.kind.in_attempt and old:
                    after, effects = peer.machine.step(state, letter.received)
                    kinds = {type(effect) for effect in effects}  # a demand may bring what is held: nothing, here
                    assert (after, kinds - {PublishHeld}) == (state, set())
                    assert not kinds or letter.send.message.kind is Kind.DEMAND
                    assert not peer.held
                    tried.add(letter.send.message.kind)
        return len(ended(scene)) == 3

    scene.until(look_back)
    assert tried == {kind for kind in Kind if kind.in_attempt}
    finished_well(scene)


REPLAYED = {
    Kind.COMMIT: Misdirected,  # its context names the step
    Kind.MASKED: None,  # as its commitment: passed over
    Kind.RECEIPT: Misdirected,
    Kind.RELEASE: Misdirected,
    Kind.SUM: Misdirected,
    Kind.AGREE: Misdirected,
    Kind.ABANDON: Unauthentic,  # its statement names step and attempt
    Kind.DEMAND: Misdirected,
    Kind.PROOF: Misdirected,
}


@pytest.mark.parametrize("kind", REPLAYED, ids=lambda kind: kind.name)
def test_what_a_sender_itself_says_again_under_a_new_header_is_of_another_context(kind: Kind) -> None:
    scene = Scene(3, training__epochs=2)
    scene.false_overflows, scene.audits = {"cleo"}, 2 if kind is Kind.PROOF else 0
    scene.until(lambda: scene.state("anna").step == 3 and scene.state("anna").phase is Phase.MASKING)
    old = [each for to, each in scene.everything if to == "anna" and each.send.message.kind is kind]
    assert old
    for letter in old:
        if REPLAYED[kind] is None:
            state = scene.state("anna")
            message, blob = letter.send.message, letter.blob
            assert scene.offer("anna", letter.sender, message, blob=blob) == (state, ())
        else:
            with pytest.raises(RemoteError) as caught:
                scene.offer("anna", letter.sender, letter.send.message, blob=letter.blob)
            assert type(caught.value) is REPLAYED[kind]


def test_what_is_said_too_early_is_kept() -> None:
    scene = Scene(3)
    scene.until(lambda: scene.state("anna").step == 1)
    for sender, (turn, attempt) in itertools.product(("bert", "cleo"), ((2, 0), (1, 1))):
        with pytest.raises(NotYet):
            scene.offer("anna", sender, Abandon(overflow=False, signature=bytes(64)), turn=turn, attempt=attempt)


# --- sums ------------------------------------------------------------------------------------------------------------


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


# --- commitments and shards ------------------------------------------------------------------------------------------


def resigned(letter: Letter, sign: Callable[[bytes], bytes], **fields: Any) -> Letter:
    """A commitment with other fields, signed anew."""
    message = letter.send.message
    assert isinstance(message, Commit)
    changed = dataclasses.replace(message, **fields)
    statement = commitment_statement(context_digest(changed.context), changed.mask, changed.shards)
    return altered(letter, **fields, signature=sign(statement))


def another_signature(name: str, message: bytes) -> bytes:
    """A second signature that holds: Ed25519 has no randomness, but nobody makes a liar stick to that."""
    identity = identity_of(name)
    secret = hashlib.sha512(identity.secret.reveal()[:32]).digest()[:32]
    clamped = bytes([secret[0] & 248]) + secret[1:31] + bytes([secret[31] & 127 | 64])
    scalar = bindings.crypto_core_ed25519_scalar_reduce(clamped + bytes(32))
    nonce = bindings.crypto_core_ed25519_scalar_reduce(hashlib.sha512(b"another nonce" + message).digest())
    point = bindings.crypto_scalarmult_ed25519_base_noclamp(nonce)
    public = identity.public.ed25519
    challenge = bindings.crypto_core_ed25519_scalar_reduce(hashlib.sha512(point + public + message).digest())
    product = bindings.crypto_core_ed25519_scalar_mul(challenge, scalar)
    return point + bindings.crypto_core_ed25519_scalar_add(nonce, product)


def test_the_other_signature_holds() -> None:
    identity = identity_of("cleo")
    signature = another_signature("cleo", b"message")
    verify(identity.public, signature, b"message")
    assert signature != identity.sign(b"message")


def other_mask(scene: Scene, letter: Letter) -> Letter:
    return resigned(letter, lambda statement: scene.sign("cleo", statement), mask=b"\x07" * 32)


def other_signature(_: Scene, letter: Letter) -> Letter:
    return resigned(letter, lambda statement: another_signature("cleo", statement))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_second_signature_of_the_same_commitment_splits_nothing(seed: int) -> None:
    scene = Scene(3, seed=seed)
    scene.replace(of(Kind.COMMIT, "cleo", "anna"), lambda letter: other_signature(scene, letter))
    scene.run()
    finished_well(scene)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("lie", [other_mask])
def test_two_commitments_before_two_peers_split_the_view_before_anything_is_released(
    lie: Callable[[Scene, Letter], Letter], seed: int
) -> None:
    scene = Scene(3, seed=seed)
    scene.replace(of(Kind.COMMIT, "cleo", "anna"), lambda letter: lie(scene, letter))
    scene.run()
    assert not ended(scene)
    assert not {name for name, _ in scene.released} & set(HONEST)
    for name in HONEST:
        assert type(scene.peers[name].failure) is SplitView
    mine, theirs = (said(scene, name, "commitment", "cleo")[0] for name in HONEST)
    assert mine.about["context"] == theirs.about["context"]
    assert contradict(mine, theirs)
    assert not contradict(*(said(scene, name, "commitment", "bert")[0] for name in HONEST))


@pytest.mark.parametrize("lie", [other_mask])
def test_two_commitments_before_one_peer_are_an_equivocation(lie: Callable[[Scene, Letter], Letter]) -> None:
    scene = Scene(3)
    scene.hold(of(Kind.RECEIPT))
    scene.until(lambda: "cleo" in scene.state("anna").commits)
    kept = [each for to, each in scene.everything if to == "anna" and of(Kind.COMMIT, "cleo")(each)]
    assert scene.offer("anna", "cleo", kept[0].send.message) == (scene.state("anna"), ())
    with pytest.raises(Equivocation) as caught:
        scene.offer("anna", "cleo", lie(scene, kept[0]).send.message)
    assert not isinstance(caught.value, SplitView)


@pytest.mark.parametrize(
    ("blob", "why"),
    [
        (spoilt, Unauthentic),
        (lambda raw: raw[:-1], Malformed),
        (lambda raw: raw + b"\0", Malformed),
        (lambda _: b"", Malformed),
    ],
    ids=["other bytes", "shorter", "longer", "nothing"],
)
def test_a_shard_that_was_not_committed_to_is_refused_and_waited_for(blob: Any, why: type[RemoteError]) -> None:
    scene = Scene(3)
    scene.replace(of(Kind.MASKED, "cleo", "anna"), lambda letter: altered(letter, blob=blob(letter.blob)))
    scene.run()
    assert {refusal[:3] for refusal in scene.refusals} == {("anna", "cleo", Kind.MASKED)}
    assert {refusal[3] for refusal in scene.refusals} == {why}
    assert scene.waiting_for("anna") == ("cleo",)
    assert not scene.released
    scene.tampers = lambda _, letter: letter
    scene._asked_in_vain = 0
    scene.run()  # it sends the right one when it is asked again
    assert ended(scene) == set(EVERYBODY)


def test_shards_that_are_somebody_else_s_are_refused() -> None:
    scene = Scene(4)
    scene.hold(of(Kind.RECEIPT))
    scene.until(lambda: {"cleo", "dora", "bert"} <= scene.state("anna").commits.keys())
    message = MaskedShard(context=scene.context("anna"), shard=0)
    for shard, why in ((1, OutOfTurn), (2, OutOfTurn), (3, NotYet), (4, Malformed), (199, Malformed)):
        with pytest.raises(RemoteError) as caught:
            scene.offer("anna", "cleo", dataclasses.replace(message, shard=shard), blob=b"x")
        assert type(caught.value) is why, shard


def test_commitments_to_other_numbers_of_shards_are_refused() -> None:
    scene = Scene(3)
    scene.until(lambda: scene.state("anna").phase is Phase.MASKING)
    context = scene.peers["anna"].machine._context(scene.state("anna")).encode()
    for count in (1, 2, 4):
        shards = (bytes(32),) * count
        signature = scene.sign("cleo", commitment_statement(context_digest(context), bytes(32), shards))
        with pytest.raises(Malformed):
            scene.offer("anna", "cleo", Commit(context=context, shards=shards, mask=bytes(32), signature=signature))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"members": ("anna", "cleo")}, None),
        ({"base": bytes(32)}, SplitView),
        ({"exponents": bytes(32)}, SplitView),
        ({"base": bytes(32), "word": 64}, SplitView),
        ({"session": bytes(32)}, Misdirected),
        ({"step": 3}, Misdirected),
        ({"attempt": 1}, Misdirected),
        ({"attempt": 1, "word": 64}, Misdirected),
    ],
)
def test_contexts_that_differ(fields: dict[str, Any], why: type[RemoteError] | None) -> None:
    scene = Scene(3)
    scene.until(lambda: scene.state("anna").phase is Phase.MASKING)
    state = scene.state("anna")
    theirs = dataclasses.replace(scene.peers["anna"].machine._context(state), **fields)
    context, shards = theirs.encode(), (bytes(32),) * len(theirs.members)
    signature = scene.sign("cleo", commitment_statement(context_digest(context), bytes(32), shards))
    commit = Commit(context=context, shards=shards, mask=bytes(32), signature=signature)
    if why is None:
        assert scene.offer("anna", "cleo", commit) == (state, ())
        return
    with pytest.raises(RemoteError) as caught:
        scene.offer("anna", "cleo", commit)
    assert type(caught.value) is why


def committing(scene: Scene, fields: dict[str, Any], *, count: int = 3) -> Commit:
    """A commitment of cleo that holds, in anna's context but for some entries; `...` takes one away."""
    plain: Any = canonical.decode(scene.peers["anna"].machine._context(scene.state("anna")).encode(), limit_bytes=4096)
    changed = {name: value for name, value in (plain | fields).items() if value is not ...}
    context, shards = canonical.encode(changed), (bytes(32),) * count
    signature = scene.sign("cleo", commitment_statement(context_digest(context), bytes(32), shards))
    return Commit(context=context, shards=shards, mask=bytes(32), signature=signature)


OTHER = bytes([7]) * 32
FOREIGN_FORMS: dict[str, tuple[dict[str, Any], int]] = {
    "a short base": ({"base": bytes(31)}, 3),
    "a base that is a text": ({"base": "x"}, 3),
    "no base": ({"base": ...}, 3),
    "no exponents": ({"exponents": None}, 3),
    "one key more": ({"base": OTHER, "more": 1}, 3),
    "another word": ({"word": 33}, 3),
    "no word": ({"word": None}, 3),
    "a word that is a text": ({"word": "x"}, 3),
    "a word that is true": ({"base": OTHER, "word": True}, 3),
    "a negative step": ({"base": OTHER, "step": -1}, 3),
    "an attempt that is false": ({"base": OTHER, "attempt": False}, 3),
    "no members": ({"base": OTHER, "members": []}, 1),
    "members that are no list": ({"base": OTHER, "members": "anna"}, 3),
    "members out of order": ({"base": OTHER, "members": ["bert", "anna", "cleo"]}, 3),
    "a member twice": ({"base": OTHER, "members": ["anna", "cleo", "cleo"]}, 3),
    "a member that is no peer": ({"base": OTHER, "members": ["anna", "bert", "cleo", "dora"]}, 4),
    "the signer is none": ({"base": OTHER, "members": ["anna", "bert"]}, 2),
    "one shard": ({"base": OTHER}, 1),
    "a shard too many": ({"base": OTHER}, 4),
    "as many shards as this peer's members": ({"base": OTHER, "members": ["anna", "cleo"]}, 3),
}


@pytest.mark.parametrize("name", FOREIGN_FORMS)
def test_contexts_of_another_form_are_refused_before_anything_is_concluded(name: str) -> None:
    """A peer that recorded one as the lie that stopped it would hold a transcript that nobody can read."""
    scene = Scene(3)
    scene.until(lambda: scene.state("anna").phase is Phase.MASKING)
    fields, count = FOREIGN_FORMS[name]
    with pytest.raises(RemoteError) as caught:
        scene.offer("anna", "cleo", committing(scene, fields, count=count))
    assert type(caught.value) in (Malformed, Misdirected)


@pytest.mark.parametrize("context", [b"", b"\xc0", b"\x90", b"\x01", b"\x80", b"\x81\xa4step\x01", b"\xff" * 100])
def test_contexts_that_are_none(context: bytes) -> None:
    scene = Scene(3)
    scene.until(lambda: scene.state("anna").phase is Phase.MASKING)
    statement = commitment_statement(context_digest(context), bytes(32), (bytes(32),))
    commit = Commit(context=context, shards=(bytes(32),), mask=bytes(32), signature=scene.sign("cleo", statement))
    with pytest.raises((Malformed, Misdirected)):
        scene.offer("anna", "cleo", commit)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_garbage_vector_spoils_the_average_and_is_not_detected(seed: int) -> None:
    scene = Scene(3, seed=seed, training__epochs=2)
    scene.garbage, scene.audits = {"cleo"}, 2
    scene.run()
    assert ended(scene) == set(EVERYBODY)
    assert len({peer.kept for peer in scene.peers.values()}) == 1
    assert not scene.refusals


# --- releases --------------------------------------------------------------------------------------------------------


def release_of(scene: Scene, member: str, *, receipts: Any = None, mask: bytes | None = None) -> Release:
    """A release as the member itself would send it, or a forged one."""
    state = scene.state(member)
    own = state.own_mask or state.masks.get(member)
    assert own is not None
    return Release(
        context=scene.context(member),
        member=member,
        mask=own.reveal() if mask is None else mask,
        receipts=tuple(state.receipts[name] for name in state.members) if receipts is None else receipts,
    )


def receipts_by(scene: Scene, signers: tuple[str, ...]) -> tuple[bytes, ...]:
    """Receipts for what all have committed to, all signed by somebody of the liar's."""
    machine, state = scene.peers["cleo"].machine, scene.state("cleo")
    statement = receipt_statement(scene.context("cleo"), machine._commitments(state))
    return tuple(scene.sign(name, statement) for name in signers)


def committed(phase: Phase) -> Scene:
    """Anna stands in this phase; nobody has her receipts, nor she theirs; nothing is released."""
    scene = Scene(3)
    late = Kind.MASKED if phase is Phase.COMMITTED else Kind.RECEIPT
    scene.hold(of(late))
    scene.until(
        lambda: (
            len(scene.held) >= 6
            and all(peer.state.phase is phase and len(peer.state.commits) == 3 for peer in scene.peers.values())
        )
    )
    return scene


def test_a_release_before_one_s_own_receipt_is_refused() -> None:
    scene = committed(Phase.COMMITTED)
    receipts = receipts_by(scene, EVERYBODY)  # not even with everybody's signatures
    with pytest.raises(OutOfTurn):
        scene.offer("anna", "cleo", release_of(scene, "cleo", receipts=receipts))


@pytest.mark.parametrize(
    ("signers", "why"),
    [
        (("anna", "cleo", "cleo"), Unauthentic),
        (("cleo", "bert", "cleo"), Unauthentic),
        (("bert", "anna", "cleo"), Unauthentic),
        (("anna", "bert"), Malformed),
        (("anna", "bert", "cleo", "cleo"), Malformed),
        ((), Malformed),
    ],
)
def test_a_release_without_everybody_s_receipt_is_refused(signers: tuple[str, ...], why: type[RemoteError]) -> None:
    scene = committed(Phase.RECEIPTED)
    receipts = receipts_by(scene, signers)
    before = scene.state("anna")
    with pytest.raises(RemoteError) as caught:
        scene.offer("anna", "cleo", release_of(scene, "cleo", receipts=receipts))
    assert type(caught.value) is why
    assert scene.state("anna") == before
    right = release_of(scene, "cleo", receipts=receipts_by(scene, EVERYBODY))
    state, effects = scene.offer("anna", "cleo", right)
    assert state.phase is Phase.RELEASED
    assert [type(effect).__name__ for effect in effects] == ["Record"] * 2 + ["Send"] * 2, "as good as the receipts"


def test_a_mask_that_was_not_committed_to_is_refused() -> None:
    scene = committed(Phase.RECEIPTED)
    receipts = receipts_by(scene, EVERYBODY)
    for mask in (bytes(32), b"\xff" * 32):
        with pytest.raises(Unauthentic):
            scene.offer("anna", "cleo", release_of(scene, "cleo", receipts=receipts, mask=mask))
    assert not scene.released
    swapped = dataclasses.replace(release_of(scene, "cleo", receipts=receipts), member="bert")
    with pytest.raises(Unauthentic):
        scene.offer("anna", "cleo", swapped)
    for member in ("anna", "dora", "zoe"):
        with pytest.raises(OutOfTurn):
            scene.offer("anna", "cleo", dataclasses.replace(swapped, member=member))
    context = b"\x01" * 32
    with pytest.raises(Misdirected):
        scene.offer("anna", "cleo", dataclasses.replace(swapped, context=context))


def test_a_commitment_to_a_mask_holds_in_its_context_and_for_its_member_only() -> None:
    seed = Secret(b"\x05" * 32)
    assert len({mask_commitment(c, n, seed) for c in (bytes(32), b"\1" * 32) for n in ("anna", "bert")}) == 4


@pytest.mark.parametrize(
    ("kind", "phase"), [(Kind.RELEASE, Phase.RELEASED), (Kind.SUM, Phase.GATHERING), (Kind.AGREE, Phase.AGREEING)]
)
@pytest.mark.parametrize("seed", SEEDS)
def test_who_keeps_its_release_or_sum_to_itself_is_named(kind: Kind, phase: Phase, seed: int) -> None:
    scene = Scene(3, seed=seed)
    scene.tampers = lambda _, letter: None if of(kind, "cleo")(letter) else letter
    scene.run()
    for name in HONEST:
        assert scene.state(name).phase is phase
        assert scene.waiting_for(name) == ("cleo",)
        assert (name, 1) in scene.released


def test_a_receipt_over_other_commitments_splits_the_view() -> None:
    scene = committed(Phase.RECEIPTED)
    context, other = scene.context("anna"), b"\x03" * 32
    signature = scene.sign("cleo", receipt_statement(context, other))
    lie = Receipt(context=context, commitments=other, signature=signature)
    with pytest.raises(SplitView):
        scene.offer("anna", "cleo", lie)
    with pytest.raises(Unauthentic):  # bert cannot put these words into the mouth of cleo, nor she unsigned
        scene.offer("anna", "bert", lie)


# --- attempts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_a_false_overflow_costs_twice_the_bytes_and_no_more(seed: int) -> None:
    scene = Scene(3, seed=seed)
    scene.false_overflows = {"cleo"}
    scene.run()
    finished_well(scene)
    for peer in scene.peers.values():
        assert [note.attempts for note in peer.notes] == [2]
        assert len(peer.kept or b"") == 2 * len(scene.vector("anna", 1))
        assert [record.about["overflow"] for record in peer.records if record.says == "abandon"].count(True) == 1


def test_an_overflow_said_to_some_is_said_to_all_by_who_hears_of_it_and_contradicts_itself() -> None:
    scene = Scene(3)
    scene.false_overflows = {"cleo"}

    def lie(letter: Letter) -> Letter:
        signature = scene.sign("cleo", abandon_statement(scene.state("bert").session_id, 1, 0, False))
        return altered(letter, overflow=False, signature=signature)

    is_first = of(Kind.ABANDON, "cleo", "bert")
    scene.replace(lambda letter: is_first(letter) and letter.send.attempt == 0, lie)
    scene.until(lambda: scene.state("anna").word == 64 and scene.state("bert").attempt == 1)
    assert scene.state("bert").word == 32
    scene.run()
    scene.check()
    assert ended(scene) >= set(HONEST)
    assert max(note.attempts for note in scene.peers["bert"].notes) > 2
    assert contradict(*(said(scene, name, "abandon", "cleo")[0] for name in HONEST))


@pytest.mark.parametrize("members", [["anna", "bert", "cleo"], ["anna", "cleo"]])
def test_the_commitment_that_makes_a_peer_say_overflow_is_recorded(members: list[str]) -> None:
    scene = Scene(3)
    scene.until(lambda: scene.state("anna").phase is Phase.MASKING)
    commit = committing(scene, {"word": 64, "members": members}, count=len(members))
    state, effects = scene.offer("anna", "cleo", commit)
    assert state.abandons == {"anna": True}
    first, second = (effect for effect in effects if isinstance(effect, Record))
    assert (first.by, first.says, first.about["context"]) == ("cleo", "commitment", commit.context)
    assert first.signature == commit.signature
    assert (second.by, second.says, second.about["overflow"]) == ("anna", "abandon", True)
    again = scene.peers["anna"].machine.step(state, scene.received("anna", "cleo", commit))
    assert again == (state, ()), "it has said so, and records no more of it"


def test_a_commitment_with_the_smaller_word_is_passed_over() -> None:
    """Of somebody who has not heard of an overflow yet."""
    scene = Scene(3, averaging__word=64)
    scene.until(lambda: scene.state("anna").phase is Phase.MASKING)
    assert scene.state("anna").word == 64
    assert scene.offer("anna", "cleo", committing(scene, {"word": 32})) == (scene.state("anna"), ())


def test_who_gives_up_before_some_and_releases_before_others_stops_the_trial_and_learns_nothing() -> None:
    """Cleo, with the relay's help, has anna in the next attempt and bert in this one."""
    scene = Scene(3)
    scene.hold(lambda letter: of(Kind.RECEIPT)(letter) and letter.send.recipient != "cleo")
    scene.until(lambda: len(scene.state("cleo").receipts) == 3)
    release = release_of(scene, "cleo")
    signature = scene.sign("cleo", abandon_statement(scene.state("anna").session_id, 1, 0, False))
    abandon = Abandon(overflow=False, signature=signature)
    scene.peers["cleo"].is_dead = True  # from here on it acts by hand
    scene.hold(lambda letter: of(Kind.ABANDON, "anna", "bert")(letter) or letter.send.recipient == "cleo")
    for name in HONEST:
        scene.post(name, scene.received(name, "cleo", abandon))
    scene.until(lambda: scene.state("anna").attempt == 1)
    assert scene.state("bert").phase is Phase.ABANDONING
    scene.post("bert", scene.received("bert", "cleo", release))
    assert scene.state("bert").phase is Phase.RELEASED
    scene.run()
    scene.deliver(each for each in scene.held if each.send.recipient == "bert")
    scene.run()
    assert "bert" in scene.waiting_for("anna")
    assert "anna" in scene.waiting_for("bert")
    assert set(scene.released) - {("cleo", 1)} == {("bert", 1)}, "anna releases nothing, and bert nothing twice"
    assert scene.committed[scene.context("anna")] == {"anna"}, "bert commits to nothing in the next attempt"


def test_those_who_gave_up_go_back_when_somebody_has_released() -> None:
    """As above, but the relay delivers in the end: all go back and finish."""
    scene = Scene(3)
    scene.hold(of(Kind.RECEIPT, "cleo", "anna"))
    scene.until(lambda: ("bert", 1) in scene.released)
    scene.hold(of(Kind.RELEASE))
    signature = scene.sign("cleo", abandon_statement(scene.state("anna").session_id, 1, 0, False))
    scene.post("anna", scene.received("anna", "cleo", Abandon(overflow=False, signature=signature)))
    assert scene.state("anna").phase is Phase.ABANDONING
    scene.run()
    assert scene.waiting_for("anna") == ("bert",)
    scene.let_go()
    scene._asked_in_vain = 0
    scene.run()
    assert ended(scene) == set(EVERYBODY)
    assert all(peer.notes[0].attempts == 1 for peer in scene.peers.values())


# --- the founder -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_different_initial_weights_are_said_at_once(seed: int) -> None:
    scene = Scene(3, seed=seed)
    scene.replace(of(Kind.INITIAL, "anna", "cleo"), lambda letter: altered(letter, blob=spoilt(letter.blob)))
    scene.run()
    failures = {name: type(peer.failure) for name, peer in scene.peers.items() if peer.failure}
    assert failures
    assert set(failures.values()) == {SplitView}
    assert "cleo" in failures or all("cleo" in str(scene.peers[name].failure) for name in failures)
    assert not scene.released
    assert not any(record.says == "receipt" for peer in scene.peers.values() for record in peer.records)


def test_initial_weights_twice() -> None:
    scene = Scene(3)
    scene.until(lambda: scene.state("cleo").step == 1)
    initial = next(each for to, each in scene.everything if to == "cleo" and of(Kind.INITIAL)(each))
    state = scene.state("cleo")
    assert scene.offer("cleo", "anna", initial.send.message, blob=initial.blob, turn=0) == (state, ())
    with pytest.raises(Equivocation):
        scene.offer("cleo", "anna", initial.send.message, blob=b"others", turn=0)
    assert scene.offer("cleo", "bert", initial.send.message, blob=b"others", turn=0) == (state, ())


# --- membership ------------------------------------------------------------------------------------------------------


def drop(scene: Scene, by: str, name: str, *, since: int = 1, signer: str | None = None) -> Drop:
    statement = drop_statement(scene.state(by).session_id, since, name)
    return Drop(by=by, name=name, signature=scene.sign(signer or by, statement))


def in_step(scene: Scene) -> bool:
    return all(peer.state.step for peer in scene.peers.values())


def test_a_forged_drop_is_refused() -> None:
    scene = Scene(4)
    scene.until(lambda: in_step(scene))
    for forged in (
        drop(scene, "bert", "dora", signer="cleo"),
        drop(scene, "bert", "dora", since=2),
        dataclasses.replace(drop(scene, "bert", "dora"), name="anna"),
    ):
        with pytest.raises(Unauthentic):
            scene.offer("anna", "bert", forged, turn=1)
    with pytest.raises(Malformed):
        scene.offer("anna", "bert", drop(scene, "bert", "zoe"), turn=1)


def test_a_drop_is_noted_for_the_current_step_and_the_next_one_only() -> None:
    """What others can put into a peer's state is bounded: it must be read again after a restart."""
    scene = Scene(4, training__epochs=2)
    scene.until(lambda: in_step(scene))
    state = scene.state("anna")
    assert state.step == 1  # and 2 would be an evaluation, which this trial passes over
    with pytest.raises(OutOfTurn) as refused:
        scene.offer("anna", "bert", drop(scene, "bert", "dora", since=2), turn=2)
    assert not isinstance(refused.value, NotYet)
    with pytest.raises(NotYet):
        scene.offer("anna", "bert", drop(scene, "bert", "dora", since=4), turn=4)
    for step in (1, 3):
        after, _ = scene.offer("anna", "bert", drop(scene, "bert", "dora", since=step), turn=step)
        assert set(after.drops) == {("bert", "dora", step)}


def test_the_largest_state_fits_the_journal() -> None:
    names = tuple(f"{number:032d}" for number in range(limits.MAX_PEERS))
    every = MappingProxyType(dict.fromkeys(names, bytes(64)))
    sums = (SignedSum(shard=at, maker=name, digest=bytes(32), signature=bytes(64)) for at, name in enumerate(names))
    state = RoundState(
        members=names,
        commits=MappingProxyType(dict.fromkeys(names, Commitment(bytes(32), (bytes(32),) * len(names), bytes(64)))),
        shards=frozenset((name, at) for name in names for at in (0, 199)),
        receipts=every,
        sums=MappingProxyType({each.shard: each for each in sums}),
        drops=MappingProxyType(
            {(*pair, step): bytes(64) for pair in itertools.product(names, names) for step in (2**31, 2**31 + 1)}
        ),
        leaves=MappingProxyType(dict.fromkeys(names, (2**31, bytes(64)))),
        parted=MappingProxyType(dict.fromkeys(names, (2**31, bytes(32)))),
        agreed=frozenset(names),
        done=frozenset(names),
        lost=frozenset(names),
    )
    assert len(canonical.encode(state.as_data())) < 0.9 * limits.MAX_STATE_BYTES  # the session needs some, too


@pytest.mark.parametrize("signers", [("anna",), ("bert", "cleo"), ("dora",)])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_drop_by_too_few_changes_nothing(signers: tuple[str, ...], seed: int) -> None:
    scene = Scene(4, seed=seed)
    scene.until(lambda: in_step(scene))
    for name in signers:
        scene.decide(name, "dora")
    scene.run()
    finished_well(scene)
    assert all(note.members == tuple(scene.peers) for peer in scene.peers.values() for note in peer.notes)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_coalition_may_go_on_alone_and_the_others_are_told(seed: int) -> None:
    scene = Scene(4, seed=seed)
    scene.until(lambda: in_step(scene))
    for by, name in itertools.product(("cleo", "dora"), ("anna", "bert")):
        scene.decide(by, name)
    scene.run()
    assert ended(scene) == {"cleo", "dora"}
    assert not {name for name, _ in scene.released} & set(HONEST)
    for name in HONEST:
        machine, state = scene.peers[name].machine, scene.state(name)
        assert machine.going_on_without(state) == ("cleo", "dora")
        assert set(machine.members_seen(state)) > {name, "cleo", "dora"}, "not everybody: this peer is not stopped"
    for by, name in itertools.product(HONEST, ("cleo", "dora")):  # their people decide in turn
        scene.decide(by, name)
    scene.run()
    assert ended(scene) == {"anna", "bert", "cleo", "dora"}
    models = {frozenset(pair): {scene.peers[name].kept for name in pair} for pair in (HONEST, ("cleo", "dora"))}
    assert all(len(kept) == 1 for kept in models.values())
    assert len(set.union(*models.values())) == 2, "each pair has a sum of its own"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_farewell_after_a_release_does_not_keep_people_from_deciding(seed: int) -> None:
    """Cleo releases, says that it leaves that same step, and withholds its sum: one decision at each peer goes on."""
    scene = Scene(3, seed=seed, training__epochs=2, averaging__min_peers=2)
    scene.hold(lambda letter: letter.sender == "cleo" and letter.send.message.kind in (Kind.SUM, Kind.AGREE))
    scene.run()
    assert scene.waiting_for("anna") == scene.waiting_for("bert") == ("cleo",)
    scene.peers["cleo"].is_dead = True
    farewell = leave_statement(scene.state("anna").session_id, 1)
    for name in HONEST:
        scene.post(name, scene.received(name, "cleo", Leave(name="cleo", signature=scene.sign("cleo", farewell))))
    scene.run()
    assert scene.waiting_for("anna") == scene.waiting_for("bert") == ("cleo",)

    anna, decided = scene.peers["anna"].machine, Decided(name="cleo")
    state, effects = anna.step(scene.state("anna"), decided)
    assert state.lost == state.done == {"cleo"}
    assert [(each.by, each.about["name"], each.about["step"]) for each in effects if isinstance(each, Record)] == [
        ("anna", "cleo", 3)
    ]
    told = {each.recipient for each in effects if isinstance(each, Send) and each.message.kind is Kind.DROP}
    assert told == {"bert", "cleo"}
    again, effects = anna.step(state, decided)
    assert (again, effects) == (state, ()), "it is lost already"

    for name in HONEST:
        scene.decide(name, "cleo")
    scene.run()
    scene.check()
    assert ended(scene) == set(HONEST), "its DONE is not waited for either"


def test_who_is_dropped_by_all_others_knows_it() -> None:
    scene = Scene(3)
    scene.until(lambda: in_step(scene))
    for by in ("bert", "cleo"):
        scene.decide(by, "anna")
    scene.run()
    machine, state = scene.peers["anna"].machine, scene.state("anna")
    assert machine.going_on_without(state) == ("bert", "cleo")
    assert machine.is_dropped(state)
    assert ended(scene) == {"bert", "cleo"}


def test_who_signed_a_receipt_is_dropped_only_when_nobody_can_have_released() -> None:
    scene = Scene(3)
    held = {Kind.RECEIPT, Kind.RELEASE, Kind.ABANDON}
    scene.hold(lambda letter: letter.send.message.kind in held or of(Kind.DROP, to="bert")(letter))
    scene.until(lambda: set(scene.phases().values()) == {Phase.RECEIPTED})
    for by in ("bert", "cleo"):
        scene.decide(by, "anna")
    scene.until(lambda: len(scene.state("anna").drops) == 2)
    assert scene.peers["anna"].machine.going_on_without(scene.state("anna")) == ("bert", "cleo")
    assert not scene.peers["anna"].machine.is_dropped(scene.state("anna"))
    scene.deliver([letter for letter in scene.held if of(Kind.RECEIPT, to="bert")(letter)])
    scene.until(lambda: scene.state("bert").phase is Phase.RELEASED)  # it has not heard of the other decision
    scene.let_go()
    scene.run()
    assert ended(scene) == {"anna", "bert", "cleo"}, "the step is finished with all of its members"


@pytest.mark.parametrize(("least", "coalition"), [(3, ("cleo", "dora")), (2, ("dora",))])
def test_a_coalition_of_fewer_than_the_manifest_wants_drops_nobody(least: int, coalition: tuple[str, ...]) -> None:
    scene = Scene(4, averaging__min_peers=least)
    scene.until(lambda: in_step(scene))
    victims = [name for name in scene.peers if name not in coalition]
    for to, by, name in itertools.product(victims, coalition, victims):
        phase = scene.state(to).phase
        scene.post(to, scene.received(to, by, drop(scene, by, name), turn=1))
        assert scene.state(to).phase is phase
    for by, name in itertools.product(coalition, victims):
        scene.decide(by, name)
    scene.run()
    for name in coalition:  # whoever hears all of it has too few left, and ends
        assert scene.state(name).phase is Phase.ENDED_EARLY
    assert not any(type(scene.peers[name].failure) is Dropped for name in victims)


@pytest.mark.parametrize(
    ("members", "drops", "leaves", "views"),
    [
        ("abcd", {}, {}, {"a": "abcd", "d": "abcd"}),
        ("abcd", {"a": "d", "b": "d"}, {}, {"a": "abcd", "c": "abcd"}),
        ("abcd", {"a": "d", "b": "d", "c": "d"}, {}, {"a": "abc", "d": "abcd"}),
        ("abcd", {"a": "cd", "b": "cd"}, {}, {"a": "ab", "c": "abcd"}),
        ("abcd", {"a": "cd", "b": "d", "c": "d"}, {}, {"a": "abc", "b": "abc", "d": "abcd"}),
        ("abcd", {"a": "d", "b": "d"}, {"c": 1}, {"a": "abd"[:2], "d": "abd"}),
        ("abcd", {"a": "d", "b": "d", "c": "d"}, {"c": 2}, {"a": "abc"}),
        ("abc", {"c": "abc"}, {}, {"a": "abc", "c": "c"}),
        ("ab", {"a": "b", "b": "a"}, {}, {"a": "a", "b": "b"}),
        ("abc", {"z": "abc", "a": "z"}, {}, {"a": "abc"}),
    ],
)
def test_who_remains(members: str, drops: dict[str, str], leaves: dict[str, int], views: dict[str, str]) -> None:
    def signed(step: int) -> set[tuple[str, str, int]]:
        return {(by, name, step) for by, names in drops.items() for name in names}

    left = {name: (step, bytes(64)) for name, step in leaves.items()}
    for viewer, expected in views.items():
        assert remaining(viewer, tuple(members), 1, signed(1), left) == tuple(expected), viewer
        assert set(remaining(viewer, tuple(members), 1, signed(2), {})) == set(members), "not in force yet"


def test_a_farewell_from_another_session_is_refused() -> None:
    scene, other = Scene(3, seed=1), Scene(3, seed=2)
    for each in (scene, other):
        each.until(lambda each=each: in_step(each))  # type: ignore[misc]
    assert scene.state("anna").session_id != other.state("anna").session_id
    statement = leave_statement(other.state("cleo").session_id, 1)
    with pytest.raises(Unauthentic):
        scene.offer("anna", "cleo", Leave(name="cleo", signature=other.sign("cleo", statement)))
    own = Leave(name="cleo", signature=scene.sign("cleo", leave_statement(scene.state("cleo").session_id, 1)))
    with pytest.raises(Unauthentic):
        scene.offer("anna", "cleo", own, turn=2)
    for passed_on_by in ("cleo", "bert"):
        assert scene.offer("anna", passed_on_by, own)[0].phase is Phase.ABANDONING


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind.in_attempt], ids=lambda kind: kind.name)
def test_who_was_dropped_is_no_longer_listened_to(kind: Kind) -> None:
    scene = Scene(4)
    spoken: dict[Kind, Letter] = {}
    full = Scene(4)
    full.false_overflows, full.audits = {"dora"}, 2 if kind is Kind.PROOF else 0
    full.run()
    for to, letter in full.everything:
        if to == "anna":
            spoken.setdefault(letter.send.message.kind, letter)
    scene.until(lambda: in_step(scene))
    scene.peers["dora"].is_dead = True
    for name in EVERYBODY:
        scene.decide(name, "dora")
    scene.until(lambda: scene.state("anna").attempt == 1 and scene.state("anna").phase is Phase.COMMITTED)
    letter = spoken[kind]
    with pytest.raises(OutOfTurn, match="dora takes no part"):
        scene.offer("anna", "dora", letter.send.message, blob=letter.blob)
    assert scene.offer("anna", "dora", letter.send.message, blob=letter.blob, attempt=0) == (scene.state("anna"), ())
    scene.run()
    scene.check()
    assert ended(scene) == set(EVERYBODY)
