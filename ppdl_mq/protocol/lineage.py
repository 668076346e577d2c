"""How weights descend from those that their reader gave away: made for a reader, and checked by it.

Source: docs/PROTOCOL.md, section 8.
"""

from __future__ import annotations

from ppdl_mq.crypto.identity import verify
from ppdl_mq.errors import OutOfTurn, Unauthentic
from ppdl_mq.protocol.events import Received
from ppdl_mq.protocol.state import Chain, State
from ppdl_mq.protocol.statements import NO_TURN_BEFORE, turn_statement
from ppdl_mq.protocol.terms import Terms
from ppdl_mq.wire.messages import Lineage, Statement


def extended(terms: Terms, chain: Chain, statements: tuple[Statement, ...]) -> Chain:
    """Return a chain with these statements added; it keeps two cycles, in which every peer has a turn."""
    return chain.extended(statements, keep=2 * len(terms.peers))


def lineage_for(terms: Terms, chain: Chain, reader: str) -> Lineage:
    """Return how the newest weights of `chain` descend from the last turn of `reader`."""
    since, anchor = _last_turn(terms, chain, reader, before=chain.last_turn + 1)
    return Lineage(anchor=anchor, chain=chain.since(since))


def checked_chain(terms: Terms, state: State, event: Received, lineage: Lineage) -> Chain:
    """Return this peer's chain extended by `lineage`, every statement of which was checked.

    Raises:
        OutOfTurn: it does not begin at this peer's last turn: rolled back, replayed or forked.
        Unauthentic: a statement does not hold, or the weights are not those of the last one.
    """
    since, before = _last_turn(terms, state.chain, terms.me, before=event.turn + 1)
    if lineage.anchor != before or len(lineage.chain) != event.turn - since:
        raise OutOfTurn(f"The weights of {event.sender} do not descend from those that this peer gave away.")
    for number, stated in enumerate(lineage.chain, start=since + 1):
        maker = terms.schedule.turn(max(number, 1)).peer  # the founder states turn 0, too
        statement = turn_statement(state.session_id, number, before, stated.digest)
        verify(terms.peers[maker], stated.signature, statement)
        before = stated.digest
    if before != event.blob_digest:
        raise Unauthentic(f"The weights of {event.sender} are not the ones that it signed.")
    return extended(terms, state.chain, lineage.chain)


def _last_turn(terms: Terms, chain: Chain, peer: str, *, before: int) -> tuple[int, bytes]:
    """Return number and digest of a peer's last turn before turn `before`; -1 and zeros if it had none."""
    last = terms.last_turn_of(peer, before)
    return (-1, NO_TURN_BEFORE) if last is None else (last, chain.digest_of(last))
