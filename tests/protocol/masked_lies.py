"""What a liar says, and what came of it: for the tests of docs/PROTOCOL.md, section 16. Seals are below it."""

from __future__ import annotations

from typing import Any

from ppdl_mq.crypto.identity import verify
from ppdl_mq.protocol.effects import Record
from ppdl_mq.protocol.phases import Phase
from ppdl_mq.protocol.statements import (
    commitment_statement,
    context_digest,
    receipt_statement,
    statement_bytes,
)
from ppdl_mq.wire import canonical
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.messages import Commit, Release
from tests.protocol.masked_scene import Scene, of

EVERYBODY = ("anna", "bert", "cleo")
HONEST = ("anna", "bert")  # where cleo lies
SEEDS = range(2)


def ended(scene: Scene) -> set[str]:
    return {name for name, phase in scene.phases().items() if phase is Phase.ENDED}


def finished_well(scene: Scene) -> None:
    scene.check()
    assert ended(scene) == set(scene.peers), scene.phases()
    assert not scene.refusals


def said(scene: Scene, name: str, says: str, by: str) -> list[Record]:
    """What a peer has written down of another one; its signatures hold."""
    found = [record for record in scene.peers[name].records if (record.says, record.by) == (says, by)]
    for record in found:
        public = scene.peers[name].machine.terms.peers[by]
        verify(public, record.signature, statement_bytes(says, record.about))
    return found


def contradict(one: Record, other: Record) -> bool:
    """Whether two statements of one signer about one attempt cannot both be honest."""
    return (
        one.by == other.by and one.says == other.says and (one.about, one.signature) != (other.about, other.signature)
    )


def committing(scene: Scene, fields: dict[str, Any], *, count: int = 3) -> Commit:
    """A commitment of cleo that holds, in anna's context but for some entries; `...` takes one away."""
    plain: Any = canonical.decode(scene.peers["anna"].machine._context(scene.state("anna")).encode(), limit_bytes=4096)
    changed = {name: value for name, value in (plain | fields).items() if value is not ...}
    context, shards = canonical.encode(changed), (bytes(32),) * count
    signature = scene.sign("cleo", commitment_statement(context_digest(context), bytes(32), shards))
    return Commit(context=context, shards=shards, mask=bytes(32), signature=signature)


def release_of(scene: Scene, member: str, *, receipts: Any = None, mask: bytes | None = None) -> Release:
    """A release as the member itself would send it, or a forged one."""
    state = scene.state(member)
    own = state.own_mask or state.masks.get(member)
    assert own is not None
    return Release(
        context=scene.context(member),
        member=member,
        mask=own.reveal() if mask is None else mask,
        receipts=tuple(state.receipts[name] for name in state.members) if receipts is None else receipts,
    )


def receipts_by(scene: Scene, signers: tuple[str, ...]) -> tuple[bytes, ...]:
    """Receipts for what all have committed to, all signed by somebody of the liar's."""
    machine, state = scene.peers["cleo"].machine, scene.state("cleo")
    statement = receipt_statement(scene.context("cleo"), machine._commitments(state))
    return tuple(scene.sign(name, statement) for name in signers)


def committed(phase: Phase) -> Scene:
    """Anna stands in this phase; nobody has her receipts, nor she theirs; nothing is released."""
    scene = Scene(3)
    late = Kind.MASKED if phase is Phase.COMMITTED else Kind.RECEIPT
    scene.hold(of(late))
    scene.until(
        lambda: (
            len(scene.held) >= 6
            and all(peer.state.phase is phase and len(peer.state.commits) == 3 for peer in scene.peers.values())
        )
    )
    return scene
