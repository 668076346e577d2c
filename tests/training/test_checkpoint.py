"""A turn that is left in its middle and gone on with elsewhere comes to the same bits as one that is not."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ppdl_mq.config.manifest import Manifest
from ppdl_mq.errors import Interrupted, NotFinite
from ppdl_mq.numeric import flatten
from ppdl_mq.peer.checkpoints import Checkpoints
from ppdl_mq.training import checkpoint, order
from ppdl_mq.training.worker import TurnResult, Worker
from ppdl_mq.wire import canonical

from .trials import CPU, SEEDS, ZOO, manifest, schedule, split

SEED = hashlib.sha256(b"ash").digest()  # not one of zeros: it is looked for
NUMBER = 4  # ash's second turn
NEVER_S = 1e9
MLP = {"inputs": 6, "hidden": [9], "outputs": 3}

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"arguments": MLP},
    "momentum": {"arguments": MLP, "momentum": 0.9, "weight_decay": 0.01},
    "dropout": {"arguments": MLP | {"dropout": 0.5}, "momentum": 0.5},
    "batch-norm": {"arguments": MLP | {"batch_norm": True, "dropout": 0.2}, "momentum": 0.9, "batch_size": 7},
    "step": {"arguments": MLP, "schedule": "step", "schedule_every": 1, "schedule_factor": 0.5, "momentum": 0.9},
    "cosine": {"arguments": MLP | {"dropout": 0.3}, "schedule": "cosine", "momentum": 0.9},
    "epochs": {"arguments": MLP, "turn_epochs": 3, "momentum": 0.9},
    "steps": {"arguments": MLP | {"dropout": 0.5}, "turn_steps": 7, "momentum": 0.9},  # over the end of an epoch
}


def terms(kind: str) -> Manifest:
    return manifest(**KINDS[kind])


def worker_of(agreed: Manifest, folder: Path | None, *, every_s: float = NEVER_S, rows: int = 37) -> Worker:
    """A worker as a new process would build it."""
    checkpoints = None if folder is None else Checkpoints(folder, every_s=every_s)
    return Worker(agreed, split(rows), device=CPU, checkpoints=checkpoints)


class Count:
    """A loss that counts the steps, and sets `stop` in the one of this number."""

    def __init__(self, worker: Worker, stop_at: int | None = None) -> None:
        self.stop = threading.Event()
        self.steps = 0
        self._loss, self._stop_at = worker.loss, stop_at
        worker.loss = self

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        if self.steps == self._stop_at:
            self.stop.set()
        return self._loss(outputs, targets)


def begins_from(agreed: Manifest) -> bytearray:
    return worker_of(agreed, None).initial()


def train(
    agreed: Manifest, folder: Path | None, stop_at: int | None = None, *, number: int = NUMBER, **of_worker: Any
) -> tuple[TurnResult | None, int]:
    """Train a turn in a new worker; return what it came to, unless it was stopped, and the steps that it took."""
    worker = worker_of(agreed, folder, **of_worker)
    torch.manual_seed(random.SystemRandom().getrandbits(40))  # what else a new process differs in
    count = Count(worker, stop_at)
    try:
        result = worker.train(schedule(agreed).turn(number), begins_from(agreed), SEED, stop=count.stop)
    except Interrupted:
        return None, count.steps
    return result, count.steps


def assert_same(found: TurnResult | None, expected: TurnResult) -> None:
    assert found is not None
    assert found == expected  # the loss to its last bit, too


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def undisturbed(agreed: Manifest) -> TurnResult:
    result, _ = train(agreed, None)
    assert result is not None
    return result


def test_left_after_every_step(tmp_path: Path, kind: str) -> None:
    agreed = terms(kind)
    expected = undisturbed(agreed)
    assert expected.steps >= 5
    for left_after in range(1, expected.steps):
        stopped, before = train(agreed, tmp_path, left_after)
        assert (stopped, before) == (None, left_after)
        result, after = train(agreed, tmp_path)
        assert_same(result, expected)
        assert before + after == expected.steps, "a step was trained twice, or left out"
        Checkpoints(tmp_path, every_s=NEVER_S).discard(NUMBER)


def test_left_after_each_step_in_turn(tmp_path: Path, kind: str) -> None:
    agreed = terms(kind)
    expected = undisturbed(agreed)
    for _ in range(expected.steps - 1):
        assert train(agreed, tmp_path, 1) == (None, 1)
    result, steps = train(agreed, tmp_path)
    assert_same(result, expected)
    assert steps == 1


@pytest.mark.parametrize("seed", range(6))
def test_left_several_times(tmp_path: Path, kind: str, seed: int) -> None:
    agreed = terms(kind)
    expected = undisturbed(agreed)
    draw = random.Random(seed)
    steps = 0
    for _ in range(100):
        result, more = train(agreed, tmp_path, draw.randint(1, 3))
        steps += more
        if result is not None:
            break
    assert_same(result, expected)
    assert steps == expected.steps


def test_whoever_stops_in_the_last_step_has_its_result_for_nothing(tmp_path: Path) -> None:
    agreed = terms("dropout")
    expected = undisturbed(agreed)
    assert_same(train(agreed, tmp_path, expected.steps)[0], expected)  # too late for the loop to take it
    result, steps = train(agreed, tmp_path)
    assert_same(result, expected)
    assert steps == 0


def test_an_infinite_loss_is_taken_along(tmp_path: Path) -> None:
    """It ends the turn, as it does when the turn is not left."""
    agreed = manifest(learning_rate=1e30, turn_steps=20)
    assert train(agreed, tmp_path, 9) == (None, 9)
    (path,) = tmp_path.glob("*.checkpoint")
    size = int.from_bytes(path.read_bytes()[15:19], "big")
    header = canonical.decode(path.read_bytes()[19 : 19 + size], limit_bytes=size)
    assert not math.isfinite(struct.unpack("<d", header["loss"])[0])
    with pytest.raises(NotFinite):
        train(agreed, tmp_path)


def test_a_convolution_and_a_frozen_layer(tmp_path: Path) -> None:
    """A parameter without a gradient has no momentum; one in another order of memory keeps it."""
    agreed = manifest(
        ZOO + "small_cnn", {"channels": 2, "size": 9, "outputs": 3}, shape=(2, 9, 9), momentum=0.9, turn_steps=6
    )

    def run(folder: Path | None, stop_at: int | None = None) -> tuple[TurnResult | None, Worker]:
        shelf = None if folder is None else Checkpoints(folder, every_s=NEVER_S)
        worker = Worker(agreed, split(37, shape=(2, 9, 9)), device=CPU, checkpoints=shelf)
        worker.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        next(iter(worker.module.parameters())).requires_grad_(False)
        count = Count(worker, stop_at)
        try:
            return worker.train(schedule(agreed).turn(1), worker.initial(), SEED, stop=count.stop), worker
        except Interrupted:
            return None, worker

    expected, worker = run(None)
    assert any(not each.is_contiguous() for each in worker.module.parameters())
    for stop_at in range(1, 6):
        assert run(tmp_path, stop_at)[0] is None
        result, _ = run(tmp_path)
        assert expected is not None
        assert_same(result, expected)
        Checkpoints(tmp_path, every_s=NEVER_S).discard(1)


_ELSEWHERE = """
import json, sys
from pathlib import Path
from ppdl_mq.config.reading import manifest_from_data
from tests.training import test_checkpoint as here
agreed = manifest_from_data(json.loads(sys.argv[1]))
result, steps = here.train(agreed, Path(sys.argv[2]), json.loads(sys.argv[3]))
print(json.dumps([steps, None if result is None else [bytes(result.weights).hex(), result.loss.hex()]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["batch-norm"], indirect=True)
def test_another_process_goes_on(tmp_path: Path, kind: str) -> None:
    agreed = terms(kind)
    expected = undisturbed(agreed)
    steps = 0
    for stop_at in (2, None):
        arguments = [json.dumps(agreed.as_data()), str(tmp_path), json.dumps(stop_at)]
        done = subprocess.run(
            [sys.executable, "-c", _ELSEWHERE, *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
            cwd=Path(__file__).parents[2],
        )
        more, found = json.loads(done.stdout)
        steps += more
    assert found == [bytes(expected.weights).hex(), float(expected.loss or 0).hex()]
    assert steps == expected.steps


# --- when one is written ---------------------------------------------------------------------------------------------


class Clock:
    """Takes the place of `time` in the module: a step takes a second, and writing what it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class Noted(Checkpoints):
    """Notes after which step something is written."""

    def __init__(self, folder: Path, clock: Clock, *, every_s: float, takes_s: float, is_full: bool = False) -> None:
        super().__init__(folder, every_s=every_s)
        self.clock, self.takes_s, self.is_full = clock, takes_s, is_full
        self.at: list[float] = []

    def save(self, number: int, pieces: Any) -> bool:
        self.at.append(self.clock.now)
        self.clock.now += self.takes_s
        return not self.is_full and super().save(number, pieces)


@pytest.mark.parametrize(
    ("every_s", "takes_s", "expected"),
    [
        (10.0, 0.0, [10, 20, 30, 40, 50]),
        (0.5, 0.0, list(range(1, 51))),
        (10.0, 0.25, [10, 35.25]),  # a quarter of a second of writing, 25 s of training
        (60.0, 0.0, []),
    ],
)
def test_a_hundredth_of_the_time_at_most_is_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_s: float, takes_s: float, expected: list[float]
) -> None:
    clock = Clock()
    monkeypatch.setattr(checkpoint, "time", clock)
    agreed = manifest(turn_steps=50)
    shelf = Noted(tmp_path, clock, every_s=every_s, takes_s=takes_s)
    worker = Worker(agreed, split(37), device=CPU, checkpoints=shelf)
    plain = worker.loss

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        clock.now += 1.0
        return plain(outputs, targets)

    worker.loss = loss
    worker.train(schedule(agreed).turn(1), worker.initial(), SEED)
    assert shelf.at == pytest.approx(expected)


def test_the_turn_goes_on_where_none_can_be_written(tmp_path: Path) -> None:
    agreed = terms("momentum")
    clock = Clock()
    shelf = Noted(tmp_path, clock, every_s=NEVER_S, takes_s=0.0, is_full=True)
    worker = Worker(agreed, split(37), device=CPU, checkpoints=shelf)
    count = Count(worker, 3)
    with pytest.raises(Interrupted):
        worker.train(schedule(agreed).turn(NUMBER), worker.initial(), SEED, stop=count.stop)
    assert len(shelf.at) == 1
    assert_same(train(agreed, tmp_path)[0], undisturbed(agreed))


# --- what is not gone on with ----------------------------------------------------------------------------------------


@pytest.fixture
def small() -> Manifest:
    """A model so small that every byte of its checkpoint can be damaged, but for the 5056 of torch's generator."""
    return manifest(
        ZOO + "logistic_regression", {"inputs": 2, "outputs": 2}, shape=(2,), classes=2, momentum=0.9, turn_steps=3
    )


def small_worker(agreed: Manifest, folder: Path | None) -> Worker:
    shelf = None if folder is None else Checkpoints(folder, every_s=NEVER_S)
    return Worker(agreed, split(9, shape=(2,), classes=2), device=CPU, checkpoints=shelf)


def small_turn(worker: Worker, stop_at: int | None = None) -> TurnResult | None:
    worker.loss = torch.nn.functional.cross_entropy
    count = Count(worker, stop_at)
    turn = schedule(worker.manifest).turn(1)
    try:
        return worker.train(turn, worker.initial(), SEED, stop=count.stop)
    except Interrupted:
        return None


def passed_over(caplog: pytest.LogCaptureFixture) -> int:
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    caplog.clear()
    assert all("passed over" in message and "begins anew" in message for message in messages), messages
    return len(messages)


def written(agreed: Manifest, folder: Path) -> tuple[Path, bytes]:
    """Leave a turn of the small model after its second step; return the file, and what is in it."""
    assert small_turn(small_worker(agreed, folder), 2) is None
    (path,) = folder.glob("*.checkpoint")
    return path, path.read_bytes()


def test_damage_at_any_byte_is_found_and_changes_nothing(
    tmp_path: Path, small: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    expected = small_turn(small_worker(small, None))
    path, whole = written(small, tmp_path)
    worker = small_worker(small, tmp_path)
    draw = random.Random(1)
    caplog.clear()
    generator_at = len(whole) - 32 - 5056
    places = [*range(generator_at), *draw.sample(range(generator_at, len(whole) - 32), 100)]
    places += range(len(whole) - 32, len(whole))
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        assert small_turn(worker) == expected, place
        assert passed_over(caplog) == 1, place


@pytest.mark.parametrize("seed", range(3))
def test_cut_off_or_longer(tmp_path: Path, small: Manifest, caplog: pytest.LogCaptureFixture, seed: int) -> None:
    expected = small_turn(small_worker(small, None))
    path, whole = written(small, tmp_path)
    worker = small_worker(small, tmp_path)
    draw = random.Random(seed)
    caplog.clear()
    for size in (0, 1, 14, 18, 19, 50, 51, len(whole) - 32, len(whole) - 1, *draw.sample(range(len(whole)), 30)):
        path.write_bytes(whole[:size])
        assert small_turn(worker) == expected, size
        assert passed_over(caplog) == 1, size
    for more in (b"\0", whole[-32:], whole):
        path.write_bytes(whole + more)
        assert small_turn(worker) == expected
        assert passed_over(caplog) == 1


Forge = Callable[[dict[str, Any], bytearray], None]


def set_header(name: str, value: Any) -> Forge:
    def forge(header: dict[str, Any], _: bytearray) -> None:
        header[name] = value

    return forge


def drop_header(name: str) -> Forge:
    return lambda header, _: header.pop(name) and None


def foreign(name: str, value: Any) -> Forge:
    def forge(header: dict[str, Any], _: bytearray) -> None:
        assert name in header["origin"]
        header["origin"][name] = value

    return forge


def set_generator(header: dict[str, Any], raw: bytearray) -> None:
    raw[-5056:] = b"\xff" * 5056


FORGED: dict[str, Forge] = {
    "no-steps": set_header("steps", 0),
    "steps-in-words": set_header("steps", "two"),
    "short-loss": set_header("loss", b"\0" * 7),
    "no-loss": drop_header("loss"),
    "no-origin": drop_header("origin"),
    "too-many-flags": set_header("momentum", b"\1\1\1"),
    "other-flags": set_header("momentum", b"\1\0"),
    "two-generators": set_header("generators", [56, 5000]),
    "no-generator": set_header("generators", []),
    "generator": set_generator,
    "trial": foreign("trial", bytes(32)),
    "number": foreign("number", 2),
    "base": foreign("base", bytes(32)),
    "layout": foreign("layout", bytes(32)),
    "seed": foreign("seed", 5),
    "rows": foreign("rows", 10),
    "device": foreign("device", "cuda"),
    "torch": foreign("torch", "1.0"),
}


def forged(whole: bytes, forge: Forge) -> bytes:
    """Change header or content, and mend lengths and digest."""
    begins = 15 + 4
    ends = begins + int.from_bytes(whole[15:begins], "big")
    header = canonical.decode(whole[begins:ends], limit_bytes=1 << 20)
    raw = bytearray(whole[ends:-32])
    forge(header, raw)
    encoded = canonical.encode(header)
    content = whole[:15] + len(encoded).to_bytes(4, "big") + encoded + raw
    return content + hashlib.sha256(content).digest()


@pytest.mark.parametrize("what", FORGED)
def test_what_is_whole_but_foreign_or_senseless(
    tmp_path: Path, small: Manifest, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    expected = small_turn(small_worker(small, None))
    path, whole = written(small, tmp_path)
    assert forged(whole, lambda *_: None) == whole
    path.write_bytes(forged(whole, FORGED[what]))
    caplog.clear()
    assert small_turn(small_worker(small, tmp_path)) == expected
    assert passed_over(caplog) == 1


def test_a_truth_value_that_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The one thing that loading a state refuses: the view must be let go of, and the turn begin anew."""
    agreed = terms("momentum")

    def run(folder: Path | None, stop_at: int | None = None) -> TurnResult | None:
        worker = worker_of(agreed, folder)
        worker.module.register_buffer("flag", torch.tensor([True, False]))
        worker.layout = flatten.Layout.of(worker.module)
        count = Count(worker, stop_at)
        weights = flatten.flatten(worker.module)
        try:
            return worker.train(schedule(agreed).turn(NUMBER), weights, SEED, stop=count.stop)
        except Interrupted:
            return None

    expected = run(None)
    assert run(tmp_path, 2) is None
    (path,) = tmp_path.glob("*.checkpoint")
    whole = path.read_bytes()

    def forge(_: dict[str, Any], raw: bytearray) -> None:
        assert raw[:2] == b"\1\0"  # the outermost module's own come first
        raw[0] = 2

    path.write_bytes(forged(whole, forge))
    caplog.clear()
    assert run(tmp_path) == expected
    assert passed_over(caplog) == 1


def changed(**training: Any) -> Manifest:
    return manifest(**{"arguments": MLP, "momentum": 0.9, "turn_steps": 5, **training})


def test_of_another_turn_trial_seed_or_base(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    agreed = changed()
    turn = schedule(agreed).turn(NUMBER)
    other_weights = worker_of(changed(seed=9), None).initial()
    cases: Iterator[tuple[str, Manifest, bytearray, bytes, int]] = iter(
        [
            ("trial", changed(learning_rate=0.2), begins_from(agreed), SEED, 37),
            ("seed", agreed, begins_from(agreed), SEEDS["birch"], 37),
            ("base", agreed, other_weights, SEED, 37),
            ("rows", agreed, begins_from(agreed), SEED, 36),
        ]
    )
    for what, again, base, seed, rows in cases:
        assert train(agreed, tmp_path, 2)[0] is None
        caplog.clear()
        expected = worker_of(again, None, rows=rows).train(turn, base, seed)
        assert worker_of(again, tmp_path, rows=rows).train(turn, base, seed) == expected, what
        assert passed_over(caplog) == 1, what
        Checkpoints(tmp_path, every_s=NEVER_S).clear()
    # Another turn: its own name is looked for, and this one is removed.
    assert train(agreed, tmp_path, 2)[0] is None
    (path,) = tmp_path.iterdir()
    assert train(agreed, tmp_path, number=1)[0] == train(agreed, None, number=1)[0]
    assert not list(tmp_path.iterdir())
    # Even under that turn's name.
    assert train(agreed, tmp_path, 2)[0] is None
    path.rename(tmp_path / "turn-1.checkpoint")
    caplog.clear()
    assert train(agreed, tmp_path, number=1)[0] == train(agreed, None, number=1)[0]
    assert passed_over(caplog) == 1


# --- what is in it ---------------------------------------------------------------------------------------------------


def test_the_file_is_the_owners_and_tells_nothing_of_the_order(tmp_path: Path) -> None:
    agreed = manifest(arguments=MLP | {"dropout": 0.5}, momentum=0.9)
    umask = os.umask(0)
    try:
        assert train(agreed, tmp_path, 2)[0] is None
    finally:
        os.umask(umask)
    (path,) = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = path.read_bytes()
    batches = order.turn_batches(agreed.training, schedule(agreed).turn(NUMBER), SEED, rows=37)
    rows = torch.cat(list(batches)).numpy()
    assert SEED not in content
    for wide in (np.int64, np.int32):
        assert rows[:8].astype(wide).tobytes() not in content
    for epoch in range(4):
        seed = order.derive(SEED, b"order" + epoch.to_bytes(8, "big"))
        assert seed.to_bytes(8, "little") not in content
        assert seed.to_bytes(8, "big") not in content
    # What there is: the seed of dropout in this turn, in the state of torch's generator.
    dropout = order.derive(SEED, b"turn" + NUMBER.to_bytes(8, "big"))
    assert dropout.to_bytes(8, "little") in content


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    agreed = manifest(arguments=MLP | {"hidden": [64], "dropout": 0.5, "batch_norm": True}, momentum=0.9, batch_size=7)

    def run(folder: Path | None, stop_at: int | None = None) -> TurnResult | None:
        shelf = None if folder is None else Checkpoints(folder, every_s=NEVER_S)
        worker = Worker(agreed, split(37), device=torch.device("cuda:0"), checkpoints=shelf)
        count = Count(worker, stop_at)
        try:
            return worker.train(schedule(agreed).turn(NUMBER), worker.initial(), SEED, stop=count.stop)
        except Interrupted:
            return None

    expected = run(None)
    assert run(tmp_path, 2) is None
    assert run(tmp_path, 1) is None
    assert run(tmp_path) == expected
