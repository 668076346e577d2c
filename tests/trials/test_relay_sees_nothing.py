"""Everything that passes a relay, and every secret of the trial: none of the second is in the first."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from nacl import bindings

from ppdl_mq.config.manifest import Manifest
from ppdl_mq.protocol.events import Started
from ppdl_mq.protocol.keyring import Keyring
from ppdl_mq.protocol.sequential import SequentialMachine
from ppdl_mq.training.order import rehearsal_seed
from ppdl_mq.training.worker import Worker
from ppdl_mq.transport.base import Transport
from ppdl_mq.wire.header import decode_header
from ppdl_mq.wire.kinds import Kind
from tests.rabbit import RabbitNode
from tests.transport.relays import new_trial
from tests.trial import TrialInProcess, identity_of, manifest_for
from tests.trials.relays import marked, opener
from tests.trials.spying import metrics_of, spy
from tests.trials.traces import Seen, chi_square, incompressible

# Source: sqlite.org/fileformat2.html, "The Write-Ahead Log".
PAGE, WAL_HEADER, WAL_FRAME_HEADER = 4096, 32, 24
PROTOCOLS = ("server-aided", "fully-connected")


@dataclass
class Secrets:
    """What must stay within the organisations."""

    keys: dict[str, bytes] = field(default_factory=dict)
    weights: dict[str, bytes] = field(default_factory=dict)
    metrics: list[float] = field(default_factory=list)


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> Secrets:
    """Collects the true weights, metrics and keys of the trials in this process."""
    found = Secrets()
    watch = partial(spy, monkeypatch)

    def note_turn(result: Any, worker: Worker, turn: Any, *_: Any) -> None:
        found.weights[f"turn {turn.number}"] = bytes(result.weights)
        found.metrics.append(result.loss)

    def note_start(_: Any, machine: SequentialMachine, state: Any, event: Any) -> None:
        if isinstance(event, Started):
            found.keys[f"session secret of {machine.terms.me}"] = event.session_secret.reveal()
            found.keys[f"contribution of {machine.terms.me}"] = event.contribution.reveal()

    def note_key(key: Any, *_: Any) -> None:
        if key is not None:
            found.keys[f"key {len(found.keys)}"] = key.reveal()

    watch(Worker, "initial", lambda weights, _: found.weights.setdefault("turn 0", bytes(weights)))
    watch(Worker, "train", note_turn)
    watch(Worker, "evaluate", lambda evaluation, *_: found.metrics.extend(metrics_of(evaluation)))
    watch(SequentialMachine, "step", note_start)
    watch(Keyring, "key", note_key)
    return found


def agreed(protocol: str) -> Manifest:
    return manifest_for(
        name=new_trial(),
        protocol=protocol,
        model__arguments={"inputs": 16, "hidden": [48], "outputs": 10, "activation": "gelu"},
        data__shape=[16],
        data__classes=10,
        relay={"chunk_bytes": 4096},
    )


def watched(transport: Transport, look: Callable[[list[bytes]], None]) -> Transport:
    """Return the transport, which from now on calls `look` after each message that it published."""
    publish = transport.publish

    def observed(address: str, bodies: Iterable[bytes]) -> None:
        copies = [bytes(body) for body in bodies]
        publish(address, copies)
        look(copies)

    transport.publish = observed  # type: ignore[method-assign]
    # One set after the other, so that each passes the line above.
    transport.publish_all = partial(Transport.publish_all, transport)  # type: ignore[method-assign]
    return transport


def run_watched(
    kind: str, manifest: Manifest, folder: Path, request: pytest.FixtureRequest
) -> tuple[TrialInProcess, list[bytes], list[bytes]]:
    """Run a trial; return it, the messages that were published, and all that the relay could keep of them."""
    published: list[bytes] = []
    kept: dict[bytes, None] = {}

    def look(bodies: list[bytes]) -> None:
        published.extend(bodies)
        for name, skip, frame in (("relay.sqlite", 0, 0), ("relay.sqlite-wal", WAL_HEADER, WAL_FRAME_HEADER)):
            content = (folder / name).read_bytes() if (folder / name).exists() else b""
            for start in range(skip, len(content), frame + PAGE):
                kept[content[start + frame : start + frame + PAGE]] = None  # most pages are seen many times

    plain = opener(kind, manifest, folder, request)
    trial = TrialInProcess(manifest, folder, lambda peer: watched(plain(peer), look))
    if kind == "embedded":
        trial.run()
        return trial, published, list(kept)
    node: RabbitNode = request.getfixturevalue("rabbit")
    with node.tap() as tap:
        trial.run()
        passed = tap.read()
    assert {(message.kind, message.body in published) for message in passed} == {("publish", True), ("deliver", True)}
    return trial, published, [part for message in passed for part in (message.body, repr(message).encode())]


def leaks(trial: TrialInProcess, found: Secrets, seen: Seen) -> Iterator[str]:
    """Yield the name of every secret of which a trace was seen."""
    for name in trial.manifest.peer_names:
        secret = identity_of(name).secret.reveal()
        keys = {"signing key": secret[:32], "sealing key": secret[32:], "sample seed": rehearsal_seed(7, name)}
        yield from (f"{key} of {name}" for key, raw in keys.items() if seen.shows(raw))
        split = trial.splits[name]
        for part in (split.train, split.holdout):
            if any(seen.shows_numbers(row) for row in part.inputs.numpy()):
                yield f"sample of {name}"
            if seen.shows_labels(part.targets.numpy()):
                yield f"labels of {name}"
    yield from (key for key, raw in found.keys.items() if seen.shows(raw))
    for turn, raw in found.weights.items():
        if seen.shows_numbers(np.frombuffer(raw, np.float32)):
            yield f"weights of {turn}"
    for metric in found.metrics:
        if len(repr(metric)) > 8 and (seen.shows_text(repr(metric)) or seen.shows(np.array([metric]).tobytes())):
            yield f"metric {metric}"


def sealed_of(published: list[bytes], *kinds: Kind) -> bytes:
    """Return the sealed bytes of all parts of these kinds, without the clear headers."""
    decoded = [(*decode_header(part), part) for part in published]
    return b"".join(part[offset:] for header, offset, part in decoded if not kinds or header.kind in kinds)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", [marked("embedded"), marked("classic")])
def test_no_secret_reaches_the_relay(
    kind: str, protocol: str, tmp_path: Path, request: pytest.FixtureRequest, collected: Secrets
) -> None:
    manifest = agreed(protocol)
    trial, published, kept = run_watched(kind, manifest, tmp_path, request)
    turns = trial.runners["anna"].terms.schedule.turns
    assert len(collected.weights) == turns + 1
    assert len(collected.metrics) > turns
    assert len(collected.keys) > 9
    seen = Seen(kept)
    assert all(part in seen.content for part in published) or kind == "embedded"
    assert list(leaks(trial, collected, seen)) == []

    large = sealed_of(published, Kind.TURN, Kind.FINAL)
    assert len(large) > 5 * len(collected.weights["turn 0"])
    for sealed in (large, sealed_of(published)):
        assert incompressible(sealed) >= 0.99
        assert 140 < chi_square(sealed) < 420


def test_the_embedded_file_was_looked_at_while_messages_were_in_it(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    _, published, kept = run_watched("embedded", agreed("server-aided"), tmp_path, request)
    seen = Seen(kept)
    found = [part for part in published if seen.shows(part[-64:])]
    assert len(found) == len(published)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_search_finds_what_is_not_sealed(
    protocol: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    collected: Secrets,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With an identity function for a cipher, every turn's weights and every contribution are found."""
    monkeypatch.setattr(
        bindings, "crypto_aead_xchacha20poly1305_ietf_encrypt", lambda text, *_: bytes(text) + bytes(16)
    )
    monkeypatch.setattr(bindings, "crypto_aead_xchacha20poly1305_ietf_decrypt", lambda text, *_: text[:-16])
    trial, published, kept = run_watched("embedded", agreed(protocol), tmp_path, request)
    found = set(leaks(trial, collected, Seen(kept)))
    turns = trial.runners["anna"].terms.schedule.turns
    assert {f"weights of turn {turn}" for turn in range(1, turns + 1)} - found == set()
    contributions = {f"contribution of {name}" for name in trial.manifest.peer_names}
    assert contributions & found == (contributions if protocol == "server-aided" else set())
    assert not found - contributions - {f"weights of turn {turn}" for turn in range(turns + 1)}
    large = sealed_of(published, Kind.TURN, Kind.FINAL)
    assert incompressible(large) < 0.99
    assert chi_square(large) > 420


