"""Fixed point word by word, against exact arithmetic, at the edges of what fits."""

from __future__ import annotations

import hashlib
import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from ppdl_mq.errors import DataError, Malformed, ModelError, NotFinite, Overflow
from ppdl_mq.numeric import components as parts
from ppdl_mq.numeric.exponents import exponents, exponents_digest
from ppdl_mq.numeric.fixed_point import FixedPoint, Share
from ppdl_mq.numeric.flatten import Entry, Layout, raw_bytes

EQUAL = Share()
INTEGERS = ("bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64")
WAYS = (("equal", 32), ("equal", 64), ("declared", 32), ("declared", 64), ("secret", 64))


def layout_of(*tensors: torch.Tensor) -> Layout:
    entries, offset = [], 0
    for number, tensor in enumerate(tensors):
        size = tensor.numel() * tensor.element_size()
        entries.append(Entry(f"t{number}", str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), offset, size))
        offset += size
    return Layout(tuple(entries), offset)


def state_of(*tensors: torch.Tensor) -> bytes:
    return b"".join(raw_bytes(tensor.contiguous()).tobytes() for tensor in tensors if tensor.numel())


def encoding(dtype: torch.dtype, exponent: int, bits: int, peers: int, weighting: str, size: int = 1) -> FixedPoint:
    return FixedPoint(layout_of(torch.zeros(size, dtype=dtype)), (exponent,), bits, peers, weighting)


def total_of(words: list[np.ndarray]) -> np.ndarray:
    return np.sum(words, axis=0, dtype=words[0].dtype)


def shares(weighting: str, counts: list[int]) -> list[Share]:
    return {
        "equal": [EQUAL for _ in counts],
        "declared": [Share(count, sum(counts)) for count in counts],
        "secret": [Share(count) for count in counts],
    }[weighting]


# The same rules once more, from the specification's table, with Python's integers and fractions.


def peer_bits(peers: int) -> int:
    return next(bits for bits in range(9) if peers <= 2**bits)


def fraction_bits(weighting: str, bits: int, exponent: int, peers: int) -> int:
    if weighting == "secret":
        return 24 - exponent
    return {32: 31, 64: 39}[bits] - exponent - (peer_bits(peers) if weighting == "equal" else 0)


def limit(weighting: str, bits: int, peers: int, share: Share) -> int:
    if weighting == "secret":
        return share.count * 2**32 - 1
    if weighting == "declared":
        return share.count * (2 ** (bits - 1) - 1 - peers) // share.total + 1
    return 2 ** (bits - 1 - peer_bits(peers)) - 1


def word(value: float, weighting: str, bits: int, exponent: int, peers: int, share: Share) -> int | None:
    """The integer that a real becomes; None where it does not fit."""
    scale = Fraction(2) ** fraction_bits(weighting, bits, exponent, peers)
    if weighting == "declared":
        product = Fraction(value * float(Fraction(share.count, share.total) * scale))
    elif weighting == "secret":
        product = Fraction(value * float(share.count * scale))
    else:
        product = Fraction(value) * scale  # exact
    rounded = round(product)
    return rounded if abs(rounded) <= limit(weighting, bits, peers, share) else None


@given(
    st.sampled_from(WAYS),
    st.integers(2, 256),
    st.integers(-40, 140),
    st.lists(st.tuples(st.floats(-1.5, 1.5), st.sampled_from([-40, -20, 0, 8, 24])), min_size=1, max_size=8),
    st.integers(1, 2**23),
    st.integers(0, 2**40),
    st.sampled_from([torch.float64, torch.float32]),
)
def test_every_word_is_the_one_of_the_specification(way, peers, exponent, numbers, count, others, dtype) -> None:
    weighting, bits = way
    tensor = torch.tensor([m * 2.0 ** (exponent + k) for m, k in numbers], dtype=torch.float64).clamp(-3e38, 3e38)
    tensor = tensor.to(dtype)
    share = {
        "equal": EQUAL,
        "declared": Share(count, count + peers - 1 + others),
        "secret": Share(count % (2**31 // peers) + 1),
    }[weighting]
    code = encoding(dtype, exponent, bits, peers, weighting, tensor.numel())
    expected = [word(value, weighting, bits, exponent, peers, share) for value in tensor.tolist()]
    if None in expected:
        with pytest.raises(Overflow):
            code.encode(state_of(tensor), share)
        return
    words = code.encode(state_of(tensor), share)
    assert words.dtype == f"uint{bits}"
    assert words.size == code.words
    expected += [share.count] if weighting == "secret" else []
    assert words.tolist() == [value % 2**bits for value in expected]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("peers", [2, 3, 7, 256])
def test_halves_of_a_word_go_to_the_even_one(way: tuple[str, int], peers: int) -> None:
    weighting, bits = way
    share = {"equal": EQUAL, "declared": Share(128, 1024), "secret": Share(1)}[weighting]
    grid = 2.0 ** -fraction_bits(weighting, bits, 0, peers) * (8 if weighting == "declared" else 1)
    tensor = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.51, -1.49], dtype=torch.float64) * grid
    words = encoding(tensor.dtype, 0, bits, peers, weighting, 8).encode(state_of(tensor), share)
    assert words[:8].view(f"int{bits}").tolist() == [0, 2, 2, 0, -2, -2, 1, -1]


