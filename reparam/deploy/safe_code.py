"""The text of a forward as data: what it may say, so that reading it from a file can run nothing but arithmetic.

A rewritten forward is Python, and Python from a file can do anything. What torch.fx prints, though, needs little of it:
one assignment after another, calls of the module's own layers, of torch's operations, of `operator` and `math`, and of
the methods of tensors. Everything else is refused, and no function is ever handed to another one.
"""

from __future__ import annotations

import ast
import builtins
import math
import operator
from collections.abc import Collection, Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import get_overridable_functions

from reparam.errors import InputError
from reparam.rewrite.code import Code

_MODULES = {"torch": torch, "operator": operator, "math": math}
_MAKING = (
    "arange", "as_tensor", "empty", "empty_like", "eye", "full", "full_like", "linspace", "ones", "ones_like",
    "scalar_tensor", "tensor", "zeros", "zeros_like", "_assert", "device", "Size",
)  # fmt: skip
_BUILT_IN = (
    "slice", "int", "float", "bool", "len", "abs", "min", "max", "round", "sum",
    "list", "tuple", "dict", "range", "reversed", "sorted", "zip",
)  # fmt: skip
_NO_ARITHMETIC = ("attrgetter", "methodcaller", "itemgetter", "call")
# What a name in a forward may stand for, besides modules.
_OBJECTS: dict[str, Any] = {
    **{name: getattr(builtins, name) for name in ("getattr", *_BUILT_IN)},
    **{f"math.{name}": each for name, each in vars(math).items() if callable(each)},
    **{f"operator.{name}": each for name, each in vars(operator).items()
       if callable(each) and not name.startswith("_") and name not in _NO_ARITHMETIC},
    "inf": math.inf,
    "nan": math.nan,
    "device": torch.device,
}  # fmt: skip
_NO_METHODS = {
    "register_hook",
    "register_post_accumulate_grad_hook",
    "map_",
    "map2_",
    "apply_",
    "share_memory_",
    "numpy",
}
_OF_CONTAINERS = {"keys", "values", "items", "get"}
_VALUES = (torch.dtype, torch.memory_format, torch.layout, float, int)
_EXPRESSIONS = (
    ast.Tuple, ast.List, ast.Dict, ast.Slice, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.Subscript,
)  # fmt: skip


def code_data(code: Code, where: str) -> dict[str, Any]:
    """A forward for a file. Raises InputError where it says what files may not say; `where` names its module."""
    objects = {}
    for name, value in code.objects:
        known = next((key for key, each in _OBJECTS.items() if value is each), None)
        if known is None and isinstance(value, float):
            known = "nan" if math.isnan(value) else "inf" if value == math.inf else None
        if known is None:
            raise InputError(
                f"{where}: its forward needs {value!r}, which an artefact cannot hold; export a .pt2 instead"
            )
        objects[name] = known
    data = {"text": code.text, "modules": dict(code.modules), "objects": objects}
    read_code(data, where)
    return data


