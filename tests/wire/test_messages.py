from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppdl_mq.config import limits
from ppdl_mq.errors import Malformed, RemoteError, TooLarge
from ppdl_mq.wire import canonical
from ppdl_mq.wire.envelope import body_bytes
from ppdl_mq.wire.kinds import Kind
from ppdl_mq.wire.messages import (
    Abandon,
    Agree,
    Commit,
    Confirm,
    Demand,
    Done,
    Drop,
    FinalWeights,
    Hello,
    InitialWeights,
    Leave,
    Lineage,
    MaskedShard,
    Message,
    Notice,
    Proof,
    Receipt,
    Release,
    Resend,
    SignedSum,
    Statement,
    SumShard,
    TurnWeights,
)
from ppdl_mq.wire.meta import decode_meta, encode_meta
from tests.wire.samples import MESSAGES


def raw(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


statements = st.builds(Statement, digest=raw(32), signature=raw(64))
lineages = st.builds(Lineage, anchor=raw(32), chain=st.lists(statements, min_size=1, max_size=5).map(tuple))
printable = st.text(st.characters(codec="ascii", min_codepoint=32, max_codepoint=126), max_size=200)
names = st.from_regex(r"[a-z0-9][a-z0-9-]{0,31}", fullmatch=True)
indices = st.integers(0, limits.MAX_PEERS - 1)
signed_sums = st.builds(SignedSum, shard=indices, maker=names, digest=raw(32), signature=raw(64))


def tuples(of: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(of, min_size=1, max_size=5).map(tuple)


masked_messages: st.SearchStrategy[Message] = st.one_of(
    st.just(InitialWeights()),
    st.builds(
        Commit,
        context=st.binary(max_size=limits.MAX_CONTEXT_BYTES),
        shards=tuples(raw(32)),
        mask=raw(32),
        signature=raw(64),
    ),
    st.builds(MaskedShard, context=raw(32), shard=indices),
    st.builds(Receipt, context=raw(32), commitments=raw(32), signature=raw(64)),
    st.builds(Release, context=raw(32), member=names, mask=raw(32), receipts=tuples(raw(64))),
    st.builds(SumShard, context=raw(32), shard=indices, maker=names, signature=raw(64)),
    st.builds(Agree, context=raw(32), digest=raw(32), sums=tuples(signed_sums), signature=raw(64)),
    st.builds(Abandon, overflow=st.booleans(), signature=raw(64)),
    st.builds(Drop, by=names, name=names, signature=raw(64)),
    st.builds(Leave, name=names, signature=raw(64)),
    st.builds(Demand, context=raw(32), shard=indices),
    st.builds(Proof, context=raw(32), shard=indices, member=names),
)
messages: st.SearchStrategy[Message] = st.one_of(
    masked_messages,
    st.builds(
        Hello,
        manifest=st.binary(max_size=500),
        session_key=raw(32),
        session_signature=raw(64),
        layout=raw(32),
        software=printable,
    ),
    st.builds(Confirm, contribution=raw(32) | st.just(b"")),
    st.builds(TurnWeights, lineage=lineages),
    st.builds(Notice, message_id=raw(16)),
    st.builds(FinalWeights, lineage=lineages),
    st.builds(Done, digest=raw(32), signature=raw(64)),
    st.just(Resend()),
)


@given(messages)
def test_round_trip(message: Message) -> None:
    assert decode_meta(message.kind, encode_meta(message)) == message


def test_there_is_a_sample_of_every_kind() -> None:
    assert set(MESSAGES) == set(Kind)
    for kind, message in MESSAGES.items():
        assert message.kind is kind
        assert decode_meta(kind, encode_meta(message)) == message


FIELDS = [(kind, name) for kind in Kind for name in canonical.decode(encode_meta(MESSAGES[kind]), limit_bytes=10_000)]


def meta(kind: Kind, **changes: Any) -> bytes:
    """The sample's meta with fields changed; Ellipsis removes one."""
    data = canonical.decode(encode_meta(MESSAGES[kind]), limit_bytes=10_000) | changes
    return canonical.encode({name: value for name, value in data.items() if value is not ...})


WRONG = (..., None, 0, True, 1.0, {}, [], "", "text", b"short", b"x" * 65)


def may_be(kind: Kind, name: str, value: Any) -> bool:
    """Whether a field may have this value as far as this layer can tell."""
    match name:
        case "software":
            return isinstance(value, str)
        case "manifest":
            return isinstance(value, bytes)
        case "contribution":
            return isinstance(value, bytes) and len(value) <= 32
        case "context" if kind is Kind.COMMIT:
            return isinstance(value, bytes) and len(value) <= limits.MAX_CONTEXT_BYTES
        case "overflow":
            return isinstance(value, bool)
        case "name" | "member" | "by" | "maker":
            return value == "text"
        case "shard":
            return type(value) is int and value >= 0
    return False


@pytest.mark.parametrize(
    ("kind", "name", "value"), [(*field, value) for field in FIELDS for value in WRONG if not may_be(*field, value)]
)
def test_a_missing_or_wrong_field_is_refused(kind: Kind, name: str, value: Any) -> None:
    with pytest.raises(Malformed):
        decode_meta(kind, meta(kind, **{name: value}))


OF_BYTES = [
    (kind, name)
    for kind, name in FIELDS
    if isinstance(canonical.decode(encode_meta(MESSAGES[kind]), limit_bytes=10_000)[name], bytes)
]


@pytest.mark.parametrize(("kind", "name"), OF_BYTES)
def test_one_byte_more_or_less(kind: Kind, name: str) -> None:
    value = canonical.decode(encode_meta(MESSAGES[kind]), limit_bytes=10_000)[name]
    others = [value + b"\0"] if name == "contribution" else [value + b"\0", value[:-1]]
    if name == "manifest":
        others = [bytes(limits.MAX_MANIFEST_BYTES + 1)]
    if (kind, name) == (Kind.COMMIT, "context"):
        others = [bytes(limits.MAX_CONTEXT_BYTES + 1)]
    for other in others:
        with pytest.raises(Malformed):
            decode_meta(kind, meta(kind, **{name: other}))


@pytest.mark.parametrize("kind", Kind)
def test_a_field_too_many(kind: Kind) -> None:
    with pytest.raises(Malformed):
        decode_meta(kind, meta(kind, zzz=1))


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("data", [None, 1, [], "map", [["digest", bytes(32)]]], ids=repr)
def test_not_a_map(kind: Kind, data: Any) -> None:
    with pytest.raises(Malformed):
        decode_meta(kind, canonical.encode(data))


def test_no_kind_reads_as_another() -> None:
    """But for those that have one meta: there the header's kind is what is signed."""
    alike = [{Kind.TURN, Kind.FINAL}, {Kind.RESEND, Kind.INITIAL}, {Kind.MASKED, Kind.DEMAND}]
    for kind, message in MESSAGES.items():
        for other in Kind:
            if kind is not other and {kind, other} not in alike:
                with pytest.raises(Malformed):
                    decode_meta(other, encode_meta(message))


STATEMENT = [bytes(32), bytes(64)]


@pytest.mark.parametrize("kind", [Kind.TURN, Kind.FINAL])
@pytest.mark.parametrize(
    "chain",
    [
        [],
        [[]],
        [STATEMENT[:1]],
        [[*STATEMENT, b""]],
        [STATEMENT[::-1]],
        [[bytes(31), bytes(64)]],
        [[bytes(32), bytes(65)]],
        [["0" * 32, bytes(64)]],
        [STATEMENT, 7],
        [{"digest": bytes(32), "signature": bytes(64)}],
        [STATEMENT] * (2 * limits.MAX_PEERS + 1),
    ],
)
def test_chains_that_are_none(kind: Kind, chain: Any) -> None:
    with pytest.raises(Malformed):
        decode_meta(kind, meta(kind, chain=chain))


def test_the_longest_chain_is_taken() -> None:
    chain = [STATEMENT] * (2 * limits.MAX_PEERS)
    assert len(decode_meta(Kind.TURN, meta(Kind.TURN, chain=chain)).lineage.chain) == len(chain)  # type: ignore[union-attr]


@pytest.mark.parametrize("software", ["x" * 201, "é" * 101, "line\nbreak", "\x1b[2J", "\u202e"])
def test_text_that_a_terminal_should_not_see(software: str) -> None:
    with pytest.raises(Malformed):
        decode_meta(Kind.HELLO, meta(Kind.HELLO, software=software))


def test_a_meta_over_the_limit_is_refused_unread() -> None:
    with pytest.raises(TooLarge):
        decode_meta(Kind.RESEND, bytes(limits.MAX_META_BYTES + 1))


@given(st.sampled_from(Kind), st.data())
def test_another_encoding_of_the_same_is_refused(kind: Kind, data: st.DataObject) -> None:
    encoded = bytearray(encode_meta(MESSAGES[kind]))
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= data.draw(st.integers(1, 255))
    try:
        read = decode_meta(kind, bytes(encoded))
    except RemoteError:
        return
    assert encode_meta(read) == bytes(encoded)
    assert read != MESSAGES[kind]


def test_longer_forms_of_the_same_are_refused() -> None:
    encoded = encode_meta(MESSAGES[Kind.NOTICE])
    assert encoded[:1] == b"\x81"
    for same in (b"\xde\x00\x01" + encoded[1:], encoded.replace(b"\xc4\x10", b"\xc5\x00\x10"), encoded + b"\xc0"):
        with pytest.raises(Malformed):
            decode_meta(Kind.NOTICE, same)


def test_a_contribution_is_not_shown() -> None:
    assert "\\x14" not in repr(MESSAGES[Kind.CONFIRM])


@pytest.mark.parametrize(
    ("kind", "name", "size"), [(Kind.COMMIT, "shards", 32), (Kind.RELEASE, "receipts", 64)], ids=["shards", "receipts"]
)
def test_lists_of_one_entry_a_member(kind: Kind, name: str, size: int) -> None:
    most = [bytes(size)] * limits.MAX_PEERS
    assert decode_meta(kind, meta(kind, **{name: most}))
    for wrong in ([], [*most, bytes(size)], [bytes(size - 1)], [bytes(size + 1)], [bytes(size), "text"], [0], {}):
        with pytest.raises(Malformed):
            decode_meta(kind, meta(kind, **{name: wrong}))


SUM = [0, "anna", bytes(32), bytes(64)]


@pytest.mark.parametrize(
    "sums",
    [
        [],
        [SUM] * (limits.MAX_PEERS + 1),
        [SUM[:3]],
        [[*SUM, 0]],
        [[True, *SUM[1:]]],
        [[-1, *SUM[1:]]],
        [[limits.MAX_PEERS, *SUM[1:]]],
        [[0, "Anna", *SUM[2:]]],
        [[0, "", *SUM[2:]]],
        [[0, "anna", bytes(31), bytes(64)]],
        [[0, "anna", bytes(32), bytes(65)]],
        [SUM, 7],
    ],
)
def test_sums_that_are_none(sums: Any) -> None:
    with pytest.raises(Malformed):
        decode_meta(Kind.AGREE, meta(Kind.AGREE, sums=sums))


@pytest.mark.parametrize("kind", [Kind.MASKED, Kind.SUM, Kind.DEMAND, Kind.PROOF])
@pytest.mark.parametrize("shard", [-1, limits.MAX_PEERS, 2**40])
def test_shards_that_nobody_has(kind: Kind, shard: int) -> None:
    with pytest.raises(Malformed):
        decode_meta(kind, meta(kind, shard=shard))


def test_a_released_seed_is_not_shown() -> None:
    assert "\\x1f" not in repr(MESSAGES[Kind.RELEASE])


@pytest.mark.parametrize(
    ("kind", "field"),
    [(Kind.RELEASE, "member"), (Kind.DROP, "by"), (Kind.DROP, "name"), (Kind.LEAVE, "name"), (Kind.PROOF, "member")],
    ids=lambda value: getattr(value, "name", value),
)
@pytest.mark.parametrize("name", ["", "Anna", "-anna", "anna ", "anna\n", "annä", "a" * 33, "a/b", "a.b", b"anna", 7])
def test_names_that_no_peer_has(kind: Kind, field: str, name: Any) -> None:
    with pytest.raises(Malformed):
        decode_meta(kind, meta(kind, **{field: name}))


@pytest.mark.parametrize("overflow", [0, 1, b"\1", "true", None, []])
def test_overflow_is_true_or_false(overflow: Any) -> None:
    with pytest.raises(Malformed):
        decode_meta(Kind.ABANDON, meta(Kind.ABANDON, overflow=overflow))


def largest(kind: Kind) -> Message:
    """What the largest trial makes of a kind."""
    most, name = limits.MAX_PEERS, "a" * 32
    match kind:
        case Kind.COMMIT:
            context = bytes(limits.MAX_CONTEXT_BYTES)
            return Commit(context=context, shards=(bytes(32),) * most, mask=bytes(32), signature=bytes(64))
        case Kind.RELEASE:
            return Release(context=bytes(32), member=name, mask=bytes(32), receipts=(bytes(64),) * most)
        case Kind.AGREE:
            each = SignedSum(shard=most - 1, maker=name, digest=bytes(32), signature=bytes(64))
            return Agree(context=bytes(32), digest=bytes(32), sums=(each,) * most, signature=bytes(64))
        case Kind.DROP:
            return Drop(by=name, name=name, signature=bytes(64))
        case Kind.PROOF:
            return Proof(context=bytes(32), shard=most - 1, member=name)
        case _:
            return MESSAGES[kind]


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind >= Kind.INITIAL], ids=lambda kind: kind.name)
def test_the_largest_message_of_a_kind_fits_its_limit(kind: Kind) -> None:
    message = largest(kind)
    blob = 1_000 if kind.carries_blob else 0
    assert decode_meta(kind, encode_meta(message)) == message
    assert body_bytes(message, blob) <= kind.max_body_bytes(1_000)


