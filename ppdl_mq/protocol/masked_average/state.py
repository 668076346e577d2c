"""Where a peer stands in a masked-average trial: one frozen value, that the journal can keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Self

from ppdl_mq.crypto.secret import Secret
from ppdl_mq.protocol.session import SessionState
from ppdl_mq.wire.messages import SignedSum

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Commitment:
    """What a member committed itself to in an attempt.

    Args:
        mask: 32 bytes, of the seed of its own mask.
        shards: SHA-256 of each shard, by index.
        signature: 64 bytes.
    """

    mask: bytes
    shards: tuple[bytes, ...]
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundState(SessionState):
    """Everything a machine of masked-average remembers.

    Args:
        step: which sum is made now; 0 before the first.
        attempt: of the step.
        members: who takes part in the attempt.
        members_since: the attempt of the step since which they are the members.
        word: bits of its ring words.
        base: SHA-256 of the last agreed weights.
        base_step: the step that agreed on them; 0 for the initial ones.
        exponents: digest of this round's exponents, once known.
        local: SHA-256 of what this peer trained in this round, once it did.
        figures: what this peer measured for this evaluation, once it did.
        own_mask: seed of this peer's own mask, once it has committed; the secret that all rests on until the release.
        commits: by member.
        shards: (member, index) of the masked shards that are here.
        receipts: signatures by member, all over the same commitments.
        masks: released seeds by member, this peer's own included once it has released.
        adding: indices of the sum shards that this peer is adding up.
        sums: by index.
        result: digest of what the sum came to.
        total: the summed words of an evaluation.
        audit: index of the shard that is being recomputed; -1 for none.
        agreed: members whose AGREE is here, this peer's own included.
        abandons: by member, whether its ABANDON of this attempt said overflow.
        drops: signatures by signer, name and step: the signer does without that name in that step.
        leaves: by name, the first step in which it takes no part, and its signature.
        lost: members whom this peer has given up since the release.
        parted: by name, after which step this peer began no other with another one, and the digest of the weights then;
            of those who are to say the same.
        done: those of them who need nothing of this peer any more: their DONE is here, or what stands for it.
        too_few: whether this peer closes because fewer are left than the manifest wants.
        lowest_loss: of all evaluations; infinite before the first.
        worse: evaluations since then.
        vows: how many statements this peer has signed that it must not forget: receipts, releases and the like.
    """

    step: int = 0
    attempt: int = 0
    members: tuple[str, ...] = ()
    members_since: int = 0
    word: int = 32
    base: bytes = b""
    base_step: int = 0
    exponents: bytes = b""
    local: bytes = b""
    figures: tuple[int, ...] = ()
    own_mask: Secret | None = None
    commits: Mapping[str, Commitment] = field(default_factory=lambda: _NOTHING)
    shards: frozenset[tuple[str, int]] = frozenset()
    receipts: Mapping[str, bytes] = field(default_factory=lambda: _NOTHING)
    masks: Mapping[str, Secret] = field(default_factory=lambda: _NOTHING)
    adding: frozenset[int] = frozenset()
    sums: Mapping[int, SignedSum] = field(default_factory=lambda: MappingProxyType({}))
    result: bytes = b""
    total: tuple[int, ...] = ()
    audit: int = -1
    agreed: frozenset[str] = frozenset()
    abandons: Mapping[str, bool] = field(default_factory=lambda: _NOTHING)
    drops: Mapping[tuple[str, str, int], bytes] = field(default_factory=lambda: MappingProxyType({}))
    leaves: Mapping[str, tuple[int, bytes]] = field(default_factory=lambda: _NOTHING)
    lost: frozenset[str] = frozenset()
    parted: Mapping[str, tuple[int, bytes]] = field(default_factory=lambda: _NOTHING)
    done: frozenset[str] = frozenset()
    too_few: bool = False
    lowest_loss: float | None = None
    worse: int = 0
    vows: int = 0

    @property
    def is_evaluation(self) -> bool:
        """Whether the step sums an evaluation."""
        return self.step % 2 == 0

    @property
    def round(self) -> int:
        """The round that the step belongs to, from 1."""
        return (self.step + 1) // 2

    def of_attempt(self, **fields: Any) -> Self:
        """Return this state at the beginning of an attempt, with nothing of an earlier one left but what is given."""
        blank = type(self)()
        names = ("own_mask", "commits", "shards", "receipts", "masks", "adding", "sums", "result", "total", "audit")
        fresh = {name: getattr(blank, name) for name in (*names, "agreed", "abandons", "lost")}
        return self.replace(**fresh | fields)

    def as_data(self) -> dict[str, Any]:
        """Return the state as plain data; what must be erased in time stands under `secrets`."""
        data = SessionState.as_data(self)
        data["secrets"]["own_mask"] = self.own_mask.reveal() if self.own_mask else b""
        # Not secret, but with the secrets: a journal that forgot a vow no longer fits to their file. See peer/live.py.
        data["secrets"]["vows"] = self.vows
        return data | {
            "masks": {name: mask.reveal() for name, mask in self.masks.items()},
            "step": self.step,
            "attempt": self.attempt,
            "members": list(self.members),
            "members_since": self.members_since,
            "word": self.word,
            "base": self.base,
            "base_step": self.base_step,
            "exponents": self.exponents,
            "local": self.local,
            "figures": list(self.figures),
            "commits": {name: [each.mask, list(each.shards), each.signature] for name, each in self.commits.items()},
            "shards": [list(each) for each in sorted(self.shards)],
            "receipts": dict(self.receipts),
            "adding": sorted(self.adding),
            "sums": [[each.shard, each.maker, each.digest, each.signature] for _, each in sorted(self.sums.items())],
            "result": self.result,
            "total": list(self.total),
            "audit": self.audit,
            "agreed": sorted(self.agreed),
            "abandons": dict(self.abandons),
            "drops": [[by, name, step, signature] for (by, name, step), signature in sorted(self.drops.items())],
            "leaves": {name: [step, signature] for name, (step, signature) in self.leaves.items()},
            "lost": sorted(self.lost),
            "parted": {name: [step, digest] for name, (step, digest) in self.parted.items()},
            "done": sorted(self.done),
            "too_few": self.too_few,
            "lowest_loss": self.lowest_loss,
            "worse": self.worse,
        }

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Self:
        """Return the state that `as_data` described."""
        secrets = data["secrets"]
        plain = ("step", "attempt", "word", "base", "base_step", "exponents", "local", "result", "audit", "worse")
        return cls(
            **cls.session_fields(data),
            **{name: data[name] for name in (*plain, "members_since", "too_few", "lowest_loss")},
            members=tuple(data["members"]),
            figures=tuple(data["figures"]),
            own_mask=Secret(secrets["own_mask"]) if secrets["own_mask"] else None,
            commits=MappingProxyType(
                {
                    name: Commitment(mask, tuple(shards), signed)
                    for name, (mask, shards, signed) in data["commits"].items()
                }
            ),
            shards=frozenset((name, shard) for name, shard in data["shards"]),
            receipts=MappingProxyType(data["receipts"]),
            masks=MappingProxyType({name: Secret(mask) for name, mask in data["masks"].items()}),
            adding=frozenset(data["adding"]),
            sums=MappingProxyType(
                {
                    shard: SignedSum(shard=shard, maker=maker, digest=digest, signature=signature)
                    for shard, maker, digest, signature in data["sums"]
                }
            ),
            total=tuple(data["total"]),
            agreed=frozenset(data["agreed"]),
            abandons=MappingProxyType(data["abandons"]),
            drops=MappingProxyType({(by, name, step): signature for by, name, step, signature in data["drops"]}),
            leaves=MappingProxyType({name: (step, signature) for name, (step, signature) in data["leaves"].items()}),
            vows=secrets["vows"],
            lost=frozenset(data["lost"]),
            parted=MappingProxyType({name: (step, digest) for name, (step, digest) in data["parted"].items()}),
            done=frozenset(data["done"]),
        )
