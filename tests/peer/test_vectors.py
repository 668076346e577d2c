"""The arithmetic of a round as its peers do it: masked vectors, sum shards without their masks, the average."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from ppdl_mq.config.manifest import Manifest
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import Malformed, NotFinite, Overflow
from ppdl_mq.numeric.exponents import exponents
from ppdl_mq.numeric.fixed_point import FixedPoint
from ppdl_mq.numeric.flatten import Layout, flatten
from ppdl_mq.peer.vectors import MaskedVector, Vectors, figures_in, words_of
from ppdl_mq.protocol.effects import AddUp, Average, MaskVector, PairMask
from ppdl_mq.protocol.masked_average.outcome import figures_of, outcome_of
from ppdl_mq.protocol.masked_average.shards import Shards
from ppdl_mq.protocol.slots import Cut, Slot
from ppdl_mq.training import plugin
from tests.trial import identity_of, manifest_for

NAMES = ("anna", "bert", "cleo", "dora", "emil", "fred")
COUNTS = {"anna": 7, "bert": 1, "cleo": 120, "dora": 33, "emil": 5, "fred": 64}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {"inputs": 6, "hidden": [8], "outputs": 3},
    "batch-norm": {"inputs": 6, "hidden": [9, 5], "outputs": 3, "batch_norm": True},
    "tiny": {"inputs": 1, "hidden": [], "outputs": 2},  # fewer blocks than members: empty shards
}
SLOT = Slot("masked", 1)


def agreed(names: tuple[str, ...], weighting: str, word: int, model: str = "plain") -> Manifest:
    keys = {name: identity_of(name).public.keys for name in names}
    samples = {name: {"samples": COUNTS[name]} if weighting == "declared" else {} for name in names}
    return manifest_for(
        names,
        protocol="masked-average",
        averaging={"weighting": weighting, "word": word, "exponent_floor": 2},  # room for a BatchNorm bias
        model__arguments=MODELS[model],
        data={"shape": [1 if model == "tiny" else 6], "classes": 2 if model == "tiny" else 3},
        peers=[{"name": name, "keys": keys[name], **samples[name]} for name in names],
    )


class Party:
    """All members of one attempt, without anything between them.

    Args:
        manifest: of the trial.
        members: of the attempt, sorted.
        seed: of all that is random here.
        word: bits of a ring word.
    """

    def __init__(self, manifest: Manifest, members: tuple[str, ...], *, seed: int, word: int) -> None:
        self.members, self.word = members, word
        self.rng = random.Random(seed)
        module = plugin.build_model(manifest.model, manifest.training)
        self.layout = Layout.of(module)
        self.base = flatten(module)
        self.vectors = {name: Vectors(manifest, self.layout, me=name, rows=COUNTS[name]) for name in members}
        self.pairs = {(a, b): Secret(self.rng.randbytes(32)) for i, a in enumerate(members) for b in members[i + 1 :]}

    def local(self, size: float = 0.3) -> bytes:
        """Return weights near the base, as a peer might have trained them."""
        state = {name: tensor.clone() for name, tensor in self.layout.tensors(self.base)}
        generator = torch.Generator().manual_seed(self.rng.randrange(2**32))
        flat = bytearray()
        for tensor in state.values():
            if tensor.is_floating_point():
                moved = tensor + size * torch.randn(tensor.shape, generator=generator)
            else:
                moved = tensor + self.rng.randrange(2, 90)
            flat += moved.to(tensor.dtype).numpy().tobytes()
        return bytes(flat)

    def masked(self, name: str, local: bytes | None, figures: tuple[int, ...] = ()) -> MaskedVector:
        """Return a member's vector as it goes out."""
        masks = tuple(
            PairMask(seed=self.pairs[min(name, other), max(name, other)], sign=1 if name < other else -1)
            for other in self.members
            if other != name
        )
        task = MaskVector(
            step=1,
            attempt=0,
            word=self.word,
            members=self.members,
            masks=masks,
            base=SLOT if local is not None else None,
            local=SLOT if local is not None else None,
            figures=figures,
            into=SLOT,
        )
        return self.vectors[name].mask(task, self.base if local is not None else None, local)

    def shards(self, masked: Mapping[str, MaskedVector]) -> list[memoryview]:
        """Return every sum shard that is not empty, each made by its owner."""
        shards = Shards(masked[self.members[0]].words.nbytes, len(self.members))
        sums = []
        for shard in shards.filled:
            start, end = shards.start(shard), shards.start(shard + 1)
            sources = [masked[name].words[start:end] for name in self.members]
            for name, source in zip(self.members, sources, strict=True):
                assert hashlib.sha256(source).digest() == masked[name].digests[shard]
            task = AddUp(
                step=1,
                attempt=0,
                shard=shard,
                word=self.word,
                start=start,
                sources=tuple(Cut(SLOT, b"") for _ in sources),
                masks=tuple(masked[name].seed for name in self.members),
                into=SLOT,
            )
            sums.append(self.vectors[self.members[shard]].add_up(task, sources))
        return sums

    def average(self, name: str, sums: list[memoryview]) -> bytearray:
        """Return the average as a member decodes it."""
        task = Average(
            step=1,
            attempt=0,
            word=self.word,
            members=self.members,
            sums=(),
            auditable=(),
            base=SLOT,
            into=SLOT,
        )
        return self.vectors[name].average(task, sums, self.base)


