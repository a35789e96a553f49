"""What this package changes for the whole process while it works, and the one lock that guards it.

    the default dtype                                    capture/float64.py
    whether compiled code runs                           capture/compiled.py
    questions about the process, torch.is_grad_enabled   capture/questions.py
    functions with a cache, by name                      capture/caches.py
    nn.Module.__call__ and __getattr__, while fx traces  capture/example_inputs.py, deploy/export.py
    torch's random state                                 compare/isolated.py
    the number of torch's threads                        compare/bench.py
    Python's garbage collector                           convert.py
    filters of warnings, and where output goes           deploy/checkpoint.py, deploy/export.py

Each of these is put back, which is right only if no two threads do it at once. So whatever changes one of them, or
computes what depends on one, holds `PROCESS`: calls from several threads wait for one another. The lock is re-entrant,
because one public function calls another. It protects this package from itself. Other threads of the program see the
changes: they must not build models, draw random numbers or run models while a conversion runs.

The handler of SIGTERM (deploy/files.py) needs no lock, as Python lets only the main thread set it; nor do torch's
dispatch and function modes, gradient mode and inference mode, which belong to a thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from torch import fx, nn

P = ParamSpec("P")
R = TypeVar("R")

PROCESS = threading.RLock()


def exclusive(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which holds `PROCESS` while it runs."""

    @wraps(function)
    def holding(*args: P.args, **kwargs: P.kwargs) -> R:
        with PROCESS:
            return function(*args, **kwargs)

    return holding


class ThreadTracer(fx.Tracer):
    """A tracer for the thread that makes it. fx hands a tracer the calls of all modules in the process: those of other
    threads run as ever."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._thread = threading.get_ident()

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)
