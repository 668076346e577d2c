"""How peers part: each tells the others that it has finished, and none leaves before it knows that of the others.

That the relay confirmed a peer's last word is not enough: what it loses after that only the peer itself can send again.

Source: docs/PROTOCOL.md, section 13.7.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType

from ppdl_mq.crypto.identity import verify
from ppdl_mq.errors import Equivocation, OutOfTurn, SplitView
from ppdl_mq.protocol.effects import Discard, Record, Send
from ppdl_mq.protocol.events import Decided, Received, Sent
from ppdl_mq.protocol.machine import NotYet
from ppdl_mq.protocol.masked_average.flow import Flow, Step
from ppdl_mq.protocol.masked_average.state import RoundState
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.session import message_as
from ppdl_mq.protocol.statements import final_statement
from ppdl_mq.wire.messages import Done


class ClosingSteps(Flow):
    """The handlers of DONE, and of what stands for one."""

    def _prior_step(self, step: int) -> int:
        """Return the number of the step that was finished before this one; 0 for the initial weights."""
        if step <= 1:
            return 0
        return step - 1 if step % 2 == 0 or self._is_evaluated((step - 1) // 2) else step - 2

    def _part(self, state: RoundState, names: Iterable[str], step: int, *, awaited: Iterable[str]) -> Step:
        """Tell peers that this one has finished a step, and begins no other with them.

        Args:
            state: with what the step came to.
            names: of these peers; who was told before is not told again.
            step: which.
            awaited: those of them of whom the same is to be heard.
        """
        told = [name for name in names if name not in state.parted]
        if not told:
            return state, ()
        done = self._done(state, step)
        parted = {**state.parted, **{name: (step, state.base) for name in awaited if name in told}}
        sends = tuple(Send(recipient=name, reader=name, turn=step, message=done) for name in told)
        record = self._record_done(state, self.terms.me, step, done)
        return state.replace(parted=MappingProxyType(parted)), (record, *sends)

    def _done(self, state: RoundState, step: int) -> Done:
        return Done(digest=state.base, signature=self.terms.sign(final_statement(state.session_id, step, state.base)))

    def _record_done(self, state: RoundState, by: str, step: int, done: Done) -> Record:
        about = {"session": state.session_id, "turn": step, "digest": done.digest}
        return Record(by=by, says="final", about=about, signature=done.signature)

    def _awaited(self, state: RoundState) -> frozenset[str]:
        """Return who may still need something of this peer before it can finish."""
        return frozenset(state.parted) - state.done

    def _on_done(self, state: RoundState, event: Received) -> Step:
        done, sender, step = message_as(Done, event), event.sender, event.turn
        verify(self.terms.peers[sender], done.signature, final_statement(state.session_id, step, done.digest))
        if sender not in state.parted:
            if state.phase is Phase.CLOSING or step < self._prior_step(state.step):
                return state, ()  # nothing of it is waited for
            raise NotYet(f"{sender} has finished before this peer has, or its LEAVE is still on its way.")
        last, digest = state.parted[sender]
        record = self._record_done(state, sender, step, done)
        if step == last and done.digest != digest:
            # Its AGREE, or what it committed to, was over ours. Nobody agrees on initial weights: the founder may lie.
            kind = Equivocation if step else SplitView
            raise kind(f"{sender} signed other final weights than those that it agreed on.", records=(record,))
        if step < last:
            raise OutOfTurn(f"{sender} says that it has finished less than it agreed on.")
        if sender in state.done:
            return state, ()
        return self._advance(state.replace(done=state.done | {sender}), (record,))

    def _on_sent(self, state: RoundState, event: Sent) -> Step:
        """An inbox that is gone stands for a DONE: a peer removes its own once it has left with all it needs."""
        if not event.is_gone or event.recipient not in self._awaited(state):
            return state, ()
        return self._advance(state.replace(done=state.done | {event.recipient}))

    def _on_given_up(self, state: RoundState, event: Decided) -> Step:
        """People decided to wait no longer for a peer that has, or has not, what it needs."""
        if event.name not in self._awaited(state):
            return state, ()
        return self._advance(state.replace(done=state.done | {event.name}))

    def _closing(self, state: RoundState) -> RoundState:
        """Return the state of a peer that begins nothing any more, without the keys of what it might have begun."""
        return state.of_attempt(phase=Phase.CLOSING, mask_keys=MappingProxyType({}))

    def _close(self, state: RoundState) -> Step:
        """End, leave or end early, without the session's secrets."""
        final = Phase.ENDED_EARLY if state.too_few else Phase.ENDED
        if self.terms.me in state.leaves:
            final = Phase.LEFT
        return state.of_attempt(phase=final).without_secrets(), (Discard(step=state.step),)
