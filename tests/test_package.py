"""What a user meets first: the public names, and the package as a program."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import reparam

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("docs", "dev")  # extras whose packages no test imports

UNINSTALLED = """
import importlib.metadata

def version(name):
    raise importlib.metadata.PackageNotFoundError(name)

importlib.metadata.version = version

import torch
import reparam

x = torch.randn(1, 3, 5, 5)
folded = reparam.reparameterize(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)).eval(), x)
reparam.save(folded, "net.safetensors")
assert reparam.__version__ in folded.reparam_report.to_html()
"""


def test_a_checkout_that_is_not_installed_saves(tmp_path: Path) -> None:
    path = Path(reparam.__file__).parent.parent
    subprocess.run([sys.executable, "-c", UNINSTALLED], cwd=tmp_path, env={"PYTHONPATH": str(path)}, check=True)


def test_the_version_is_that_of_the_project() -> None:
    project = Path(reparam.__file__).parent.parent / "pyproject.toml"
    assert re.findall(r'^version = "(.*)"$', project.read_text(), re.MULTILINE) == [reparam.__version__]


def test_dir_lists_the_public_names_only() -> None:
    assert set(dir(reparam)) == {*reparam.__all__, "__version__"}
    assert all(hasattr(reparam, name) for name in dir(reparam))


def test_the_package_runs_the_command_line() -> None:
    ended = subprocess.run([sys.executable, "-m", "reparam", "--version"], capture_output=True, text=True, check=True)
    assert ended.stdout == f"reparam {reparam.__version__}\n"


def test_the_oldest_versions_are_the_ones_that_are_tested() -> None:
    tomllib = pytest.importorskip("tomllib", reason="new in Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [texts for name, texts in project["optional-dependencies"].items() if name not in TOOLS]
    oldest = {
        canonicalize_name(required.name): Version(bound.version)
        for required in map(Requirement, sum(extras, project["dependencies"]))
        for bound in required.specifier
        if bound.operator == ">=" and (required.marker is None or required.marker.evaluate({"python_version": "3.11"}))
    }
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    tested = {canonicalize_name(pin.name): Version(str(pin.specifier).removeprefix("==")) for pin in pins}
    assert {name: tested.get(name) for name in oldest} == oldest
    assert "torch" in oldest