def weights_of(weighting: str, members: tuple[str, ...]) -> dict[str, float]:
    return {name: 1.0 if weighting == "equal" else float(COUNTS[name]) for name in members}


def assert_is_average(
    party: Party, manifest: Manifest, weighting: str, locals_: dict[str, bytes], found: bytearray
) -> None:
    """Hold an average to the exact one, tensor by tensor, within the bound of section 14.6 and one rounding."""
    assert manifest.averaging is not None
    rules = manifest.averaging
    powers = exponents(party.base, party.layout, floor=rules.exponent_floor, head_room=rules.head_room)
    encoding = FixedPoint(party.layout, powers, party.word, len(party.members), rules.weighting)  # type: ignore[arg-type]
    share = weights_of(weighting, party.members)
    states = {name: dict(party.layout.tensors(flat)) for name, flat in locals_.items()}
    for index, (key, tensor) in enumerate(party.layout.tensors(found)):
        wide = {name: states[name][key].double() for name in party.members}
        exact = sum(share[name] * wide[name] for name in party.members) / sum(share.values())
        assert isinstance(exact, torch.Tensor)
        if not tensor.is_floating_point():
            # In `declared` the mean itself is a little off, and may be rounded to the other side.
            assert abs(tensor.item() - exact.item()) <= 0.5 + encoding.error_bound(index), key
            assert weighting == "declared" or tensor.item() == round(exact.item()), key
            continue
        largest = max(float(each.abs().max()) for each in wide.values())
        bound = encoding.error_bound(index, largest) + 2.0**-24 * largest
        assert float((tensor.double() - exact).abs().max()) <= bound, key
        assert bound < 2e-6 * max(1.0, largest), "a bound that says something"


CASES = [("equal", 32), ("equal", 64), ("declared", 32), ("declared", 64), ("secret", 64)]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("weighting", "word"), CASES)
@pytest.mark.parametrize("peers", range(2, 7))
def test_the_sum_without_the_own_masks_is_the_average(peers: int, weighting: str, word: int, model: str) -> None:
    manifest = agreed(NAMES[:peers], weighting, word, model)
    party = Party(manifest, manifest.peer_names, seed=1000 * peers + word, word=word)
    locals_ = {name: party.local() for name in party.members}
    masked = {name: party.masked(name, locals_[name]) for name in party.members}
    sums = party.shards(masked)
    averages = {bytes(party.average(name, sums)) for name in party.members}
    assert len(averages) == 1
    assert_is_average(party, manifest, weighting, locals_, bytearray(averages.pop()))


def test_what_goes_out_is_noise() -> None:
    """Neither the vector nor a partial sum decodes to anything near the weights; and no seed is used twice."""
    manifest = agreed(NAMES[:3], "equal", 32)
    party = Party(manifest, manifest.peer_names, seed=4, word=32)
    local = party.local()
    once, again = (party.masked("anna", local) for _ in range(2))
    assert once.seed.reveal() != again.seed.reveal()
    assert bytes(once.words) != bytes(again.words)
    bits = np.unpackbits(np.frombuffer(once.words, np.uint8))
    assert abs(float(bits.mean()) - 0.5) < 6 * 0.5 / math.sqrt(bits.size)
    assert once.seed.reveal().hex() not in repr(once)


@pytest.mark.parametrize("missing", ["own mask", "pair mask", "shard's place", "member"])
def test_the_comparison_can_fail(missing: str) -> None:
    manifest = agreed(NAMES[:3], "equal", 32)
    party = Party(manifest, manifest.peer_names, seed=5, word=32)
    locals_ = {name: party.local() for name in party.members}
    masked = {name: party.masked(name, locals_[name]) for name in party.members}
    match missing:
        case "own mask":
            masked["bert"] = MaskedVector(masked["bert"].words, Secret(bytes(32)), masked["bert"].digests)
        case "pair mask":
            party.pairs["anna", "bert"] = Secret(bytes(32))
            masked["bert"] = party.masked("bert", locals_["bert"])
        case "member":
            party.word = 64
            masked = {name: party.masked(name, locals_[name]) for name in party.members}
            party.word = 32
    sums = party.shards(masked)
    if missing == "shard's place":
        sums.reverse()
    with pytest.raises((AssertionError, Malformed)):
        assert_is_average(party, manifest, "equal", locals_, party.average("anna", sums))


