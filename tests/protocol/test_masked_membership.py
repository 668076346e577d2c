"""Section 16 of docs/PROTOCOL.md, row by row: DROP and LEAVE, forged or by too few."""

from __future__ import annotations

import dataclasses
import itertools
from types import MappingProxyType

import pytest

from ppdl_mq.config import limits
from ppdl_mq.errors import (
    Dropped,
    Malformed,
    OutOfTurn,
    Unauthentic,
)
from ppdl_mq.protocol.effects import Record, Send
from ppdl_mq.protocol.events import Decided
from ppdl_mq.protocol.machine import NotYet
from ppdl_mq.protocol.masked_average.membership import remaining
from ppdl_mq.protocol.masked_average.state import Commitment, RoundState
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.statements import (
    drop_statement,
    leave_statement,
)
from ppdl_mq.wire import canonical
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.messages import Drop, Leave, SignedSum
from tests.protocol.masked_lies import (
    EVERYBODY,
    HONEST,
    SEEDS,
    ended,
    finished_well,
)
from tests.protocol.masked_scene import Scene, of
from tests.protocol.masked_world import Letter


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