def read_code(data: Any, where: str) -> tuple[Code, list[list[str]]]:
    """The forward in a file, and the paths below `self` that it names.

    Raises InputError where it says more than a forward that torch.fx prints does.
    """
    try:
        text, modules, objects = str(data["text"]), dict(data["modules"]), dict(data["objects"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: its forward is damaged ({error!r})") from error
    strange = [name for name in modules if modules[name] != name or name not in _MODULES]
    strange += [name for name, key in objects.items() if not _may_stand_for(name, key)]
    if strange:
        raise InputError(f"{where}: its forward asks for {', '.join(map(str, strange))}; it is not loaded")
    reader = _Reader(where, set(modules), objects)
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise InputError(f"{where}: its forward is damaged ({error})") from error
    reader.function(tree)
    code = Code(text, tuple(modules.items()), tuple((name, _OBJECTS[key]) for name, key in objects.items()))
    return code, reader.paths


def _may_stand_for(name: Any, key: Any) -> bool:
    """Whether a name may mean that object; one of Python's own only itself, for that is how the text is read."""
    own = {"self", *_MODULES, "getattr", *_BUILT_IN, "inf", "nan", "device"}
    return isinstance(key, str) and key in _OBJECTS and (name == key or not {name, key} & own)


def require_members(module: nn.Module, paths: Collection[list[str]], where: str) -> None:
    """What a forward names below `self` is a layer, a parameter or a buffer, so that no method is called by it."""
    for path in paths:
        if not _is_member(module, path):
            raise InputError(f"{where}: its forward names self.{'.'.join(path)}, which is no layer and no tensor there")


def _is_member(module: nn.Module, path: list[str]) -> bool:
    try:
        parent = module.get_submodule(".".join(path[:-1]))
    except AttributeError:
        return False
    held = vars(parent)
    registered = any(path[-1] in held[registry] for registry in ("_parameters", "_buffers", "_modules"))
    return registered or isinstance(held.get(path[-1]), Tensor | bool | int | float)


class _Reader:
    """Walks the tree of a forward; refuses whatever it does not know."""

    def __init__(self, where: str, modules: set[str], objects: dict[str, str]) -> None:
        self.where = where
        self.modules = modules
        self.functions = {name for name, key in objects.items() if key not in ("getattr", "inf", "nan")}
        self.taken = {"self", "getattr", *_MODULES, *_BUILT_IN, *objects}
        self.assigned: set[str] = set()
        self.paths: list[list[str]] = []

    def refuse(self, node: ast.AST, why: str = "") -> InputError:
        said = ast.unparse(node)[:80]
        return InputError(f"{self.where}: its forward says `{said}`, which an artefact may not{why}; it is not loaded")

    def function(self, tree: ast.Module) -> None:
        only = tree.body[0] if len(tree.body) == 1 else tree
        if not isinstance(only, ast.FunctionDef) or only.name != "forward" or only.decorator_list or only.returns:
            raise self.refuse(only)
        given = only.args
        every = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
        if any(each.annotation for each in every) or any(each.arg in self.taken - {"self"} for each in every):
            raise self.refuse(only)
        for default in (*given.defaults, *filter(None, given.kw_defaults)):
            self.expression(default)
        self.assigned.update(each.arg for each in every)
        for statement in only.body:
            self.statement(statement)

    def statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Assign(targets=targets, value=value):
                self.expression(value)
                for target in targets:
                    self.target(target)
            case ast.AugAssign(target=target, value=value):
                self.target(target)
                self.expression(value)
            case ast.Expr(value=value):
                self.expression(value)
            case ast.Return(value=value):
                if value is not None:
                    self.expression(value)
            case ast.Pass():
                pass
            case _:
                raise self.refuse(node)

    def target(self, node: ast.expr) -> None:
        match node:
            case ast.Name(id=name) if name not in self.taken:
                self.assigned.add(name)
            case ast.Tuple(elts=parts):
                for part in parts:
                    self.target(part)
            case ast.Subscript(value=value, slice=index):
                self.expression(value)
                self.expression(index)
            case _:
                raise self.refuse(node)

    def expression(self, node: ast.AST) -> None:
        match node:
            case ast.Constant():
                pass
            case ast.Name(id=name):
                # Any other name would be one of Python's own, such as `eval`.
                if name in self.taken - {"inf", "nan"} or name not in self.assigned | {"inf", "nan"}:
                    raise self.refuse(node)
            case ast.Call():
                self.call(node)
            case ast.Attribute():
                self.attribute(node)
            case _ if isinstance(node, _EXPRESSIONS):
                for child in ast.iter_child_nodes(node):
                    if isinstance(child, ast.expr):
                        self.expression(child)
            case _:
                raise self.refuse(node)

    def attribute(self, node: ast.expr) -> None:
        """One that is read."""
        root, names = self.chain(node)
        if isinstance(root, ast.Name) and root.id == "self":
            self.paths.append(names)
        elif isinstance(root, ast.Name) and root.id in _MODULES:
            if not isinstance(self.found(root.id, names, node), _VALUES):
                raise self.refuse(node)
        else:
            self.expression(root)

    def call(self, node: ast.Call) -> None:
        if _named_attribute(node) is not None:
            self.attribute(node)  # getattr(x, 'name')
            return
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            self.expression(argument.value if isinstance(argument, ast.Starred) else argument)
        if isinstance(node.func, ast.Name):
            known = node.func.id in _BUILT_IN or node.func.id in self.functions
            if not known or any(keyword.arg in (None, "key") for keyword in node.keywords):
                raise self.refuse(node)  # `key` is a function that `sorted`, `min` and `max` would call
            return
        root, names = self.chain(node.func)
        if isinstance(root, ast.Name) and root.id == "self" and names:
            self.paths.append(names)
        elif isinstance(root, ast.Name) and root.id in _MODULES:
            if not _arithmetic(root.id, names, self.found(root.id, names, node)):
                raise self.refuse(node)
        elif names and names[-1] in _methods():
            self.expression(root)
        else:
            raise self.refuse(node)

    def chain(self, node: ast.expr) -> tuple[ast.expr, list[str]]:
        """What an attribute is of, and the names that lead to it; none begins with two underscores."""
        names: list[str] = []
        while True:
            step = _named_attribute(node)
            if step is None:
                return node, names[::-1]
            node, name = step
            if name.startswith("__") or (name.startswith("_") and not _leads_to_own(node)):
                raise self.refuse(node, f": {name}")
            names.append(name)

    def found(self, root: str, names: list[str], node: ast.AST) -> Any:
        if root not in self.modules:
            raise self.refuse(node)
        held: Any = _MODULES[root]
        for name in names:
            held = getattr(held, name, None)
        if held is None:
            raise self.refuse(node, ": this version does not have it")
        return held


def _named_attribute(node: ast.expr) -> tuple[ast.expr, str] | None:
    """`x.name` and `getattr(x, 'name')` as x and name."""
    match node:
        case ast.Attribute(value=value, attr=name):
            return value, name
        case ast.Call(func=ast.Name(id="getattr"), args=[value, ast.Constant(value=str(name))], keywords=[]):
            return value, name
    return None


def _leads_to_own(node: ast.expr) -> bool:
    """Whether names with one underscore are fine below: those of the module itself, and torch's own `_C._nn`."""
    while (step := _named_attribute(node)) is not None:
        node = step[0]
    return isinstance(node, ast.Name) and node.id in ("self", "torch")


def _arithmetic(root: str, names: list[str], function: Any) -> bool:
    """Whether it computes tensors or numbers, and does nothing else."""
    if root != "torch":
        return (
            len(names) == 1 and callable(function) and not names[0].startswith("_") and names[0] not in _NO_ARITHMETIC
        )
    if len(names) == 1 and names[0] in _MAKING:
        return True
    if names[:2] == ["nn", "functional"] and len(names) == 3:
        home = str(getattr(function, "__module__", ""))
        own = home.startswith(("torch.nn.functional", "torch.functional", "torch._jit_internal", "torch._C"))
        return callable(function) and (own or id(function) in _operations())
    return id(function) in _operations()


@cache
def _operations() -> frozenset[int]:
    """Every function of torch that works on tensors, by identity."""
    return frozenset(map(id, _functions()))


def _functions() -> Iterator[Any]:
    for home, functions in get_overridable_functions().items():
        if home in (torch, torch.functional, F, torch.linalg, torch.fft, torch.special):
            yield from functions
    yield from (getattr(torch._C._nn, name) for name in dir(torch._C._nn) if not name.startswith("__"))


@cache
def _methods() -> frozenset[str]:
    """The methods of tensors, and of the containers that they come in."""
    names = {function.__name__ for function in get_overridable_functions()[Tensor]}
    return frozenset({name for name in names if not name.startswith("_")} - _NO_METHODS | _OF_CONTAINERS)
