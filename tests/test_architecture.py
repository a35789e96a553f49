"""The floors: imports go down only. And what keeps the engine general: it knows no block by name."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "reparam"

# Every unit of the package on its floor: a file, or a folder with all its files. A new one must be given a floor here.
FLOORS = {
    "errors": 0,
    "bisect": 0,
    "queries": 0,
    "files": 1,
    "checked": 1,
    "axis": 1,
    "deferred": 1,
    "kernels": 1,
    "affine": 1,
    "arrangement": 1,
    "viewed": 1,
    "precision": 1,
    "inputs": 1,
    "state": 2,
    "split": 1,
    "ranges": 1,
    "likeness": 2,
    "lent": 1,
    "trial": 2,
    "rules": 2,
    "capture": 3,
    "evaluation": 3,
    "interpret": 3,
    "lengths": 4,
    "frames": 1,
    "gradients": 2,
    "attributes": 1,
    "parameters": 2,
    "sizes": 1,
    "arguments": 4,
    "entries": 4,
    "twins": 4,
    "trace": 4,
    "branches": 4,
    "proofs": 4,
    "rewrite": 4,
    "plain": 4,
    "waiting": 4,
    "cost": 4,
    "fixed": 4,
    "fold": 4,
    "chains": 4,
    "memory": 4,
    "needs": 4,
    "spread": 4,
    "border": 4,
    "region": 4,
    "plan": 4,
    "merge": 4,
    "dead": 4,
    "stated": 4,
    "edits": 4,
    "prepare": 4,
    "places": 4,
    "emit": 4,
    "guess": 4,
    "verify": 4,
    "foldcheck": 4,
    "prune": 5,
    "outcome": 5,
    "gains": 5,
    "sketch": 5,
    "bench": 5,
    "data": 5,
    "render": 5,
    "report": 5,
    "origin": 3,
    "pipeline": 5,
    "checkpoint": 6,
    "forwards": 5,
    "structure": 6,
    "probe": 6,
    "artefact": 7,
    "export": 7,
    "undo": 8,
    "timm": 8,
    "hub": 8,
    "lightning": 8,
    "source": 6,
    "programs": 6,
    "cli": 9,
    "__init__": 9,
}
TOP = max(FLOORS.values())

# Imports between units of one floor: (importer, imported).
SAME_FLOOR = {
    ("kernels", "axis"),
    ("affine", "axis"),
    ("affine", "deferred"),
    ("affine", "kernels"),
    ("arrangement", "affine"),
    ("arrangement", "axis"),
    ("viewed", "affine"),
    ("viewed", "kernels"),
    ("viewed", "arrangement"),
    ("inputs", "precision"),
    ("evaluation", "capture"),
    ("interpret", "capture"),
    ("interpret", "evaluation"),
    ("lengths", "cost"),
    ("fold", "cost"),
    ("fold", "lengths"),
    ("spread", "cost"),
    ("spread", "fold"),
    ("border", "verify"),
    ("region", "cost"),
    ("region", "fold"),
    ("region", "lengths"),
    ("region", "memory"),
    ("plan", "border"),
    ("plan", "cost"),
    ("plan", "fold"),
    ("plan", "memory"),
    ("plan", "region"),
    ("plan", "spread"),
    ("merge", "cost"),
    ("merge", "fold"),
    ("merge", "lengths"),
    ("merge", "memory"),
    ("merge", "plan"),
    ("branches", "trace"),
    ("chains", "cost"),
    ("chains", "fold"),
    ("proofs", "arguments"),
    ("proofs", "branches"),
    ("proofs", "trace"),
    ("prepare", "proofs"),
    ("prepare", "chains"),
    ("prepare", "stated"),
    ("stated", "lengths"),
    ("stated", "trace"),
    ("edits", "fold"),
    ("edits", "lengths"),
    ("edits", "trace"),
    ("prepare", "edits"),
    ("prepare", "lengths"),
    ("prepare", "memory"),
    ("prepare", "needs"),
    ("needs", "trace"),
    ("emit", "needs"),
    ("memory", "trace"),
    ("emit", "edits"),
    ("prepare", "fold"),
    ("prepare", "plan"),
    ("prepare", "arguments"),
    ("prepare", "trace"),
    ("trace", "arguments"),
    ("trace", "entries"),
    ("entries", "arguments"),
    ("trace", "twins"),
    ("twins", "arguments"),
    ("proofs", "twins"),
    ("emit", "prepare"),
    ("emit", "fold"),
    ("emit", "plan"),
    ("emit", "places"),
    ("places", "trace"),
    ("emit", "plain"),
    ("emit", "waiting"),
    ("waiting", "plain"),
    ("emit", "rewrite"),
    ("emit", "trace"),
    ("foldcheck", "fold"),
    ("dead", "plan"),
    ("foldcheck", "verify"),
    ("data", "bench"),
    ("pipeline", "prune"),
    ("pipeline", "sketch"),
    ("pipeline", "report"),
    ("sketch", "outcome"),
    ("render", "outcome"),
    ("render", "bench"),
    ("report", "outcome"),
    ("report", "gains"),
    ("report", "sketch"),
    ("report", "bench"),
    ("data", "outcome"),
    ("report", "data"),
    ("report", "render"),
}

# The training-time blocks stand apart: they import torch and one another, and only the top floor imports them.
APART = "nn"

# What may be imported besides Python's own library: the dependencies of pyproject.toml.
THIRD_PARTY = {"torch", "numpy", "tabulate", "typer", "safetensors", "huggingface_hub"}

MAX_LINES = 600

# Names by which published blocks go. Regions are found by what they compute, so none may appear in the engine's code.
BLOCK_NAMES = re.compile(
    r"rep_?vgg|mobile_?one|diverse_?branch|dbb|ac_?block|ac_?net|rep_?mixer|rep_?vit|rep_?ghost|ghost_?net|fast_?vit"
    r"|identity_?based|orepa|ecbsr|switch_to_deploy",
    re.IGNORECASE,
)


def unit(file: Path) -> str:
    """The name under which a file stands in FLOORS: its folder in the package, or its own."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


