"""What people decide: to go on without a peer that is lost, to leave, to bring a lost one back after all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ppdl_mq.peer.orders import Order, give_order
from ppdl_mq.protocol.masked_average.state import RoundState
from ppdl_mq.protocol.phases import Phase

if TYPE_CHECKING:
    from tests.simulation.node import Node
    from tests.simulation.trial import Simulation

_LOOK_EVERY_S = 3_600.0
_SAID_AGAIN = 20  # how often at most an organisation that leaves says so


class People:
    """The people of all organisations. They give orders as the command line does, and to a peer that is down as well.

    Args:
        simulation: whose they are.
    """

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self.leavers: set[str] = set()
        self._let_go: set[tuple[str, int, str]] = set()

    @property
    def missing(self) -> set[str]:
        """Who may be missing in a round."""
        return self.leavers | {name for name, node in self._simulation.nodes.items() if node.has_been_lost}

    @property
    def are_too_few(self) -> bool:
        """Whether those of whom nobody may be missing are fewer than the manifest wants."""
        return len(self._simulation.nodes.keys() - self.missing) < self._simulation.manifest.averaging.min_peers

    # --- a peer is lost -------------------------------------------------------------------------------------------

    def lose(self, lost: Node) -> None:
        """A peer has died for good; the others hear of it by telephone, each in its own time."""
        simulation = self._simulation
        simulation.injected("lost for good")
        for node in simulation.nodes.values():
            if node is not lost:
                hears_after_s = simulation.chance.choice((0.0, 1.0, 60.0, 3_600.0)) * simulation.chance.random()
                simulation.scheduler.at(hears_after_s, self._drop, node, lost, True)
        if simulation.story.returns_after_s is not None:
            simulation.scheduler.at(simulation.story.returns_after_s, lost.come_back)

    def _drop(self, node: Node, lost: Node, is_news: bool) -> None:
        """Drop a lost peer at once, and again as long as it is waited for: each decision is for one step."""
        if node.has_ended or not lost.is_lost:
            return
        if node.folder.exists() and (is_news or lost.name in node.waits_for()):
            self._simulation.injected("drop ordered")
            give_order(node.folder, Order(drop=lost.name))
        self._simulation.scheduler.at(_LOOK_EVERY_S, self._drop, node, lost, False)

    def bring_back(self, waiting: list[Node]) -> bool:
        """Bring the lost back, if those who wait for them cannot do otherwise; return whether anybody comes.

        Before the first round nobody can go, and a step in which masks were released needs those of all its members. Of
        two that are lost before their sums one must come: what the one sent the other is with these two only.
        """
        needed = [
            node
            for node in self._simulation.nodes.values()
            if node.is_lost and any(_needs(each, node.name) for each in waiting)
        ]
        for node in needed:
            self._simulation.injected("brought back")
            node.come_back()
        return bool(needed)

    def let_go(self, waiting: list[Node]) -> bool:
        """Drop who has ended, once in a step, at each organisation that waits for it; tell whether there is one.

        Its last words are lost: by the relay, or it ended without this peer's, was told that it is dropped, or held
        this peer, which lives after all, for lost.
        """
        news = {
            (node.name, node.state.step if isinstance(node.state, RoundState) else 0, name)
            for node in waiting
            for name in node.waits_for()
            if self._simulation.nodes[name].has_ended
        } - self._let_go
        for by, _, name in sorted(news):
            self._simulation.injected("drop ordered")
            give_order(self._simulation.nodes[by].folder, Order(drop=name))
        self._let_go |= news
        return bool(news)

    # --- a peer leaves --------------------------------------------------------------------------------------------

    def leave(self, node: Node, *, times: int = _SAID_AGAIN) -> None:
        """Have a peer leave; said again as long as it has not begun its first round, in which nobody can."""
        if node.has_ended or node.is_lost or not times:
            return
        if node.folder.exists():
            self.leavers.add(node.name)
            self._simulation.injected("leave ordered")
            give_order(node.folder, Order())
        if not isinstance(node.state, RoundState) or node.name not in node.state.leaves:
            self._simulation.scheduler.at(60.0, lambda: self.leave(node, times=times - 1))


def _needs(node: Node, name: str) -> bool:
    """Tell whether a peer cannot do without another one."""
    state = node.state
    assert isinstance(state, RoundState), "only masked-average can do without a peer"
    is_released = node.name in state.masks and name in state.members and name not in state.masks
    is_one_of_two = name in state.lost and len(state.lost) > 1 and state.phase in (Phase.ADDING, Phase.GATHERING)
    return state.step == 0 or is_released or is_one_of_two
