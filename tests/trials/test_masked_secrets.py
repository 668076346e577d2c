"""What a relay sees of masked-average, and what a journal holds: neither weights nor seeds of masks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from nacl import bindings

from ppdl_mq.config.manifest import Manifest
from ppdl_mq.crypto.identity import Identity
from ppdl_mq.peer.driver import _LIVE_FACT, _STATE_FACT
from ppdl_mq.peer.journal import Journal
from ppdl_mq.peer.live import LiveMark, LiveSecrets, live_key
from ppdl_mq.peer.vectors import MaskedVector, Vectors
from ppdl_mq.protocol.effects import MaskVector
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.training.worker import Worker
from ppdl_mq.wire import canonical
from ppdl_mq.wire.header import decode_header
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.trial_id import trial_id
from tests.transport.relays import new_trial
from tests.trial import TrialInProcess, identity_of, manifest_for
from tests.trials.masked import Moment, MortalTrial, agreed
from tests.trials.spying import metrics_of, spy
from tests.trials.test_relay_sees_nothing import Secrets, leaks, run_watched
from tests.trials.traces import Seen, chi_square, incompressible


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> Secrets:
    """Collects agreed and local weights, metrics, seeds and mask keys of the trials in this process."""
    found = Secrets()
    watch = partial(spy, monkeypatch)

    def note_local(result: Any, _: Worker, turn: Any, *__: Any) -> None:
        found.weights[f"{turn.peer} in round {turn.number}"] = bytes(result.weights)
        found.metrics.append(result.loss)

    def note_masks(masked: MaskedVector, vectors: Vectors, task: MaskVector, *_: Any) -> None:
        found.keys[f"own mask of {vectors._me} in step {task.step}"] = masked.seed.reveal()
        for mask in task.masks:
            found.keys[f"pair mask {len(found.keys)} of {vectors._me}"] = mask.seed.reveal()

    watch(Worker, "initial", lambda weights, _: found.weights.setdefault("the initial weights", bytes(weights)))
    watch(Worker, "train", note_local)
    watch(Worker, "evaluate", lambda evaluation, *_: found.metrics.extend(metrics_of(evaluation)))
    watch(Vectors, "mask", note_masks)
    watch(
        Vectors, "average", lambda weights, _, task, *__: found.weights.setdefault(f"step {task.step}", bytes(weights))
    )
    return found


def watched(weighting: str) -> Manifest:
    return manifest_for(
        name=new_trial(),
        protocol="masked-average",
        averaging={"weighting": weighting},
        model__arguments={"inputs": 16, "hidden": [48], "outputs": 10, "activation": "gelu"},
        data__shape=[16],
        data__classes=10,
        relay={"chunk_bytes": 4096},
    )


@pytest.mark.parametrize(("kind", "weighting"), [("embedded", "secret"), ("classic", "equal")])
def test_no_secret_reaches_the_relay(
    kind: str, weighting: str, tmp_path: Path, request: pytest.FixtureRequest, collected: Secrets
) -> None:
    trial, published, kept = run_watched(kind, watched(weighting), tmp_path, request)
    assert len(collected.weights) == 1 + 3 * 2 + 2, "the initial ones, local ones of every round, averages"
    assert len(collected.metrics) >= 3 * 2 * 2
    assert len(collected.keys) == 3 * 4 * 3, "own and pair masks of every peer in every step"
    assert list(leaks(trial, collected, Seen(kept))) == []

    # Far more of the messages are short than in the other protocols: their framing (lengths, zeros) is left aside.
    large = b"".join(inner(published, Kind.INITIAL, Kind.MASKED, Kind.SUM))
    assert len(large) > 5 * len(collected.weights["the initial weights"])
    for sealed in (large, b"".join(inner(published))):
        assert incompressible(sealed) >= 0.99
        assert 140 < chi_square(sealed) < 420


def test_without_a_cipher_the_masks_alone_hide_what_each_peer_trained(
    tmp_path: Path, request: pytest.FixtureRequest, collected: Secrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search finds what is not sealed: the initial weights and released seeds. No peer's weights are among it."""
    monkeypatch.setattr(
        bindings, "crypto_aead_xchacha20poly1305_ietf_encrypt", lambda text, *_: bytes(text) + bytes(16)
    )
    monkeypatch.setattr(bindings, "crypto_aead_xchacha20poly1305_ietf_decrypt", lambda text, *_: text[:-16])
    trial, published, kept = run_watched("embedded", watched("equal"), tmp_path, request)
    found = set(leaks(trial, collected, Seen(kept)))
    assert {name for name in found if "weights" in name} == {"weights of the initial weights"}
    own = {f"own mask of {name} in step {step}" for name in trial.manifest.peer_names for step in (1, 2, 3, 4)}
    assert {name for name in found if "mask" in name} == own
    vectors = b"".join(inner(published, Kind.MASKED))
    assert incompressible(vectors) >= 0.99, "what a peer sends of its vector is noise without any cipher"
    assert incompressible(b"".join(inner(published, Kind.INITIAL))) < 0.99


