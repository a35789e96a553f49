"""A module with a new forward: the same class to everyone who asks, other code when it is called.

The instance keeps its attributes, methods and `isinstance`; its class becomes a subclass of its own that holds one
method. It pickles and deep-copies by that method's text, so nothing has to be traced again, and `code` shows it.
"""

from __future__ import annotations

import builtins
import importlib
import linecache
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import CodeType, ModuleType
from typing import Any

from torch import fx, nn


@dataclass(frozen=True)
class Code:
    """The text of a forward and what its names stand for: (name, imported module's name or picklable object)."""

    text: str
    modules: tuple[tuple[str, str], ...]
    objects: tuple[tuple[str, Any], ...]

    @staticmethod
    def of(graph: fx.Graph) -> Code:
        """The forward that a graph prints as."""
        for node in graph.nodes:
            node.type = None  # annotations would need the names of the user's module
        printed = graph.python_code("self")
        text = printed.src[printed.src.index("def forward(") :].strip() + "\n"
        constants = compile(text, "<forward>", "exec").co_consts  # default arguments are among them
        names = next(each for each in constants if isinstance(each, CodeType)).co_names
        used = {name: printed.globals[name] for name in names if name in printed.globals}
        modules = tuple((n, v.__name__) for n, v in used.items() if isinstance(v, ModuleType))
        return Code(text, modules, tuple((n, v) for n, v in used.items() if not isinstance(v, ModuleType)))

    def forward(self) -> Callable[..., Any]:
        """The function."""
        scope: dict[str, Any] = {"__builtins__": builtins, **dict(self.objects)}
        scope.update({name: importlib.import_module(path) for name, path in self.modules})
        file = f"<reparam forward {hash(self.text) & 0xFFFFFFFF:08x}>"
        linecache.cache[file] = (len(self.text), None, self.text.splitlines(keepends=True), file)
        exec(compile(self.text, file, "exec"), scope)
        function: Callable[..., Any] = scope["forward"]
        return function


def set_forward(module: nn.Module, code: Code) -> None:
    """Give one instance a new forward."""
    module.__class__ = _subclass(getattr(type(module), "_rewritten_from", type(module)), code)


def code_of(module: nn.Module) -> Code | None:
    """The forward that an instance has been given; None where it has that of its class."""
    code: Code | None = getattr(type(module), "_rewritten_code", None)
    return code


def _subclass(base: type[nn.Module], code: Code) -> type[nn.Module]:
    try:
        return _shared_subclass(base, code)  # type: ignore[arg-type]
    except TypeError:  # an object in the code cannot be hashed: no sharing
        return _shared_subclass.__wrapped__(base, code)


@cache
def _shared_subclass(base: type[nn.Module], code: Code) -> type[nn.Module]:
    def reduce_ex(self: nn.Module, protocol: Any) -> Any:
        return _rebuilt, (base, code), self.__dict__

    members = {
        "forward": code.forward(),
        "code": code.text,
        "_rewritten_code": code,
        "_rewritten_from": base,
        "__reduce_ex__": reduce_ex,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
    }
    subclass: type[nn.Module] = type(base.__name__, (base,), members)
    return subclass


def _rebuilt(base: type[nn.Module], code: Code) -> nn.Module:
    subclass = _subclass(base, code)
    module: nn.Module = subclass.__new__(subclass)
    return module
