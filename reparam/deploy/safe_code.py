"""The text of a forward as data that is safe to load from a file: it can run nothing but arithmetic.

A rewritten forward is Python, and Python from a file can do anything. But what torch.fx prints needs little of it:
assignments, calls of the module's own layers, of torch's operations, of `operator` and `math`, and of the methods of
tensors. Everything else is refused, and so is a function that is passed as an argument.
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
_TENSOR_MAKERS = (
    "arange", "as_tensor", "empty", "empty_like", "eye", "full", "full_like", "linspace", "ones", "ones_like",
    "scalar_tensor", "tensor", "zeros", "zeros_like", "_assert", "device", "Size",
)  # fmt: skip
_BUILT_IN = (
    "slice", "int", "float", "bool", "len", "abs", "min", "max", "round", "sum",
    "list", "tuple", "dict", "range", "reversed", "sorted", "zip",
)  # fmt: skip
_FUNCTION_MAKERS = ("attrgetter", "methodcaller", "itemgetter", "call")
# The objects that a name in a forward may mean, besides modules.
_OBJECTS: dict[str, Any] = {
    **{name: getattr(builtins, name) for name in ("getattr", *_BUILT_IN)},
    **{f"math.{name}": value for name, value in vars(math).items() if callable(value)},
    **{f"operator.{name}": value for name, value in vars(operator).items()
       if callable(value) and not name.startswith("_") and name not in _FUNCTION_MAKERS},
    "inf": math.inf,
    "nan": math.nan,
    "device": torch.device,
}  # fmt: skip
_UNSAFE_METHODS = {
    "register_hook",
    "register_post_accumulate_grad_hook",
    "map_",
    "map2_",
    "apply_",
    "share_memory_",
    "numpy",
}
_CONTAINER_METHODS = {"keys", "values", "items", "get"}
_CONSTANT_TYPES = (torch.dtype, torch.memory_format, torch.layout, float, int)
_EXPRESSIONS = (
    ast.Tuple, ast.List, ast.Dict, ast.Slice, ast.BinOp, ast.UnaryOp, ast.Compare, ast.BoolOp, ast.Subscript,
)  # fmt: skip


def code_data(code: Code, where: str) -> dict[str, Any]:
    """A forward as data for a file. `where` names its module.

    Raises InputError where it holds what `read_code` would refuse.
    """
    objects = {}
    for name, value in code.objects:
        key = next((key for key, known in _OBJECTS.items() if value is known), None)
        if key is None and isinstance(value, float):
            key = "nan" if math.isnan(value) else "inf" if value == math.inf else None
        if key is None:
            raise InputError(
                f"{where}: its forward needs {value!r}, which an artefact cannot hold; export a .pt2 instead"
            )
        objects[name] = key
    data = {"text": code.text, "modules": dict(code.modules), "objects": objects}
    read_code(data, where)
    return data


def read_code(data: Any, where: str) -> tuple[Code, list[list[str]]]:
    """The forward in a file, and the attribute paths of `self` that it uses.

    Raises InputError where it is damaged, and where it holds anything that torch.fx does not print.
    """
    try:
        text, modules, objects = str(data["text"]), dict(data["modules"]), dict(data["objects"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: its forward is damaged ({error!r})") from error
    refused = [name for name in modules if modules[name] != name or name not in _MODULES]
    refused += [name for name, key in objects.items() if not _may_mean(name, key)]
    if refused:
        names = ", ".join(map(str, refused))
        raise InputError(f"{where}: its forward uses {names}, which is not safe to run; it is not loaded")
    reader = _Reader(where, set(modules), objects)
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise InputError(f"{where}: its forward is damaged ({error})") from error
    reader.function(tree)
    code = Code(text, tuple(modules.items()), tuple((name, _OBJECTS[key]) for name, key in objects.items()))
    return code, reader.paths


def _may_mean(name: Any, key: Any) -> bool:
    """Whether a name may mean an object. A builtin name means only itself: the reader relies on that."""
    own = {"self", *_MODULES, "getattr", *_BUILT_IN, "inf", "nan", "device"}
    return isinstance(key, str) and key in _OBJECTS and (name == key or not {name, key} & own)


def require_members(module: nn.Module, paths: Collection[list[str]], where: str) -> None:
    """Raises InputError for a path that leads to no layer, parameter, buffer or number: it may be a method."""
    for path in paths:
        if not _is_member(module, path):
            raise InputError(
                f"{where}: its forward uses self.{'.'.join(path)}, which is no layer, tensor or number of the module; "
                "it is not loaded"
            )


def _is_member(module: nn.Module, path: list[str]) -> bool:
    try:
        parent = module.get_submodule(".".join(path[:-1]))
    except AttributeError:
        return False
    attributes = vars(parent)
    registered = any(path[-1] in attributes[registry] for registry in ("_parameters", "_buffers", "_modules"))
    return registered or isinstance(attributes.get(path[-1]), Tensor | bool | int | float)


class _Reader:
    """Walks the syntax tree of a forward, and refuses everything that is not known to be safe.

    modules: the modules that the text may use. functions: the names that mean a function of `_OBJECTS`.
    reserved: the names that the text must not assign. assigned: the names that it has assigned.
    paths: the attribute paths of `self` that it uses.
    """

    def __init__(self, where: str, modules: set[str], objects: dict[str, str]) -> None:
        self.where = where
        self.modules = modules
        self.functions = {name for name, key in objects.items() if key not in ("getattr", "inf", "nan")}
        self.reserved = {"self", "getattr", *_MODULES, *_BUILT_IN, *objects}
        self.assigned: set[str] = set()
        self.paths: list[list[str]] = []

    def refusal(self, node: ast.AST, why: str = "") -> InputError:
        code = ast.unparse(node)[:80]
        return InputError(f"{self.where}: its forward holds `{code}`, which is not safe to run{why}; it is not loaded")

    def function(self, tree: ast.Module) -> None:
        definition = tree.body[0] if len(tree.body) == 1 else tree
        if (
            not isinstance(definition, ast.FunctionDef)
            or definition.name != "forward"
            or definition.decorator_list
            or definition.returns
        ):
            raise self.refusal(definition)
        args = definition.args
        parameters = [*args.posonlyargs, *args.args, *args.kwonlyargs, *filter(None, (args.vararg, args.kwarg))]
        names = {parameter.arg for parameter in parameters}
        if any(parameter.annotation for parameter in parameters) or names & (self.reserved - {"self"}):
            raise self.refusal(definition)
        for default in (*args.defaults, *filter(None, args.kw_defaults)):
            self.expression(default)
        self.assigned |= names
        for statement in definition.body:
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
                raise self.refusal(node)

    def target(self, node: ast.expr) -> None:
        match node:
            case ast.Name(id=name) if name not in self.reserved:
                self.assigned.add(name)
            case ast.Tuple(elts=parts):
                for part in parts:
                    self.target(part)
            case ast.Subscript(value=value, slice=index):
                self.expression(value)
                self.expression(index)
            case _:
                raise self.refusal(node)

    def expression(self, node: ast.AST) -> None:
        match node:
            case ast.Constant():
                pass
            case ast.Name(id=name):
                # A name that was not assigned means a builtin, such as `eval`.
                if name in self.reserved - {"inf", "nan"} or name not in self.assigned | {"inf", "nan"}:
                    raise self.refusal(node)
            case ast.Call():
                self.call(node)
            case ast.Attribute():
                self.attribute(node)
            case _ if isinstance(node, _EXPRESSIONS):
                for child in ast.iter_child_nodes(node):
                    if isinstance(child, ast.expr):
                        self.expression(child)
            case _:
                raise self.refusal(node)

    def attribute(self, node: ast.expr) -> None:
        """An attribute that is read."""
        root, names = self.chain(node)
        if isinstance(root, ast.Name) and root.id == "self":
            self.paths.append(names)
        elif isinstance(root, ast.Name) and root.id in _MODULES:
            if not isinstance(self.member(root.id, names, node), _CONSTANT_TYPES):
                raise self.refusal(node)
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
                raise self.refusal(node)  # `sorted`, `min` and `max` call their `key`
            return
        root, names = self.chain(node.func)
        if isinstance(root, ast.Name) and root.id == "self" and names:
            self.paths.append(names)
        elif isinstance(root, ast.Name) and root.id in _MODULES:
            if not _is_arithmetic(root.id, names, self.member(root.id, names, node)):
                raise self.refusal(node)
        elif names and names[-1] in _methods():
            self.expression(root)
        else:
            raise self.refusal(node)

    def chain(self, node: ast.expr) -> tuple[ast.expr, list[str]]:
        """The expression at the root of an attribute, and the names from there; none begins with two underscores."""
        names: list[str] = []
        while True:
            step = _named_attribute(node)
            if step is None:
                return node, names[::-1]
            node, name = step
            if name.startswith("__") or (name.startswith("_") and not _is_own_attribute(node)):
                raise self.refusal(node, f": {name}")
            names.append(name)

    def member(self, root: str, names: list[str], node: ast.AST) -> Any:
        """The object that a dotted name of a module means."""
        if root not in self.modules:
            raise self.refusal(node)
        value: Any = _MODULES[root]
        for name in names:
            value = getattr(value, name, None)
        if value is None:
            raise self.refusal(node, ": this version does not have it")
        return value


def _named_attribute(node: ast.expr) -> tuple[ast.expr, str] | None:
    """`x.name` and `getattr(x, 'name')` as x and name."""
    match node:
        case ast.Attribute(value=value, attr=name):
            return value, name
        case ast.Call(func=ast.Name(id="getattr"), args=[value, ast.Constant(value=str(name))], keywords=[]):
            return value, name
    return None


def _is_own_attribute(node: ast.expr) -> bool:
    """Whether names with one underscore may follow: those of the module itself, and torch's own `_C._nn`."""
    while (step := _named_attribute(node)) is not None:
        node = step[0]
    return isinstance(node, ast.Name) and node.id in ("self", "torch")


