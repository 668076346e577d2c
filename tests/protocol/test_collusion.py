"""Plays the collusion game over whole trials, then breaks the protocol on purpose, one rule after the other."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest

from ppdl_mq.crypto.agreement import pair_seed
from ppdl_mq.crypto.prg import fill
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.numeric.masks import Mask, add_masks
from ppdl_mq.protocol.effects import AddUp, Effect, MaskVector, PairMask
from ppdl_mq.protocol.events import Event, Masked
from ppdl_mq.protocol.masked_average.flow import Step
from ppdl_mq.protocol.masked_average.machine import MaskedAverageMachine
from ppdl_mq.protocol.masked_average.state import RoundState
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.wire.messages import Release
from tests.protocol import masked_world
from tests.protocol.collusion import FULL_RING, GameWorld, Known, coalitions, leaking, learns, play
from tests.protocol.masked_world import NAMES, WORDS, Letter, cheap_signatures


@pytest.fixture(autouse=True)
def _cheap() -> Iterator[None]:
    with cheap_signatures():
        yield


# --- runs ------------------------------------------------------------------------------------------------------------


def undisturbed(count: int, **options: Any) -> GameWorld:
    """One round and its evaluation."""
    world = GameWorld(count, **options)
    world.run()
    return world


def overflowed(count: int, **options: Any) -> GameWorld:
    """The last peer's vector does not fit; by then all others have sent theirs. Everybody does it again in 64 bits."""
    world = GameWorld(count, **options)
    *others, last = world.peers
    world.overflows.add((last, 1, 0))
    world.holds = lambda name, task: name == last and isinstance(task, MaskVector) and task.step == 1 and not ready()

    def ready() -> bool:
        return world.has("masks", *((name, 1, 0) for name in others))

    world.run()
    assert world.has("masks", *((name, 1, 1) for name in world.peers))
    return world


def dropped(count: int, **options: Any) -> GameWorld:
    """A peer dies before its release, when its vector is out; the others do without it."""
    world, victim = GameWorld(count, **options), "bert"
    world.until(lambda: world.has("masks", (victim, 1, 0)))
    world.peers[victim].is_dead = True
    world.settle(steps=400)
    decide(world, victim)
    return world


def withheld(count: int, **options: Any) -> GameWorld:
    """All gave receipts, the relay shows them to one peer only, and keeps its release; the others do without it.

    The coalition holds that release all the same.
    """
    world, victim = GameWorld(count, **options), "bert"

    def is_kept(letter: Letter) -> bool:
        is_first = (letter.send.turn, letter.send.attempt) == (1, 0)
        kind = letter.send.message.kind.name
        return is_first and (kind == "RELEASE" or (kind == "RECEIPT" and letter.send.recipient != victim))

    world.loses(is_kept)
    world.until(lambda: world.has("release", (victim, 1, 0)) and not world.peers[victim].unsent)
    world.peers[victim].is_dead = True
    world.settle(steps=100)
    world.remember()
    decide(world, victim)
    assert world.has("masks", *((name, 1, 1) for name in world.peers if name != victim))
    return world


def lost(count: int, **options: Any) -> GameWorld:
    """A peer dies after everybody's release, before it made its sum shard; its deputy does that."""
    world, victim = GameWorld(count, **options), "bert"
    world.holds = lambda name, task: name == victim and isinstance(task, AddUp)
    world.until(lambda: world.has("release", *((name, 1, 0) for name in world.peers)))
    world.until(lambda: not world.peers[victim].unsent)
    world.peers[victim].is_dead = True
    world.settle(steps=400)
    decide(world, victim)
    return world


def decide(world: GameWorld, victim: str) -> None:
    """People at all others decide to go on without a peer; then they finish."""
    for name in world.peers:
        if name != victim:
            world.decide(name, victim)
    world.run()


SCHEDULES_OF_CHANCE = 150
Run = Callable[..., GameWorld]
RUNS: tuple[tuple[Run, int], ...] = (
    *((undisturbed, count) for count in range(2, 7)),
    *((overflowed, count) for count in range(2, 7)),
    *((dropped, count) for count in range(3, 7)),
    *((withheld, count) for count in range(3, 7)),
    *((lost, count) for count in range(3, 7)),
)
by_run = pytest.mark.parametrize(("run", "count"), RUNS, ids=[f"{run.__name__}-{count}" for run, count in RUNS])


