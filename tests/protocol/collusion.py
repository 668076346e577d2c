"""The collusion game of masked-average: what a coalition and the relay can work out, exactly.

The machines of a whole trial run (tests/protocol/masked_world.py). Everything they ask to have masked, added up or sent
is written down as a linear form: every seed that was really used is a *symbol*, a uniform unknown of the ring (the PRG
as a table of true random words: the same seed is the same symbol), and every vector that a peer hides is a *secret*.
A vector's bytes are made from its form, so that what goes over the wire and what is reasoned about cannot differ.

A coalition sees, at the moment it is sent, every blob and every released seed of everybody: the seals count for nothing
here, which makes it stronger than it is. It knows its own secrets, its own seeds, and each seed that one of its mask
keys yields in any context that was ever on the wire.

Why linear algebra decides. For one word of the vectors the view is v = S s + X x in Z_m: s uniform, x the secrets. So
v is uniform on a coset of the column module of S, and two worlds x, x' give the same distribution iff X (x - x') lies
in that module. Z_m is its own dual: a vector lies in a submodule iff every functional that kills the submodule kills
the vector. Hence: iff (l X) (x - x') = 0 for each row l with l S = 0. Those l X are what is *revealed*, R. Worlds with
equal honest sums are alike iff R vanishes on all such x - x', and by the same duality iff R lies in the span of these
sums. `Known` computes R in the Howell form over Z_{p^k}, so the verdict holds for 2^32 and 2^64 themselves; words at
different places use independent symbols, and one place is looked at after the other. Forms in rings of different sizes
are compared in one: without a shared seed they are independent, with one this can only show more.

Left out, as in section 16 of docs/PROTOCOL.md: hashes (of unknown seeds, of what is seen anyway), signatures, timing
and who overflows: both worlds run the same schedule.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ppdl_mq.crypto.agreement import pair_seed
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import RemoteError
from ppdl_mq.protocol.effects import AddUp, Effect, MaskVector, Send
from ppdl_mq.protocol.events import AddedUp, Event, Masked, Overflowed
from ppdl_mq.protocol.masked_average.machine import MaskedAverageMachine
from ppdl_mq.protocol.masked_average.shards import Shards
from ppdl_mq.protocol.masked_average.state import RoundState
from ppdl_mq.protocol.slots import Slot
from ppdl_mq.protocol.statements import context_digest
from ppdl_mq.wire.messages import Commit, Receipt, Release
from tests.protocol import masked_world
from tests.protocol.masked_world import Letter, Peer, World, bytes_of, combined, sha

Form = dict[int, int]  # column: coefficient, without zeros
Place = tuple[str, int, int]  # peer, step, attempt

SECRETS: Final = 1 << 20  # columns of secrets come after those of symbols,
ITEMS: Final = 1 << 40  # and after both, when it is traced, which item of the view a row was made from
FULL_RING: Final = (2, 64)


# --- linear algebra over Z_{p^k} -------------------------------------------------------------------------------------


class Known:
    """All that follows from the forms that were seen, as a basis in Howell form.

    Args:
        prime: p.
        power: k; the ring is Z_{p^k}.
    """

    def __init__(self, prime: int, power: int) -> None:
        self.prime, self.power, self.modulus = prime, power, prime**power
        self._basis: dict[int, Form] = {}

    def learn(self, form: Mapping[int, int]) -> list[Form]:
        """Take a form in; return what it newly reveals: combinations in which no symbol is left, but a secret is."""
        news: list[Form] = []
        rows = [{column: value % self.modulus for column, value in form.items() if value % self.modulus}]
        while rows:
            row = rows.pop()
            while row and (lead := min(row)) < ITEMS:
                row = self._normal(row, lead)
                held = self._basis.get(lead)
                if held is not None and row[lead] % held[lead] == 0:
                    row = self._minus(row, row[lead] // held[lead], held)
                    continue
                self._basis[lead] = row
                if lead >= SECRETS:
                    news.append(row)
                if row[lead] > 1:  # a multiple of it is zero here, and may say something elsewhere
                    rows.append(self._minus({}, -(self.modulus // row[lead]), row))
                if held is None:
                    break
                row = held
        return news

    def yields(self, form: Mapping[int, int]) -> bool:
        """Tell whether a form follows from those that were seen."""
        row = {column: value % self.modulus for column, value in form.items() if value % self.modulus}
        while row:
            held = self._basis.get(lead := min(row))
            if held is None or row[lead] % held[lead]:
                return False
            row = self._minus(row, row[lead] // held[lead], held)
        return True

    def _normal(self, row: Form, lead: int) -> Form:
        """Return the row times a unit, so that it begins with a power of p."""
        power = 1
        while row[lead] % (power * self.prime) == 0:
            power *= self.prime
        if row[lead] == power:
            return row
        unit = pow(row[lead] // power, -1, self.modulus)
        return self._minus({}, -unit, row)

    def _minus(self, row: Mapping[int, int], factor: int, other: Mapping[int, int]) -> Form:
        result = dict(row)
        for column, value in other.items():
            left = (result.get(column, 0) - factor * value) % self.modulus
            if left:
                result[column] = left
            else:
                result.pop(column, None)
        return result


# --- what happened, in order -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Item:
    """Something that the coalition or the ideal world takes notice of.

    Args:
        at: who did it, in which step and attempt.
        what: `masks`, `sends`, `receipt` or `release`.
        members: of the attempt, as `at` sees it.
        form: what is seen of it; empty for none.
        first: the first word of the vector that the form is about.
        end: the word after the last.
        says: for people.
    """

    at: Place
    what: str
    members: tuple[str, ...] = ()
    form: Mapping[int, int] = field(default_factory=dict)
    first: int = 0
    end: int = 1 << 60
    says: str = ""


@dataclass(frozen=True)
class Span:
    """A form and the words that it holds for."""

    form: Form
    first: int
    end: int


class GameWorld(World):
    """A trial whose vectors are made from forms, and in which everything sent is written down.

    Args:
        count: of peers.
        machine: what every peer runs; a broken one, perhaps.
        draws: returns the seed of a peer's own mask, given a fresh one; `None` leaves the mask out.
        lenient: messages may be refused, and sums be wrong: something is broken.
        trained: words of the vector that a peer hides in a step of weights; None for the world's own.
        changes: for the manifest.
    """

    def __init__(
        self,
        count: int,
        *,
        seed: int = 1,
        machine: type[MaskedAverageMachine] = MaskedAverageMachine,
        draws: Callable[[Place, bytes], bytes | None] = lambda _, fresh: fresh,
        lenient: bool = False,
        trained: Callable[[str, int], list[int]] | None = None,
        **changes: Any,
    ) -> None:
        self.log: list[Item] = []
        self.labels: dict[int, str] = {}
        self.keys: dict[str, set[bytes]] = defaultdict(set)  # mask keys that a peer ever held
        self.contexts: set[bytes] = set()
        self.draws, self.lenient, self.trained = draws, lenient, trained
        self.holds: Callable[[str, Effect], bool] = lambda _, __: False  # which tasks have to wait
        self.overflows: set[Place] = set()
        self.lost: list[Letter] = []
        self.remembered: dict[str, RoundState] = {}
        self.vectors: dict[Place, tuple[Form, bytes]] = {}  # every masked vector, y
        self._symbols: dict[bytes, int] = {}
        self._secrets: dict[tuple[str, int], int] = {}
        self._own_symbols: dict[str, set[int]] = defaultdict(set)
        self._spans: dict[bytes, Span] = {}  # by digest of the bytes
        self._members: dict[Place, tuple[str, ...]] = {}
        settings = {"training__epochs": 1, "averaging__evaluate_every": 1, **changes}
        super().__init__(count, seed=seed, cheap=True, restores=False, **settings)
        for peer in self.peers.values():
            peer.machine = machine(peer.machine.terms)

    # --- driving --------------------------------------------------------------------------------------------------

    def until(self, condition: Callable[[], bool], *, limit: int = 20_000) -> None:
        """Let things happen until something holds."""
        for _ in range(limit):
            if condition():
                return
            self.step()
        raise AssertionError({name: peer.state.phase for name, peer in self.peers.items()})

    def settle(self, *, steps: int = 1_500) -> None:
        """Let things happen until everybody has ended or waits in vain; tasks that are held do not count."""
        for _ in range(steps):
            self.step()

    def loses(self, condition: Callable[[Letter], bool]) -> None:
        """Let the relay keep some messages for itself."""

        def tampers(_: str, letter: Letter) -> Letter | None:
            if not condition(letter):
                return letter
            self.lost.append(letter)
            return None

        self.tampers = tampers

    def remember(self) -> None:
        """Keep a copy of every journal, as whoever restores one later would have it."""
        self.remembered = {name: peer.state for name, peer in self.peers.items()}

    def has(self, what: str, *at: Place) -> bool:
        """Tell whether all of these did it."""
        return set(at) <= {item.at for item in self.log if item.what == what}

    def post(self, name: str, event: Event, **blob: Any) -> None:
        try:
            super().post(name, event, **blob)
        finally:
            held = self.peers[name].state.mask_keys.values()
            self.keys[name] |= {key.reveal() for key in held}

    def refused(self, name: str, letter: Letter, error: RemoteError) -> None:
        if not self.lenient:
            super().refused(name, letter, error)

    def _work(self, name: str, peer: Peer, task: Effect) -> None:
        if self.holds(name, task):
            peer.tasks.append(task)
            return
        super()._work(name, peer, task)

    def _result(self, name: str, peer: Peer, task: Effect) -> tuple[Event, bytes | None, Slot | None]:
        if isinstance(task, MaskVector) and task.word == 32 and (name, task.step, task.attempt) in self.overflows:
            return Overflowed(step=task.step, attempt=task.attempt), None, None
        return super()._result(name, peer, task)

    def vector(self, name: str, step: int) -> bytes:
        return super().vector(name, step) if self.trained is None else bytes_of(self.trained(name, step), 32)

    # --- forms ----------------------------------------------------------------------------------------------------

    def _symbol(self, seed: bytes, says: str) -> int:
        column = self._symbols.setdefault(seed, len(self._symbols))
        self.labels.setdefault(column, says)
        return column

    def _secret(self, name: str, task: MaskVector) -> int:
        column = self._secrets.setdefault((name, task.step), SECRETS + len(self._secrets))
        self.labels.setdefault(column, f"x({name}, step {task.step})")
        return column

    def _form_of(self, name: str, task: MaskVector, own: bytes) -> Form:
        """Write down what a machine asks to have masked, and with what."""
        place = f"step {task.step}, attempt {task.attempt}"
        drawn = self.draws((name, task.step, task.attempt), own)
        secret = self._secret(name, task)
        addends = [(secret, 1)]
        addends += [] if drawn is None else [(self._symbol(drawn, f"b({name}, {place})"), 1)]
        others = [each for each in task.members if each != name]
        in_order = len(others) == len(task.masks)  # unless one was left out on purpose
        for at, mask in enumerate(task.masks):
            pair = "~".join(sorted((name, others[at]))) if in_order else f"{name}~?"
            addends.append((self._symbol(mask.seed.reveal(), f"r({pair}, {place})"), mask.sign))
            if in_order:  # the other end of the pair has the same key
                self._own_symbols[others[at]].add(addends[-1][0])
        self._own_symbols[name] |= {column for column, _ in addends[1:]}
        form: dict[int, int] = defaultdict(int)
        for column, sign in addends:
            form[column] += sign
        return {column: value for column, value in form.items() if value}

    def _masked(self, name: str, peer: Peer, task: MaskVector) -> tuple[Event, bytes, Slot]:
        fresh = self.random.randbytes(32)
        seed = self.draws((name, task.step, task.attempt), fresh) or fresh
        form = self._form_of(name, task, fresh)
        masked = self._bytes_of(form, name, task)
        cuts = Shards(len(masked), len(task.members))
        digests = []
        for shard in range(cuts.count):
            first, size = cuts.start(shard), cuts.size(shard)
            digests.append(sha(masked[first : first + size]))
            if size:
                width = task.word // 8
                self._spans[digests[-1]] = Span(form, first // width, (first + size) // width)
        at = (name, task.step, task.attempt)
        self._members[at] = task.members
        self.vectors[at] = form, masked
        self.log.append(Item(at=at, what="masks", members=task.members))
        return Masked(step=task.step, attempt=task.attempt, mask=Secret(seed), shards=tuple(digests)), masked, task.into

    def _bytes_of(self, form: Form, name: str, task: MaskVector) -> bytes:
        """Return the bytes that a form of one's own secret and symbols stands for."""
        plain = self.plain(name, task)
        parts = [
            (value, plain if column >= SECRETS else masked_world.stream(self.seed_of(column), len(plain)))
            for column, value in form.items()
        ]
        return combined(parts, task.word)

    def _added(self, peer: Peer, task: AddUp) -> tuple[Event, bytes, Slot | None]:
        event, total, into = super()._added(peer, task)
        spans = [self._spans[cut.digest] for cut in task.sources]
        assert len({(span.first, span.end) for span in spans}) == 1, "shards of one place are added up"
        form: dict[int, int] = defaultdict(int)
        addends = [*((span.form, 1) for span in spans)]
        addends += [({self._symbol(seed.reveal(), "a seed of nobody"): 1}, -1) for seed in task.masks]
        for addend, sign in addends:
            for column, value in addend.items():
                form[column] += sign * value
        assert isinstance(event, AddedUp) or task.into is None
        kept = {column: value for column, value in form.items() if value}
        self._spans[sha(total)] = Span(kept, spans[0].first, spans[0].end)
        return event, total, into

    def _check_sum(self, task: Any, raw: bytes) -> None:
        if not self.lenient:
            super()._check_sum(task, raw)

    # --- what is seen ---------------------------------------------------------------------------------------------

    def _note(self, name: str, peer: Peer, send: Send) -> None:
        """Write a message down when it is handed out for sending; the world's own books are not kept."""
        message, at = send.message, (name, send.turn, send.attempt)
        says = f"{message.kind.name} of {name} to {send.recipient} (step {send.turn}, attempt {send.attempt})"
        members = self._members.get(at, ())
        if isinstance(message, Commit):
            self.contexts.add(context_digest(message.context))
        if isinstance(message, Receipt):
            self.log.append(Item(at=at, what="receipt", members=members, says=says))
        if isinstance(message, Release):
            what = "release" if message.member == name else "sends"
            seed = {self._symbol(message.mask, "a seed of nobody"): 1}
            self.log.append(Item(at=at, what=what, members=members, form=seed, says=says))
        if send.blob is not None and send.turn > 0:
            span = self._spans[send.blob.digest]
            self.log.append(
                Item(at=at, what="sends", form=span.form, first=span.first, end=span.end, members=members, says=says)
            )

    def seed_of(self, column: int) -> Secret:
        """Return the seed behind a symbol."""
        return Secret(next(seed for seed, each in self._symbols.items() if each == column))

    def owner_of(self, column: int) -> tuple[str, int]:
        """Return whose secret this is, and of which step."""
        return next(key for key, each in self._secrets.items() if each == column)

    def secret(self, name: str, step: int) -> int:
        """Return the column of a secret."""
        return self._secrets[name, step]

    def known_to(self, coalition: Iterable[str]) -> Iterator[Item]:
        """Return what members know by themselves: secrets, seeds, and seeds that their mask keys yield."""
        for name in coalition:
            columns = {column for (owner, _), column in self._secrets.items() if owner == name}
            columns |= self._own_symbols[name]
            for key, context in itertools.product(self.keys[name], self.contexts):
                column = self._symbols.get(pair_seed(Secret(key), context).reveal())
                columns |= set() if column is None else {column}
            for column in sorted(columns):
                yield Item(
                    at=(name, 0, 0), what="knows", form={column: 1}, says=f"{self.labels[column]}, which {name} knows"
                )

    def places(self) -> list[int]:
        """Return one place in the vectors of every kind: two of one kind are covered by the same items."""
        return sorted({item.first for item in self.log if item.form})