@given(st.sampled_from(WAYS), st.lists(st.integers(1, 8_000_000), min_size=2, max_size=256), st.booleans())
@example(("secret", 64), [2**30] * 2, False)
@example(("secret", 64), [2**23] * 256, True)
@example(("declared", 32), [1] * 256, False)
def test_the_largest_words_of_all_peers_never_wrap(way, counts, integers) -> None:
    weighting, bits = way
    counts = [min(count, 2**31 // len(counts)) for count in counts]
    code = encoding(torch.int64 if integers else torch.float64, 0, bits, len(counts), weighting)
    total = sum(code._limit(0, share) for share in shares(weighting, counts))
    assert total < 2 ** (bits - 1)
    if weighting != "declared" and not integers:  # a power of two uses all but a little of the ring
        assert weighting == "secret" or total > 2 ** (bits - 2) - len(counts)


@pytest.mark.parametrize("peers", [2, 3, 5, 127, 128, 129, 200, 256])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    ("weighting", "bits", "room"),
    [("equal", 32, 0), ("equal", 64, 24), ("declared", 32, 0), ("declared", 64, 24), ("secret", 64, 8)],
)
def test_the_edge_of_the_range_fits_in_every_peer_at_once_and_beyond_it_does_not(
    peers: int, sign: float, weighting: str, bits: int, room: int
) -> None:
    counts = [1 + 1000 * number for number in range(peers)]
    code = encoding(torch.float64, 3, bits, peers, weighting)
    inside, outside = sign * 2.0 ** (3 + room) * (1 - 2.0**-22), sign * 2.0 ** (3 + room)
    each = shares(weighting, counts)
    total = total_of([code.encode(state_of(torch.tensor([inside], dtype=torch.float64)), share) for share in each])
    mean = np.frombuffer(code.decode(total))[0]
    assert abs(mean - inside) <= code.error_bound(0, abs(inside))
    # In `declared` the smallest shares are too coarse to tell such a value, and may round down: no sum can wrap.
    tellers, beyond = (each[-1:], outside * (1 + 2.0**-20)) if weighting == "declared" else (each, outside)
    for share in tellers:
        with pytest.raises(Overflow):
            code.encode(state_of(torch.tensor([beyond], dtype=torch.float64)), share)


def test_two_to_the_e_itself_does_not_fit_where_the_sum_would_wrap() -> None:
    code = encoding(torch.float32, 0, 32, 2, "equal")
    last = state_of(torch.tensor([1 - 2.0**-24]))
    assert code.encode(last, EQUAL).tolist() == [2**30 - 2**6]
    for value in (1.0, -1.0):
        with pytest.raises(Overflow):
            code.encode(state_of(torch.tensor([value])), EQUAL)
    # A float64 below 2**e that rounds up to the limit would make two of them wrap: it does not fit either.
    double = encoding(torch.float64, 0, 32, 2, "equal")
    with pytest.raises(Overflow):
        double.encode(state_of(torch.tensor([1 - 2.0**-40], dtype=torch.float64)), EQUAL)


@pytest.mark.parametrize("size", [1, 3, parts.BLOCK + 3])
@pytest.mark.parametrize("way", WAYS)
def test_an_overflow_is_found_wherever_it_stands_and_tells_nothing(way: tuple[str, int], size: int) -> None:
    code = encoding(torch.float32, 0, way[1], 2, way[0], size)
    share = shares(way[0], [1000, 1000])[0]
    for place in {0, size // 2, size - 1}:
        tensor = torch.zeros(size)
        tensor[place] = 2.0**25
        with pytest.raises(Overflow) as raised:
            code.encode(state_of(tensor), share)
        assert "t0" not in str(raised.value)
        assert not any(character.isdigit() for character in str(raised.value))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
def test_what_is_not_finite_never_becomes_a_number(way: tuple[str, int], value: float, dtype: torch.dtype) -> None:
    tensor = torch.zeros(5, dtype=dtype)
    tensor[3] = value
    code = encoding(dtype, 0, way[1], 3, way[0], 5)
    with pytest.raises(NotFinite):
        code.encode(state_of(tensor), shares(way[0], [1, 2, 3])[0])
    with pytest.raises(NotFinite):
        exponents(state_of(tensor), code.layout, floor=-2, head_room=3)


# Integers


@given(st.data(), st.sampled_from(INTEGERS), st.sampled_from(WAYS), st.integers(2, 50))
def test_a_value_that_all_peers_share_comes_back_unchanged(data, dtype, way, peers) -> None:
    weighting, bits = way
    kind = parts.Components.of(layout_of(torch.zeros(1, dtype=getattr(torch, dtype))).entries[0])
    reach = {
        ("equal", 32): (2**31 - 1) // peers,
        ("equal", 64): (2**63 - 1) // peers,
        ("declared", 32): int(2 ** (30 - peer_bits(peers)) * (1 - 2.0**-22)),
        ("declared", 64): int(2**48 * (1 - 2.0**-50)),
        ("secret", 64): 2**32 - 1,
    }[way]
    edges = [max(kind.smallest, -reach), min(kind.largest, reach)]
    value = data.draw(st.one_of(st.sampled_from(edges), st.integers(*edges)))
    counts = data.draw(st.lists(st.integers(1, 40_000_000), min_size=peers, max_size=peers))
    state = torch.tensor([value], dtype=getattr(torch, dtype))
    code = encoding(state.dtype, 0, bits, peers, weighting)
    total = total_of([code.encode(state_of(state), share) for share in shares(weighting, counts)])
    assert bytes(code.decode(total)) == state_of(state)


@given(
    st.sampled_from([("equal", 32), ("equal", 64), ("secret", 64)]),
    st.lists(st.tuples(st.integers(-(10**6), 10**6), st.integers(1, 10**6)), min_size=2, max_size=50),
)
def test_the_mean_of_integers_is_the_exact_one_rounded_half_to_even(way, pairs) -> None:
    weighting, bits = way
    counts = [count if weighting == "secret" else 1 for _, count in pairs]
    code = encoding(torch.int64, 0, bits, len(pairs), weighting)
    words = [
        code.encode(state_of(torch.tensor([value])), share)
        for (value, _), share in zip(pairs, shares(weighting, counts), strict=True)
    ]
    exact = Fraction(sum(value * count for (value, _), count in zip(pairs, counts, strict=True)), sum(counts))
    assert np.frombuffer(code.decode(total_of(words)), dtype=np.int64)[0] == round(exact)


@given(
    st.sampled_from([32, 64]),
    st.lists(st.tuples(st.integers(-(10**6), 10**6), st.integers(1, 10**6)), min_size=2, max_size=50),
)
def test_the_declared_mean_of_integers_is_a_rounding_of_a_value_within_the_bound(bits, pairs) -> None:
    code = encoding(torch.int64, 0, bits, len(pairs), "declared")
    counts = [count for _, count in pairs]
    words = [
        code.encode(state_of(torch.tensor([value])), share)
        for (value, _), share in zip(pairs, shares("declared", counts), strict=True)
    ]
    exact = Fraction(sum(value * count for value, count in pairs), sum(counts))
    bound = Fraction(code.error_bound(0))
    assert bound < Fraction(3, 10)
    mean = int(np.frombuffer(code.decode(total_of(words)), dtype=np.int64)[0])
    assert round(exact - bound) <= mean <= round(exact + bound)


@pytest.mark.parametrize(("values", "mean"), [([0, 1], 0), ([1, 2], 2), ([2, 3], 2), ([-1, 0], 0), ([-3, -2], -2)])
def test_halves_go_to_the_even_integer(values: list[int], mean: int) -> None:
    for bits in (32, 64):
        code = encoding(torch.int16, 0, bits, 2, "equal")
        total = total_of([code.encode(state_of(torch.tensor([v], dtype=torch.int16)), EQUAL) for v in values])
        assert np.frombuffer(code.decode(total), dtype=np.int16).tolist() == [mean]


@pytest.mark.parametrize("peers", [2, 3, 50])
def test_integers_overflow_exactly_beyond_their_limit(peers: int) -> None:
    for weighting, bits, reach in (
        ("equal", 32, (2**31 - 1) // peers),
        ("equal", 64, (2**63 - 1) // peers),
        ("secret", 64, 2**32 - 1),
    ):
        code = encoding(torch.int64, 0, bits, peers, weighting)
        share = shares(weighting, [7] * peers)[0]
        for value in (reach, -reach):
            code.encode(state_of(torch.tensor([value])), share)
            with pytest.raises(Overflow):
                code.encode(state_of(torch.tensor([value + (1 if value > 0 else -1)])), share)
    for bits, range_bits in ((32, 30 - peer_bits(peers)), (64, 48)):
        code = encoding(torch.int64, 0, bits, peers, "declared")
        share = Share(10**6, peers * 10**6)
        code.encode(state_of(torch.tensor([int(2**range_bits * (1 - 2.0**-20))])), share)
        for value in (int(2**range_bits * (1 + 2.0**-20)), 2**63 - 1, -(2**63)):
            with pytest.raises(Overflow):
                code.encode(state_of(torch.tensor([value])), share)


def test_the_largest_unsigned_integers_do_not_become_negative_ones() -> None:
    tensor = torch.tensor([2**64 - 1], dtype=torch.uint64)
    for weighting, bits in WAYS:
        with pytest.raises(Overflow):
            encoding(torch.uint64, 0, bits, 2, weighting).encode(state_of(tensor), shares(weighting, [5, 5])[0])


# Counts, sums that nobody honest makes, shapes


@pytest.mark.parametrize("peers", [2, 3, 200])
def test_a_secret_count_has_limits(peers: int) -> None:
    code = encoding(torch.float32, 0, 64, peers, "secret")
    for count in (1, 2**31 // peers):
        assert code.encode(state_of(torch.zeros(1)), Share(count))[-1] == count
    for count in (0, -1, 2**31 // peers + 1):
        with pytest.raises(DataError):
            code.encode(state_of(torch.zeros(1)), Share(count))


def test_a_secret_count_is_not_shown() -> None:
    assert "12345" not in repr(Share(12345))


def test_sums_that_no_honest_peers_make_are_refused() -> None:
    secret = encoding(torch.float32, 0, 64, 3, "secret")
    for count in (0, 2, 3 * (2**31 // 3) + 1, 2**64 - 5):
        with pytest.raises(Malformed):
            secret.decode(np.array([7, count], dtype=np.uint64))
    secret.decode(np.array([7, 3], dtype=np.uint64))
    for dtype, total in ((torch.bool, 6), (torch.bool, -3), (torch.uint8, 900), (torch.int8, -500)):
        for bits in (32, 64):
            code = encoding(dtype, 0, bits, 3, "equal")
            with pytest.raises(Malformed):
                code.decode(np.array([total % 2**bits], dtype=f"uint{bits}"))
    for dtype, exponent in ((torch.float16, 20), (torch.bfloat16, 130), (torch.float32, 130)):
        with pytest.raises(Malformed):
            encoding(dtype, exponent, 32, 3, "equal").decode(np.array([2**31 - 1], dtype=np.uint32))


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "complex32", "quint8"])
def test_a_dtype_that_cannot_be_averaged_is_refused(dtype: str) -> None:
    layout = Layout((Entry("t0", dtype, (4,), 0, 4),), 4)
    with pytest.raises(ModelError):
        FixedPoint(layout, (0,), 32, 2, "equal")
    with pytest.raises(ModelError):
        exponents(bytes(4), layout, floor=-2, head_room=3)


def test_every_bfloat16_is_read_and_written_as_torch_does() -> None:
    every = torch.arange(2**16).to(torch.uint16).view(torch.bfloat16)
    every = every[torch.isfinite(every)]
    kind = parts.Components.of(layout_of(every).entries[0])
    numbers = kind.read(np.frombuffer(state_of(every), dtype=np.uint8))
    assert np.array_equal(numbers.view(np.uint32), every.float().numpy().view(np.uint32))
    halves = (numbers[1:].astype(np.float64) + numbers[:-1]) / 2  # ties, most of them
    between = np.concatenate([halves, np.nextafter(halves, np.inf), halves * 1.0001, numbers.astype(np.float64)])
    written = np.zeros(2 * between.size, dtype=np.uint8)
    with np.errstate(over="ignore"):
        kind.write(written, between)
    assert written.tobytes() == state_of(torch.from_numpy(between).float().bfloat16())


@pytest.mark.parametrize("way", WAYS)
def test_a_range_of_words_is_that_part_of_the_whole(monkeypatch: pytest.MonkeyPatch, way: tuple[str, int]) -> None:
    monkeypatch.setattr("ppdl_mq.numeric.fixed_point.BLOCK", 4)
    generator = torch.Generator().manual_seed(5)
    tensors = [
        torch.ones(3, dtype=torch.bool),
        torch.empty(0, 2),
        torch.randn(9, generator=generator) / 9,
        torch.randn(3, generator=generator, dtype=torch.complex64) / 9,
        torch.tensor(7),
        torch.empty(0),
    ]
    share = shares(way[0], [30, 40, 50])[1]
    code = FixedPoint(layout_of(*tensors), (0,) * 6, way[1], 3, way[0])
    state = state_of(*tensors)
    whole = code.encode(state, share)
    assert whole.size == code.words == 3 + 9 + 6 + 1 + (way[0] == "secret")
    for start, stop in itertools.combinations_with_replacement(range(code.words + 1), 2):
        out = np.full(stop - start, 99, dtype=whole.dtype)
        assert code.encode(state, share, start=start, stop=stop, out=out) is out
        assert out.tolist() == whole[start:stop].tolist()


def test_threads_can_take_a_range_each() -> None:
    tensor = torch.randn(5 * parts.BLOCK + 7, generator=torch.Generator().manual_seed(6)) / 8
    code = encoding(torch.float32, 0, 32, 4, "equal", tensor.numel())
    state = state_of(tensor)
    words = np.zeros(code.words, dtype=np.uint32)
    cuts = [0, 1, parts.BLOCK, 3 * parts.BLOCK + 5, code.words]
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(
                lambda cut: code.encode(state, EQUAL, start=cut[0], stop=cut[1], out=words[cut[0] : cut[1]]),
                itertools.pairwise(cuts),
            )
        )
    assert np.array_equal(words, code.encode(state, EQUAL))


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b""])
def test_weights_of_another_size_are_refused(change) -> None:
    code = encoding(torch.float32, 0, 32, 2, "equal", 3)
    state = change(state_of(torch.zeros(3)))
    with pytest.raises(ModelError):
        code.encode(state, EQUAL)
    with pytest.raises(ModelError):
        exponents(state, code.layout, floor=-2, head_room=3)


# Exponents


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], -2),
        ([0.0, -0.0], -2),
        ([1e-30], -2),
        ([1.0], 4),  # 1 < 2**1, and three bits of head-room
        ([math.nextafter(1.0, 0)], 3),
        ([0.5, -2.0], 5),
        ([-1.999], 4),
        ([2.0**-6], -2),
        ([2.0**-5], -1),
        ([5e-324], -2),
        ([2.0**508], 512),
    ],
)
def test_the_exponent_is_the_smallest_that_leaves_head_room(values: list[float], expected: int) -> None:
    tensor = torch.tensor(values, dtype=torch.float64)
    assert exponents(state_of(tensor), layout_of(tensor), floor=-2, head_room=3) == (expected,)


