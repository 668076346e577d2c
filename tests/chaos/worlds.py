"""Brings up a trial behind proxies, lets faults happen to it, and judges how it ended."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.chaos.faults import RECOVERY_S, Kind, Struck, World, chosen, strike
from tests.chaos.proxy import Proxy
from tests.chaos.trial import NAMES, ChaosTrial, Outcome, peers_of
from tests.rabbit import RabbitNode

END_S = 240.0


@contextmanager
def world(
    folder: Path, protocol: str, epochs: int, nodes: Sequence[RabbitNode], *, seed: str, name: str
) -> Iterator[World]:
    """Start a trial of four peers, each behind proxies of its own.

    Args:
        folder: empty, or to be made.
        protocol: of the trial.
        epochs: how long it is.
        nodes: of the broker; with several of them the queues are quorum queues.
        seed: decides everything.
        name: of the trial.
    """
    draw = random.Random(seed)
    with ExitStack() as stack:
        started = stack.enter_context(peers_of(folder))
        proxies: dict[str, tuple[Proxy, ...]] = {}
        for peer in NAMES:  # as many ways to the broker as it has nodes; all fail together with the peer's network
            ways = (Proxy([node.port], seed=f"{seed} {peer} {number}") for number, node in enumerate(nodes))
            proxies[peer] = tuple(stack.enter_context(way) for way in ways)
        urls = {peer: ",".join(f"127.0.0.1:{way.port}" for way in ways) for peer, ways in proxies.items()}
        trial = ChaosTrial(
            folder,
            name,
            protocol,
            epochs,
            {peer: f"amqp://guest@{hosts}/" for peer, hosts in urls.items()},
            nodes[0],
            started,
            queue_type="quorum" if len(nodes) > 1 else "classic",
        )
        yield World(trial, nodes, proxies, draw)


def disturb(
    found: World,
    kinds: dict[str, Kind],
    *,
    plan: Sequence[str] | None = None,
    calm_s: float = 1.0,
    longest_s: float = math.inf,
    two_at_once: float = 0.0,
    recovery_s: float = RECOVERY_S,
) -> tuple[list[Struck], Outcome]:
    """Let faults happen until the trial has ended, or the plan has; then wait for its end.

    Args:
        found: the trial and what it runs on.
        kinds: of faults, by name.
        plan: these, in this order; None to choose by chance for as long as the trial lasts.
        calm_s: the longest pause between two faults.
        longest_s: no fault lasts longer.
        two_at_once: how likely two faults meet, without a plan.
        recovery_s: after each of them the trial comes further within this time.
    """
    trial, draw = found.trial, found.draw
    struck: list[Struck] = []
    trial.until_further(0.0, END_S)
    while not trial.has_ended and (plan is None or len(struck) < len(plan)):
        trial.pause(draw.uniform(0.0, calm_s))
        names = (plan[len(struck)],) if plan is not None else chosen(draw, kinds, 1 + (draw.random() < two_at_once))
        happened = strike(found, {name: kinds[name] for name in names}, longest_s=longest_s, recovery_s=recovery_s)
        if happened is not None:
            struck.append(happened)
    return struck, trial.finish(END_S)
