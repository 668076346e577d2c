"""One attempt: commitments and masked shards, receipts, release. Source: docs/PROTOCOL.md, section 13.2, 1 to 4."""

from __future__ import annotations

import hashlib
import hmac
from types import MappingProxyType
from typing import Final

from ppdl_mq.crypto.agreement import mask_commitment
from ppdl_mq.crypto.identity import verify
from ppdl_mq.crypto.secret import Secret
from ppdl_mq.errors import Equivocation, Malformed, Misdirected, OutOfTurn, SplitView, Unauthentic
from ppdl_mq.protocol.effects import Adopt, Effect, Record, Send
from ppdl_mq.protocol.events import Masked, Received
from ppdl_mq.protocol.machine import NotYet
from ppdl_mq.protocol.masked_average.context import Context
from ppdl_mq.protocol.masked_average.flow import Flow, Step
from ppdl_mq.protocol.masked_average.state import Commitment, RoundState
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.session import added, message_as
from ppdl_mq.protocol.slots import Cut
from ppdl_mq.protocol.statements import commitment_statement, context_digest, receipt_statement
from ppdl_mq.wire.messages import Commit, MaskedShard, Receipt, Release

_NOTHING: Final = hashlib.sha256(b"").digest()  # digest of an empty shard


class ExchangeSteps(Flow):
    """The handlers up to the release."""

    # --- commitments and shards ----------------------------------------------------------------------------------

    def _on_masked(self, state: RoundState, event: Masked) -> Step:
        if not self._is_now(state, event) or state.phase is not Phase.MASKING:
            return state, ()  # given up in the meantime: nothing of it is ever sent
        terms, context = self.terms, self._context(state)
        mask = mask_commitment(context.digest(), terms.me, event.mask)
        signature = terms.sign(commitment_statement(context.digest(), mask, event.shards))
        commit = Commit(context=context.encode(), shards=event.shards, mask=mask, signature=signature)
        committed = state.replace(
            phase=Phase.COMMITTED,
            own_mask=event.mask,
            commits=added(state.commits, terms.me, Commitment(mask, event.shards, signature)),
        )
        record = self._record_commit(terms.me, commit)
        return self._advance(committed, (record, *self._broadcast(state, commit), *self._masked_shards(committed)))

    def _masked_shards(self, state: RoundState) -> tuple[Send, ...]:
        """Return the sending of every shard that is not empty: to its owner, and this peer's own to its deputy."""
        me = self.terms.me
        owners = [(name, self._index(state, name)) for name in self._others(state)]
        readers = [*owners, (self._deputy(state, me), self._index(state, me))]
        filled = self._shards(state).filled
        return tuple(self._masked_shard(state, name, shard) for name, shard in readers if shard in filled)

    def _masked_shard(self, state: RoundState, to: str, shard: int) -> Send:
        """Return the sending of a shard of this peer's masked vector."""
        return Send(
            recipient=to,
            reader=to,
            turn=state.step,
            attempt=state.attempt,
            message=MaskedShard(context=self._context(state).digest(), shard=shard),
            blob=self._own_cut(state, shard),
            ordinal=shard,
        )

    def _own_cut(self, state: RoundState, shard: int) -> Cut:
        shards = self._shards(state)
        digest = state.commits[self.terms.me].shards[shard]
        return Cut(self._masked(state), digest, start=shards.start(shard), size=shards.size(shard))

    def _record_commit(self, by: str, commit: Commit) -> Record:
        about = {"context": commit.context, "mask": commit.mask, "shards": list(commit.shards)}
        return Record(by=by, says="commitment", about=about, signature=commit.signature)

    def _on_commit(self, state: RoundState, event: Received) -> Step:
        commit = message_as(Commit, event)
        if not self._is_of_attempt(state, event):
            return state, ()
        statement = commitment_statement(context_digest(commit.context), commit.mask, commit.shards)
        verify(self.terms.peers[event.sender], commit.signature, statement)
        if commit.context != self._context(state).encode():
            return self._on_other_context(state, event.sender, commit)
        shards = self._shards(state)
        if len(commit.shards) != len(state.members) or any(
            commit.shards[shard] != _NOTHING for shard in range(shards.count) if not shards.size(shard)
        ):
            raise Malformed(f"{event.sender} committed itself to other shards than there are.")
        theirs = Commitment(commit.mask, commit.shards, commit.signature)
        known = state.commits.get(event.sender)
        if known is not None:
            if (known.mask, known.shards) == (theirs.mask, theirs.shards):
                return state, ()
            raise Equivocation(
                f"{event.sender} committed itself to two different things in one attempt.",
                records=(self._record_commit(event.sender, commit),),
            )
        committed = state.replace(commits=added(state.commits, event.sender, theirs))
        return self._advance(committed, (self._record_commit(event.sender, commit),))

    def _on_other_context(self, state: RoundState, sender: str, commit: Commit) -> Step:
        """Pass over a context that differs in what this peer will learn too; refuse every other.

        Raises:
            SplitView: the weights that it stands on differ, or the numbers that follow from them.
            Malformed, Misdirected: anything else.
        """
        # A transcript that holds it must be one that others can read: its form comes before what it says.
        theirs = Context.decode(commit.context)
        theirs.check_commitment(sender, len(commit.shards), self.terms.peers)
        fields = self._context(state).differences(theirs)
        if fields & {"base", "exponents"} and fields <= {"base", "exponents", "members", "word"}:
            what = "other weights" if "base" in fields else "other exponents"
            records = (self._record_commit(sender, commit),)
            raise SplitView(f"{sender} stands on {what} than this peer.", records=records)
        if not fields <= {"members", "word"}:
            raise Misdirected(f"{sender} committed itself in another context.")
        has_moved = self.terms.me in state.masks or self.terms.me in state.abandons
        if (state.word, theirs.word) == (32, 64) and not has_moved:
            # Somebody told it of an overflow, and not this peer: with this peer's own word for it all will know.
            given_up, effects = self._abandon(state, overflow=True)
            return self._advance(given_up, (self._record_commit(sender, commit), *effects))
        return state, ()

    def _on_shard(self, state: RoundState, event: Received) -> Step:
        masked = message_as(MaskedShard, event)
        if not self._is_of_attempt(state, event):
            return state, ()
        sender, shard = event.sender, masked.shard
        if masked.context != self._context(state).digest():  # as its commitment, which was passed over
            return state, ()
        commit = state.commits.get(sender)
        if commit is None:
            raise NotYet(f"A shard of {sender} came before its commitment.")
        if (sender, shard) in state.shards:
            return state, ()
        self._check_is_mine(state, sender, shard)
        self._check_blob(state, event, shard, commit.shards[shard])
        taken = state.replace(shards=state.shards | {(sender, shard)})
        keeps = Adopt(slot=self._slot(state, sender, shard), are_weights=False)
        return self._advance(taken, (keeps,))

    def _check_is_mine(self, state: RoundState, sender: str, shard: int) -> None:
        me = self.terms.me
        if shard >= len(state.members):
            raise Malformed(f"{sender} sent a shard that does not exist.")
        owner = state.members[shard]
        if owner == me:
            return
        if self._deputy(state, owner) != me:
            raise OutOfTurn(f"{sender} sent a shard that is not this peer's.")
        if owner not in (sender, *state.lost):
            raise NotYet(f"{sender} holds {owner} for lost, and this peer does not.")

    def _check_blob(self, state: RoundState, event: Received, shard: int, digest: bytes) -> None:
        if event.blob_bytes != self._shards(state).size(shard) or not event.blob_bytes:
            raise Malformed(f"A shard of {event.sender} has the wrong size.")
        if event.blob_digest != digest:
            raise Unauthentic(f"A shard of {event.sender} is not the one that was committed to.")

    def _check_context(self, state: RoundState, event: Received, context: bytes) -> None:
        if context != self._context(state).digest():
            raise Misdirected(f"A {event.message.kind.name} of {event.sender} is of another context.")

    def _has_all_shards(self, state: RoundState) -> bool:
        """Tell whether every commitment is here, and every shard that this peer is to hold before its receipt."""
        return len(state.commits) == len(state.members) and not self._missing_shards(state)

    def _missing_shards(self, state: RoundState) -> frozenset[tuple[str, int]]:
        shards, me = self._shards(state), self.terms.me
        mine = self._index(state, me)
        wanted = {(name, mine) for name in self._others(state)}
        wanted |= {(name, self._index(state, name)) for name in self._others(state) if self._deputy(state, name) == me}
        return frozenset((name, shard) for name, shard in wanted if shards.size(shard)) - state.shards

    # --- receipts and release ------------------------------------------------------------------------------------

    def _sign_receipt(self, state: RoundState) -> Step:
        context, commitments = self._context(state).digest(), self._commitments(state)
        signature = self.terms.sign(receipt_statement(context, commitments))
        receipt = Receipt(context=context, commitments=commitments, signature=signature)
        receipts = added(state.receipts, self.terms.me, signature)
        receipted = state.replace(phase=Phase.RECEIPTED, receipts=receipts, vows=state.vows + 1)
        record = self._record_receipt(self.terms.me, receipt)
        return receipted, (record, *self._broadcast(state, receipt))

    def _record_receipt(self, by: str, receipt: Receipt) -> Record:
        about = {"context": receipt.context, "commitments": receipt.commitments}
        return Record(by=by, says="receipt", about=about, signature=receipt.signature)

    def _on_receipt(self, state: RoundState, event: Received) -> Step:
        receipt = message_as(Receipt, event)
        if not self._is_of_attempt(state, event):
            return state, ()
        self._check_context(state, event, receipt.context)
        if len(state.commits) < len(state.members):
            raise NotYet(f"{event.sender} has commitments that this peer lacks.")
        statement = receipt_statement(receipt.context, receipt.commitments)
        verify(self.terms.peers[event.sender], receipt.signature, statement)
        if receipt.commitments != self._commitments(state):
            records = (self._record_receipt(event.sender, receipt),)
            raise SplitView(f"{event.sender} has other commitments than this peer.", records=records)
        if event.sender in state.receipts:
            return state, ()
        noted = state.replace(receipts=added(state.receipts, event.sender, receipt.signature))
        return self._advance(noted, (self._record_receipt(event.sender, receipt),))

    def _release(self, state: RoundState) -> Step:
        """Give the seed of this peer's own mask away: all have signed for the same commitments."""
        assert state.own_mask is not None, "a release before a commitment"
        assert len(state.receipts) == len(state.members), "a release before receipts"
        me = self.terms.me
        lost = frozenset(name for name in self._others(state) if (me, name, state.step) in state.drops)
        released = state.replace(
            phase=Phase.RELEASED, masks=added(state.masks, me, state.own_mask), lost=lost, vows=state.vows + 1
        )
        instead = tuple(effect for name in sorted(lost) for effect in self._instead_of(released, name))
        return released, (*self._broadcast(state, self._release_of(released, me)), *instead)

    def _release_of(self, state: RoundState, member: str) -> Release:
        return Release(
            context=self._context(state).digest(),
            member=member,
            mask=state.masks[member].reveal(),
            receipts=tuple(state.receipts[name] for name in state.members),
        )

    def _on_release(self, state: RoundState, event: Received) -> Step:
        release = message_as(Release, event)
        if not self._is_of_attempt(state, event):
            return state, ()
        me, member, seed = self.terms.me, release.member, Secret(release.mask)
        self._check_context(state, event, release.context)
        if me not in state.receipts:
            raise OutOfTurn(f"{event.sender} released before this peer gave its receipt.")
        if member not in state.members or member == me:
            raise OutOfTurn(f"{event.sender} released for somebody who takes no part.")
        if member in state.masks:
            return state, ()
        if me not in state.masks and me in state.abandons and not self._wants(state, member):
            raise NotYet(f"{member} released in an attempt that is given up because of it.")
        receipts = MappingProxyType(self._checked_receipts(state, event, release))
        committed = state.commits[member].mask
        if not hmac.compare_digest(mask_commitment(release.context, member, seed), committed):
            raise Unauthentic(f"The mask of {member} is not the one that it committed itself to.")
        noted = state.replace(receipts=receipts, masks=added(state.masks, member, seed))
        if me in noted.masks:  # what a lost member said last reaches the others through whoever has it
            return self._advance(noted, self._instead_of(noted, member) if member in noted.lost else ())
        context, commitments = release.context, self._commitments(state)
        learned = tuple(
            self._record_receipt(name, Receipt(context=context, commitments=commitments, signature=receipts[name]))
            for name in state.members
            if name not in state.receipts
        )
        released, effects = self._release(noted)
        return self._advance(released, (*learned, *effects))

    def _wants(self, state: RoundState, member: str) -> bool:
        """Tell whether this peer means to go on with a member."""
        has_left = member in state.leaves and state.leaves[member][0] <= state.step
        return not has_left and member not in state.parted and (self.terms.me, member, state.step) not in state.drops

    def _checked_receipts(self, state: RoundState, event: Received, release: Release) -> dict[str, bytes]:
        if len(release.receipts) != len(state.members):
            raise Malformed(f"A RELEASE of {event.sender} does not have a receipt of every member.")
        statement = receipt_statement(release.context, self._commitments(state))
        receipts = dict(zip(state.members, release.receipts, strict=True))
        for name, signature in receipts.items():
            if state.receipts.get(name) != signature:
                verify(self.terms.peers[name], signature, statement)
        return receipts

    def _lacking_for(self, state: RoundState, shard: int) -> tuple[str, ...]:
        """Return the other members whose masked shard of an index is not here."""
        return tuple(name for name in self._others(state) if (name, shard) not in state.shards)

    def _instead_of(self, state: RoundState, name: str) -> tuple[Effect, ...]:
        """Send what a lost member's deputy needs, and pass on that member's release."""
        effects: list[Effect] = []
        shard, deputy = self._index(state, name), self._deputy(state, name)
        if deputy != self.terms.me and self._shards(state).size(shard):
            effects.append(self._masked_shard(state, deputy, shard))
        if name in state.masks:
            release = self._release_of(state, name)
            ordinal = 1 + shard  # 0 is this peer's own
            effects += [self._to(state, to, release, ordinal=ordinal) for to in self._others(state) if to != name]
        return tuple(effects)
