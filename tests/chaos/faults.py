"""What happens to a trial: peers die, brokers die, networks fail. Each fault begins, lasts, and ends.

A fault is chosen and shaped by a seeded generator. The sleeps in here are the length of a fault; nothing waits by them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from pika.exceptions import ChannelClosedByBroker

from tests.chaos.proxy import FAIR, Proxy, Weather
from tests.chaos.trial import ChaosTrial
from tests.rabbit import RabbitNode

_BUSY = 0.7  # share of the deaths that are to hit a peer at work: others have less to lose
_MAIL_S = 5.0
RECOVERY_S = 180.0  # heartbeats alone may take 90 s to find out that a connection has been forgotten


@dataclass
class World:
    """A trial and what it runs on.

    Args:
        trial: under way.
        nodes: of the broker: one, or a cluster.
        proxies: between each peer and the nodes.
        draw: decides everything.
    """

    trial: ChaosTrial
    nodes: Sequence[RabbitNode]
    proxies: dict[str, tuple[Proxy, ...]]
    draw: random.Random

    def victim(self) -> str | None:
        """Choose a peer whose process runs, mostly the one whose turn it is; None when all have ended."""
        at_work, busy = self.trial.at_work(), self.trial.next_at_work()
        if busy in at_work and self.draw.random() < _BUSY:
            return busy
        return self.draw.choice(at_work) if at_work else None

    def node(self) -> RabbitNode | None:
        """Choose a node that runs; None where another fault has left no broker that could be asked for anything."""
        running = self.running()
        return self.draw.choice(running) if running else None

    def running(self) -> list[RabbitNode]:
        """Return the nodes that run; none where they are no majority, since a cluster pauses then."""
        running = [node for node in self.nodes if node.is_running]
        return running if 2 * len(running) > len(self.nodes) else []


Fault = Callable[[World], AbstractContextManager[None]]


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Args:
        fault: begins with the block and ends with it.
        least_s: how long it lasts at least.
        most_s: and at most.
        weight: how often it is chosen, beside the others.
    """

    fault: Fault
    least_s: float
    most_s: float
    weight: float = 1.0


@dataclass(frozen=True)
class Struck:
    """A fault that is over.

    Args:
        kind: its name; two that met are joined by a plus.
        recovered_s: seconds from its end to the next progress of the trial.
    """

    kind: str
    recovered_s: float


# --- peers -----------------------------------------------------------------------------------------------------------


@contextmanager
def killed(world: World) -> Iterator[None]:
    """Kill -9 a peer."""
    victim = world.victim()
    if victim is not None:
        world.trial.kill(victim)
    yield
    if victim is not None:
        world.trial.run(victim)


@contextmanager
def terminated(world: World) -> Iterator[None]:
    """Send a peer SIGTERM."""
    victim = world.victim()
    if victim is not None:
        world.trial.terminate(victim)
    yield
    if victim is not None:
        world.trial.run(victim)


# --- the broker ------------------------------------------------------------------------------------------------------


@contextmanager
def broker_killed(world: World) -> Iterator[None]:
    """Kill -9 a node, any one of a cluster."""
    node = world.node()
    with _killed(node):
        yield


@contextmanager
def _killed(node: RabbitNode | None) -> Iterator[None]:
    if node is not None:
        node.kill()
    yield
    if node is not None:
        node.start()


@contextmanager
def broker_killed_with_mail(world: World) -> Iterator[None]:
    """Kill -9 a node that holds messages for a dead peer, which nobody else has any more."""
    victim, node = world.victim(), world.node()
    if victim is not None:
        world.trial.kill(victim)
        if node is not None:
            _until_mail(node, world.trial.queue(victim))
    with _killed(node):
        yield
    if victim is not None:
        world.trial.run(victim)


def _until_mail(node: RabbitNode, queue: str) -> None:
    """Wait until messages lie in a queue; some seconds, since perhaps none is due."""
    ends_at = time.monotonic() + _MAIL_S
    with node.channel() as channel:
        while time.monotonic() < ends_at:
            try:
                found = channel.queue_declare(queue, passive=True).method.message_count
            except ChannelClosedByBroker:
                return  # the victim had ended, and removed its inbox
            if found:
                return
            time.sleep(0.05)  # between two looks at another process


@contextmanager
def leader_killed(world: World) -> Iterator[None]:
    """Kill -9 the node that leads a queue of the trial."""
    running = world.running()
    listed = running[0].ctl("list_queues", "--silent", "name", "leader").splitlines() if running else []
    leaders = sorted(
        {line.split()[1] for line in listed if world.trial.manifest.name in line and len(line.split()) == 2}
    )
    node = next((each for each in running if leaders and each.name == leaders[0]), running[0] if running else None)
    with _killed(node):
        yield