@by_run
def test_no_coalition_learns_more_than_the_sum_of_the_honest(run: Run, count: int) -> None:
    """At no moment of the run, and whoever colludes; the view includes abandoned attempts and both purposes."""
    world = run(count)
    alive = {name for name, peer in world.peers.items() if not peer.is_dead}
    assert {world.peers[name].state.phase for name in alive} == {Phase.ENDED}
    for coalition in coalitions(world):
        view = play(world, coalition)
        assert not view.leaks, view.leaks[0]
        first = set(world.peers) if run is lost else alive
        expected = {1: first - coalition, 2: alive - coalition}
        if alive <= coalition:  # the lost one alone was honest: its release was the whole sum, if it ever came
            continue
        assert view.sums == expected, "the game sees what there is to see"


@pytest.mark.parametrize("ring", [(2, 1), (2, 2), (3, 1)], ids=["Z_2", "Z_4", "Z_3"])
def test_nor_in_small_rings(ring: tuple[int, int]) -> None:
    for run in (overflowed, withheld):
        world = run(4)
        assert not any(play(world, coalition, ring=ring).leaks for coalition in coalitions(world))


def test_masks_of_two_rounds_have_nothing_in_common() -> None:
    """The mask keys are ratcheted in between, and the second round's context has another base anyway."""
    world = undisturbed(3, training__epochs=2)
    for coalition in coalitions(world):
        view = play(world, coalition)
        assert not view.leaks, view.leaks[0]
        assert set(view.sums) == {1, 2, 3, 4}


def test_nor_in_schedules_of_chance() -> None:
    """Loss, repetition, crashes, overflow, demands, farewells, decisions at any moment; not every run gets far."""
    for number in range(SCHEDULES_OF_CHANCE):
        chance = random.Random(number)
        count = chance.choice((3, 4, 4, 5))
        world = GameWorld(
            count,
            seed=number,
            loss=chance.choice((0, 0.05)),
            duplicates=chance.choice((0, 0.1)),
            crash=chance.choice((0, 0.02)),
            overflow=chance.choice((0, 0.2)),
            audit=chance.choice((0, 0.5)),
        )
        names = list(world.peers)
        victim, leaver = chance.sample(names, 2)
        moments = {name: chance.randrange(50, 300) for name in names}
        dies_at, is_left = chance.randrange(40, 250), chance.random() < 0.3
        for at in range(400):
            world.peers[victim].is_dead |= at == dies_at
            if is_left and at == moments[leaver]:
                world.leave(leaver)
            for name in names:
                if name != victim and at == moments[name]:
                    world.decide(name, victim)
            world.step()
        for coalition in coalitions(world):
            view = play(world, coalition)
            assert not view.leaks, f"schedule {number}: {view.leaks[0]}"


@pytest.mark.parametrize("run", [undisturbed, overflowed, withheld, lost])
def test_before_its_release_nothing_about_a_peer_is_known(run: Run) -> None:
    """Not even a sum that it is in: no combination of all that was sent until then has its vector and no mask."""
    world = run(4)
    for coalition in coalitions(world):
        for name in world.peers.keys() - coalition:
            places = [at for at, item in enumerate(world.log) if item.what == "release" and item.at[:2] == (name, 1)]
            known = Known(*FULL_RING)
            rows = [known.learn(item.form) for item in [*world.known_to(coalition), *world.log[: min(places)]]]
            assert not any(world.secret(name, 1) in row for rows_of_item in rows for row in rows_of_item)


# --- the algebra is held to plain counting ---------------------------------------------------------------------------


