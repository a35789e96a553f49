"""The `functools` caches of a model's code.

What they hold was computed in an earlier run, perhaps in another dtype. A call of such a function stays one call: where
its result is found in the cache, nothing else is run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

from torch import nn

from reparam.capture.process import PROCESS

_CACHED_FUNCTION = type(cache(len))


def cached_functions(model: Callable[..., Any]) -> list[Any]:
    """The cached functions of a model's classes, of the files that define them, and of the files that these import."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    classes = {kind for module in modules for kind in type(module).__mro__ if not _is_builtin(kind)}
    files = {id(file): file for kind in classes if (file := sys.modules.get(kind.__module__)) is not None}.values()
    imported = {id(value): value for file in files for value in vars(file).values() if isinstance(value, ModuleType)}
    scopes = [vars(scope) for scope in (*classes, *files, *imported.values())]
    found = {id(value): value for scope in scopes for value in scope.values() if isinstance(value, _CACHED_FUNCTION)}
    return [function for function in found.values() if not _is_builtin(function)]


@contextmanager
def replaced(functions: Sequence[Any], other: Callable[[Any], Callable[..., Any]]) -> Iterator[None]:
    """Within it, `other(function)` stands where code knows one of the functions by name."""
    by_id = {id(function): other(function) for function in functions}
    with PROCESS:
        holders = list(sys.modules.values()) if by_id else []
        places = [
            (m, name, v) for m in holders for name, v in list(getattr(m, "__dict__", {}).items()) if id(v) in by_id
        ]
        for holder, name, function in places:
            setattr(holder, name, by_id[id(function)])
        try:
            yield
        finally:
            for holder, name, function in places:
                setattr(holder, name, function)


def _is_builtin(thing: Any) -> bool:
    home = str(thing.__module__).partition(".")[0]
    return home in ("torch", "reparam", "builtins") or home in sys.stdlib_module_names
