"""Section 16 of docs/PROTOCOL.md, row by row: commitments, shards and contexts that lie."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from nacl import bindings

from ppdl_mq.crypto.identity import verify
from ppdl_mq.errors import (
    Equivocation,
    Malformed,
    Misdirected,
    OutOfTurn,
    RemoteError,
    SplitView,
    Unauthentic,
)
from ppdl_mq.protocol.machine import NotYet
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.statements import (
    commitment_statement,
    context_digest,
)
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.messages import Commit, MaskedShard
from tests.people import identity_of
from tests.protocol.masked_lies import (
    EVERYBODY,
    HONEST,
    SEEDS,
    committing,
    contradict,
    ended,
    finished_well,
    said,
)
from tests.protocol.masked_scene import Scene, altered, of, spoilt
from tests.protocol.masked_world import Letter


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