def looks_alike(
    world: GameWorld,
    coalition: frozenset[str],
    sums: Mapping[int, frozenset[str]],
    modulus: int,
    *,
    until: int | None = None,
) -> bool:
    """Tell whether all worlds with equal honest sums have equal view distributions, by going through every table.

    Args:
        world: after the run; looked at is word 0.
        coalition: names.
        sums: by step, the honest names whose sum may be known.
        modulus: of a small ring. All values of all secrets and unknown symbols are tried.
        until: at which moment; None for the end.
    """
    seen = [item.form for item in world.log[:until] if item.form and item.first == 0]
    known = {column for item in world.known_to(coalition) for column in item.form}
    unknown = sorted({column for form in seen for column in form} - known)
    symbols = [column for column in unknown if column < 1 << 20]
    secrets = [column for column in unknown if column >= 1 << 20]
    forms = sorted({tuple(sorted((c, v) for c, v in form.items() if c not in known)) for form in seen} - {()})
    assert modulus ** len(symbols) <= 600_000, f"{len(symbols)} symbols are too many to go through"
    assert modulus ** len(forms) < 2**62, "a view fits a number"
    place = modulus ** np.arange(len(forms), dtype=np.int64)
    by_symbol = np.array([[dict(form).get(column, 0) for form in forms] for column in symbols]) % modulus
    by_secret = np.array([[dict(form).get(column, 0) for form in forms] for column in secrets]) % modulus
    tables = np.indices((modulus,) * len(symbols)).reshape(len(symbols), -1).T @ by_symbol
    shown: dict[tuple[int, ...], npt.NDArray[np.int64]] = {}
    for values in itertools.product(range(modulus), repeat=len(secrets)):
        views = np.sort(((tables + np.array(values) @ by_secret) % modulus) @ place)
        world_sums = tuple(
            sum(value for value, column in zip(values, secrets, strict=True) if world.owner_of(column) in names)
            % modulus
            for names in ({(name, step) for name in honest} for step, honest in sums.items())
        )
        if not np.array_equal(shown.setdefault(world_sums, views), views):
            return False
    return True


COUNTED: tuple[tuple[Run, int, tuple[str, ...], int], ...] = (
    (undisturbed, 2, (), 4),
    (undisturbed, 2, ("bert",), 4),
    (undisturbed, 3, (), 4),
    (undisturbed, 3, ("cleo",), 4),
    (undisturbed, 4, (), 3),
    (undisturbed, 4, ("anna",), 3),
    (overflowed, 2, (), 4),
    (overflowed, 3, ("cleo",), 4),
    (overflowed, 4, ("cleo", "dora"), 4),
    (dropped, 4, ("dora",), 3),
    (withheld, 4, ("dora",), 3),
    (withheld, 4, ("cleo", "dora"), 4),
    (lost, 4, ("dora",), 4),
)


@pytest.mark.parametrize(("run", "count", "coalition", "modulus"), COUNTED)
def test_counting_every_table_says_the_same(run: Run, count: int, coalition: tuple[str, ...], modulus: int) -> None:
    world = run(count, averaging__evaluate_every=0)
    colluders = frozenset(coalition)
    view = play(world, colluders)
    assert not view.leaks
    assert looks_alike(world, colluders, view.allowed, modulus)
    if len(world.peers) - len(colluders) > 1:  # and the counting can tell worlds apart: sums that differ are seen
        assert not looks_alike(world, colluders, {}, modulus)


def test_howell_form_finds_what_even_coefficients_reveal() -> None:
    """2 s + x gives 2**(k-1) x away in Z_{2^k}, though 2 has no inverse there; and nothing where it has one."""
    x, y = 1 << 20, (1 << 20) + 1
    assert Known(2, 2).learn({0: 2, x: 1}) == [{x: 2}]
    assert Known(3, 1).learn({0: 2, x: 1}) == []
    known = Known(2, 2)
    assert known.learn({0: 2, x: 1}) == [{x: 2}]
    assert known.learn({0: 1, y: 1}) == [{x: 1, y: 2}]
    assert FULL_RING == (2, 64)


# --- breaks ----------------------------------------------------------------------------------------------------------


def broken(world: GameWorld) -> set[frozenset[str]]:
    """Play against every coalition over a broken protocol; show the first distinguisher; return who has one."""
    found = leaking(world)
    for leaks in itertools.islice(found.values(), 1):
        print(leaks[0])
    return set(found)


class LeavesPairOut(MaskedAverageMachine):
    """anna and bert do not mask with each other."""

    def _mask_vector(self, state: RoundState) -> MaskVector:
        task = super()._mask_vector(state)
        pair = {"anna": "bert", "bert": "anna"}.get(self.terms.me)
        others = [name for name in task.members if name != self.terms.me]
        masks = tuple(mask for name, mask in zip(others, task.masks, strict=True) if name != pair)
        return dataclasses.replace(task, masks=masks)


class LeavesAllOut(MaskedAverageMachine):
    """anna masks with nobody."""

    def _mask_vector(self, state: RoundState) -> MaskVector:
        task = super()._mask_vector(state)
        return dataclasses.replace(task, masks=()) if self.terms.me == "anna" else task