FILES = sorted(PACKAGE.rglob("*.py"))
ENGINE = [file for file in FILES if unit(file) != APART]
BLOCKS = [file for file in FILES if unit(file) == APART]


def name_of(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imports(file: Path) -> Iterator[str]:
    """Every dotted name that `file` imports, anywhere in it; of `from a import b` that is `a.b`."""
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = absolute(file, node)
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def absolute(file: Path, node: ast.ImportFrom) -> str:
    """The module of `from module import ...`, with leading dots resolved."""
    if node.level == 0:
        return node.module or ""
    package = file.relative_to(PACKAGE.parent).parts[: -node.level]
    return ".".join([*package, *([node.module] if node.module else [])])


def imported_units(file: Path) -> set[str]:
    """The units of this package that `file` imports."""
    inside = [name.split(".")[1:] for name in imports(file) if name.split(".")[0] == "reparam"]
    known = FLOORS.keys() | {APART}
    return {parts[0] if parts and parts[0] in known else "__init__" for parts in inside}


def goes_down(importer: str, imported: str) -> bool:
    if imported == APART:
        return FLOORS[importer] == TOP
    return imported == importer or FLOORS[imported] < FLOORS[importer] or (importer, imported) in SAME_FLOOR


def code(file: Path) -> str:
    """The file's code without comments and docstrings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            node.body[0] = ast.Pass()
    return ast.unparse(tree)


def calls(file: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call in `file` with the text of what is called."""
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_there_is_something_to_check() -> None:
    assert ENGINE


@pytest.mark.parametrize("file", ENGINE, ids=name_of)
def test_every_file_has_a_floor(file: Path) -> None:
    assert unit(file) in FLOORS, f"give {name_of(file)} a floor in {Path(__file__).name}"


@pytest.mark.parametrize("file", ENGINE, ids=name_of)
def test_imports_go_down_only(file: Path) -> None:
    importer = unit(file)
    wrong = [imported for imported in imported_units(file) if not goes_down(importer, imported)]
    assert not wrong, f"{name_of(file)} stands on floor {FLOORS[importer]} and may not import {sorted(wrong)}"


@pytest.mark.parametrize("file", BLOCKS, ids=name_of)
def test_blocks_import_torch_and_one_another_alone(file: Path) -> None:
    assert imported_units(file) <= {APART}
    assert {name.split(".")[0] for name in imports(file)} <= {"torch", "reparam"} | sys.stdlib_module_names


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_only_declared_dependencies_are_imported(file: Path) -> None:
    outside = {name.split(".")[0] for name in imports(file)} - {"reparam"} - sys.stdlib_module_names
    assert outside <= THIRD_PARTY


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_file_can_be_read_in_one_sitting(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) < MAX_LINES


@pytest.mark.parametrize("file", ENGINE, ids=name_of)
def test_the_engine_knows_no_block_by_name(file: Path) -> None:
    found = sorted({match.group() for match in BLOCK_NAMES.finditer(code(file))})
    assert not found, f"{name_of(file)} names {found}; a region is found by what it computes"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_checkpoints_are_read_as_data(file: Path) -> None:
    for called, call in calls(file):
        if called == "torch.load":
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert options.get("weights_only") == "True", f"{name_of(file)}:{call.lineno} may run a checkpoint's code"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_no_guessing_by_attribute(file: Path) -> None:
    guesses = [call.lineno for called, call in calls(file) if called == "hasattr"]
    assert not guesses, f"{name_of(file)} calls hasattr on lines {guesses}; ask for the type"