def _is_arithmetic(root: str, names: list[str], function: Any) -> bool:
    """Whether a function computes tensors or numbers and has no other effect."""
    if root != "torch":
        public = len(names) == 1 and not names[0].startswith("_")
        return public and names[0] not in _FUNCTION_MAKERS and callable(function)
    if len(names) == 1 and names[0] in _TENSOR_MAKERS:
        return True
    if names[:2] == ["nn", "functional"] and len(names) == 3:
        home = str(getattr(function, "__module__", ""))
        own = home.startswith(("torch.nn.functional", "torch.functional", "torch._jit_internal", "torch._C"))
        return callable(function) and (own or id(function) in _operations())
    return id(function) in _operations()


@cache
def _operations() -> frozenset[int]:
    """The identities of torch's functions that work on tensors."""
    return frozenset(map(id, _functions()))


def _functions() -> Iterator[Any]:
    for home, functions in get_overridable_functions().items():
        if home in (torch, torch.functional, F, torch.linalg, torch.fft, torch.special):
            yield from functions
    yield from (getattr(torch._C._nn, name) for name in dir(torch._C._nn) if not name.startswith("__"))


@cache
def _methods() -> frozenset[str]:
    """The safe methods of tensors, and of containers of tensors."""
    names = {function.__name__ for function in get_overridable_functions()[Tensor]}
    return frozenset({name for name in names if not name.startswith("_")} - _UNSAFE_METHODS | _CONTAINER_METHODS)
