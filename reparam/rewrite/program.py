"""The forward of a rewritten module as data: steps in order, and the Python that they print as.

A program holds no text. Its arguments are literals, containers, slices, dtypes, devices and references to earlier
steps, so it can be compared, pickled, written to a file and read again without running anything. `text` prints it.
Every name that comes from a model is checked or quoted on the way: a `ModuleDict` may have any key.
"""

from __future__ import annotations

import builtins
import itertools
import keyword
import linecache
import math
import operator
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from types import EllipsisType, NoneType
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

PLACEHOLDER, GET_ATTR, CALL_MODULE = "placeholder", "get_attr", "call_module"
CALL_FUNCTION, CALL_METHOD, OUTPUT = "call_function", "call_method", "output"
CALL_FORWARD = "call_forward"  # of the module's own class, with the parameters as they came in


def own_forward(*args: Any, **kwargs: Any) -> Any:
    """Stands in a graph of fx for the forward of the module's own class; its step is `CALL_FORWARD`."""
    raise NotImplementedError


_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%", "pow": "**", "matmul": "@",
    "lshift": "<<", "rshift": ">>", "and_": "&", "or_": "|", "xor": "^",
    "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
}  # fmt: skip
_PREFIX = {"neg": "-", "pos": "+", "invert": "~"}
_AUGMENTED = {
    "iadd": "+=", "isub": "-=", "imul": "*=", "itruediv": "/=", "ifloordiv": "//=", "imod": "%=", "ipow": "**=",
    "imatmul": "@=", "iand": "&=", "ior": "|=", "ixor": "^=", "ilshift": "<<=", "irshift": ">>=",
}  # fmt: skip

# Where the functions of torch and of Python's own library are found, by the prefix of their names.
_HOMES: dict[str, Any] = {  # Python first: torch's modules have other names for some of its types
    "": builtins,
    "operator": operator,
    "math": math,
    "torch": torch,
    "torch.nn.functional": F,
    "torch.Tensor": torch.Tensor,
    "torch._C._nn": torch._C._nn,
}


# What the names in the text stand for that it does not assign.
_SCOPE = {"torch": torch, "operator": operator, "math": math, "device": torch.device, "inf": math.inf, "nan": math.nan}


@dataclass(frozen=True)
class Reference:
    """The result of an earlier step, by its name."""

    name: str

    def __repr__(self) -> str:
        return self.name