def inner(published: list[bytes], *kinds: Kind) -> Iterator[bytes]:
    """Yield the inside of all parts of these kinds, or of any, that are long: without what frames it at both ends."""
    for part in dict.fromkeys(published):
        header, offset = decode_header(part)
        if (not kinds or header.kind in kinds) and len(part) - offset > 400:
            yield part[offset + 200 : -16]


# --- the journal -----------------------------------------------------------------------------------------------------


def byte_strings(data: Any) -> Iterator[bytes]:
    """Yield every byte string of 32 bytes in plain data."""
    if isinstance(data, bytes) and len(data) == 32:
        yield data
    elif isinstance(data, dict):
        for value in data.values():
            yield from byte_strings(value)
    elif isinstance(data, list):
        for value in data:
            yield from byte_strings(value)


def opened(trial: TrialInProcess, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a peer's state and its live secrets, as its own key opens them."""
    identity: Identity = identity_of(name)
    journal = Journal(trial.folder / name, trial_id=trial_id(trial.manifest), identity=identity)
    try:
        mark = LiveMark.from_data(journal.secret_fact(_LIVE_FACT))
        secrets = LiveSecrets(journal.folder, live_key(identity, trial_id(trial.manifest))).load(mark)
        assert secrets is not None
        return journal.secret_fact(_STATE_FACT), secrets
    finally:
        journal.close()


@pytest.mark.parametrize("phase", [Phase.COMMITTED, Phase.RECEIPTED, Phase.RELEASED, Phase.AGREEING])
def test_a_journal_holds_no_seed_of_a_mask(phase: Phase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even opened with the peer's own key: what must be erased in time stands in the live secrets alone."""
    ends_it = {Phase.COMMITTED: Kind.MASKED, Phase.RECEIPTED: Kind.RECEIPT, Phase.RELEASED: Kind.RELEASE}

    def withhold(address: str, body: bytes) -> list[tuple[str, bytes]]:
        """Let bert stay in the phase: what ends it may come at the same time, and the phase not be on disk at all."""
        header, _ = decode_header(body)
        is_withheld = address == "bert" and header.turn == 3 and header.kind is ends_it.get(phase, Kind.AGREE)
        return [] if is_withheld else [(address, body)]

    moment = Moment("bert", phase, step=3)
    trial = MortalTrial(agreed(), tmp_path, monkeypatch, moment, restarts=False, on_publish=withhold)
    trial.begin()
    trial.threads["bert"].join(30)
    assert trial.moment is not None
    assert trial.moment.struck.is_set()
    trial.stop()
    folder = trial.folder / "bert"
    raw = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.parent.name != "live")
    state, secrets = opened(trial, "bert")
    live = set(byte_strings(secrets))
    assert len(live) >= 2, "the mask keys with two others"
    assert secrets["own_mask"]
    # Once released, a seed is for all members to know; before, it is in the live secrets alone.
    assert ("bert" in state["masks"]) is (phase in (Phase.RELEASED, Phase.AGREEING))
    assert state["phase"] == phase.value
    opened_state = canonical.encode(state)
    session = {keys for pair in state.get("pair_keys", {}).values() for keys in byte_strings(pair)}
    released = set(state["masks"].values())
    assert (secrets["own_mask"] in released) is (phase in (Phase.RELEASED, Phase.AGREEING))
    for secret in live - session - released:
        assert secret not in raw
        assert secret not in opened_state
        assert secret.hex().encode() not in raw
