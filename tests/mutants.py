"""Small mistakes, one at a time, each of which the tests of its room have to notice.

    python -m tests.mutants reparam/algebra/axis.py --limit 40

It runs by hand: a mutant costs as much as the tests that it is put to, up to the first that fails. The mutated file
lies in a copy of the tree, so nothing here changes. What no test notices is listed: such a line needs a test, or stands
in `EQUIVALENT` with the reason why the mistake is none.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent

# The tests that a maintainer runs for a room.
TESTS = {
    "algebra": ("tests/algebra", "tests/proof"),
    "rules": ("tests/rules", "tests/algebra"),
    "capture": ("tests/capture", "tests/promises"),
    "compare": ("tests/compare", "tests/convert"),
    "plan": ("tests/plan", "tests/promises"),
    "rewrite": ("tests/rewrite", "tests/promises", "tests/convert"),
    "deploy": ("tests/deploy", "tests/convert"),
    "report": ("tests/report",),
}

# Mistakes that change nothing, by the line of the source and what was made of it.
EQUIVALENT: dict[tuple[str, str], str] = {}

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
}  # fmt: skip
_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}


def mistakes(node: ast.AST) -> Iterator[ast.AST]:
    """What a slip of the pen makes of one node."""
    match node:
        case ast.Compare(ops=[kind]) if type(kind) in _COMPARISONS:
            yield ast.Compare(node.left, [_COMPARISONS[type(kind)]()], node.comparators)
        case ast.BinOp() if type(node.op) in _OPERATORS:
            yield ast.BinOp(node.left, _OPERATORS[type(node.op)](), node.right)
        case ast.BoolOp():
            yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
            yield from (ast.BoolOp(node.op, [v for v in node.values if v is not left]) for left in node.values)
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node.operand
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(value=int()):
            yield ast.Constant(node.value + 1)
        case ast.Name(id=name) if name in _NAMES:
            yield ast.Name(_NAMES[name], node.ctx)
        case ast.If() | ast.IfExp():
            yield from (_with(node, test=ast.Constant(value)) for value in (True, False))
        case ast.Raise():
            yield ast.Pass()


def _with(node: ast.AST, **fields: ast.AST) -> ast.AST:
    return type(node)(**{**dict(ast.iter_fields(node)), **fields})


def mutants(text: str) -> Iterator[tuple[int, str, str]]:
    """The line, what was made of it and the whole text, for each mistake in a file."""
    tree = ast.parse(text)
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            if field in ("annotation", "returns", "decorator_list"):
                continue
            for i, node in enumerate(value if isinstance(value, list) else [value]):
                for wrong in mistakes(node) if isinstance(node, ast.AST) else ():
                    items = [*value[:i], wrong, *value[i + 1 :]] if isinstance(value, list) else wrong
                    setattr(parent, field, items)
                    yield getattr(node, "lineno", 0), ast.unparse(wrong).partition("\n")[0], _unparsed(tree)
                    setattr(parent, field, value)


def _unparsed(tree: ast.AST) -> str:
    return ast.unparse(ast.fix_missing_locations(copy.deepcopy(tree)))


def passes(tree: Path, tests: tuple[str, ...], seconds: float) -> bool:
    """Whether the tests pass on a tree, in a process of their own."""
    child = os.fork()
    if not child:
        os.setsid()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.dup2(nowhere, sys.stderr.fileno())
        os.chdir(tree)
        sys.path.insert(0, str(tree))
        for name in [name for name in sys.modules if name.split(".")[0] in ("reparam", "tests", "benchmarks")]:
            del sys.modules[name]
        import pytest

        os._exit(int(pytest.main(["-x", "-q", "-n0", "-p", "no:cacheprovider", *tests])))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status == 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, help="files of reparam/")
    parser.add_argument("--limit", type=int, default=40, help="mutants of each file, drawn at random (default: 40)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        copied = Path(folder) / "tree"
        shutil.copytree(ROOT, copied, ignore=shutil.ignore_patterns(".git", ".*cache", "__pycache__", ".venv"))
        for file in given.files:
            path = file.resolve().relative_to(ROOT)
            text, tests = (ROOT / path).read_text(encoding="utf-8"), TESTS[path.parts[1]]
            start = time.monotonic()
            if not passes(copied, tests, 3600):
                raise SystemExit(f"{' '.join(tests)} fail as they are")
            seconds = 3 * (time.monotonic() - start) + 10
            lines = text.splitlines()
            made = [each for each in mutants(text) if (lines[each[0] - 1].strip(), each[1]) not in EQUIVALENT]
            drawn = random.Random(given.seed).sample(made, min(given.limit, len(made)))
            left = 0
            for number, wrong, mutated in drawn:
                (copied / path).write_text(mutated, encoding="utf-8")
                if passes(copied, tests, seconds):
                    left += 1
                    print(f"{path}:{number}: {lines[number - 1].strip()}\n    survives: {wrong}", flush=True)
            (copied / path).write_text(text, encoding="utf-8")
            print(f"{path}: {len(drawn) - left} of {len(drawn)} mutants die, of {len(made)}", flush=True)
            survivors += left
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
