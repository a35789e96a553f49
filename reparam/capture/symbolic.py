"""Numbers that remember where they come from: sizes of tensors, and what code computes from them.

While a model is recorded, `x.shape`, `x.size()` and `x.numel()` give `Symbolic` numbers. Arithmetic keeps their
expression, and torch functions are handed the plain number. Wherever such a number becomes a plain one (a comparison,
an index, a text, a key, a number of iterations) that is a *decision*, which the run's `Decisions` note. So nothing that
code concludes from a size leaves unseen, whatever carries it.

A `Symbolic` is no subclass of int: Python's own functions would read its digits without asking. It only claims the
class of its number, as `isinstance` believes that. It stays usable as a number when the run is over.
"""

from __future__ import annotations

import functools
import linecache
import math
import operator
import re
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import PurePath
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from reparam.capture.graph import Call

# How a decision is settled (see `witness`).
SAME = "the same for every input"
BOTH_WAYS = "a run took the other way"
FAILS_OTHERWISE = "the model fails otherwise"
NO_SIZE = "no size that the model takes changes it"

_SET_CLASS: Callable[[object, type], None] = object.__dict__["__class__"].__set__

# The atoms of expressions: ("size", node, dimension), ("item", node), ("asked", question).
SIZE, ITEM, ASKED = "size", "item", "asked"


