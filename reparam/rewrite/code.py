"""A module with a new forward.

The instance keeps its attributes and methods. Its class becomes a subclass with the same name and one method, so
`isinstance` holds. It pickles and deep-copies by the text of that method, which its attribute `code` shows.
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
    """The text of a forward, and its global names: (name, name of an imported module) and (name, picklable object)."""

    text: str
    modules: tuple[tuple[str, str], ...]
    objects: tuple[tuple[str, Any], ...]

    @staticmethod
    def of(graph: fx.Graph) -> Code:
        """The code of a graph."""
        for node in graph.nodes:
            node.type = None  # annotations may use names of the user's file
        printed = graph.python_code("self")
        text = printed.src[printed.src.index("def forward(") :].strip() + "\n"
        constants = compile(text, "<forward>", "exec").co_consts  # the code of the function, and default arguments
        names = next(constant for constant in constants if isinstance(constant, CodeType)).co_names
        used = {name: printed.globals[name] for name in names if name in printed.globals}
        modules = tuple((name, value.__name__) for name, value in used.items() if isinstance(value, ModuleType))
        objects = tuple((name, value) for name, value in used.items() if not isinstance(value, ModuleType))
        return Code(text, modules, objects)

    def forward(self) -> Callable[..., Any]:
        """The function that the text defines. Its lines show up in tracebacks."""
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
    """The forward that `set_forward` gave an instance; None if it has that of its class."""
    code: Code | None = getattr(type(module), "_rewritten_code", None)
    return code


def _subclass(base: type[nn.Module], code: Code) -> type[nn.Module]:
    try:
        return _shared_subclass(base, code)  # type: ignore[arg-type]
    except TypeError:  # an object in the code is not hashable
        return _shared_subclass.__wrapped__(base, code)


@cache
def _shared_subclass(base: type[nn.Module], code: Code) -> type[nn.Module]:
    def reduce_ex(self: nn.Module, protocol: Any) -> Any:
        return _new_instance, (base, code), self.__dict__

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


def _new_instance(base: type[nn.Module], code: Code) -> nn.Module:
    subclass = _subclass(base, code)
    module: nn.Module = subclass.__new__(subclass)
    return module