def test_a_pair_mask_left_out_shows_when_nobody_else_is_honest() -> None:
    """Among three honest peers the other pairs still hide everything: exactly where it matters the game says so."""
    world = undisturbed(4, lenient=True, machine=LeavesPairOut)
    assert broken(world) == {frozenset({"cleo", "dora"})}
    assert learns(world, {"cleo", "dora"}, {("anna", 1): 1})
    assert learns(world, {"cleo", "dora"}, {("bert", 2): 1})
    assert not learns(world, {"cleo"}, {("anna", 1): 1})


def test_the_own_mask_left_out_shows_before_the_release() -> None:
    """The masks of all pairs cancel: whoever has all vectors has the sum, released or not."""
    world = undisturbed(3, lenient=True, draws=lambda at, fresh: None if at[0] in ("anna", "bert") else fresh)
    view = play(world, {"cleo"})
    leak = view.leaks[0]
    print(leak)
    assert set(leak.reveals) - {"x(cleo, step 1)"} == {"x(anna, step 1)", "x(bert, step 1)"}
    assert not any(item.what == "release" for item in world.log[: leak.moment])


class Reuses(MaskedAverageMachine):
    """A second attempt has the masks of the first: neither attempt, members nor word are in the context."""

    def _mask_vector(self, state: RoundState) -> MaskVector:
        task = super()._mask_vector(state)
        context = dataclasses.replace(self._context(state), attempt=0, members=(), word=0).digest()
        return remasked(self, state, task, context)


def remasked(machine: MaskedAverageMachine, state: RoundState, task: MaskVector, context: bytes) -> MaskVector:
    """Return the task with seeds of another context."""
    me = machine.terms.me
    others = [name for name in task.members if name != me]
    masks = [PairMask(seed=pair_seed(state.mask_keys[name], context), sign=1 if me < name else -1) for name in others]
    return dataclasses.replace(task, masks=tuple(masks))


def same_seed(at: tuple[str, int, int], fresh: bytes) -> bytes:
    """One own mask for all attempts of a step."""
    return hashlib.sha256(f"{at[0]} {at[1]}".encode()).digest()


def test_a_reused_attempt_shows() -> None:
    """The peer that went has its vector open: the difference of the others' two vectors is its masks."""
    world = withheld(4, lenient=True, machine=Reuses, draws=same_seed)
    assert broken(world) == WITH_BERT_AND_OTHERS
    assert learns(world, {"dora"}, {("bert", 1): 1})
    assert not learns(world, {"dora"}, {("anna", 1): 1})
    # With the same members it is the same message twice, and tells nothing new.
    assert not broken(overflowed(4, lenient=True, machine=Reuses, draws=same_seed))


def up_to(size: int, *names: str) -> set[frozenset[str]]:
    """Return the sets of at most so many of these names."""
    return {frozenset(each) for count in range(size + 1) for each in itertools.combinations(names, count)}


WITH_BERT_AND_OTHERS = up_to(2, "anna", "cleo", "dora")  # bert, who went, is honest, and somebody who went on


def test_either_mask_alone_would_hold_where_the_other_is_fresh() -> None:
    """Pair masks of a context without attempt, members and word hold as long as abandoned own masks are erased."""
    assert not broken(withheld(4, lenient=True, machine=Reuses))


def test_an_own_mask_that_is_kept_for_the_next_attempt_shows() -> None:
    """Its release opens the vector of the abandoned attempt too: two sums whose difference is one peer's vector."""
    world = withheld(4, lenient=True, draws=same_seed)
    assert broken(world) == WITH_BERT_AND_OTHERS
    assert learns(world, {"dora"}, {("bert", 1): 1})


class ReleasesEarly(MaskedAverageMachine):
    """Gives its own mask away as soon as it has committed: before there are receipts."""

    def step(self, state: RoundState, event: Event) -> tuple[RoundState, tuple[Effect, ...]]:
        after, effects = super().step(state, event)
        if isinstance(event, Masked) and state.phase is Phase.MASKING:
            release = Release(
                context=self._context(state).digest(), member=self.terms.me, mask=event.mask.reveal(), receipts=()
            )
            effects = (*effects, *(self._to(state, name, release, ordinal=9) for name in self._others(state)))
        return after, effects


