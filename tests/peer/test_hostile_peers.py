"""Whole trials with a corrupt peer, or a relay that does its worst to one; the others come to no harm."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ppdl_mq.config import limits
from ppdl_mq.config.manifest import Manifest
from ppdl_mq.crypto import labels
from ppdl_mq.crypto.agreement import identity_pair_key
from ppdl_mq.crypto.hashing import framed
from ppdl_mq.crypto.identity import verify
from ppdl_mq.crypto.seal import seal
from ppdl_mq.errors import Equivocation, NotTaken
from ppdl_mq.peer import runner
from ppdl_mq.peer.intake import Arrived, Intake
from ppdl_mq.peer.journal import Journal
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.terms import WEIGHTS
from ppdl_mq.training.worker import TurnResult, Worker
from ppdl_mq.transport.base import Delivery
from ppdl_mq.transport.memory import MemoryTransport
from ppdl_mq.wire.header import Header, decode_header, split_part
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.messages import (
    Hello,
    Lineage,
    Resend,
    Statement,
    TurnWeights,
)
from ppdl_mq.wire.meta import decode_meta
from ppdl_mq.wire.trial_id import trial_id
from tests.peer.hostile import HostileTrial, is_from
from tests.trial import identity_of, manifest_for

Arriving = Iterable[tuple[str, bytes]]

COUPLE = ("anna", "bert")  # anna trains the odd turns
LARGE = {"inputs": 6, "hidden": [300], "outputs": 3, "activation": "tanh"}  # 12 KB: four parts of 4 KiB
ALONE = manifest_for(COUPLE)
SHARED = manifest_for(protocol="server-aided")
SHARED_IN_PARTS = manifest_for(protocol="server-aided", model__arguments=LARGE, relay__chunk_bytes=4096)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_LOOP_S", 0.05)  # so that a short patience is noticed soon


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Manifest], bytes]:
    """What a trial ends with when nobody is hostile."""
    results: dict[bytes, bytes] = {}

    def result(manifest: Manifest) -> bytes:
        which = trial_id(manifest)
        if which not in results:
            results[which] = HostileTrial(manifest, tmp_path_factory.mktemp("undisturbed"), patience_s=60).result()
        return results[which]

    return result


# --- weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [Kind.TURN, Kind.FINAL])
def test_weights_that_are_not_finite(tmp_path: Path, undisturbed: Any, kind: Kind, value: float) -> None:
    hostile = HostileTrial(ALONE, tmp_path)

    def poison(address: str, body: bytes) -> Arriving:
        poisoned = [(address, hostile.second_version(body, value))] if is_from("bert", kind, body) else []
        return [*poisoned, (address, body)]

    hostile.relay.on_publish = poison
    assert hostile.result() == undisturbed(ALONE)
    (reason,) = set(hostile.refused("anna"))
    assert reason.startswith("Malformed: bert ")
    assert hostile.refused("bert") == []


@pytest.mark.parametrize("stride_less", [0, 1], ids=["a part like the true one", "a part of another header"])
def test_one_forged_part_of_the_wanted_message(tmp_path: Path, undisturbed: Any, stride_less: int) -> None:
    """Every peer has the trial key, so that cleo can put a part in anna's name before anna's own."""
    hostile = HostileTrial(SHARED_IN_PARTS, tmp_path)
    published: Counter[bytes] = Counter()

    def forge(address: str, body: bytes) -> Arriving:
        header, _, _ = split_part(body)
        if address != WEIGHTS or header.turn != 1 or header.part != 0:
            return [(address, body)]
        published[body] += 1
        if published[body] > 1:
            return [(address, body)]
        forged = dataclasses.replace(header, stride=header.stride - stride_less)
        associated = forged.encode()
        return [
            (address, associated + seal(hostile.key(header), bytes(forged.part_bytes), associated)),
            (address, body),
        ]

    hostile.relay.on_publish = forge
    assert hostile.result() == undisturbed(SHARED_IN_PARTS)
    assert max(published.values()) > 1, "nothing had to be sent again"
    assert {reason.split(":")[0] for reason in hostile.refused("bert")} == {
        "Malformed" if stride_less else "Unauthentic"
    }


def test_two_versions_of_a_turn_leave_proof(tmp_path: Path) -> None:
    hostile = HostileTrial(ALONE, tmp_path)

    def equivocate(address: str, body: bytes) -> Arriving:
        second = [(address, hostile.second_version(body, 0.5))] if is_from("bert", Kind.TURN, body) else []
        return [(address, body), *second]

    hostile.relay.on_publish = equivocate
    with hostile.running() as threads:
        threads["anna"].join(20)
        assert isinstance(hostile.trial.errors.pop("anna", None), Equivocation)
        (again,) = hostile.trial.start("anna")
        again.join(20)
        assert isinstance(hostile.trial.errors.pop("anna", None), Equivocation)

    terms = hostile.trial.runners["anna"].terms
    first = hostile.trial.runners["anna"].state.chain.digest_of(2)
    with closing(Journal(tmp_path / "anna", trial_id=terms.trial_id, identity=identity_of("anna"))) as journal:
        proof = journal.secret_fact("equivocation")
    header, _ = decode_header(proof["header"])
    signed = framed(labels.MESSAGE, header.signed_bytes(), hashlib.sha256(proof["meta"]).digest(), proof["blob_digest"])
    verify(terms.peers["bert"], proof["signature"], signed)
    assert (header.sender, header.kind, header.turn) == (proof["sender"], Kind.TURN, 2) == ("bert", Kind.TURN, 2)
    message = decode_meta(header.kind, proof["meta"])
    assert isinstance(message, TurnWeights)
    assert message.lineage.chain[-1].digest == proof["blob_digest"] != first
    assert "bert" in proof["reason"]


def test_turns_that_come_too_early_fill_nothing(
    tmp_path: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = HostileTrial(ALONE, tmp_path)
    expected = undisturbed(ALONE)
    is_training, may_train = threading.Event(), threading.Event()
    train, read = Worker.train, Intake.read
    offered: Counter[str] = Counter()

    def train_late(worker: Worker, turn: Any, *args: Any, **options: Any) -> TurnResult:
        if turn.number == 1:
            is_training.set()
            assert may_train.wait(30)
        return train(worker, turn, *args, **options)

    def count(intake: Intake, row: int, header: Header, blob: int) -> Arrived:
        offered[header.sender] = max(offered[header.sender], len(intake.complete()))
        return read(intake, row, header, blob)

    monkeypatch.setattr(Worker, "train", train_late)
    monkeypatch.setattr(Intake, "read", count)
    with hostile.running() as threads:
        assert is_training.wait(20)
        bert = hostile.trial.runners["bert"]
        message = TurnWeights(
            lineage=Lineage(anchor=bytes(32), chain=(Statement(digest=bytes(32), signature=bytes(64)),))
        )
        header = hostile.from_bert(Kind.TURN, turn=2, session_id=bert.state.session_id)
        weights = bytes(bert.worker.layout.total_bytes)
        for _ in range(100):
            hostile.relay.put("anna", hostile.sealed(header, message, blob=weights))
        with hostile.relay.changed:  # until anna has acknowledged all
            assert hostile.relay.changed.wait_for(lambda: not hostile.relay.queues["anna"].messages, 20)
        assert len(hostile.refused("anna")) >= 100 - limits.MAX_OPEN_MESSAGES_PER_SENDER - limits.RECEIVE_BATCH_PARTS
        may_train.set()
        for thread in threads.values():
            thread.join(20)
    assert hostile.trial.errors == {}
    assert {hostile.trial.model(name) for name in COUPLE} == {expected}
    assert 0 < offered["bert"] <= limits.MAX_OPEN_MESSAGES_PER_SENDER + limits.RECEIVE_BATCH_PARTS


# --- the queue `weights` -----------------------------------------------------------------------------------------


def test_a_fetching_peer_stops_whatever_lies_there(tmp_path: Path) -> None:
    has_got_much = threading.Event()

    class NeverEmpty(MemoryTransport):
        gets = 0

        def get(self, address: str) -> Delivery | None:
            hostile.relay.put(address, b"garbage")
            NeverEmpty.gets += 1
            if NeverEmpty.gets > 2 * limits.RECEIVE_BATCH_PARTS:
                has_got_much.set()
            return super().get(address)

    hostile = HostileTrial(SHARED, tmp_path, transport=NeverEmpty)
    hostile.relay.on_publish = lambda address, body: [] if address == WEIGHTS else [(address, body)]
    with hostile.running() as threads:
        assert has_got_much.wait(20)
        bert = hostile.trial.runners["bert"]
        assert bert.state.phase is Phase.FETCHING
        bert.stop()
        threads["bert"].join(3)
        assert not threads["bert"].is_alive()


def test_a_part_that_comes_again_and_again_is_held_once(tmp_path: Path, undisturbed: Any) -> None:
    most_held = 0

    class Watched(MemoryTransport):
        def get(self, address: str) -> Delivery | None:
            nonlocal most_held
            with hostile.relay.changed:
                delivery = super().get(address)
                messages = hostile.relay.queues[address].messages
                most_held = max(most_held, sum(message.holder is not None for message in messages))
            return delivery

    hostile = HostileTrial(SHARED_IN_PARTS, tmp_path, transport=Watched)
    withheld: set[bytes] = set()

    def repeat(address: str, body: bytes) -> Arriving:
        header, _, _ = split_part(body)
        if address != WEIGHTS or header.turn != 1 or body in withheld:
            return [(address, body)]
        withheld.add(body)
        return [(address, body)] * 500 if header.part == 0 else []

    hostile.relay.on_publish = repeat
    assert hostile.result() == undisturbed(SHARED_IN_PARTS)
    assert len(withheld) == 4
    assert 0 < most_held <= limits.RECEIVE_BATCH_PARTS + len(withheld)


def test_the_queue_is_deleted(tmp_path: Path, undisturbed: Any) -> None:
    hostile = HostileTrial(SHARED, tmp_path)
    deleted: list[bytes] = []

    def delete(address: str, body: bytes) -> Arriving:
        if address != WEIGHTS or deleted:
            return [(address, body)]
        del hostile.relay.queues[WEIGHTS]
        deleted.append(body)
        return []

    hostile.relay.on_publish = delete
    assert hostile.result() == undisturbed(SHARED)
    assert deleted
    assert hostile.status("bert")["reconnects"] >= 1


# --- the session, and the traffic --------------------------------------------------------------------------------


def test_requests_to_send_again_are_honoured_once_an_interval(tmp_path: Path, undisturbed: Any) -> None:
    long = manifest_for(COUPLE, training__epochs=4)
    hostile = HostileTrial(long, tmp_path, patience_s=600)
    published: Counter[bytes] = Counter()
    asked = 0

    def ask(address: str, body: bytes) -> Arriving:
        nonlocal asked
        if address == "bert":
            published[body] += 1
        if not is_from("bert", Kind.TURN, body):
            return [(address, body)]
        asked += 1  # at different times: what is asked in one breath is answered once anyway
        return [(address, hostile.sealed(hostile.from_bert(Kind.RESEND), Resend())), (address, body)]

    hostile.relay.on_publish = ask
    assert hostile.result() == undisturbed(long)
    assert asked == 3
    assert max(published.values()) == 2


def test_a_hello_of_an_earlier_run(tmp_path: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = HostileTrial(manifest_for(COUPLE, nonce="11" * 16, training__epochs=1), tmp_path / "earlier")
    old: list[bytes] = []

    def record(address: str, body: bytes) -> Arriving:
        old.extend([body] * is_from("bert", Kind.HELLO, body))
        return [(address, body)]

    earlier.relay.on_publish = record
    earlier.result()

    monkeypatch.setattr(limits, "MISMATCH_GRACE_S", 0.0)
    hostile = HostileTrial(ALONE, tmp_path / "now")
    withheld = 0

    def play(address: str, body: bytes) -> Arriving:
        nonlocal withheld
        if not is_from("bert", Kind.HELLO, body) or withheld == 3:
            return [(address, body)]
        withheld += 1  # anna asks for it again and again
        return [(address, old[0])]

    hostile.relay.on_publish = play
    assert hostile.result() == undisturbed(ALONE)
    assert withheld == 3


def test_a_hello_that_names_one_trial_and_holds_another(tmp_path: Path, undisturbed: Any) -> None:
    hostile = HostileTrial(ALONE, tmp_path)
    forged: list[bytes] = []

    def lie(address: str, body: bytes) -> Arriving:
        if not is_from("bert", Kind.HELLO, body) or forged:
            return [(address, body)]
        hello = hostile.opened(body)[0].message
        assert isinstance(hello, Hello)
        bert, anna = identity_of("bert"), identity_of("anna")
        other = bytes(range(32))
        key = identity_pair_key(bert.x25519_secret, anna.public.x25519, trial_id=other, sender="bert", recipient="anna")
        forged.append(hostile.sealed(hostile.from_bert(Kind.HELLO, trial_id=other), hello, key=key))
        return [(address, forged[0]), (address, body)]

    hostile.relay.on_publish = lie
    assert hostile.result() == undisturbed(ALONE)
    assert [reason.split(":")[0] for reason in hostile.refused("anna")] == ["Malformed"]


def test_a_relay_that_does_not_take_a_message_is_asked_again(tmp_path: Path, undisturbed: Any) -> None:
    refusals: Counter[str] = Counter()

    class Full(MemoryTransport):
        def publish(self, address: str, bodies: Iterable[bytes]) -> None:
            with hostile.relay.changed:
                refusals[address] += 1
                if refusals[address] <= 2:
                    raise NotTaken(f"The relay did not take a message for {address!r}.")
            super().publish(address, bodies)

    hostile = HostileTrial(SHARED, tmp_path, transport=Full, patience_s=60)
    assert hostile.result() == undisturbed(SHARED)
    assert set(refusals) == {*SHARED.peer_names, WEIGHTS}
    assert min(refusals.values()) > 2