@pytest.mark.parametrize("lead", range(4))
def test_the_search_knows_every_form(lead: int) -> None:
    values = torch.randn(40, generator=torch.Generator().manual_seed(3)).numpy()
    labels = torch.randint(0, 10, (30,), generator=torch.Generator().manual_seed(3)).numpy()
    key = secrets.token_bytes(32)
    noise = secrets.token_bytes(50_000)

    def seen(trace: bytes) -> Seen:
        return Seen([noise[: 1000 + lead] + trace + noise[1000:]])

    for raw in (key, key[5:17]):
        for form in (raw, raw.hex().encode(), raw.hex().upper().encode(), base64.b64encode(key[:lead] + raw)):
            assert seen(form).shows(key)
    for kind in ("<f4", ">f4", "<f8", ">f8"):
        assert seen(values[7:10].astype(kind).tobytes()).shows_numbers(values)
    for single in (True, False):
        assert seen(msgpack.packb(values[7:10].tolist(), use_single_float=single)).shows_numbers(values)
    assert seen(json.dumps(values[7:10].tolist()).encode()).shows_numbers(values)
    for kind in ("u1", "<i8", ">i4"):
        assert seen(labels[3:14].astype(kind).tobytes()).shows_labels(labels)
    nothing = seen(b"")
    assert (nothing.shows(key), nothing.shows_numbers(values), nothing.shows_labels(labels)) == (False, False, False)