@pytest.mark.parametrize(
    "kind", [kind for kind in Kind if encode_meta(MESSAGES[kind]) != b"\x80"], ids=lambda k: k.name
)
def test_a_key_twice_or_keys_out_of_order_are_refused(kind: Kind) -> None:
    """A map has one order of its keys, and each once."""
    data = canonical.decode(encode_meta(MESSAGES[kind]), limit_bytes=10_000)
    entries = [canonical.encode({name: value})[1:] for name, value in data.items()]
    assert bytes([0x80 + len(entries)]) + b"".join(entries) == encode_meta(MESSAGES[kind])
    wrongs = [[*entries, entries[0]], [entries[0], *entries], *([entries[::-1]] if len(entries) > 1 else [])]
    for wrong in wrongs:
        with pytest.raises(Malformed):
            decode_meta(kind, bytes([0x80 + len(wrong)]) + b"".join(wrong))


def test_the_context_of_the_largest_trial_fits_its_limit() -> None:
    members = [f"{number:03}" + "a" * 29 for number in range(limits.MAX_PEERS)]
    numbers = {"step": 2**32 - 1, "attempt": 2**32 - 1, "word": 64}
    digests = {name: bytes(32) for name in ("session", "base", "exponents")}
    assert len(canonical.encode({"members": members, **numbers, **digests})) <= limits.MAX_CONTEXT_BYTES
