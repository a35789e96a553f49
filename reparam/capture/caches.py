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
def emptied(functions: Sequence[Any]) -> Iterator[None]:
    """Empty caches before a run, and behind it: else it reads what an earlier one has left, and leaves its own."""
    _clear(functions)
    try:
        yield
    finally:
        _clear(functions)


def _clear(functions: Sequence[Any]) -> None:
    for function in functions:
        function.cache_clear()


def _is_builtin(thing: Any) -> bool:
    home = str(thing.__module__).partition(".")[0]
    return home in ("torch", "reparam", "builtins") or home in sys.stdlib_module_names
