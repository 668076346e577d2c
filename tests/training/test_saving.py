from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from ppdl_mq.errors import DiskFull, ModelError, PpdlError
from ppdl_mq.numeric import flatten
from ppdl_mq.numeric.flatten import Layout
from ppdl_mq.training.saving import load_model, save_model
from tests.writes import noted_writes


def model() -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    module.register_buffer("mask", torch.tensor([True, False]))
    module.register_buffer("brain", torch.randn(3).to(torch.bfloat16))
    module.register_buffer("nothing", torch.empty(0, 2))
    return module


def test_a_model_comes_back_bit_for_bit_and_others_can_read_it(tmp_path: Path) -> None:
    module = model()
    layout, weights = Layout.of(module), flatten.flatten(module)
    path = tmp_path / "new" / "model.safetensors"
    save_model(path, layout, memoryview(weights), {"trial": "test"})
    assert load_model(path, layout) == (weights, {"trial": "test"})
    module.load_state_dict(safetensors.torch.load_file(path), strict=True)
    assert flatten.flatten(module) == weights
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_it_is_on_disk_before_it_has_its_name_and_then_its_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = noted_writes(monkeypatch, lambda path: path.name)
    module = model()
    save_model(tmp_path / "model.safetensors", Layout.of(module), flatten.flatten(module))
    assert done == ["fsync model.safetensors", "rename", f"fsync {tmp_path.name}"]


def test_who_reads_the_old_file_reads_on_undisturbed(tmp_path: Path) -> None:
    module = model()
    layout, path = Layout.of(module), tmp_path / "model.safetensors"
    save_model(path, layout, flatten.flatten(module))
    before = path.read_bytes()
    with path.open("rb") as reader:
        save_model(path, layout, flatten.flatten(model()))
        assert reader.read() == before
    assert path.read_bytes() != before


@pytest.mark.parametrize(("number", "error"), [(errno.ENOSPC, DiskFull), (errno.EIO, ModelError)])
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[PpdlError]
) -> None:
    module = model()
    layout, path = Layout.of(module), tmp_path / "model.safetensors"
    save_model(path, layout, flatten.flatten(module))
    before = path.read_bytes()

    def half(tensors, draft, metadata) -> None:
        Path(draft).write_bytes(b"half")
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("ppdl_mq.training.saving.save_file", half)
    with pytest.raises(error):
        save_model(path, layout, flatten.flatten(model()))
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_what_a_death_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Died(BaseException):
        pass

    def die(tensors, draft, metadata) -> None:
        Path(draft).write_bytes(b"half")
        raise Died

    layout, path = Layout.of(model()), tmp_path / "model.safetensors"
    with monkeypatch.context() as patched:
        patched.setattr("ppdl_mq.training.saving.save_file", die)
        patched.setattr("ppdl_mq.training.saving.shutil.rmtree", lambda *_, **__: None)  # nothing is run after a kill
        with pytest.raises(Died):
            save_model(path, layout, flatten.flatten(model()))
    assert list(tmp_path.iterdir())
    save_model(path, layout, flatten.flatten(model()))
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_another_model_a_damaged_file_and_no_file(tmp_path: Path) -> None:
    module = model()
    path = tmp_path / "model.safetensors"
    save_model(path, Layout.of(module), flatten.flatten(module))
    for other in (nn.Linear(3, 2), model().to(torch.float64)):
        with pytest.raises(ModelError):
            load_model(path, Layout.of(other))
    path.write_bytes(path.read_bytes()[:-1])
    for bad in (path, tmp_path / "gone"):
        with pytest.raises(ModelError):
            load_model(bad, Layout.of(module))
