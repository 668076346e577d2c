"""What goes wrong in one trial, and when: all of it follows from the seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tests.simulation.trial import Simulation

PROTOCOLS = ("server-aided", "fully-connected", "masked-average")
NAMES = ("anna", "bert", "cleo", "dora")


class Trial(NamedTuple):
    """What a story is about: what the trial comes to when nothing goes wrong follows from this alone."""

    protocol: str
    count: int
    changes: tuple[tuple[str, Any], ...] = ()
    grows: tuple[tuple[str, int], ...] = ()


@dataclass(kw_only=True)
class Story:
    """One trial, and its misfortunes. Rates are probabilities, each time something of the kind happens.

    Args:
        seed: everything follows from it.
        protocol: of the trial.
        count: of peers.
        changes: to the manifest.
        grows: (peer, round) in which what the peer trains does not fit 32 bits.
        patience_s: of the peers.
        calm_after_s: from when on the relay is honest, and nobody is killed any more.
        deaths: (peer, kind of moment or "" for any, how many of these it survives in each life).
        death: rate at every moment.
        doomed: peers whose first death in a round is for good, so that the others' people drop them.
        returns_after_s: when one that is lost is back all the same; None if only when nobody can do without it.
        events: (when, what, whose), one after the other.
    """

    seed: int
    protocol: str
    count: int
    changes: dict[str, Any] = field(default_factory=dict)
    grows: tuple[tuple[str, int], ...] = ()
    patience_s: float = 300.0
    audit_rate: float = 0.0
    small_inline: bool = False
    calm_after_s: float = 0.0
    loss: float = 0.0
    duplicates: float = 0.0
    tampering: float = 0.0
    replays: float = 0.0
    late: float = 0.0
    jitter_s: float = 0.0
    cut: float = 0.0
    nack: float = 0.0
    death: float = 0.0
    deaths: list[tuple[str, str, int]] = field(default_factory=list)
    events: list[tuple[float, str, str]] = field(default_factory=list)
    doomed: frozenset[str] = frozenset()
    returns_after_s: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return NAMES[: self.count]

    @property
    def has_budget(self) -> bool:
        """Whether the peers count against a privacy budget, which changes nothing else."""
        return self.seed % 4 == 3

    def is_hostile(self, simulation: Simulation) -> bool:
        return simulation.elapsed_s < self.calm_after_s

    def grows_of(self, name: str) -> frozenset[int]:
        return frozenset(number for who, number in self.grows if who == name)

    @property
    def trial(self) -> Trial:
        return Trial(self.protocol, self.count, tuple(sorted(self.changes.items())), self.grows)


MOMENTS = (
    "before commit",
    "after commit",
    "before publish",
    "after publish",
    "before confirm",
    "before ack",
    "after ack",
    "before get",
    "before purge",
    "after purge",
    "before delete",
    "after delete",
    "before schema",
    "before open of live secrets",
    "before fsync of live secrets",
    "after fsync of live secrets",
    "before rename of live secrets",
    "after rename of live secrets",
    "before unlink of live secrets",
    "after unlink of live secrets",
    "before open of blob",
    "before pwrite of blob",
    "after pwrite of blob",
    "before fdatasync of blob",
    "after fdatasync of blob",
    "before unlink of blob",
    "after unlink of blob",
    "before write of progress",
    "before replace of model",
    "after replace of model",
    "before write of status",
    "before fsync of transcript",
)


DOOMS = (  # and how many of them there are in two rounds
    ("before commit", 96),
    ("after commit", 96),
    ("before publish", 50),
    ("after publish", 50),
    ("before ack", 28),
    ("after rename of live secrets", 20),
    ("before unlink of live secrets", 20),
)


def story_of(seed: int) -> Story:
    """Return the story of a seed."""
    chance = random.Random(seed)
    protocol = PROTOCOLS[seed % 3]
    is_masked = protocol == "masked-average"
    count = chance.choice((2, 2, 2, 3)) if is_masked else chance.choice((2, 3, 3))
    changes: dict[str, Any] = {"training__epochs": chance.choice((1, 1, 1, 2) if is_masked else (1, 2))}
    if is_masked:
        changes["averaging__evaluate_every"] = chance.choice((0, 1))
    story = Story(
        seed=seed,
        protocol=protocol,
        count=count,
        changes=changes,
        audit_rate=chance.choice((0.0, 0.5)) if is_masked else 0.0,
        small_inline=chance.random() < 0.5,
        calm_after_s=chance.choice((600.0, 3_600.0, 6 * 3_600.0)),
        loss=chance.choice((0, 0, 0.02, 0.1)),
        duplicates=chance.choice((0, 0.1)),
        tampering=chance.choice((0, 0, 0.05)),
        replays=chance.choice((0, 0.05)),
        late=chance.choice((0, 0, 0.02)),
        jitter_s=chance.choice((0, 1, 60)),
        cut=chance.choice((0, 0, 0.01)),
        nack=chance.choice((0, 0, 0.03)),
        death=chance.choice((0, 0, 0.003)),
    )
    for _ in range(chance.choice((0, 1, 2, 4))):
        story.deaths.append((chance.choice(story.names), chance.choice(MOMENTS), int(chance.expovariate(0.2))))
    for _ in range(chance.choice((0, 0, 1, 3))):
        kind = chance.choice(("kill", "stop", "cut off", "disk full", "disk full", "break", "empty queue", "roll back"))
        when = chance.uniform(0, chance.choice((10, 100, 1_200)))
        story.events.append((when, kind, chance.choice(story.names)))
    if chance.random() < 0.15:  # a disk on which others write as well
        victim = chance.choice(story.names)
        story.events += [(chance.uniform(0, 60), "disk full", victim) for _ in range(8)]
    if is_masked:
        more = random.Random(seed + 2_000_000_011)  # another: the rest of a seed's story stays
        _add_departures(story, more)
        _add_overflows(story, more)
    return story


def _add_departures(story: Story, chance: random.Random) -> None:
    """Let a peer be lost for good, or leave, in a quarter of all stories."""
    if chance.random() >= 0.25:
        return
    story.count = max(story.count, chance.choice((2, 3, 3, 3, 3, 3, 3, 4)))  # those who have misfortunes stay
    story.changes["training__epochs"] = chance.choice((1, 2, 2))
    who = chance.sample(story.names, 2)
    what = chance.choice(("drop", "drop", "drop", "leave", "leave", "both"))
    if what != "leave":
        story.doomed = frozenset(who[:1])
        story.returns_after_s = chance.choice((None, None, 300.0, 10_000.0, 100_000.0))
        moment, many = chance.choice(DOOMS)
        story.deaths.append((who[0], moment, chance.randrange(many // 8, many)))
        story.events.append((chance.uniform(0, 600), "kill", who[0]))
    if what != "drop":
        story.events.append((chance.uniform(0, chance.choice((10, 100, 1_200))), "leave", who[1]))


def _add_overflows(story: Story, chance: random.Random) -> None:
    if chance.random() < 0.2:
        rounds = story.changes["training__epochs"]
        grows = {(chance.choice(story.names), chance.randint(1, rounds)) for _ in range(chance.choice((1, 1, 2)))}
        story.grows = tuple(sorted(grows))