def test_a_release_before_receipts_shows() -> None:
    """The attempt is abandoned after all, and the sums with and without the one who went are both there."""
    world = dropped(4, lenient=True, machine=ReleasesEarly)
    assert broken(world) >= WITH_BERT_AND_OTHERS
    assert learns(world, {"dora"}, {("bert", 1): 1})
    # Even where nobody goes: the sum is known before all of them said that they hold the same commitments.
    assert broken(undisturbed(3, lenient=True, machine=ReleasesEarly))


class ReleasesTwice(MaskedAverageMachine):
    """Releases in an attempt that it gives up."""

    def _abandon(self, state: RoundState, *, overflow: bool = False) -> Step:
        given_up, effects = super()._abandon(state, overflow=overflow)
        if state.own_mask is None or self.terms.me not in state.receipts:
            return given_up, effects
        released = self._release_of(
            state.replace(
                masks={self.terms.me: state.own_mask},
                receipts={name: state.receipts.get(name, bytes(64)) for name in state.members},
            ),
            self.terms.me,
        )
        return given_up, (*effects, *self._broadcast(state, released))


def test_a_release_in_two_attempts_shows() -> None:
    world = withheld(4, lenient=True, machine=ReleasesTwice)
    assert broken(world) == WITH_BERT_AND_OTHERS
    assert learns(world, {"dora"}, {("bert", 1): 1})


def masking_without(*entries: str) -> type[MaskedAverageMachine]:
    """Return a machine whose masks come from a context without these entries."""
    blank: dict[str, Any] = {"step": 0, "attempt": 0, "members": (), "base": b"", "word": 0, "exponents": b""}

    class Broken(MaskedAverageMachine):
        def _mask_vector(self, state: RoundState) -> MaskVector:
            context = dataclasses.replace(self._context(state), **{name: blank[name] for name in entries})
            return remasked(self, state, super()._mask_vector(state), context.digest())

    return Broken


def test_an_evaluation_under_the_keys_of_the_weights_shows() -> None:
    """Weights less figures: a difference of two vectors of one peer, without a mask."""
    world = undisturbed(4, lenient=True, machine=masking_without("step", "base", "word", "exponents"))
    assert broken(world) == up_to(2, *world.peers), "with one honest peer the two sums say as much"
    assert learns(world, {"cleo", "dora"}, {("anna", 1): 1, ("anna", 2): -1})
    assert not learns(world, {"cleo", "dora"}, {("anna", 1): 1})
    # The step alone may be left out: the weights that are evaluated have another digest than those before.
    assert not broken(undisturbed(4, lenient=True, machine=masking_without("step")))


def disagreeing(**options: Any) -> GameWorld:
    """anna and bert enter one attempt with different members: the relay keeps cleo's DROP of dora from anna."""
    world = GameWorld(4, averaging__evaluate_every=0, **options)
    world.loses(lambda letter: letter.send.message.kind.name == "DROP" and letter.send.recipient in ("anna", "dora"))
    world.holds = lambda name, task: name == "anna" and isinstance(task, MaskVector) and task.attempt == 0
    world.until(lambda: world.has("masks", *((name, 1, 0) for name in ("bert", "cleo", "dora"))))
    for name in ("anna", "bert", "cleo"):
        world.decide(name, "dora")
    world.settle()
    members = {item.at[0]: item.members for item in world.log if item.what == "masks" and item.at[1:] == (1, 1)}
    assert members["anna"] == ("anna", "bert", "cleo", "dora")
    assert members["bert"] == ("anna", "bert", "cleo")
    return world


def test_a_context_without_members_shows_once_receipts_do_not_help() -> None:
    """Two layers keep peers apart that disagree about the members: receipts and, below, masks that do not cancel."""
    coalition = {"cleo", "dora"}
    assert not play(disagreeing(), coalition).leaks
    assert not play(disagreeing(lenient=True, machine=ReleasesEarly), coalition).leaks, "noise, never a partial sum"

    class WithoutMembers(ReleasesEarly, masking_without("members")):  # type: ignore[misc]  # a class made above
        pass

    world = disagreeing(lenient=True, machine=WithoutMembers)
    leaks = play(world, coalition).leaks
    assert leaks, "the sum over a set that nobody agreed on"
    print(leaks[0])
    assert learns(world, coalition, {("anna", 1): 1, ("bert", 1): 1})