# --- the ideal world -------------------------------------------------------------------------------------------------


class Ideal:
    """What may be known: of every step one sum, over the honest members of one attempt, once all of them released.

    Args:
        honest: names.
    """

    def __init__(self, honest: frozenset[str]) -> None:
        self.honest = honest
        self.sums: dict[int, frozenset[str]] = {}  # by step
        self._members: dict[Place, tuple[str, ...]] = {}
        self._done: set[tuple[str, Place]] = set()

    def note(self, item: Item) -> None:
        """Take notice of what an honest peer did."""
        name, step, attempt = item.at
        if item.what == "masks":
            self._members[item.at] = item.members
        self._done.add((item.what, item.at))
        honest = self.honest & set(item.members)
        if item.what != "release" or name not in honest or step in self.sums:
            return
        if all(self._is_through((each, step, attempt), item.members) for each in honest):
            self.sums[step] = honest

    def _is_through(self, at: Place, members: tuple[str, ...]) -> bool:
        # Receipts must be there before the *last* release; what an earlier release alone gives away shows in the view.
        return self._members.get(at) == members and ("receipt", at) in self._done and ("release", at) in self._done

    def allows(self, revealed: Mapping[tuple[str, int], int]) -> bool:
        """Tell whether a functional of honest secrets follows from the sums."""
        for step in {step for _, step in revealed}:
            values = {name: value for (name, at), value in revealed.items() if at == step}
            if values.keys() != self.sums.get(step, frozenset()) or len(set(values.values())) > 1:
                return False
        return True


