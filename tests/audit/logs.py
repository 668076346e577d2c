"""Transcripts for tests: real identities, real signatures, and whatever a liar would sign."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ppdl_mq.config.manifest import Manifest
from ppdl_mq.crypto import labels
from ppdl_mq.crypto.hashing import sha256
from ppdl_mq.protocol.effects import Record
from ppdl_mq.protocol.schedule import Schedule
from ppdl_mq.protocol.statements import context_digest, statement_bytes
from ppdl_mq.wire import canonical
from ppdl_mq.wire.entries import BEGINNING, NOTHING_BEFORE, Entry
from ppdl_mq.wire.trial_id import manifest_bytes, trial_id
from tests.trial import PEERS, identity_of, manifest_for

MASKED = manifest_for(protocol="masked-average", averaging={})
SEQUENTIAL = manifest_for()


def digest(*what: object) -> bytes:
    """32 bytes that follow from what they stand for."""
    return hashlib.sha256(repr(what).encode()).digest()


def said(by: str, says: str, **about: Any) -> Record:
    """A statement, signed by `by`."""
    signature = identity_of(by).sign(statement_bytes(says, about))
    return Record(by=by, says=says, about=about, signature=signature)


def session_keys(manifest: Manifest, **others: bytes) -> list[Record]:
    """Everybody's session key; `others` replaces some."""
    the_id = trial_id(manifest)
    return [
        said(name, "session key", trial=the_id, name=name, key=others.get(name, digest("key", name))) for name in PEERS
    ]


def session_of(manifest: Manifest, keys: Sequence[Record]) -> bytes:
    parts = [part for key in keys for part in (key.by.encode(), key.about["key"], key.signature)]
    return sha256(labels.SESSION_ID, trial_id(manifest), *parts)


def result_of(step: int) -> bytes:
    """What a step comes to; of an evaluation it is the one sum."""
    return digest("result", step)


def base_of(step: int) -> bytes:
    """The weights that a step stands on: those that the last step with an odd number came to."""
    return result_of(step - 1 - step % 2) if step > 1 else digest("initial weights")


def context(session: bytes, step: int, attempt: int = 0, *, base: str = "", members: Sequence[str] = PEERS) -> bytes:
    return canonical.encode(
        {
            "session": session,
            "step": step,
            "attempt": attempt,
            "members": list(members),
            "base": digest("base", base) if base else base_of(step),
            "word": 32 if step % 2 else 64,
            "exponents": digest("exponents", step) if step % 2 else bytes(32),
        }
    )


def commitment(by: str, of: bytes, vector: str = "", *, count: int = 3) -> Record:
    shards = [digest("shard", by, vector, number) for number in range(count)]
    return said(by, "commitment", context=of, mask=digest("mask", by, vector), shards=shards)


def over(commitments: Sequence[Record]) -> bytes:
    """K of commitments in the order of their signers."""
    return sha256(labels.COMMITMENTS, *(statement_bytes(each.says, each.about) for each in commitments))


def sums_in(of: bytes, step: int) -> list[Record]:
    """The sums of a step; an evaluation has a single one."""
    the_digest = context_digest(of)
    if step % 2 == 0:
        return [said(PEERS[0], "sum", context=the_digest, shard=0, digest=result_of(step))]
    return [
        said(name, "sum", context=the_digest, shard=number, digest=digest("sum", step, number))
        for number, name in enumerate(PEERS)
    ]


def step_of(session: bytes, step: int, attempt: int = 0) -> list[Record]:
    """All that is signed in a step without trouble."""
    of = context(session, step, attempt)
    the_digest = context_digest(of)
    committed = [commitment(name, of) for name in PEERS]
    k = over(committed)
    return [
        *committed,
        *(said(name, "receipt", context=the_digest, commitments=k) for name in PEERS),
        *sums_in(of, step),
        *(said(name, "agreement", context=the_digest, digest=result_of(step), commitments=k) for name in PEERS),
    ]


def masked_records(steps: int = 2) -> list[Record]:
    """A masked-average trial of so many steps, with one of each other statement."""
    keys = session_keys(MASKED)
    session = session_of(MASKED, keys)
    records = list(keys)
    for step in range(1, steps + 1):
        if step == 2:
            records += [said(name, "abandon", session=session, step=2, attempt=0, overflow=True) for name in PEERS]
        records += step_of(session, step, attempt=int(step == 2))
    records.append(said("bert", "drop", session=session, step=steps + 1, name="cleo"))
    records.append(said("anna", "leave", session=session, step=steps + 1))
    return records


def turn_records(turns: int = 6) -> list[Record]:
    """A sequential trial up to a turn; with 6 turns, to its end."""
    keys = session_keys(SEQUENTIAL)
    session = session_of(SEQUENTIAL, keys)
    schedule = Schedule(trial_id=trial_id(SEQUENTIAL), peers=PEERS, epochs=2, turns_per_epoch=1, order="fixed")
    records, before = list(keys), bytes(32)
    for turn in range(turns + 1):
        now = digest("turn", turn)
        by = schedule.turn(max(turn, 1)).peer
        records.append(said(by, "turn", session=session, turn=turn, before=before, digest=now))
        before = now
    if turns == schedule.turns:
        records += [said(name, "final", session=session, turn=turns, digest=before) for name in PEERS]
    return records


def entries_of(owner: str, records: Sequence[Record], manifest: Manifest) -> list[Entry]:
    about = {"trial": trial_id(manifest), "manifest": manifest_bytes(manifest)}
    begin = Record(by=owner, says=BEGINNING, about=about, signature=b"")
    entries: list[Entry] = []
    for number, record in enumerate((begin, *records)):
        previous = entries[-1].digest() if entries else NOTHING_BEFORE
        entries.append(
            Entry(
                number=number,
                previous=previous,
                by=record.by,
                says=record.says,
                about=record.about,
                signature=record.signature,
                logged_by=owner,
            )
        )
    return entries


def lines_of(entries: Sequence[Entry], sign: Callable[[bytes], bytes]) -> list[bytes]:
    return [entry.line(sign(entry.signed_bytes())) for entry in entries]


def write_log(path: Path, owner: str, records: Sequence[Record], manifest: Manifest = MASKED) -> Path:
    path.write_bytes(b"".join(lines_of(entries_of(owner, records, manifest), identity_of(owner).sign)))
    return path