@pytest.mark.parametrize(("weighting", "word"), CASES)
def test_some_members_only(weighting: str, word: int) -> None:
    """An attempt without those who have gone: declared counts are those of its members."""
    manifest = agreed(NAMES, weighting, word)
    party = Party(manifest, ("bert", "dora", "fred"), seed=6, word=word)
    locals_ = {name: party.local() for name in party.members}
    sums = party.shards({name: party.masked(name, locals_[name]) for name in party.members})
    assert_is_average(party, manifest, weighting, locals_, party.average("fred", sums))


@pytest.mark.parametrize(("weighting", "word"), CASES)
def test_what_does_not_fit_is_never_sent(weighting: str, word: int) -> None:
    manifest = agreed(NAMES[:2], weighting, word)
    party = Party(manifest, manifest.peer_names, seed=7, word=word)
    state = np.frombuffer(party.local(), np.float32).copy()
    state[3] = 2.0**60
    with pytest.raises(Overflow):
        party.masked("anna", state.tobytes())
    for value in (math.nan, math.inf):
        state[3] = value
        with pytest.raises(NotFinite):
            party.masked("anna", state.tobytes())


def test_words_are_counted() -> None:
    for weighting in ("equal", "secret"):
        manifest = agreed(NAMES[:2], weighting, 64)
        party = Party(manifest, manifest.peer_names, seed=8, word=64)
        assert manifest.averaging is not None
        words = words_of(party.layout, manifest.averaging)
        assert words == party.layout.total_bytes // 4 + (weighting == "secret")
        assert party.masked("anna", party.local()).words.nbytes == 8 * words


# --- evaluations -----------------------------------------------------------------------------------------------------


def evaluated(figures: dict[str, tuple[int, ...]], *, seed: int = 9) -> tuple[int, ...]:
    """Return the summed figures of some peers, by way of masks and shards."""
    manifest = agreed(tuple(figures), "equal", 32)
    party = Party(manifest, manifest.peer_names, seed=seed, word=64)
    masked = {name: party.masked(name, None, figures[name]) for name in party.members}
    sums = party.shards(masked)
    assert len(sums) == 1, "five words are one block"
    return figures_in(sums)


@pytest.mark.parametrize("peers", range(2, 7))
def test_the_means_over_all_hold_outs(peers: int) -> None:
    rng = random.Random(peers)
    own = {}
    for name in NAMES[:peers]:
        rows = rng.randrange(1, 500)
        own[name] = (rng.uniform(-3, 5), rng.randrange(rows + 1) / rows, rows)  # a loss of one's own may be negative
    total = evaluated({name: figures_of(*each) for name, each in own.items()})
    outcome = outcome_of(total)
    rows = sum(each[2] for each in own.values())
    assert outcome.loss is not None
    exact = math.fsum(loss * count for loss, _, count in own.values()) / rows
    assert abs(outcome.loss - exact) <= peers * 2.0**-25 / rows + 1e-12
    assert outcome.accuracy == round(sum(share * count for _, share, count in own.values())) / rows


def test_a_negative_mean_stays_negative() -> None:
    outcome = outcome_of(evaluated({"anna": figures_of(-2.5, 0.5, 4), "bert": figures_of(0.5, 1.0, 4)}))
    assert (outcome.loss, outcome.accuracy) == (-1.0, 0.75)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, 1e30, -1e30])
def test_a_loss_that_is_no_number_spoils_the_loss_and_not_the_accuracy(loss: float) -> None:
    total = evaluated({"anna": figures_of(loss, 0.5, 4), "bert": figures_of(0.5, 1.0, 4), "cleo": (0,) * 5})
    outcome = outcome_of(total)
    assert (outcome.loss, outcome.accuracy) == (None, 0.75)
    assert total[4] == 1


def test_regression_and_no_hold_out() -> None:
    outcome = outcome_of(evaluated({"anna": figures_of(1.5, None, 2), "bert": figures_of(None, None, 0)}))
    assert (outcome.loss, outcome.accuracy) == (1.5, None)
    nothing = outcome_of(evaluated({"anna": (0,) * 5, "bert": (0,) * 5}))
    assert (nothing.loss, nothing.accuracy) == (None, None)
