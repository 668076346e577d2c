from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from ppdl_mq.config.manifest import Model
from ppdl_mq.errors import DataError, ModelError, PeerFileError
from ppdl_mq.training import device, plugin

from .trials import manifest

SOURCE = """
import torch
from pathlib import Path

def good(width: int = 2) -> torch.nn.Module:
    return torch.nn.Linear(width, width)

def strange() -> "Unknown":
    return torch.nn.Linear(1, 1)

def unannotated(path="x"):
    Path(path).write_text("called")

def wrong() -> torch.nn.Linear:
    return 3

def broken() -> torch.nn.Module:
    raise KeyError("secret-cell")

def leaves() -> torch.nn.Module:
    raise SystemExit(0)

def needs(width, *, depth) -> torch.nn.Module:
    return torch.nn.Linear(width, depth)

def data(path):
    return open(path).read()

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

number = 3
borrowed = torch.nn.Linear
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "plug_in_of_the_test.py").write_text(SOURCE)
    (tmp_path / "plug_in_with_a_gap.py").write_text("import not_installed_anywhere\n")
    (tmp_path / "plug_in_with_a_fault.py").write_text("1 / 0\n")
    (tmp_path / "plug_in_that_exits.py").write_text("import sys; sys.exit(0)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.startswith("plug_in_")]:
        del sys.modules[name]


def build(name: str, **arguments) -> torch.nn.Module:
    # Around the check of the manifest, which refuses most bad names already.
    model = Model.model_construct(callable=name, arguments=arguments)
    return plugin.build_model(model, manifest().training)


def test_a_function_a_class_and_torch_itself() -> None:
    assert build("plug_in_of_the_test:good", width=5).in_features == 5
    assert build("plug_in_of_the_test:Net").layer.in_features == 1
    assert build("torch.nn:Linear", in_features=3, out_features=2).weight.device.type == "cpu"


def test_the_seed_is_the_manifests() -> None:
    torch.manual_seed(1)
    first = build("plug_in_of_the_test:good").weight
    torch.manual_seed(2)
    assert torch.equal(first, build("plug_in_of_the_test:good").weight)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("plug_in_of_the_test", "module:callable"),
        ("plug_in_of_the_test:", "module:callable"),
        (":good", "module:callable"),
        ("a b:c", "module:callable"),
        ("../evil:good", "module:callable"),
        (".plug_in:good", "module:callable"),
        ("plug_in_of_the_test:good()", "module:callable"),
        ("plug_in_of_the_test:good:good", "module:callable"),
        ("nowhere_to_be_found.models:mlp", "not installed"),
        ("ppdl_mq.training.modells:mlp", "not installed"),
        ("plug_in_with_a_gap:mlp", "not_installed_anywhere"),
        ("plug_in_with_a_fault:mlp", "ZeroDivisionError"),
        ("plug_in_that_exits:mlp", "SystemExit"),
        ("plug_in_of_the_test:leaves", "SystemExit"),
        ("plug_in_of_the_test:goood", "Did you mean good"),
        ("plug_in_of_the_test:number", "cannot be called"),
        ("plug_in_of_the_test:strange", "does not declare"),
        ("plug_in_of_the_test:wrong", "no torch.nn.Module"),
        ("plug_in_of_the_test:broken", "KeyError"),
    ],
)
def test_each_fault_has_its_own_sentence(name: str, said: str) -> None:
    with pytest.raises(ModelError) as caught:
        build(name)
    assert said in str(caught.value)
    assert "secret-cell" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"width": 1}, "'depth'"), ({"depth": 1}, "'width'"), ({"width": 1, "deph": 1}, "Did you mean depth")],
)
def test_wrong_arguments_are_named(arguments, said: str) -> None:
    with pytest.raises(ModelError) as caught:
        build("plug_in_of_the_test:needs", **arguments)
    assert said in str(caught.value)


def test_nothing_that_is_not_a_model_is_ever_called(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for name, arguments in (
        ("plug_in_of_the_test:unannotated", {"path": str(trace)}),
        ("os:system", {"command": f"touch {trace}"}),
        ("subprocess:check_call", {"args": ["touch", str(trace)]}),
        ("builtins:exec", {"source": f"open({str(trace)!r}, 'w')"}),
        ("torch:load", {"f": str(trace)}),
        ("subprocess:Popen", {"args": ["touch", str(trace)]}),
    ):
        with pytest.raises(ModelError, match="not called"):
            build(name, **arguments)
    assert not trace.exists()


@pytest.mark.parametrize(
    "name",
    [
        "plug_in_of_the_test:good",
        "plug_in_of_the_test:Net",
        "ppdl_mq.training.models:mlp",
        "torch.nn:Linear",  # by its own name, wherever it is defined
    ],
)
def test_what_an_organisation_allows(name: str) -> None:
    plugin.check_allowed(name, ("ppdl_mq.training.models", "plug_in_of_the_test", "torch.nn:Linear"))


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("plug_in_of_the_test:good", ()),
        ("plug_in_of_the_test:good", ("plug_in_of_the_test:Net",)),
        ("plug_in_of_the_test:good", ("plug_in_of_the_tes", "plug_in", "plug_in_of_the_test.good")),
        ("torch.nn:Linear", ("torch",)),  # a package does not stand for the modules in it
        ("plug_in_of_the_test:borrowed", ("plug_in_of_the_test",)),
        ("plug_in_of_the_test:torch", ("plug_in_of_the_test",)),
        ("plug_in_of_the_test:torch.nn.Linear", ("plug_in_of_the_test",)),
        ("plug_in_of_the_test:Net.__init__", ("plug_in_of_the_test", "plug_in_of_the_test:Net.__init__")),
        ("plug_in_of_the_test:", ("plug_in_of_the_test",)),
        ("plug_in_of_the_test", ("plug_in_of_the_test",)),
    ],
)
def test_what_an_organisation_has_not_allowed(name: str, allowed: tuple[str, ...]) -> None:
    with pytest.raises(ModelError):
        plugin.check_allowed(name, allowed)


def test_what_is_not_allowed_is_not_even_imported() -> None:
    with pytest.raises(ModelError, match="Add it to models"):
        plugin.check_allowed("plug_in_of_the_test:good", ("ppdl_mq.training.models",))
    assert "plug_in_of_the_test" not in sys.modules


def test_a_data_plug_in_that_cannot_read_says_which_file() -> None:
    function = plugin.find("plug_in_of_the_test:data", DataError)
    with pytest.raises(DataError, match="nothing-here"):
        plugin.call("data", function, {"path": "/nothing-here"}, DataError)


def test_devices() -> None:
    assert device.choose("cpu").type == "cpu"
    assert device.choose("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("cuda:99", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", ""):
        with pytest.raises(PeerFileError):
            device.choose(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_named() -> None:
    with pytest.raises(PeerFileError, match="CUDA"):
        device.choose("cuda")