@contextmanager
def alarm(world: World) -> Iterator[None]:
    """Have the broker believe that it is out of memory: it takes no messages, and says so."""
    node = world.node()
    if node is not None:
        node.ctl("set_vm_memory_high_watermark", "0.000001")
    yield
    if node is not None:
        node.ctl("set_vm_memory_high_watermark", "0.4")


@contextmanager
def connections_closed(world: World) -> Iterator[None]:
    """Have the administrator close all connections."""
    for node in world.running():
        node.ctl("close_all_connections", "maintenance")
    yield


# --- the network of one peer -----------------------------------------------------------------------------------------


def weather(make: Callable[[random.Random], Weather]) -> Fault:
    """Return the fault that gives one peer's network another weather."""

    @contextmanager
    def change(world: World) -> Iterator[None]:
        ways, then = world.proxies[world.draw.choice(sorted(world.proxies))], make(world.draw)
        for way in ways:
            way.turn(then)
        yield
        for way in ways:
            way.turn(FAIR)

    return change


@contextmanager
def forgotten(world: World) -> Iterator[None]:
    """Have a firewall forget a peer's connections: neither end is told."""
    for way in world.proxies[world.draw.choice(sorted(world.proxies))]:
        way.forget()
    yield


@contextmanager
def forgotten_and_killed(world: World) -> Iterator[None]:
    """Take the power from a peer's machine: the broker is not told, and believes for a while that it is there."""
    victim = world.victim()
    if victim is not None:
        for way in world.proxies[victim]:
            way.forget()
        world.trial.kill(victim)
    yield
    if victim is not None:
        world.trial.run(victim)


KINDS: dict[str, Kind] = {
    "peer killed": Kind(killed, 0.0, 0.2, 3.0),
    "peer killed, back later": Kind(killed, 1.0, 30.0),
    "peer terminated": Kind(terminated, 0.0, 0.5),
    "broker killed": Kind(broker_killed, 0.0, 15.0),
    "broker killed, with mail for a dead peer": Kind(broker_killed_with_mail, 0.0, 5.0),
    "broker's memory alarm": Kind(alarm, 1.0, 15.0, 0.7),
    "connections closed by the broker": Kind(connections_closed, 0.0, 0.0, 0.7),
    "network cut": Kind(weather(lambda _: Weather(cut=True)), 1.0, 60.0, 0.7),
    "network cut for minutes": Kind(weather(lambda _: Weather(cut=True)), 120.0, 180.0, 0.1),
    "network silent": Kind(weather(lambda _: Weather(silent=True)), 1.0, 25.0, 0.7),
    "network silent for minutes": Kind(weather(lambda _: Weather(silent=True)), 100.0, 150.0, 0.05),
    "network slow": Kind(weather(lambda draw: Weather(latency_s=draw.uniform(0.02, 0.2))), 1.0, 10.0),
    "5 % packet loss": Kind(weather(lambda draw: Weather(loss=0.05, latency_s=draw.uniform(0.0, 0.05))), 1.0, 10.0),
    "network narrow": Kind(weather(lambda _: Weather(bytes_per_s=64_000)), 1.0, 10.0),
    "connections forgotten": Kind(forgotten, 0.0, 0.0, 0.1),
    "power lost": Kind(forgotten_and_killed, 0.0, 5.0, 0.1),
}
CLUSTER_KINDS: dict[str, Kind] = KINDS | {"leader killed": Kind(leader_killed, 0.0, 10.0, 2.0)}


def chosen(draw: random.Random, kinds: dict[str, Kind], count: int) -> tuple[str, ...]:
    """Choose some kinds by weight; fewer than `count` where one is drawn twice."""
    weights = [kind.weight for kind in kinds.values()]
    return tuple(dict.fromkeys(draw.choices(list(kinds), weights, k=count)))


def strike(world: World, kinds: dict[str, Kind], *, longest_s: float, recovery_s: float) -> Struck | None:
    """Let these faults happen together, and wait until the trial comes further.

    Args:
        world: to whom.
        kinds: by name.
        longest_s: none lasts longer.
        recovery_s: the trial comes further within this time.

    Returns:
        What happened, or None where the trial ended before the faults did.
    """
    with ExitStack() as under_way:
        lasts_s = 0.0
        for kind in kinds.values():
            lasts_s = max(lasts_s, world.draw.uniform(kind.least_s, kind.most_s))
            under_way.enter_context(kind.fault(world))
        world.trial.pause(min(lasts_s, longest_s))
    if world.trial.has_ended:
        return None
    over_at = time.time()
    return Struck(" + ".join(kinds), world.trial.until_further(over_at, recovery_s))