# --- the game --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leak:
    """A distinguisher.

    Args:
        coalition: who, with the relay.
        moment: the number of items of the log that it takes.
        reveals: coefficient by label, of secrets of honest peers.
        combines: coefficient and item, what it adds up.
        allowed: by step, the honest names whose sum might have been known by then.
    """

    coalition: frozenset[str]
    moment: int
    reveals: Mapping[str, int]
    combines: tuple[tuple[int, str], ...]
    allowed: Mapping[int, frozenset[str]]

    def __str__(self) -> str:
        who = " and ".join([*sorted(self.coalition), "the relay"])
        what = " ".join(f"{value:+d} {label}" for label, value in sorted(self.reveals.items()))
        how = "\n".join(f"  {value:+d} {says}" for value, says in self.combines)
        return f"{who} learn(s) {what} after {self.moment} items, adding up\n{how}"


@dataclass(frozen=True)
class View:
    """What one coalition has learned by the end: nothing more than `sums`, or leaks.

    Args:
        leaks: all distinguishers, in the order in which they become possible.
        sums: by step, the honest names whose sum is known and may be.
        allowed: by step, the honest names whose sum may be known.
    """

    leaks: tuple[Leak, ...]
    sums: Mapping[int, frozenset[str]]
    allowed: Mapping[int, frozenset[str]]


