"""The rooms of the package: who may import whom. And what keeps the engine general: it knows no block by name."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "reparam"
FILES = sorted(PACKAGE.rglob("*.py"))

# The rooms, from the ground up: a file or a folder of reparam/ each. A room imports from lower rows alone, and rooms of
# one row do not import one another. A new room gets a place here and a story in docs/architecture.md.
ROOMS = [
    {"errors", "nn", "version"},
    {"algebra", "capture"},
    {"rules"},
    {"plan"},
    {"rewrite", "compare"},
    {"report"},
    {"convert"},
    {"deploy"},
    {"timm", "hub", "lightning"},
    {"cli"},
    {"__init__", "__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}

# The training-time blocks are for users: no room of the engine imports them.
BLOCKS = "nn"
MAY_IMPORT_BLOCKS = {"cli", "__init__"}

# What may be imported besides Python's own library: the dependencies of pyproject.toml, and those of its extra `hub`.
THIRD_PARTY = {"torch", "numpy", "tabulate", "typer", "safetensors", "huggingface_hub"}

MAX_LINES = 600

# Names by which published blocks go. Regions are found by what they compute, so none may appear in the engine's code.
BLOCK_NAMES = re.compile(
    r"rep_?vgg|mobile_?one|diverse_?branch|dbb|ac_?block|ac_?net|rep_?mixer|rep_?vit|rep_?ghost|ghost_?net|fast_?vit"
    r"|identity_?based|orepa|ecbsr|switch_to_deploy",
    re.IGNORECASE,
)


def room(file: Path) -> str:
    """The room that a file belongs to: its folder in the package, or its own name."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def name(file: Path) -> str:
    """A file as messages name it."""
    return file.relative_to(PACKAGE.parent).as_posix()