def rolled_back(count: int, **options: Any) -> GameWorld:
    """As `withheld`; then anna resumes from a journal of before its ABANDON, and is shown the release at last."""
    world = withheld(count, **{"averaging__evaluate_every": 0, **options})
    anna = world.peers["anna"]
    anna.state = world.remembered["anna"]
    assert anna.state.phase is Phase.RECEIPTED
    assert anna.state.attempt == 0
    to_anna = (letter for letter in world.lost if letter.send.recipient == "anna")
    release = next(letter for letter in to_anna if letter.send.message.kind.name == "RELEASE")
    world.post("anna", release.received)
    assert world.has("release", ("anna", 1, 0), ("anna", 1, 1))
    return world


def test_a_restored_journal_that_resumes_shows() -> None:
    """One vector in two sums; where others were honest in the first attempt, they have not released in it."""
    world = rolled_back(4, lenient=True)
    assert broken(world) == {frozenset({"cleo", "dora"})}
    assert learns(world, {"cleo", "dora"}, {("bert", 1): 1})


class SharesOneKey(MaskedAverageMachine):
    """Derives the masks of all pairs from the session id, which everybody knows."""

    def _mask_vector(self, state: RoundState) -> MaskVector:
        keys = dict.fromkeys(state.mask_keys, Secret(state.session_id))
        return super()._mask_vector(state.replace(mask_keys=keys))


def test_a_pair_mask_that_a_third_can_derive_shows() -> None:
    world = undisturbed(3, lenient=True, machine=SharesOneKey)
    assert broken(world) == up_to(1, *world.peers), "even the relay alone: the one stream cancels in bert's vector"
    assert learns(world, {"cleo"}, {("anna", 1): 1})
    assert learns(world, set(), {("bert", 1): 1})


@pytest.mark.parametrize(
    ("run", "options"),
    [
        (undisturbed, {"machine": LeavesPairOut}),
        (dropped, {"machine": ReleasesEarly}),
        (withheld, {"draws": same_seed}),
        (withheld, {"machine": Reuses, "draws": same_seed}),
        (withheld, {"machine": Reuses}),
        (withheld, {"machine": ReleasesTwice}),
        (overflowed, {"machine": Reuses, "draws": same_seed}),
        (rolled_back, {}),
    ],
)
def test_counting_every_table_says_the_same_of_what_is_broken(run: Run, options: dict[str, Any]) -> None:
    world = run(4, lenient=True, averaging__evaluate_every=0, **options)
    for coalition in ({"cleo", "dora"}, {"anna", "dora"}, {"bert", "dora"}):
        view = play(world, coalition)
        if not view.leaks:
            assert looks_alike(world, frozenset(coalition), view.allowed, 4)
        for leak in view.leaks:
            assert not looks_alike(world, frozenset(coalition), leak.allowed, 4, until=leak.moment), leak


# --- the real streams ------------------------------------------------------------------------------------------------


def chacha(seed: Secret, size: int) -> bytes:
    """The protocol's own key stream, in place of the test world's."""
    out = bytearray(size)
    fill(seed, out)
    return bytes(out)


def stripped(world: GameWorld, at: tuple[str, int, int], coalition: set[str]) -> npt.NDArray[np.uint32]:
    """Return a peer's masked vector less every stream whose seed the coalition knows at the end."""
    known = {column for item in world.known_to(coalition) for column in item.form}
    known |= {column for item in world.log if item.what == "release" for column in item.form}
    form, masked = world.vectors[at]
    words = np.frombuffer(masked, dtype="<u4").astype(np.uint32)
    signs: dict[int, Literal[1, -1]] = {1: -1, -1: 1}
    add_masks(words, [Mask(world.seed_of(column), signs[sign]) for column, sign in form.items() if column in known])
    return words


SHIFT = 123_456_789
SCHEDULES = 48
WORLDS: dict[Run, dict[str, int]] = {  # how a second world differs from a first; the honest sums do not
    undisturbed: {"anna": 1, "bert": 1, "cleo": -2},
    withheld: {"anna": 1, "bert": 5, "cleo": -1},  # bert is in no sum
}


def hidden(name: str, shift: int) -> list[int]:
    """What a peer hides in one of two worlds."""
    return [(1000 * place + NAMES.index(name) + shift) % 2**32 for place in range(WORDS)]