_ROOT = re.compile(r"\w*")
# The types of arguments whose `repr` is Python, given the names of `_SCOPE`.
_PRINTABLE = (
    Reference, NoneType, bool, int, float, str, bytes, EllipsisType,
    torch.dtype, torch.device, torch.memory_format, torch.layout,
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One step, as a node of torch.fx: `op` says what `target` is.

    A function of torch or of Python's own library is given by its name, such as `torch.relu`; any other as it is.
    Arguments hold a `Reference` where fx has a node.
    """

    op: str
    name: str
    target: str | Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()

    def references(self) -> Iterator[str]:
        """The names of the steps that it reads, each once."""
        return iter(dict.fromkeys(_references((self.args, self.kwargs))))


@dataclass(frozen=True)
class Program:
    """The steps of a forward, placeholders first and one output last."""

    steps: tuple[Step, ...]

    @staticmethod
    def of(graph: fx.Graph) -> Program:
        """The program of a graph. Annotations are left out: they would need names of the user's module."""
        names = {node.name: node.name for node in graph.nodes}
        if "self" in names:
            names["self"] = next(name for name in map("self_{}".format, itertools.count()) if name not in names)
        return Program(tuple(_step(node, names) for node in graph.nodes))

    def members(self) -> set[str]:
        """The qualified names of the modules and tensors that it uses."""
        return {str(step.target) for step in self.steps if step.op in (CALL_MODULE, GET_ATTR)}

    def calls(self) -> set[str]:
        """The paths of the modules that it calls."""
        return {str(step.target) for step in self.steps if step.op == CALL_MODULE}

    def fault(self, module: nn.Module) -> str:
        """What is wrong with it as the forward of a module: a name that has no value there; empty if nothing is."""
        assigned: set[str] = set()
        for step in self.steps:
            if unassigned := next((name for name in step.references() if name not in assigned), None):
                return f"{step.name} reads {unassigned} before it is assigned"
            if step.op in (CALL_MODULE, GET_ATTR) and not _has_member(module, str(step.target)):
                return f"{step.name} uses self.{step.target}, which is not there"
            assigned.add(step.name)
        return ""

    def __hash__(self) -> int:
        return hash(self.text)

    def __deepcopy__(self, memo: Any) -> Program:
        return self

    def __reduce__(self) -> Any:
        return Program, (self.steps,)

    @cached_property
    def text(self) -> str:
        """The forward as Python. Raises ValueError for a name that is no identifier."""
        return self._printed[0]

    def forward(self) -> Callable[..., Any]:
        """The function that the text defines."""
        text, objects = self._printed
        scope: dict[str, Any] = {"__builtins__": builtins, **_SCOPE, **objects}
        file = f"<reparam forward {hash(text) & 0xFFFFFFFF:08x}>"
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
        exec(compile(text, file, "exec"), scope)
        function: Callable[..., Any] = scope["forward"]
        return function

    @cached_property
    def _printed(self) -> tuple[str, dict[str, Any]]:
        printer = _Printer(self.steps)
        return printer.text(), printer.objects


def _has_member(module: nn.Module, path: str) -> bool:
    """Whether a module holds something under a qualified name. A tensor that is None is not there."""
    *around, name = path.split(".")
    for inner in around:
        child = module._modules.get(inner)
        if child is None:
            return False
        module = child
    registered = [vars(module)[registry].get(name) for registry in ("_parameters", "_buffers", "_modules")]
    scopes = (vars(module), *map(vars, type(module).__mro__))
    return any(member is not None for member in registered) or any(name in scope for scope in scopes)


def _step(node: fx.Node, names: Mapping[str, str]) -> Step:
    target: Any = node.target
    if target is own_forward:
        return Step(CALL_FORWARD, names[node.name], "", _argument(node.args, names), ())
    if node.op == CALL_FUNCTION:
        target = function_name(target) or target
    kwargs = tuple((name, _argument(value, names)) for name, value in node.kwargs.items())
    return Step(node.op, names[node.name], target, _argument(node.args, names), kwargs)


def _argument(value: Any, names: Mapping[str, str]) -> Any:
    """An argument of fx as one of a step: its immutable containers become plain ones."""
    if isinstance(value, fx.Node):
        return Reference(names[value.name])
    if type(value) is tuple or isinstance(value, torch.Size):  # a named tuple stays what it is
        return tuple(_argument(item, names) for item in value)
    if isinstance(value, list):
        return [_argument(item, names) for item in value]
    if isinstance(value, dict):
        return {key: _argument(item, names) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(_argument(part, names) for part in (value.start, value.stop, value.step)))
    return value


def function_name(function: Callable[..., Any]) -> str | None:
    """The name under which `function_of` finds a function; None for one of another library or of the user."""
    return _names().get(id(function))


def function_of(name: str) -> Callable[..., Any]:
    """The function of that name. Raises KeyError."""
    home, _, own = name.rpartition(".")
    function: Callable[..., Any] = vars(_HOMES[home]).get(own) or getattr(_HOMES[home], own)
    return function


@cache
def _names() -> dict[int, str]:
    """The name of every function in the homes, by id; the first home that has it names it."""
    names: dict[int, str] = {}
    for home, place in _HOMES.items():
        for own in dir(place):
            value = getattr(place, own, None)
            if callable(value) and not own.startswith("__"):
                names.setdefault(id(value), f"{home}.{own}" if home else own)
    return names


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, Reference):
        yield value.name
    elif isinstance(value, Mapping):
        yield from _references(tuple(value.values()))
    elif isinstance(value, slice):
        yield from _references((value.start, value.stop, value.step))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _references(item)