@dataclass(eq=False)
class Decision:
    """A number that depends on the input, or the answer to a question about the process, has become a plain value.

    expression: of sizes, numbers and questions. value: what it was. sizes: the sizes in the expression.
    file, line: the code that asked. call: the module call whose code it is. place: how many events of that call, and
    position: how many nodes of the record, came before.
    instruction: where in that code. constants: the numbers that the code knows, where this is one.
    settled: why another value changes nothing; "" while that is not known.
    """

    expression: Any
    value: Any
    sizes: tuple[int, ...]
    file: str
    line: int
    call: Call | None
    place: int
    position: int
    instruction: int
    constants: frozenset[Any]
    settled: str = ""

    @property
    def questions(self) -> list[str]:
        """The questions about the process that it goes by."""
        return [question for _, question in atoms(self.expression, ASKED)]

    @property
    def by_sizes(self) -> bool:
        """Whether it goes by sizes alone."""
        return not self.questions and not any(atoms(self.expression, ITEM))

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for the same decision in another run."""
        return (self.call.path if self.call else "", self.file, self.line, self.instruction, outline(self.expression))

    @property
    def checked(self) -> bool:
        """Whether code that is written anew has to check it: a branch that no run took the other way."""
        return isinstance(self.value, bool) and self.settled in (FAILS_OTHERWISE, NO_SIZE)

    @property
    def code(self) -> str:
        """The line of the code."""
        return linecache.getline(self.file, self.line).strip()

    @property
    def at(self) -> str:
        """File and line."""
        return f"{PurePath(self.file).name}:{self.line}"

    def __str__(self) -> str:
        code = f": `{self.code}`" if self.code else ""
        return f"{self.at}{code} ({described(self.expression)} is {self.value!r})"


@dataclass(eq=False)
class Decisions:
    """The decisions of one run.

    where: the call that runs now, and how many nodes there are.
    lie: the kind of atom, and the questions if it is one, by which branches go the other way.
    """

    where: Callable[[], tuple[Call | None, int]]
    made: list[Decision] = field(default_factory=list)
    numbers: list[weakref.ref[Symbolic]] = field(default_factory=list)
    lie: tuple[str, Set[str]] | None = None
    open: bool = True

    def close(self) -> None:
        """The run is over: nothing is noted any more, and numbers that code has kept are plain ones to torch."""
        self.open = False
        for reference in self.numbers:
            if (number := reference()) is not None:
                _SET_CLASS(number, _Kept)
        self.numbers.clear()

    def note(self, expression: Any, value: Any) -> None:
        if not self.open:
            return
        frame = sys._getframe(1)
        while frame.f_back is not None and _is_no_users(home := str(frame.f_globals.get("__name__", ""))):
            if home.startswith("torch.nn.modules."):  # torch's own layers do the same at every size
                return
            frame = frame.f_back
        call, position = self.where()
        if not isinstance(value, bool | int | float | str | None):
            value = type(value).__name__  # such as a storage
        constants = frozenset[Any]() if isinstance(value, bool) else numbers_of(frame)
        sizes = tuple(node.shape[dim] for _, node, dim in atoms(expression, SIZE))
        place = len(call.events) if call is not None else 0
        file, line, instruction = frame.f_code.co_filename, frame.f_lineno, frame.f_lasti
        self.made.append(Decision(expression, value, sizes, file, line, call, place, position, instruction, constants))

    def recent(self) -> dict[int, Any]:
        """The expressions of sizes that have become plain numbers since the last operation, by number."""
        recent: dict[int, Any] = {}
        here = self.where()
        for decision in reversed(self.made):
            if (decision.call, decision.position) != here:
                break
            if type(decision.value) is int and decision.by_sizes:
                recent.setdefault(decision.value, decision.expression)
        return recent

    def branch(self, condition: bool, expression: Any) -> bool:
        """The way that code goes; the other one if it goes by numbers of the input, or questions, and these lie."""
        told = condition != self._is_lie(expression)
        self.note(expression, told)
        return told

    def _is_lie(self, expression: Any) -> bool:
        if self.lie is None:
            return False
        kind, questions = self.lie
        return any(not questions or atom[1] in questions for atom in atoms(expression, kind))

    def handed_to_torch(self, frame: FrameType) -> None:
        """Forget what the call that `frame` is making asked for: torch looks at its arguments and is then told all."""
        while self.made and self.made[-1].instruction == frame.f_lasti and self._is_at(self.made[-1], frame):
            self.made.pop()

    def _is_at(self, decision: Decision, frame: FrameType) -> bool:
        return (decision.file, decision.line) == (frame.f_code.co_filename, frame.f_lineno)


def numbers_of(frame: FrameType) -> frozenset[Any]:
    """The whole numbers that code knows, and tuples of them: what it writes down, and the globals that it reads."""
    code = frame.f_code
    known = [frame.f_globals[name] for name in code.co_names if name in frame.f_globals]
    return frozenset(_numbers([code.co_consts, *(value for value in known if isinstance(value, _LITERALS))]))


_LITERALS = (int, str, tuple, list, set, frozenset, dict)


def _numbers(value: Any, depth: int = 0) -> Iterator[Any]:
    if isinstance(value, str):
        value = tuple(int(digits) for digits in re.findall(r"\d{1,6}", value[:1000], re.ASCII))
    if isinstance(value, tuple | list | set | frozenset | dict) and depth < 4 and len(value) <= 100:
        if isinstance(value, tuple) and all(type(item) is int for item in value):
            yield value
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _numbers(item, depth + 1)
    elif type(value) is int:
        yield value


def _is_no_users(home: str) -> bool:
    """Whether code is this package's or torch's."""
    return home.partition(".")[0] in ("reparam", "torch")


class Symbolic:
    """A number with its expression."""

    def __new__(cls, value: Any, expression: Any, decisions: Decisions) -> Any:
        if not decisions.open:
            return value
        kind = _Float if isinstance(value, float) else _Integer
        return object.__new__(kind)

    def __init__(self, value: Any, expression: Any, decisions: Decisions) -> None:
        self.value = value
        self.expression = expression
        self._decisions = decisions
        decisions.numbers.append(weakref.ref(self))

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self.value)

    def _plain(self) -> Any:
        self._decisions.note(self.expression, self.value)
        return self.value

    def __bool__(self) -> bool:
        return self._decisions.branch(bool(self.value), ("ne", self.expression, 0))

    def __index__(self) -> int:
        return operator.index(self._plain())

    def __int__(self) -> int:
        return int(self._plain())

    def __float__(self) -> float:
        return float(self._plain())

    def __complex__(self) -> complex:
        return complex(self._plain())

    def __hash__(self) -> int:
        return hash(self._plain())

    def __repr__(self) -> str:
        return repr(self._plain())

    def __str__(self) -> str:
        return str(self._plain())

    def __format__(self, spec: str) -> str:
        return format(self._plain(), spec)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain(), name)

    def __reduce_ex__(self, protocol: Any) -> Any:
        value = self._plain()
        return type(value), (value,)

    def __copy__(self) -> Symbolic:
        return self

    def __deepcopy__(self, memo: Any) -> Symbolic:
        return self

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __round__(self, *digits: int) -> Any:
        return self._of("round", round, *digits)

    def _of(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        return Symbolic(function(self.value, *args), (name, self.expression, *args), self._decisions)

    __array_ufunc__ = None  # numbers of numpy leave the operator to this class


def _unary(name: str, function: Callable[[Any], Any]) -> Callable[[Symbolic], Any]:
    return lambda self: self._of(name, function)


def _binary(name: str, function: Callable[[Any, Any], Any], swapped: bool) -> Callable[[Symbolic, Any], Any]:
    def method(self: Symbolic, other: Any) -> Any:
        if isinstance(other, Symbolic):
            value, expression = other.value, other.expression
        elif isinstance(other, (int, float)):
            value = expression = other
        elif type(other).__module__ == "numpy" and getattr(other, "ndim", 1) == 0:
            value = expression = other.item()
        else:
            return NotImplemented
        pair = (value, self.value) if swapped else (self.value, value)
        expressions = (expression, self.expression) if swapped else (self.expression, expression)
        if name in _COMPARISONS:
            return self._decisions.branch(function(*pair), (name, *expressions))
        return Symbolic(function(*pair), (name, *expressions), self._decisions)

    return method


_ARITHMETIC = (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and_", "or_", "xor", "lshift", "rshift",
)  # fmt: skip
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_UNARY: Mapping[str, Callable[[Any], Any]] = {
    "neg": operator.neg, "pos": operator.pos, "abs": abs, "invert": operator.invert,
    "floor": math.floor, "ceil": math.ceil, "trunc": math.trunc,
}  # fmt: skip
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in (*_ARITHMETIC, *_COMPARISONS)},
    **_UNARY,
    "round": round,
}
for _name in (*_ARITHMETIC, *_COMPARISONS):
    setattr(Symbolic, f"__{_name.rstrip('_')}__", _binary(_name, FUNCTIONS[_name], swapped=False))
for _name in _ARITHMETIC:
    setattr(Symbolic, f"__r{_name.rstrip('_')}__", _binary(_name, FUNCTIONS[_name], swapped=True))
for _name, _function in _UNARY.items():
    setattr(Symbolic, f"__{_name}__", _unary(_name, _function))


class _Integer(Symbolic, torch.SymInt):
    """Torch's parsers of arguments take both where they take a number."""