@given(st.floats(1e-300, 1e150), st.integers(0, 8), st.sampled_from([1, -1]))
def test_the_exponent_bounds_the_largest_magnitude_tightly(value: float, head_room: int, sign: int) -> None:
    tensor = torch.tensor([0.0, value * sign, value / 2], dtype=torch.float64)
    (exponent,) = exponents(state_of(tensor), layout_of(tensor), floor=-512, head_room=head_room)
    smallest = max(-512, exponent) - head_room
    assert Fraction(value) < Fraction(2) ** smallest
    assert exponent == -512 or Fraction(value) >= Fraction(2) ** (smallest - 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.float32])
def test_every_kind_of_real_has_an_exponent(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr("ppdl_mq.numeric.exponents.BLOCK", 2)
    tensor = torch.zeros(7).to(dtype)
    if dtype.is_complex:
        tensor[5] = complex(1, -3)
    else:
        tensor[5] = -3.0
    other = torch.tensor([True, False])
    state, layout = state_of(other, tensor), layout_of(other, tensor)
    assert exponents(state, layout, floor=-2, head_room=1) == (0, 3)


def test_weights_beyond_every_exponent_are_refused() -> None:
    tensor = torch.tensor([2.0**509], dtype=torch.float64)
    with pytest.raises(Overflow):
        exponents(state_of(tensor), layout_of(tensor), floor=-2, head_room=3)


def test_the_digest_of_exponents_is_as_specified() -> None:
    encoded = bytes.fromhex("fffe0003fe000200")
    expected = hashlib.sha256(b"ppdl-mq/1 exponents\0" + (8).to_bytes(8, "big") + encoded).digest()
    assert exponents_digest((-2, 3, -512, 512)) == expected
    assert exponents_digest((1, 2)) != exponents_digest((2, 1))
