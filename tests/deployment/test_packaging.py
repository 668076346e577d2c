"""What a peer has to install, and that everything `make` installs has one exact version."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# What only the demonstration, the tests, or some data plug-ins need.
NOT_A_PEERS = ("sklearn", "scipy", "pyarrow", "PIL", "prometheus_client", "pytest", "hypothesis", "psutil")

IMPORT_ALL = """
import importlib, pkgutil, sys
for name in {blocked!r}:
    sys.modules[name] = None  # an import of it now fails as if it were not installed
import ppdl_mq
for module in pkgutil.walk_packages(ppdl_mq.__path__, "ppdl_mq."):
    importlib.import_module(module.name)
"""

HELP = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None
from ppdl_mq.cli.main import entry
sys.argv = ["ppdl-mq", "--help"]
entry()
"""


def pinned() -> dict[str, str]:
    lines = (line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    requirements = [Requirement(line) for line in lines if line]
    assert all(re.fullmatch(r"==[\w.]+", str(each.specifier)) for each in requirements)
    versions: dict[str, str] = {canonicalize_name(each.name): str(each.specifier)[2:] for each in requirements}
    assert len(versions) == len(requirements)
    return versions


def needed(names: list[str]) -> set[str]:
    """Return the distributions that requirements bring along here, themselves included."""
    found: set[str] = set()
    waiting = [Requirement(name) for name in names]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name == "ppdl-mq" or name in found:
            continue
        found.add(name)
        for text in importlib.metadata.requires(name) or []:
            child = Requirement(text)
            extras = requirement.extras or {""}
            if child.marker is None or any(child.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(child)
    return found


def python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)


def test_a_peer_installs_neither_the_demonstration_nor_the_tests() -> None:
    installed = needed(PROJECT["dependencies"])
    assert not installed & {"scikit-learn", "scipy", "pyarrow", "pillow", "prometheus-client", "pytest", "hypothesis"}


@pytest.mark.slow
def test_every_module_imports_without_what_a_peer_does_not_have() -> None:
    answer = python(IMPORT_ALL.format(blocked=NOT_A_PEERS))
    assert answer.returncode == 0, answer.stderr


@pytest.mark.slow
def test_the_command_line_works_without_what_a_peer_does_not_have() -> None:
    answer = python(HELP.format(blocked=NOT_A_PEERS))
    assert answer.returncode == 0, answer.stderr
    assert "Usage" in answer.stdout


def test_everything_that_make_installs_has_one_exact_version() -> None:
    groups = PROJECT["optional-dependencies"]
    extras = [each for name, group in groups.items() if name != "fuzz" for each in group]  # that one is not here
    cuda = re.compile(r"nvidia-|cuda-|triton$")  # torch's CUDA builds name exact versions of these themselves
    missing = {name for name in needed(PROJECT["dependencies"] + extras) - set(pinned()) if not cuda.match(name)}
    assert missing == set()


def test_the_exact_versions_are_within_the_bounds() -> None:
    versions = pinned()
    assert versions["torch"] == "2.13.0"
    for text in (each for group in PROJECT["optional-dependencies"].values() for each in group):
        requirement = Requirement(text)
        if canonicalize_name(requirement.name) != "ppdl-mq":
            assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)])
    for requirement in map(Requirement, PROJECT["dependencies"]):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)])


def test_continuous_integration_runs_make_test_and_nothing_else() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    commands = [line for line in lines if line and not line.startswith(("#", "set ", "cd ", "export ", "echo "))]
    assert commands == ["exec make test"]
    assert "export CI=true" in lines
