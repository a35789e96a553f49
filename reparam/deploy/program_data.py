"""A rewritten forward as JSON: a graph of known operations, which cannot run anything else.

A file names operations and never holds code. Reading it checks every part against the closed lists of `tables`:
functions by name, methods by name and called as functions of `torch.Tensor`, attributes by name, and members that are
registered below the module. What the lists lack is refused, when a model is saved and when it is loaded.
"""

from __future__ import annotations

import builtins
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from reparam.deploy.tables import (
    ATTRIBUTES,
    DEVICE,
    DTYPES,
    FORMATS,
    FUNCTIONS,
    LAYOUTS,
    METHOD_PREFIX,
    METHODS,
    PYTHON,
)
from reparam.errors import InputError
from reparam.rewrite.program import (
    CALL_FORWARD,
    CALL_FUNCTION,
    CALL_METHOD,
    CALL_MODULE,
    GET_ATTR,
    OUTPUT,
    PLACEHOLDER,
    Program,
    Reference,
    Step,
    is_name,
)

Data = dict[str, Any]

MAX_STEPS = 50_000  # of one forward
MAX_DEPTH = 32  # of nested arguments
MAX_TEXT = 4096  # characters of a name or a text
MAX_INTEGER = 2**63
MAX_EXPONENT = 64  # of `pow`: numbers in Python grow without limit

_OBJECTS: dict[str, Mapping[str, Any]] = {"dtype": DTYPES, "memory_format": FORMATS, "layout": LAYOUTS}
_KINDS = (torch.dtype, torch.memory_format, torch.layout)  # of the values of `_OBJECTS`, in order
_SIMPLE = (bool, int, float, str)
_PRINTED = {"self", "forward", "torch", "operator", "math", "device", "inf", "nan", "slice", *PYTHON.split()}
_RESERVED = {*_PRINTED, *dir(builtins)}
_REFUSED_KEYWORDS = {"out", "key"}  # `out` resizes a tensor; `key` is a function. None is neither


# --- from a program to JSON


def program_data(program: Program, module: nn.Module, constants: Collection[str], where: str) -> Data:
    """The forward of `module` as JSON. `where` names the module; constants: as for `read_program`.

    Raises InputError where it holds what `read_program` would refuse.
    """
    try:
        data = {"nodes": list(map(_step_data, program.steps))}
        _Reader(module, constants).program(data)
    except _Refused as error:
        raise InputError(
            f"{where}: its forward needs {error}, which an artefact cannot hold; export a .pt2 instead"
        ) from None
    return data


class _Refused(ValueError):
    """What the tables lack, as text."""


def _step_data(step: Step) -> Data:
    op, target = step.op, step.target
    if not isinstance(target, str):
        raise _Refused(repr(target))
    if op == CALL_FUNCTION and target.startswith(METHOD_PREFIX):  # it was read from a file
        op, target = CALL_METHOD, target.removeprefix(METHOD_PREFIX)
    args = [_data(value) for value in step.args]
    return {
        "op": op,
        "name": step.name,
        "target": target,
        "args": args,
        "kwargs": {name: _data(value) for name, value in step.kwargs},
    }


def _data(value: Any) -> Any:
    """An argument as JSON. Raises _Refused for anything else than data."""
    if isinstance(value, Reference):
        return {"node": value.name}
    if type(value) is float and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or type(value) in _SIMPLE:
        return value
    container = _container_data(value)
    return _object_data(value) if container is None else container


def _container_data(value: Any) -> Any:
    if type(value) is list:
        return list(map(_data, value))
    if type(value) is tuple:
        return {"tuple": list(map(_data, value))}
    if type(value) is dict:
        return {"dict": [[_data(key), _data(item)] for key, item in value.items()]}
    if isinstance(value, slice):
        return {"slice": [_data(part) for part in (value.start, value.stop, value.step)]}
    return None


def _object_data(value: Any) -> Any:
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for kind, cls in zip(_OBJECTS, _KINDS, strict=True):
        if isinstance(value, cls):
            return {kind: str(value)}
    raise _Refused(repr(value)[:80])


# --- from JSON to a program


def read_program(data: Any, module: nn.Module, constants: Collection[str], where: str) -> Program:
    """The program that a file holds for the forward of `module`; methods of tensors are functions of `torch.Tensor`.

    constants: the names of the tensors that the file adds to the module.

    Raises InputError where it is damaged, and where it names anything that the tables lack.
    """
    reader = _Reader(module, constants)
    try:
        return reader.program(data)
    except _Refused as error:
        raise InputError(
            f"{where}: its forward holds {error}, which no forward in an artefact may hold; it is not loaded"
        ) from None