class _Printer:
    """Prints steps as Python: one line each, which also drops what no later step reads.

    objects: what the text calls by a name of its own: functions of other libraries, and arguments that are no data.
    """

    def __init__(self, steps: Iterable[Step]) -> None:
        self.steps = list(steps)
        self.objects: dict[str, Any] = {}
        parameters = {str(step.target).lstrip("*") for step in self.steps if step.op == PLACEHOLDER}
        self.assigned = parameters.union(step.name for step in self.steps)
        self.dropped: dict[str, list[str]] = {}  # by the step that reads them last
        read: set[str] = set()
        for step in reversed(self.steps):
            last = [name for name in step.references() if name not in read]
            read.update(last)
            unread = [] if step.name in read or step.op in (PLACEHOLDER, OUTPUT) else [step.name]
            self.dropped[step.name] = last + unread

    def text(self) -> str:
        parameters = ", ".join(["self", *(self._parameter(step) for step in self.steps if step.op == PLACEHOLDER)])
        lines = [f"    {line}\n" for step in self.steps for line in self._lines(step)]
        return f"def forward({parameters}):\n{''.join(lines) or '    pass'}"

    def _parameter(self, step: Step) -> str:
        target = str(step.target)
        _require_name(target.lstrip("*"))
        return target if not step.args else f"{target} = {self._literal(step.args[0])}"

    def _lines(self, step: Step) -> Iterator[str]:
        _require_name(step.name)
        if step.op == PLACEHOLDER:
            own = str(step.target).lstrip("*")
            if own != step.name:
                yield f"{step.name} = {own}"
        elif step.op == OUTPUT:
            yield f"return {self._literal(step.args[0])}"
        else:
            dropped = " = ".join([*self.dropped[step.name], "None"])
            yield self._statement(step) + (f";  {dropped}" if self.dropped[step.name] else "")

    def _statement(self, step: Step) -> str:
        if step.op == CALL_FUNCTION:
            return self._function(step)
        if step.op == CALL_FORWARD:
            own = f"{self._global('super', super)}({self._global('type', type)}(self), self)"
            return f"{step.name} = {own}.forward({self._passed_on(step)})"
        if step.op == CALL_METHOD:
            _require_name(str(step.target))
            receiver = self._literal(step.args[0])
            receiver = receiver if isinstance(step.args[0], Reference) else f"({receiver})"
            return f"{step.name} = {receiver}.{step.target}({self._arguments(step.args[1:], step.kwargs)})"
        member = self._member(str(step.target))
        return f"{step.name} = {member}" + (
            "" if step.op == GET_ATTR else f"({self._arguments(step.args, step.kwargs)})"
        )

    def _passed_on(self, step: Step) -> str:
        """The parameters, each as it came in; those behind `*args` go by keyword."""
        given = {other.name: str(other.target) for other in self.steps if other.op == PLACEHOLDER}
        parts, by_keyword = [], False
        for name in step.references():
            own = given[name].lstrip("*")
            stars = given[name].removesuffix(own)
            parts.append(f"{own} = {name}" if by_keyword and not stars else stars + name)
            by_keyword = by_keyword or stars == "*"
        return ", ".join(parts)

    def _function(self, step: Step) -> str:
        if callable(step.target):
            name = self._object(step.target)
            return f"{step.name} = {name}({self._arguments(step.args, step.kwargs)})"
        home, _, own = step.target.rpartition(".")
        if home == "operator" and not step.kwargs and step.args:
            refers = isinstance(step.args[0], Reference)
            args = [self._literal(value) for value in step.args]
            match len(args):
                case 3 if own == "setitem" and refers:
                    return f"{args[0]}[{args[1]}] = {args[2]};  {step.name} = {args[0]}"
                case 2 if own == "getitem" and refers:
                    return f"{step.name} = {args[0]}[{args[1]}]"
                case 2 if own in _AUGMENTED and args[0] in self.dropped[step.name]:
                    # Only where nothing reads the old value later: of numbers, `+=` makes another one.
                    return f"{args[0]} {_AUGMENTED[own]} {args[1]};  {step.name} = {args[0]}"
                case 2 if own in _INFIX:
                    return f"{step.name} = {_operand(args[0])} {_INFIX[own]} {_operand(args[1])}"
                case 1 if own in _PREFIX:
                    return f"{step.name} = {_PREFIX[own]}{_operand(args[0])}"
        reads = step.target == "getattr" and len(step.args) == 2 and not step.kwargs
        if reads and isinstance(step.args[0], Reference) and is_name(step.args[1]):
            return f"{step.name} = {self._literal(step.args[0])}.{step.args[1]}"
        for name in step.target.split("."):
            _require_name(name)
        called = self._global(step.target, function_of(step.target))
        return f"{step.name} = {called}({self._arguments(step.args, step.kwargs)})"

    def _global(self, text: str, value: Any) -> str:
        """A name of torch or Python; one of our own where the forward assigns to its first part."""
        return self._object(value) if _ROOT.match(text).group() in self.assigned else text  # type: ignore[union-attr]

    def _arguments(self, args: Iterable[Any], kwargs: Iterable[tuple[str, Any]]) -> str:
        named = [
            f"{name} = {self._literal(value)}" if is_name(name) else f"**{{{name!r}: {self._literal(value)}}}"
            for name, value in kwargs
        ]
        return ", ".join([*map(self._literal, args), *named])

    def _member(self, path: str) -> str:
        """`self.blocks`, or `getattr(self.blocks, '0')` where a key is no name."""
        text = "self"
        for name in path.split("."):
            text = f"{text}.{name}" if is_name(name) else f"{self._global('getattr', getattr)}({text}, {name!r})"
        return text

    def _literal(self, value: Any) -> str:
        """An argument as Python."""
        if type(value) is tuple:
            return f"({', '.join(map(self._literal, value))}{',' if len(value) == 1 else ''})"
        if type(value) is list:
            return f"[{', '.join(map(self._literal, value))}]"
        if type(value) is dict:
            return "{" + ", ".join(f"{self._literal(key)}: {self._literal(item)}" for key, item in value.items()) + "}"
        if isinstance(value, slice):
            called = self._global("slice", slice)
            return f"{called}({', '.join(map(self._literal, (value.start, value.stop, value.step)))})"
        if isinstance(value, Reference):
            _require_name(value.name)
            return value.name
        if type(value) not in _PRINTABLE:
            return self._object(value)
        return repr(value) if isinstance(value, str | bytes) else self._global(repr(value), value)

    def _object(self, value: Any) -> str:
        """A name for an object that is no data."""
        known = next((name for name, other in self.objects.items() if other is value), None)
        if known is None:
            label = getattr(value, "__name__", None) or type(value).__name__
            plain = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in str(label))
            known = f"_{plain}_{len(self.objects)}"
            while known in self.assigned:
                known += "_"
            self.objects[known] = value
        return known


def is_name(text: Any) -> bool:
    """Whether a text is a name in Python, and the same name: Python reads some letters as others (NFKC)."""
    plain = isinstance(text, str) and text.isidentifier() and not keyword.iskeyword(text)
    return plain and unicodedata.is_normalized("NFKC", text)


def _require_name(text: str) -> None:
    if not is_name(text):
        raise ValueError(f"{text!r} is no name that Python code can use")


def _operand(text: str) -> str:
    """An operand as it may stand beside an operator: `-1 ** 2` is not `(-1) ** 2`."""
    return f"({text})" if text.startswith("-") else text
