"""Python's own functions of sizes as steps of a trace: `max(h, w)` and `int(h / 2)` would ask a proxy for its number.

What proxies cannot answer by a method of their own has to be another function for the time of a trace. `max`, `math`
and functions with a cache are known to be in the way. `int`, `float` and `len` are so common in code that has nothing
to do with sizes that they are exchanged only where a trace has stopped at them, in what that code knows.
"""

from __future__ import annotations

import builtins
import inspect
import math
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, wraps
from types import FrameType
from typing import Any

from torch import fx, nn

# fx can wrap all of `math`, but patching it anew for every trace takes longer than the trace.
IMPORTED = (math.ceil, math.floor, math.sqrt)  # also where user code imports them by name
_CACHED = type(cache(len))
_ON_SIZES = {builtins: ("max", "min"), math: ("ceil", "floor", "sqrt", "prod")}


@dataclass(frozen=True)
class Scope:
    """The names that the code of one file knows, as far as `name` has to be another function there."""

    file: str
    name: str

    @property
    def names(self) -> dict[str, Any]:
        return vars(sys.modules[self.file])


def scope(name: str, frame: FrameType | None) -> Scope | None:
    """Where to exchange `name`, if it is Python's own there, and the code that is running may have called it.

    None where that cannot be done: in torch, and where code asks whether something is that very type.
    """
    if frame is None or name not in frame.f_code.co_names:
        return None
    file = frame.f_globals.get("__name__", "")
    found = sys.modules.get(file)
    if found is None or vars(found) is not frame.f_globals or name in frame.f_globals or file.startswith("torch."):
        return None
    try:
        compared = re.search(rf"\bis\s+(not\s+)?{name}\b|\b{name}\s+is\b", inspect.getsource(found))
    except (OSError, TypeError):  # code without a file
        return None
    return None if compared else Scope(file, name)


@contextmanager
def symbolic(modules: Collection[nn.Module], scopes: Collection[Scope]) -> Iterator[None]:
    """Within it the functions of sizes are steps of the trace; Python's own would ask for the numbers.

    So are the functions with a cache that the code of `modules` knows: it would keep what is no number.
    """
    originals = [(vars(module), name, vars(module)[name]) for module, names in _ON_SIZES.items() for name in names]
    for known in {id(known): known for known in map(_globals, modules)}.values():
        originals += [(known, name, each) for name, each in known.items() if isinstance(each, _CACHED)]
    for names, name, function in originals:
        names[name] = _symbolic(function)
    for each in scopes:
        each.names[each.name] = _EXCHANGED[each.name]
    try:
        yield
    finally:
        for names, name, function in originals:
            names[name] = function
        for each in scopes:
            del each.names[each.name]


def _globals(module: nn.Module) -> dict[str, Any]:
    """What the code of a module's forward knows."""
    return getattr(inspect.unwrap(type(module).forward), "__globals__", {})


def _symbolic(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Any:
        proxy = next((each for each in (*args, *kwargs.values()) if isinstance(each, fx.Proxy)), None)
        if proxy is None or (len(args) < 2 and function.__module__ == "builtins"):  # of a sequence
            return function(*args, **kwargs)
        return proxy.tracer.create_proxy("call_function", function, args, kwargs)

    return traced


def _number(kind: type) -> type:
    """`kind` to everyone who asks, but a step of the trace where it is called with a size."""

    class Meta(type):
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            if len(args) == 1 and isinstance(args[0], fx.Proxy):
                return _asked(args[0], kind)
            return kind(*args, **kwargs)

        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, kind)

        def __subclasscheck__(cls, subclass: type) -> bool:
            return issubclass(subclass, kind)

        def __eq__(cls, other: object) -> bool:
            return other is cls or other is kind

        def __hash__(cls) -> int:
            return hash(kind)

    return Meta(kind.__name__, (kind,), {})


def _len(each: Any) -> Any:
    return _asked(each, len) if isinstance(each, fx.Proxy) else len(each)


def _asked(proxy: Any, function: Callable[[Any], Any]) -> Any:
    return proxy.tracer.number(proxy, function)


_EXCHANGED: Mapping[str, Any] = {"int": _number(int), "float": _number(float), "len": _len}
