"""The `functools` caches of a model's code.

What they hold was computed in an earlier run, perhaps in another dtype. A call of such a function stays one call: where
its result is found in the cache, nothing else is run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from torch import nn

from reparam.capture.process import PROCESS

_CACHED_FUNCTION = type(cache(len))


def cached_functions(model: Callable[..., Any]) -> list[Any]:
    """The functions with a cache that the code of a model's classes knows by name."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    classes = {base for module in modules for base in type(module).__mro__ if not _is_builtin(base)}
    scopes = [scope for base in classes for scope in (vars(base), vars(sys.modules.get(base.__module__, base)))]
    known = {id(scope): scope for scope in scopes}.values()
    return [value for scope in known for value in scope.values() if isinstance(value, _CACHED_FUNCTION)]


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


def _is_builtin(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in ("torch", "builtins")