def _require(condition: Any, what: object) -> None:
    if not condition:
        raise _Refused(repr(what)[:80])


class _Reader:
    """Reads the steps of one forward in order, and refuses what is not known.

    names: of the steps so far. Arguments can refer to these alone.
    """

    def __init__(self, module: nn.Module, constants: Collection[str]) -> None:
        self.module = module
        self.constants = constants
        self.steps: list[Step] = []
        self.names: set[str] = set()

    def program(self, data: Any) -> Program:
        _require(isinstance(data, dict) and set(data) == {"nodes"} and isinstance(data["nodes"], list), data)
        _require(len(data["nodes"]) <= MAX_STEPS, f"more than {MAX_STEPS} steps")
        for node in data["nodes"]:
            self.read(node)
        _require(self.steps and self.steps[-1].op == OUTPUT, "no output")
        return Program(tuple(self.steps))

    def read(self, node: Any) -> None:
        _require(isinstance(node, dict) and set(node) == {"op", "name", "target", "args", "kwargs"}, node)
        op, name, target = node["op"], node["name"], node["target"]
        _require(isinstance(op, str) and op in _CHECKS, op)
        _require(is_new_name(name) and name not in self.names, name)
        _require(isinstance(target, str) and len(target) <= MAX_TEXT, target)
        _require(isinstance(node["args"], list) and isinstance(node["kwargs"], dict), node)
        _require(not self.steps or self.steps[-1].op != OUTPUT, op)
        args = tuple(self.value(value, 0) for value in node["args"])
        kwargs = tuple((key, self.value(value, 0)) for key, value in node["kwargs"].items())
        for key in node["kwargs"]:
            _require(is_keyword(key), key)
        step = Step(op, name, target, args, kwargs)
        _CHECKS[op](self, step)
        if op == CALL_METHOD:
            step = replace(step, op=CALL_FUNCTION, target=METHOD_PREFIX + target)
        elif target == "operator.pow" and not isinstance(args[1], int | float):
            step = replace(step, target="torch.pow")  # of tensors alone: a power of two large numbers never ends
        self.steps.append(step)
        self.names.add(name)

    def value(self, value: Any, depth: int) -> Any:
        """An argument: a literal, a list of arguments, or an object with one key that says what it is."""
        _require(depth <= MAX_DEPTH, "arguments that are nested too deep")
        if value is None or type(value) in _SIMPLE:
            return self.literal(value)
        if type(value) is list:
            return [self.value(item, depth + 1) for item in value]
        _require(type(value) is dict and len(value) == 1, value)
        ((kind, content),) = value.items()
        if kind in _CONTAINERS:
            _require(type(content) is list, value)
            return _CONTAINERS[kind](self, content, depth + 1)
        _require(type(content) is str and len(content) <= MAX_TEXT, value)
        return self.named_object(kind, content)

    def literal(self, value: Any) -> Any:
        if type(value) is float:
            _require(math.isfinite(value), value)
        if type(value) is int:
            _require(abs(value) < MAX_INTEGER, "a huge integer")
        if type(value) is str:
            _require(len(value) <= MAX_TEXT, value)
        return value

    def named_object(self, kind: Any, content: str) -> Any:
        if kind == "node":
            _require(content in self.names, content)
            return Reference(content)
        if kind == "float":
            _require(content in ("inf", "-inf", "nan"), content)
            return float(content)
        if kind == "device":
            _require(re.fullmatch(DEVICE, content), content)
            return torch.device(content)
        _require(kind in _OBJECTS and content in _OBJECTS[kind], {kind: content})
        return _OBJECTS[kind][content]

    def read_tuple(self, content: list[Any], depth: int) -> Any:
        return tuple(self.value(item, depth) for item in content)

    def read_slice(self, content: list[Any], depth: int) -> Any:
        _require(len(content) == 3, content)
        return slice(*(self.value(item, depth) for item in content))

    def read_dict(self, content: list[Any], depth: int) -> Any:
        _require(all(type(pair) is list and len(pair) == 2 for pair in content), content)
        _require(all(type(key) in (str, int) for key, _ in content), content)
        return {self.literal(key): self.value(item, depth) for key, item in content}

    # Each of these checks one kind of step, whose arguments have been read.

    def placeholder(self, step: Step) -> None:
        own = str(step.target).lstrip("*")
        _require(is_keyword(own) and own not in _PRINTED and str(step.target).count("*") <= 2, step.target)
        others = [str(other.target).lstrip("*") for other in self.steps]
        _require(own not in others and own not in self.names - {step.name}, own)
        _require(all(other.op == PLACEHOLDER for other in self.steps), step.target)
        _require(len(step.args) <= 1 and not step.kwargs and not any(step.references()), step.target)

    def output(self, step: Step) -> None:
        _require(len(step.args) == 1 and not step.kwargs, "an output with other arguments")

    def call_module(self, step: Step) -> None:
        parent, name = self.parent(str(step.target))
        _require(isinstance(parent._modules.get(name), nn.Module), step.target)

    def call_forward(self, step: Step) -> None:
        """The forward of the fresh model's own class, with all parameters and nothing else."""
        given = [Reference(other.name) for other in self.steps if other.op == PLACEHOLDER]
        _require(list(step.args) == given and not step.kwargs and not step.target, step.args)

    def get_attr(self, step: Step) -> None:
        parent, name = self.parent(str(step.target))
        members = (parent._parameters, parent._buffers, vars(parent))
        known = any(isinstance(registry.get(name), Tensor) for registry in members)
        _require(known or step.target in self.constants, step.target)
        _require(not step.args and not step.kwargs, step.target)

    def parent(self, path: str) -> tuple[nn.Module, str]:
        """The registered module that holds the last name of a path."""
        module: nn.Module | None = self.module
        *parents, name = path.split(".")
        for parent in parents:
            module = module._modules.get(parent) if module is not None else None
        if module is None:
            raise _Refused(repr(path))
        return module, name

    def call_method(self, step: Step) -> None:
        _require(step.target in METHODS, step.target)
        _require(step.args and isinstance(step.args[0], Reference), step.target)
        _require_keywords(step)

    def call_function(self, step: Step) -> None:
        _require(step.target in FUNCTIONS, step.target)
        _require_keywords(step)
        if step.target == "getattr":
            reads = len(step.args) == 2 and isinstance(step.args[0], Reference) and not step.kwargs
            _require(reads and type(step.args[1]) is str and step.args[1] in ATTRIBUTES, step.args[1:])
        elif "torch." not in str(step.target):
            self.arithmetic(step)

    def arithmetic(self, step: Step) -> None:
        """Python's own functions take no text: `%` of a text is formatting. Keys are the exception."""
        keys = step.target in ("operator.getitem", "operator.setitem")
        values = (*step.args[:1], *step.args[2:]) if keys else step.args
        _require(not any(map(_holds_text, (*values, *(value for _, value in step.kwargs)))), "text in arithmetic")
        if step.target == "operator.pow":
            exponent = step.args[1] if len(step.args) == 2 else None
            known = isinstance(exponent, int | float) and abs(exponent) <= MAX_EXPONENT
            _require(known or isinstance(exponent, Reference), step.args[1:])
        if step.target == "operator.mul":  # it repeats a list
            _require(not any(isinstance(value, list | tuple) for value in step.args), step.args)