class _Float(Symbolic, torch.SymFloat):
    pass


class _Kept(Symbolic):
    """A number that code has kept when the run is over: torch takes it as the plain one."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*plain(args), **plain(kwargs or {}))


class Probe:
    """Stands for an argument that is no tensor. Code that hands it on runs as ever; code that asks it fails."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def _asked(self, *_: Any) -> Any:
        raise TypeError("a flag was asked for its value")

    __bool__ = __eq__ = __ne__ = __lt__ = __gt__ = __le__ = __ge__ = __len__ = __iter__ = __getitem__ = _asked
    __contains__ = __index__ = __int__ = __float__ = __call__ = __str__ = __format__ = __getattr__ = _asked

    def __hash__(self) -> int:
        raise TypeError("a flag was asked for its value")


class Shape(tuple[Any, ...]):
    """The sizes of a tensor, as torch.Size."""

    __slots__ = ()

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return torch.Size

    def __repr__(self) -> str:
        return f"torch.Size([{', '.join(map(repr, self))}])"

    def numel(self) -> Any:
        return functools.reduce(operator.mul, self) if self else 1

    def __getitem__(self, index: Any) -> Any:
        item = super().__getitem__(index)
        return Shape(item) if isinstance(index, slice) else item

    def __add__(self, other: Any) -> Any:
        return Shape((*self, *other)) if isinstance(other, tuple) else NotImplemented

    def __radd__(self, other: Any) -> Any:
        return Shape((*other, *self)) if isinstance(other, tuple) else NotImplemented

    def __reduce__(self) -> Any:
        return torch.Size, ([operator.index(item) for item in self],)


def atoms(expression: Any, kind: str) -> Iterator[Any]:
    """The sizes, or the numbers read out of tensors, in an expression."""
    if isinstance(expression, tuple):
        if expression[0] == kind:
            yield expression
        elif expression[0] not in (SIZE, ITEM, ASKED):
            for part in expression[1:]:
                yield from atoms(part, kind)


def plain(tree: Any) -> Any:
    """Nested arguments with plain numbers."""
    kind = type(tree)
    if issubclass(kind, Symbolic):
        return tree.value
    if kind in (tuple, list):
        return kind(map(plain, tree))
    if kind is Shape:
        return torch.Size(map(plain, tree))
    if kind is dict:
        return {key: plain(item) for key, item in tree.items()}
    if kind is slice:
        return slice(plain(tree.start), plain(tree.stop), plain(tree.step))
    return tree


def is_symbolic(tree: Any) -> bool:
    """Whether nested arguments hold a symbolic number."""
    kind = type(tree)
    if issubclass(kind, Symbolic):
        return True
    if kind in (tuple, list, Shape):
        return any(map(is_symbolic, tree))
    if kind is dict:
        return any(map(is_symbolic, tree.values()))
    return kind is slice and any(map(is_symbolic, (tree.start, tree.stop, tree.step)))


def outline(expression: Any) -> Any:
    """An expression with the names of operations in place of nodes: equal in another run.

    Numbers are left out: they may come from a size that has become a plain number.
    """
    if not isinstance(expression, tuple):
        return "number"
    if expression[0] == ASKED:
        return expression
    if expression[0] in (SIZE, ITEM):
        _, node, *dim = expression
        return (expression[0], node.call.path if node.call else "", node.op, *dim)
    return (expression[0], *map(outline, expression[1:]))


_SIGNS = {
    "add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%", "pow": "**",
    "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
}  # fmt: skip


def described(expression: Any) -> str:
    """An expression for people: `relu.shape[2] > 4`."""
    if not isinstance(expression, tuple):
        return str(expression)
    name, *parts = expression
    if name == SIZE:
        return f"{parts[0].name}.shape[{parts[1]}]"
    if name == ASKED:
        return str(parts[0])
    if name == ITEM:
        return (
            f"{parts[0].name}.item()" if parts[0].dtype is not None else f"{parts[0].name}({parts[0].inputs[0].name})"
        )
    texts = [f"({described(p)})" if isinstance(p, tuple) and p[0] in _SIGNS else described(p) for p in parts]
    return f" {_SIGNS[name]} ".join(texts) if name in _SIGNS else f"{name.rstrip('_')}({', '.join(texts)})"
