"""Questions about the process that code may ask: one table, and one rule.

Are gradients recorded, is autocast on, is the model being compiled, traced or scripted? The answer of the recorded run
holds for that run alone, so whatever asks has made a decision. A witness run is given another answer (see `witness`).
Torch's own code does the same either way, whichever kernel it takes, and does not count.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from types import MappingProxyType
from typing import Any

import torch

from reparam.capture.process import PROCESS
from reparam.capture.stand_ins import Names

# Functions of torch, by the module that holds them. Those that a version of torch lacks are left out.
_FUNCTIONS: dict[str, str] = {
    "torch": (
        "is_grad_enabled is_inference_mode_enabled is_anomaly_enabled is_autocast_enabled is_autocast_cpu_enabled "
        "get_autocast_dtype get_autocast_gpu_dtype get_autocast_cpu_dtype is_autocast_cache_enabled get_num_threads "
        "get_num_interop_threads are_deterministic_algorithms_enabled get_default_dtype get_float32_matmul_precision"
    ),
    "torch.compiler": "is_compiling is_dynamo_compiling is_exporting",
    "torch._dynamo": "is_compiling",
    "torch.jit": "is_scripting is_tracing",
    "torch._C": "_get_tracing_state",
    "torch.onnx": "is_in_onnx_export",
}

# What exporters answer otherwise. Code that fails then, because nothing exports it, is as good as proven.
EXPORTERS = {
    f"{home}.{name}"
    for home in ("torch.compiler", "torch._dynamo", "torch.jit", "torch._C", "torch.onnx")
    for name in _FUNCTIONS[home].split()
}

Answer = Callable[[str, Any], Any]  # what code is told, given the question and the true answer


def otherwise(answer: Any) -> Any:
    """Another answer of the same kind."""
    if isinstance(answer, bool):
        return not answer
    if isinstance(answer, torch.dtype):
        return torch.float64 if answer == torch.float32 else torch.float32
    return answer if isinstance(answer, str) else object()


def names() -> Names:
    """The names by which files know the functions that answer questions, and others that a run replaces."""
    return Names(_FUNCTIONS)


@contextmanager
def asked(
    answer: Answer, names: Names, cached: Mapping[Any, Callable[..., Any]] = MappingProxyType({})
) -> Iterator[None]:
    """Within it, code of this thread that is not torch's is told what `answer` gives.

    It also finds the values of `cached` in the place of its keys.
    """
    with PROCESS:
        stand_ins = dict(cached)
        for home, functions in _FUNCTIONS.items():
            module = sys.modules.get(home)
            for name in functions.split():
                if callable(function := getattr(module, name, None)):
                    stand_ins.setdefault(function, _standing(f"{home}.{name}", function, answer))
        switch: Any = torch.backends.ContextProp
        original = switch.__get__
        switch.__get__ = _switched(original, answer)
        try:
            with names.replaced(stand_ins):
                yield
        finally:
            switch.__get__ = original


def _standing(question: str, function: Callable[..., Any], answer: Answer) -> Callable[..., Any]:
    thread = threading.get_ident()

    @wraps(function)
    def asking(*args: Any, **kwargs: Any) -> Any:
        given = function(*args, **kwargs)
        if threading.get_ident() != thread or of_torch(sys._getframe(1)):
            return given
        return answer(question, given)

    return asking


def _switched(get: Callable[..., Any], answer: Answer) -> Callable[..., Any]:
    thread = threading.get_ident()

    def asking(self: Any, instance: Any, owner: Any = None) -> Any:
        given = get(self, instance, owner)
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_name == "__getattr__":
            frame = frame.f_back
        if threading.get_ident() != thread or of_torch(frame):
            return given
        return answer(f"torch.backends.{type(instance).__name__}", given)

    return asking


def of_torch(frame: Any) -> bool:
    """Whether the code of a frame is torch's own."""
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] == "torch"