_CHECKS: dict[str, Callable[[_Reader, Step], None]] = {
    PLACEHOLDER: _Reader.placeholder,
    OUTPUT: _Reader.output,
    CALL_MODULE: _Reader.call_module,
    CALL_FORWARD: _Reader.call_forward,
    GET_ATTR: _Reader.get_attr,
    CALL_METHOD: _Reader.call_method,
    CALL_FUNCTION: _Reader.call_function,
}
_CONTAINERS: dict[Any, Callable[[_Reader, list[Any], int], Any]] = {
    "tuple": _Reader.read_tuple,
    "slice": _Reader.read_slice,
    "dict": _Reader.read_dict,
}


def is_new_name(name: Any) -> bool:
    """Whether a file may give a step that name."""
    return is_name(name) and name not in _RESERVED and not name.startswith("__") and len(name) <= MAX_TEXT


def is_keyword(name: Any) -> bool:
    """Whether a file may name a parameter or a keyword so."""
    return is_name(name) and not name.startswith("__") and len(name) <= MAX_TEXT


def _require_keywords(step: Step) -> None:
    for name, value in step.kwargs:
        _require(value is None or name not in _REFUSED_KEYWORDS, name)


def _holds_text(value: Any) -> bool:
    return any(isinstance(leaf, str) for leaf in _leaves(value))


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from (*value, *(leaf for item in value.values() for leaf in _leaves(item)))
    elif isinstance(value, slice):
        yield from _leaves((value.start, value.stop, value.step))
    elif isinstance(value, list | tuple):
        yield from (leaf for item in value for leaf in _leaves(item))
    else:
        yield value
