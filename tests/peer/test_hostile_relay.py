"""Whole trials over a relay that lies; whatever it does, the result is the undisturbed one, bit for bit."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from ppdl_mq.config import limits
from ppdl_mq.config.manifest import Manifest
from ppdl_mq.peer import runner
from ppdl_mq.transport.memory import MemoryRelay, MemoryTransport
from ppdl_mq.wire.kinds import Kind
from tests.trial import PEERS, TrialInProcess, manifest_for

PROTOCOLS = ("fully-connected", "server-aided")
MODEL = {"inputs": 6, "hidden": [300], "outputs": 3, "activation": "tanh"}  # 12 KB: four parts of 4 KiB
KIND_AT = 5


def manifest(protocol: str) -> Manifest:
    return manifest_for(protocol=protocol, model__arguments=MODEL, relay__chunk_bytes=4096)


class Hostile:
    """A relay's will, from a seed. Each deed happens with its own probability to each published part.

    A relay that never lets a message through can stall a trial for ever, so a body is lost once at most; and DONE
    never, because its sender has left by then and nobody could send it again.
    """

    def __init__(self, seed: int, **deeds: float) -> None:
        self.random = random.Random(seed)
        self.deeds = deeds
        self.seen: list[tuple[str, bytes]] = []
        self.lost: set[bytes] = set()
        self.held: list[tuple[str, bytes]] = []
        self.done: dict[str, int] = {}

    def __call__(self, address: str, body: bytes) -> Iterable[tuple[str, bytes]]:
        arriving = [(address, body)]
        may_lose = body not in self.lost and body[KIND_AT] != Kind.DONE
        if may_lose and self._does("drop"):
            self.lost.add(body)
            arriving = []
        if may_lose and arriving and self._does("spoil"):
            self.lost.add(body)
            arriving = [(address, self._flipped(body))]
        if may_lose and arriving and self._does("delay"):
            self.held += arriving
            arriving = []
        elif self.held and self._does("release"):
            arriving += self.held
            self.held = []
        if self._does("duplicate"):
            arriving += [(address, body)] * 2
        if self._does("flip"):
            arriving.insert(0, (address, self._flipped(body)))
        if self._does("misdirect"):
            arriving.append((self.random.choice([*PEERS, "weights"]), body))
        if self._does("garbage"):
            arriving.insert(0, (address, self.random.randbytes(self.random.choice((0, 3, 111, 112, 200, 4096, 5000)))))
        if self.seen and self._does("replay"):
            arriving += self.random.sample(self.seen, min(len(self.seen), 20))
        if address == "weights" and self._does("roll back"):
            old = [entry for entry in self.seen if entry[0] == address]
            arriving = old + arriving + old
        self.seen.append((address, body))
        return arriving

    def _does(self, deed: str) -> bool:
        does = self.random.random() < self.deeds.get(deed, 0.0)
        self.done[deed] = self.done.get(deed, 0) + does
        return does

    def _flipped(self, body: bytes) -> bytes:
        at = self.random.randrange(len(body))
        return body[:at] + bytes([body[at] ^ self.random.randint(1, 255)]) + body[at + 1 :]


def run(folder: Path, protocol: str, hostile: Any) -> tuple[bytes, dict[str, int]]:
    """Run a trial; return the model, which all peers share, and what they refused, by reason."""
    relay = MemoryRelay(hostile)
    trial = TrialInProcess(manifest(protocol), folder, lambda _: MemoryTransport(relay), patience_s=0.1)
    trial.run(timeout_s=60)
    models = {trial.model(name) for name in PEERS}
    assert len(models) == 1
    refused: dict[str, int] = {}
    for name in PEERS:
        status = json.loads((folder / name / "status.json").read_text())
        for reason, count in status["refused"].items():
            refused[reason] = refused.get(reason, 0) + count
    return models.pop(), refused


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    results = {}
    for protocol in PROTOCOLS:
        results[protocol], refused = run(tmp_path_factory.mktemp(protocol), protocol, None)
        assert refused == {}
    return results


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_LOOP_S", 0.05)  # so that a short patience is noticed soon
    # Patience doubles while what is asked for is lost again: of four losses in ten that came to a minute now and then.
    monkeypatch.setattr(limits, "PATIENCE_LAST_S", 0.4)


DEEDS: dict[str, dict[str, float]] = {
    "duplicates": {"duplicate": 1.0},
    "drops": {"drop": 0.4},
    "reorders": {"delay": 0.5, "release": 0.5},
    "replays everything": {"replay": 1.0},
    "rolls back": {"roll back": 1.0},
    "flips a byte of a copy": {"flip": 1.0},
    "flips a byte": {"spoil": 0.3},
    "misdirects": {"misdirect": 1.0},
    "floods": {"garbage": 1.0},
}
EVERYTHING = {
    "drop": 0.1,
    "spoil": 0.1,
    "delay": 0.1,
    "release": 0.5,
    "duplicate": 0.3,
    "flip": 0.3,
    "misdirect": 0.3,
    "garbage": 0.3,
    "replay": 0.3,
    "roll back": 0.3,
}
# What each deed must leave in the counts of what was refused; the others leave nothing there.
REFUSALS = {
    "flips a byte of a copy": "Unauthentic",
    "flips a byte": "Unauthentic",
    "misdirects": "Misdirected",
    "floods": "Malformed",
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("deed", DEEDS)
def test_the_result_is_the_undisturbed_one(
    tmp_path: Path, undisturbed: dict[str, bytes], deed: str, protocol: str
) -> None:
    hostile = Hostile(7, **DEEDS[deed])
    model, refused = run(tmp_path, protocol, hostile)
    assert model == undisturbed[protocol]
    if deed == "rolls back" and protocol == "fully-connected":
        return  # nothing rests at `weights`
    assert any(hostile.done.values()), "the relay did nothing"
    if deed in REFUSALS:
        assert refused.get(REFUSALS[deed], 0) > 0
    else:
        assert refused == {}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("seed", [1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 20))])
def test_everything_at_once(tmp_path: Path, undisturbed: dict[str, bytes], seed: int, protocol: str) -> None:
    model, refused = run(tmp_path, protocol, Hostile(seed, **EVERYTHING))
    assert model == undisturbed[protocol]
    assert {"Unauthentic", "Misdirected", "Malformed"} <= set(refused)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_messages_that_do_not_belong(tmp_path: Path, undisturbed: dict[str, bytes], protocol: str) -> None:
    """Everything that an earlier run of the same trial said, and what no version of this program says, for everyone."""
    earlier: list[tuple[str, bytes]] = []

    def record(address: str, body: bytes) -> Iterable[tuple[str, bytes]]:
        earlier.append((address, body))
        return [(address, body)]

    relay = MemoryRelay(record)
    renewed = manifest_for(protocol=protocol, model__arguments=MODEL, relay__chunk_bytes=4096, nonce="11" * 16)
    TrialInProcess(renewed, tmp_path / "earlier", lambda _: MemoryTransport(relay)).run()
    assert len(earlier) > 20

    told: set[str] = set()

    def intrude(address: str, body: bytes) -> Iterable[tuple[str, bytes]]:
        if address in told:
            return [(address, body)]
        told.add(address)
        wrong = [body[:4] + b"\2" + body[5:], body[:-1], body[:50], body + bytes(4096)]
        old = [entry for entry in earlier if entry[0] == address]
        return [*old, *((address, each) for each in wrong), (address, body), *old]

    model, refused = run(tmp_path / "now", protocol, intrude)
    assert model == undisturbed[protocol]
    assert told == {*PEERS, *(["weights"] if protocol == "server-aided" else [])}
    assert refused["UnknownVersion"] == len(told)
    assert refused["TooLarge"] >= len(PEERS)  # at `weights` it may count as Malformed: there its header is read first
    assert refused["Malformed"] >= 2 * len(PEERS)
    assert refused["Misdirected"] > 0  # of the earlier run; its HELLOs are read, and differ in the nonce alone
