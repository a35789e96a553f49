"""Code that asks whether gradients are recorded: with them it may do something else than in a run without.

Tensors and torch can be asked. It counts for weights as well: those of a fold need no gradients. Torch's own code does
the same either way, whichever kernel it takes, and does not count.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import ModuleType
from typing import Any

import torch
from torch import nn

from reparam.capture.bytecode import of_torch
from reparam.capture.process import PROCESS

_FUNCTIONS = (torch.is_grad_enabled, torch.is_inference_mode_enabled)


@contextmanager
def listening(note: Callable[[], None]) -> Iterator[None]:
    """Within it `note` is called whenever code of this thread that is not torch's asks torch.

    No torch function mode sees these functions. So others stand in for them, in torch and wherever code has imported
    them by name.
    """
    with PROCESS:
        standing = {function.__name__: _noting(function, note) for function in _FUNCTIONS}
        files: list[tuple[str, Any]] = list(sys.modules.items())
        known = [vars(each) for name, each in files if isinstance(each, ModuleType) and not name.startswith("torch.")]
        places = [(names, each) for names in known for each in _FUNCTIONS if names.get(each.__name__) is each]
        for names, each in places:
            names[each.__name__] = standing[each.__name__]
        try:
            yield
        finally:
            for names, each in places:
                names[each.__name__] = each


def _noting(function: Callable[[], bool], note: Callable[[], None]) -> Callable[[], bool]:
    thread = threading.get_ident()

    @wraps(function)
    def asking() -> bool:
        if threading.get_ident() == thread and not of_torch(sys._getframe(1)):
            note()
        return function()

    return asking


@contextmanager
def watching(note: Callable[[nn.Module, str], None]) -> Iterator[None]:
    """Within it `note` is called with each module of which this thread sets an attribute, and the attribute's name."""
    thread = threading.get_ident()
    with PROCESS:
        setting = nn.Module.__setattr__

        def noted(module: nn.Module, name: str, value: Any) -> None:
            if threading.get_ident() == thread:
                note(module, name)
            setting(module, name, value)

        nn.Module.__setattr__ = noted  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            nn.Module.__setattr__ = setting  # type: ignore[method-assign]
