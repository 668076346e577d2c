from __future__ import annotations

import hashlib
from typing import Any

import pytest

from ppdl_mq.crypto import labels
from ppdl_mq.crypto.agreement import (
    check_public,
    identity_pair_key,
    mask_commitment,
    mask_root,
    new_secret,
    pair_seed,
    public_half,
    ratcheted,
    session_pair_key,
    trial_key,
)
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import Unauthentic

# RFC 7748, section 6.1.
ALICE = Secret(bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"))
BOB = Secret(bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"))
SHARED = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
CONTEXT = bytes(range(32))


def identity_pair(own: Secret, other: Secret, **changes: Any) -> bytes:
    facts: dict[str, Any] = {"trial_id": CONTEXT, "sender": "alice", "recipient": "bob"} | changes
    return identity_pair_key(own, public_half(other), **facts).reveal()


def session_pair(own: Secret, other: Secret, **changes: Any) -> bytes:
    facts: dict[str, Any] = {"session_id": CONTEXT, "sender": "alice", "recipient": "bob"} | changes
    return session_pair_key(own, public_half(other), **facts).reveal()


def test_both_ends_arrive_at_the_key_of_the_specification() -> None:
    for label, derive in ((labels.IDENTITY_PAIR, identity_pair), (labels.SESSION_PAIR, session_pair)):
        fields = (CONTEXT, b"alice", b"bob")
        framed = label + b"".join(len(field).to_bytes(8, "big") + field for field in fields)
        expected = hashlib.blake2b(framed, key=SHARED, digest_size=32).digest()
        assert derive(ALICE, BOB) == derive(BOB, ALICE) == expected


def test_every_context_has_a_key_of_its_own() -> None:
    keys = [
        identity_pair(ALICE, BOB),
        identity_pair(ALICE, BOB, sender="bob", recipient="alice"),  # the other direction
        identity_pair(ALICE, BOB, trial_id=bytes(32)),
        identity_pair(ALICE, BOB, sender="alic", recipient="ebob"),  # the same letters, cut elsewhere
        identity_pair(ALICE, BOB, recipient="bobby"),
        identity_pair(ALICE, ALICE),
        session_pair(ALICE, BOB),
        session_pair(ALICE, BOB, sender="bob", recipient="alice"),
        session_pair(ALICE, BOB, session_id=bytes(32)),
    ]
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys} == {32}


P = 2**255 - 19
LOW_ORDER = {
    "zero": 0,
    "one": 1,
    "order 8": 325606250916557431795983626356110631294008115727848805560023387167927233504,
    "order 8 again": 39382357235489614581723060781553021112529911719440698176882885853963445705823,
    "minus one": P - 1,
    "p": P,
    "p + 1": P + 1,
}


@pytest.mark.parametrize("point", LOW_ORDER.values(), ids=LOW_ORDER.keys())
def test_points_of_low_order_are_refused(point: int) -> None:
    public = point.to_bytes(32, "little")
    with pytest.raises(Unauthentic):
        identity_pair_key(ALICE, public, trial_id=CONTEXT, sender="alice", recipient="bob")
    with pytest.raises(Unauthentic):
        session_pair_key(ALICE, public, session_id=CONTEXT, sender="alice", recipient="bob")
    with pytest.raises(Unauthentic):
        mask_root(ALICE, public, session_id=CONTEXT, one="alice", other="bob")
    with pytest.raises(Unauthentic):
        check_public(public)


def test_other_points_pass_the_check() -> None:
    for secret in (ALICE, BOB):
        check_public(public_half(secret))


def test_the_trial_key_depends_on_everything() -> None:
    contributions = {name: Secret(bytes([number]) * 32) for number, name in enumerate(("anna", "bert", "cleo"))}
    keys = [trial_key(CONTEXT, contributions).reveal(), trial_key(bytes(32), contributions).reveal()]
    for name in contributions:
        rest = {other: held for other, held in contributions.items() if other != name}
        keys.append(trial_key(CONTEXT, contributions | {name: Secret(b"\xff" * 32)}).reveal())
        keys.append(trial_key(CONTEXT, rest).reveal())
        keys.append(trial_key(CONTEXT, rest | {f"{name}x": contributions[name]}).reveal())
    swapped = contributions | {"anna": contributions["bert"], "bert": contributions["anna"]}
    keys.append(trial_key(CONTEXT, swapped).reveal())
    assert len(set(keys)) == len(keys)
    # The order of the mapping is not one of them: names are sorted.
    assert trial_key(CONTEXT, dict(reversed(contributions.items()))).reveal() == keys[0]


def test_secrets_are_new_each_time() -> None:
    assert len({new_secret().reveal() for _ in range(100)}) == 100
    assert new_secret(random=lambda count: bytes(count)).reveal() == bytes(32)


# --- masks -----------------------------------------------------------------------------------------------------------


def framed(label: bytes, *fields: bytes) -> bytes:
    return label + b"".join(len(field).to_bytes(8, "big") + field for field in fields)


def root(mine: Secret, theirs: Secret, **changes: Any) -> bytes:
    facts: dict[str, Any] = {"session_id": CONTEXT, "one": "alice", "other": "bob"} | changes
    return mask_root(mine, public_half(theirs), **facts).reveal()


def test_both_ends_have_one_mask_key_whichever_asks() -> None:
    info = framed(labels.MASK_ROOT, CONTEXT, b"alice", b"bob")
    expected = hashlib.blake2b(info, key=SHARED, digest_size=32).digest()
    assert root(ALICE, BOB) == expected
    assert root(BOB, ALICE, one="bob", other="alice") == expected
    assert root(ALICE, BOB, one="bob", other="alice") == expected


def test_mask_keys_of_other_sessions_and_pairs_have_nothing_in_common() -> None:
    keys = [
        root(ALICE, BOB),
        root(ALICE, BOB, session_id=bytes(32)),
        root(ALICE, BOB, other="bobby"),
        root(ALICE, BOB, one="alic", other="ebob"),
        root(ALICE, ALICE),
        session_pair(ALICE, BOB),
        identity_pair(ALICE, BOB),
    ]
    assert len(set(keys)) == len(keys)


def test_the_ratchet_never_comes_back() -> None:
    key, seen = Secret(root(ALICE, BOB)), set()
    for _ in range(1_000):
        assert ratcheted(key).reveal() == hashlib.sha256(framed(labels.MASK_RATCHET, key.reveal())).digest()
        assert key.reveal() not in seen
        seen.add(key.reveal())
        key = ratcheted(key)


def test_a_pair_seed_depends_on_key_and_context() -> None:
    key = Secret(root(ALICE, BOB))
    expected = hashlib.blake2b(framed(labels.PAIR_MASK, CONTEXT), key=key.reveal(), digest_size=32).digest()
    assert pair_seed(key, CONTEXT).reveal() == expected
    seeds = {pair_seed(each, context).reveal() for each in (key, ratcheted(key)) for context in (CONTEXT, bytes(32))}
    assert len(seeds) == 4
    assert not seeds & {key.reveal(), ratcheted(key).reveal()}


def test_a_mask_commitment_binds_context_name_and_seed() -> None:
    seed = Secret(bytes([5]) * 32)
    expected = hashlib.sha256(framed(labels.MASK_COMMITMENT, CONTEXT, b"alice", seed.reveal())).digest()
    assert mask_commitment(CONTEXT, "alice", seed) == expected
    found = {
        mask_commitment(context, name, each)
        for context in (CONTEXT, bytes(32))
        for name in ("alice", "bob", "")
        for each in (seed, Secret(bytes(32)))
    }
    assert len(found) == 12