def play(world: GameWorld, coalition: Iterable[str], *, ring: tuple[int, int] = FULL_RING, trace: bool = True) -> View:
    """Play the game for one coalition, at every moment of a run and every place of the vectors.

    Args:
        world: after the run.
        coalition: names; the relay is with them.
        ring: prime and power.
        trace: when there is a leak, find out how.
    """
    colluders = frozenset(coalition)
    assert colluders < world.peers.keys(), "at least one is honest"
    leaks: dict[tuple[tuple[str, int], ...], Leak] = {}
    sums: dict[int, frozenset[str]] = {}
    allowed: Mapping[int, frozenset[str]] = {}
    for place in world.places():
        found = _play_at(world, colluders, place, ring, traced=False)
        if found.leaks and trace:
            found = _play_at(world, colluders, place, ring, traced=True)
        for leak in found.leaks:
            leaks.setdefault(tuple(sorted(leak.reveals.items())), leak)
        sums |= found.sums
        allowed = found.allowed
    return View(tuple(leaks.values()), sums, allowed)


def _play_at(world: GameWorld, colluders: frozenset[str], place: int, ring: tuple[int, int], *, traced: bool) -> View:
    ideal, known = Ideal(frozenset(world.peers) - colluders), Known(*ring)
    items = [*world.known_to(colluders), *world.log]
    begins = len(items) - len(world.log)
    seen: set[tuple[tuple[int, int], ...]] = set()
    leaks: list[Leak] = []
    learned: dict[int, frozenset[str]] = {}
    for number, item in enumerate(items):
        ideal.note(item)
        exact = tuple(sorted(item.form.items()))
        if not exact or not item.first <= place < item.end or exact in seen:
            continue
        seen.add(exact)
        for row in known.learn({**item.form, **({ITEMS + number: 1} if traced else {})}):
            owners = {world.owner_of(column): value for column, value in row.items() if column < ITEMS}
            revealed = {owner: value for owner, value in owners.items() if owner[0] in ideal.honest}
            if ideal.allows(revealed):
                learned |= {step: ideal.sums[step] for _, step in revealed}
                continue
            half = known.modulus // 2
            signed = {key: value - known.modulus if value > half else value for key, value in row.items()}
            reveals = {world.labels[column]: value for column, value in signed.items() if column < ITEMS}
            combines = tuple((value, items[key - ITEMS].says) for key, value in signed.items() if key >= ITEMS)
            leaks.append(Leak(colluders, number + 1 - begins, reveals, combines, dict(ideal.sums)))
    return View(tuple(leaks), learned, ideal.sums)


def learns(world: GameWorld, coalition: Iterable[str], what: Mapping[tuple[str, int], int], *, place: int = 0) -> bool:
    """Tell whether a coalition comes to know a combination of secrets at all, be it allowed or not.

    Args:
        world: after the run.
        coalition: names.
        what: coefficient by name and step.
        place: index of the word.
    """
    known = Known(*FULL_RING)
    for item in [*world.known_to(coalition), *world.log]:
        if item.first <= place < item.end:
            known.learn(item.form)
    return known.yields({world.secret(*owner): value for owner, value in what.items()})


def coalitions(world: GameWorld) -> Iterator[frozenset[str]]:
    """Return every set of peers that leaves one honest, the empty one (the relay alone) included."""
    names = sorted(world.peers)
    for size in range(len(names)):
        yield from map(frozenset, itertools.combinations(names, size))


def leaking(world: GameWorld) -> dict[frozenset[str], tuple[Leak, ...]]:
    """Play against every coalition; return those that learn too much."""
    views = {coalition: play(world, coalition) for coalition in coalitions(world)}
    return {coalition: view.leaks for coalition, view in views.items() if view.leaks}
