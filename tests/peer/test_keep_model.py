"""A model that cannot be written is told as whatever else of the state folder cannot: its peer goes on later."""

from __future__ import annotations

import errno
import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors import SafetensorError

from ppdl_mq.cli.exit_codes import exit_code
from ppdl_mq.errors import JournalError, ModelError
from ppdl_mq.numeric import flatten
from ppdl_mq.numeric.flatten import Layout
from ppdl_mq.peer.folders import MODEL_NAME
from ppdl_mq.peer.hands import Hands, Tools
from ppdl_mq.protocol.effects import Effect, KeepModel
from ppdl_mq.training import saving


class OnlyKeeps(Hands):
    def carry_out(self, effect: Effect) -> None:
        raise AssertionError

    def note(self, result: object) -> None:
        raise AssertionError


def keep(folder: Path) -> None:
    module = torch.nn.Linear(3, 2)
    weights = memoryview(flatten.flatten(module))
    measured = SimpleNamespace(loss=0.5, accuracy=0.5, samples=2)
    tools = SimpleNamespace(
        slots=SimpleNamespace(view=lambda _: nullcontext(weights), check=lambda _: None),
        journal=SimpleNamespace(folder=folder),
        manifest=SimpleNamespace(name="small"),
        terms=SimpleNamespace(trial_id=bytes(32)),
        worker=SimpleNamespace(layout=Layout.of(module), evaluate=lambda _, between: measured),
        progress=SimpleNamespace(note=lambda *_, **__: None),
        pulse=lambda: None,
    )
    effect = SimpleNamespace(slot=None, digest=bytes(32))
    OnlyKeeps(cast("Tools", tools)).keep_model(cast("KeepModel", effect))


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.EMFILE, 10), (errno.EACCES, 10), (errno.EIO, 10), (errno.EROFS, 10), (errno.ENOSPC, 10), (errno.ENOENT, 9)],
)
@pytest.mark.parametrize("by", ["system", "safetensors"])
def test_what_the_system_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int, by: str
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        if by == "system":
            raise OSError(number, os.strerror(number))
        raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")

    with monkeypatch.context() as patch:
        patch.setattr(saving, "save_file", fails)
        with pytest.raises(JournalError, match=rf"The model .*{MODEL_NAME} cannot be written: ") as caught:
            keep(tmp_path)
    assert exit_code(caught.value) == code
    assert os.strerror(number) in caught.value.message
    keep(tmp_path)
    assert (tmp_path / MODEL_NAME).exists()


def test_what_is_no_fault_of_the_system_is_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise SafetensorError("such a tensor has no form")

    monkeypatch.setattr(saving, "save_file", fails)
    with pytest.raises(ModelError):
        keep(tmp_path)
