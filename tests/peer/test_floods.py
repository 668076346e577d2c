"""A neighbour or a relay that sends without end: what it costs is bounded, and the trial ends all the same."""

from __future__ import annotations

import dataclasses
import random
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from ppdl_mq.config import limits
from ppdl_mq.protocol.terms import WEIGHTS
from ppdl_mq.wire.header import split_part
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.messages import Leave, Resend
from tests.peer.hostile import HostileTrial
from tests.trial import manifest_for

COUPLE = ("anna", "bert")
EACH = 100  # messages of junk for every message to anna
JUNK_IN_WEIGHTS = 2_000  # before the first weights
MOST_MEMORY_BYTES = 64 * 1024**2
MOST_DISK_BYTES = 8 * 1024**2  # 1,000 records set aside, the ids of 10,000 messages, journal and write-ahead log


def rows(folder: Path, table: str) -> int:
    with closing(sqlite3.connect(folder / "journal.sqlite")) as journal:
        return int(journal.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


@pytest.mark.parametrize("protocol", ["fully-connected", "masked-average"])
def test_a_flood_is_bounded_and_the_trial_ends(
    tmp_path: Path, protocol: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "MAX_SEEN_PER_SENDER", 200)
    monkeypatch.setattr(limits, "MAX_QUARANTINE_RECORDS", 100)
    manifest = manifest_for(COUPLE, protocol=protocol)
    expected = HostileTrial(manifest, tmp_path / "undisturbed", patience_s=60).result()
    hostile = HostileTrial(manifest, tmp_path / "flooded", patience_s=60)
    draw = random.Random(5)
    sent = 0

    def junk(body: bytes) -> Iterator[bytes]:
        for number in range(EACH):
            match number % 4:
                case 0:
                    yield draw.randbytes(300)
                case 1:  # altered, and so not authentic
                    yield body[:-1] + bytes([body[-1] ^ 1])
                case 2:  # well sealed and signed, each under an id of its own
                    yield hostile.sealed(hostile.from_bert(Kind.RESEND), Resend())
                case 3:  # one of many parts, of which no other ever comes
                    header = hostile.from_bert(Kind.HELLO, body_bytes=200_000, stride=4_000)
                    yield header.encode() + draw.randbytes(24 + 4_000 + 16)

    def flood(address: str, body: bytes) -> list[tuple[str, bytes]]:
        nonlocal sent
        more = [(address, each) for each in junk(body)] if address == "anna" else []
        sent += len(more)
        return [*more, (address, body)]

    hostile.relay.on_publish = flood
    before = psutil.Process().memory_info().rss
    assert hostile.result() == expected
    anna = tmp_path / "flooded" / "anna"
    assert psutil.Process().memory_info().rss - before < MOST_MEMORY_BYTES
    assert sum(path.stat().st_size for path in anna.rglob("*") if path.is_file()) < MOST_DISK_BYTES
    refused = sum(hostile.status("anna")["refused"].values())
    assert refused >= sent / 2, (refused, sent)
    assert rows(anna, "refused") == 100
    assert rows(anna, "seen") <= 200
    assert hostile.status("anna")["set_aside"]["records"] == 100
    assert len([record for record in caplog.records if "Refused a message" in record.message]) < 60


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder in memory, where there is one: on a disk each message that is refused costs a sync."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def test_a_flood_before_the_weights_does_not_keep_them_from_who_fetches_them(
    in_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_QUARANTINE_RECORDS", 100)
    manifest = manifest_for(COUPLE, protocol="server-aided", training__epochs=1)
    expected = HostileTrial(manifest, in_memory / "undisturbed", patience_s=60).result()
    hostile = HostileTrial(manifest, in_memory / "flooded", patience_s=60)
    draw = random.Random(6)
    sent: Counter[str] = Counter()

    def junk(body: bytes) -> Iterator[tuple[str, bytes]]:
        header, _, sealed = split_part(body)
        for number in range(JUNK_IN_WEIGHTS):
            match number % 4:
                case 0:
                    yield "random", draw.randbytes(300)
                case 1:  # under the id that is fetched, and so not authentic
                    yield "altered", body[:-1] + bytes([body[-1] ^ 1])
                case 2:
                    yield "of later", dataclasses.replace(header, turn=header.turn + 1).encode() + bytes(sealed)
                case 3:  # dropped without a word: it may be what is left of an honest turn
                    yield "of before", dataclasses.replace(header, turn=header.turn - 1).encode() + bytes(sealed)

    def flood(address: str, body: bytes) -> list[tuple[str, bytes]]:
        if address != WEIGHTS or sent:  # once: each turn would be fetched from below as much
            return [(address, body)]
        more = list(junk(body))
        sent.update(what for what, _ in more)
        return [*((address, each) for _, each in more), (address, body)]

    hostile.relay.on_publish = flood
    before = psutil.Process().memory_info().rss
    assert hostile.result() == expected
    assert sum(sent.values()) == JUNK_IN_WEIGHTS
    assert psutil.Process().memory_info().rss - before < MOST_MEMORY_BYTES
    refused: Counter[str] = Counter()
    for name in COUPLE:
        assert hostile.status(name)["set_aside"]["records"] <= 100
        refused.update(hostile.status(name)["refused"])
    assert refused["Unauthentic"] == sent["altered"]
    most = sent["random"] + sent["of later"]
    # A few of a later turn go back to the queue, where their turn finds them to be of before, or not authentic.
    assert most - limits.MAX_OPEN_MESSAGES_PER_SENDER <= refused["Malformed"] <= most


@pytest.mark.parametrize("are_equal", [True, False])
def test_what_came_too_early_does_not_keep_out_what_it_waits_for(tmp_path: Path, *, are_equal: bool) -> None:
    """A peer that waits for INITIAL is told the same farewell again and again, or many that it cannot check yet."""
    manifest = manifest_for(COUPLE, protocol="masked-average", training__epochs=1)
    expected = HostileTrial(manifest, tmp_path / "undisturbed", patience_s=60).result()
    hostile = HostileTrial(manifest, tmp_path / "told", patience_s=0.1)
    most = 0

    def tell(address: str, body: bytes) -> list[tuple[str, bytes]]:
        nonlocal most
        if address != "bert" or split_part(body)[0].kind is not Kind.INITIAL:
            return [(address, body)]
        early = list(hostile.trial.runners["bert"].mailroom._early.values())
        most = max(most, sum(each.arrived.opened.header.kind is Kind.LEAVE for each in early))
        if most and (are_equal or len(early) >= limits.MAX_OPEN_MESSAGES_PER_SENDER):
            return [(address, body)]
        session = hostile.trial.runners["anna"].state.session_id
        header = hostile.from_bert(Kind.LEAVE, turn=1, session_id=session, sender="anna", recipient="bert")
        leaves = [Leave(name="anna", signature=bytes([0 if are_equal else number]) * 64) for number in range(12)]
        return [(address, hostile.sealed(header, leave)) for leave in leaves]

    hostile.relay.on_publish = tell
    assert hostile.result() == expected
    assert most == 1 if are_equal else most > 1