def dotted(file: Path) -> str:
    """The name under which Python imports a file."""
    return ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imports(file: Path, *, typing: bool = True) -> Iterator[str]:
    """Every dotted name that `file` imports, anywhere in it; of `from a import b` that is `a.b`.

    `typing=False` leaves out what only a type checker imports.
    """
    pending: list[ast.AST] = [parsed(file)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{origin(file, node)}.{alias.name}" for alias in node.names)
        elif not typing and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
        else:
            pending += ast.iter_child_nodes(node)


def origin(file: Path, node: ast.ImportFrom) -> str:
    """The module of `from module import ...`, with leading dots resolved."""
    if node.level == 0:
        return node.module or ""
    package = file.relative_to(PACKAGE.parent).parts[: -node.level]
    return ".".join([*package, *([node.module] if node.module else [])])


MODULES = {dotted(file): file for file in FILES}


def module(imported: str) -> str | None:
    """The module of this package that an imported name is, or stands in."""
    return next((part for part in (imported, imported.rpartition(".")[0]) if part in MODULES), None)


def inside(file: Path, *, typing: bool = True) -> set[str]:
    """The modules of this package that `file` imports."""
    found = (module(imported) for imported in imports(file, typing=typing))
    return {imported for imported in found if imported is not None and imported != dotted(file)}


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


def forbidden(importer: str, imported: str) -> str | None:
    """Why one room may not import another; None if it may."""
    if imported == importer:
        return None
    if imported == BLOCKS:
        return None if importer in MAY_IMPORT_BLOCKS else "the blocks are for users; the engine folds what it sees"
    if FLOOR[imported] < FLOOR[importer]:
        return None
    where = "beside" if FLOOR[imported] == FLOOR[importer] else "above"
    return f"{imported} stands {where} {importer}; move the name down or hand the value in as an argument"


def none_of(violations: list[str]) -> None:
    """Fails with every violation on a line of its own."""
    if violations:
        pytest.fail("\n".join(sorted(violations)), pytrace=False)


def test_every_file_is_in_a_room() -> None:
    none_of(
        [f"{name(file)}: give the room {room(file)!r} a place in ROOMS" for file in FILES if room(file) not in FLOOR]
    )
    assert {room(file) for file in FILES} == FLOOR.keys(), "a room of ROOMS is empty"


def test_a_room_imports_lower_rooms_alone() -> None:
    none_of(
        [
            f"{name(file)} imports {imported}: {why}"
            for file in FILES
            for imported in inside(file)
            if (why := forbidden(room(file), room(MODULES[imported])))
        ]
    )


def test_no_file_imports_itself_in_a_circle() -> None:
    graph = {dotted(file): inside(file, typing=False) for file in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("imports run in a circle: " + " <- ".join(error.args[1]), pytrace=False)


def test_a_room_tells_its_story() -> None:
    """The first lines of a room: what it takes, what it gives, what it never does."""
    none_of(
        [
            f"{name(file)}: its docstring has to say in two sentences or more what the room takes, gives and never does"
            for file in FILES
            if file.name == "__init__.py" and file.parent != PACKAGE
            if len(re.findall(r"[.!?](?=\s|$)", ast.get_docstring(parsed(file)) or "")) < 2
        ]
    )


def private(file: Path) -> Iterator[tuple[int, str]]:
    """Names with a leading underscore that a file takes from other files of this package."""
    modules = {}
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.ImportFrom) and origin(file, node).partition(".")[0] == "reparam":
            for alias in node.names:
                if alias.name.startswith("_") and not alias.name.startswith("__"):
                    yield node.lineno, f"{origin(file, node)}.{alias.name}"
                elif (imported := f"{origin(file, node)}.{alias.name}") in MODULES:
                    modules[alias.asname or alias.name] = imported
    for node in ast.walk(parsed(file)):
        if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
            continue
        if node.value.id in modules and node.attr.startswith("_") and not node.attr.startswith("__"):
            yield node.lineno, f"{modules[node.value.id]}.{node.attr}"


def test_private_names_stay_in_their_file() -> None:
    none_of(
        [
            f"{name(file)}:{line} uses {used}: drop the underscore or leave it where it is"
            for file in FILES
            for line, used in private(file)
        ]
    )


def test_blocks_import_torch_and_one_another_alone() -> None:
    allowed = {"torch", "reparam"} | sys.stdlib_module_names
    blocks = [file for file in FILES if room(file) == BLOCKS]
    assert blocks
    none_of(
        [
            f"{name(file)} imports {imported}: a block needs torch alone"
            for file in blocks
            for imported in imports(file)
            if imported.partition(".")[0] not in allowed
        ]
    )


def test_only_declared_dependencies_are_imported() -> None:
    none_of(
        [
            f"{name(file)} imports {imported}, which pyproject.toml does not declare"
            for file in FILES
            for imported in imports(file)
            if imported.partition(".")[0] not in {"reparam"} | THIRD_PARTY | sys.stdlib_module_names
        ]
    )


def test_a_file_can_be_read_in_one_sitting() -> None:
    lines = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    none_of(
        [
            f"{name(file)} has {count} lines: split it below {MAX_LINES}"
            for file, count in lines.items()
            if count >= MAX_LINES
        ]
    )


def test_the_engine_knows_no_block_by_name() -> None:
    none_of(
        [
            f"{name(file)} names {match.group()!r}: a region is found by what it computes"
            for file in FILES
            if room(file) != BLOCKS
            for match in BLOCK_NAMES.finditer(code(file))
        ]
    )


def test_checkpoints_are_read_as_data() -> None:
    none_of(
        [
            f"{name(file)}:{call.lineno} may run a checkpoint's code: torch.load needs weights_only=True"
            for file in FILES
            for called, call in calls(file)
            if called == "torch.load"
            if {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}.get("weights_only") != "True"
        ]
    )


def test_types_are_asked_for_and_attributes_are_not_guessed() -> None:
    none_of(
        [
            f"{name(file)}:{call.lineno} calls hasattr: ask for the type"
            for file in FILES
            for called, call in calls(file)
            if called == "hasattr"
        ]
    )