def guesses(run: Run, shift: int, schedules: int, **options: Any) -> dict[str, npt.NDArray[np.uint32]]:
    """Return what dora has left when it takes everything it knows, and the first world's vectors, from its view.

    Of each honest vector, of each difference of two, of the sum in each attempt, and of the difference of two sums.
    """
    found: dict[str, list[npt.NDArray[np.uint32]]] = defaultdict(list)
    for seed in range(schedules):
        shifts = {name: shift * factor for name, factor in WORLDS[run].items()}
        with mock.patch.object(masked_world, "stream", chacha):
            world = run(
                4,
                seed=seed,
                averaging__evaluate_every=0,
                trained=lambda name, _: hidden(name, shifts.get(name, 0)),  # noqa: B023 (called in this turn only)
                **options,
            )
        left = {
            at: stripped(world, at, {"dora"}) - np.array(hidden(at[0], 0), dtype=np.uint32)
            for at in sorted(world.vectors)
            if at[0] != "dora"
        }
        sums: dict[int, npt.NDArray[np.uint32]] = defaultdict(lambda: np.zeros(WORDS, dtype=np.uint32))
        for at, words in left.items():
            sums[at[2]] += words
            found[f"{at[0]} {at[2]}"].append(words)
        for (one, ones), (other, others) in itertools.combinations(left.items(), 2):
            found[f"{one[0]} {one[2]} - {other[0]} {other[2]}"].append(ones - others)
        for attempt, total in sums.items():
            found[f"sum {attempt}"].append(total)
        if len(sums) > 1:
            found["sum 0 - sum 1"].append(sums[0] - sums[1])
    return {combination: np.concatenate(each) for combination, each in found.items()}


def look_alike(one: npt.NDArray[np.uint32], other: npt.NDArray[np.uint32]) -> bool:
    """Compare two samples of one size; chance alone says no about once in a million times.

    All of a word by Kolmogorov and Smirnov, its lowest and its highest byte by chi-square. They need not be uniform:
    the difference of two vectors that share one mask is even or odd as their sum is.
    """
    every = np.sort(np.concatenate([one, other]))
    shares = [np.searchsorted(np.sort(each), every, side="right") / len(each) for each in (one, other)]
    far = float(np.abs(shares[0] - shares[1]).max()) > math.sqrt(-math.log(1e-6 / 2) / len(one))
    return not far and all(_counts_alike(one >> shift & 0xFF, other >> shift & 0xFF) for shift in (0, 24))


def _counts_alike(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    ones, others = (np.bincount(each, minlength=256) for each in (one, other))
    met = ones + others > 0
    distance = float(((ones - others)[met] ** 2 / (ones + others)[met]).sum())
    freedom = int(met.sum()) - 1
    return distance <= freedom + 6 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("run", [undisturbed, withheld])
def test_the_real_streams_tell_no_world_from_another(run: Run) -> None:
    """A dora that guesses the world rightly sees the same as one that guesses wrongly."""
    right, wrong = guesses(run, 0, SCHEDULES), guesses(run, SHIFT, SCHEDULES)
    final = "sum 0" if run is undisturbed else "sum 1"
    assert right.keys() == wrong.keys()
    assert not right.pop(final).any(), "the sum is known"
    assert not wrong.pop(final).any(), "and it is the same in both worlds"
    for combination in right:
        print(combination, len(right[combination]))
        assert len(right[combination]) == SCHEDULES * WORDS
        assert look_alike(right[combination], wrong[combination]), combination


def test_the_real_streams_tell_worlds_apart_when_a_mask_is_left_out() -> None:
    """Three runs are more than enough."""
    right = guesses(undisturbed, 0, 3, machine=LeavesAllOut, lenient=True)
    wrong = guesses(undisturbed, SHIFT, 3, machine=LeavesAllOut, lenient=True)
    assert not right["anna 0"].any(), "the guess was right, to the last bit"
    assert (wrong["anna 0"] == SHIFT).all()
    assert not look_alike(right["anna 0"], wrong["anna 0"])


def test_the_real_streams_tell_worlds_apart_when_an_own_mask_is_kept() -> None:
    right = guesses(withheld, 0, 3, draws=same_seed, lenient=True)
    wrong = guesses(withheld, SHIFT, 3, draws=same_seed, lenient=True)
    assert not right["sum 0 - sum 1"].any()
    assert (wrong["sum 0 - sum 1"] == 5 * SHIFT).all()
    assert not look_alike(right["sum 0 - sum 1"], wrong["sum 0 - sum 1"])
    assert look_alike(right["anna 0"], wrong["anna 0"]), "each vector alone still has the masks of its pairs"
