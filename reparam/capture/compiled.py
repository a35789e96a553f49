"""Code that torch.compile has made.

Where a dispatch mode is open, dynamo skips compiled code, and never compiles it again in this process. So wherever this
package opens a mode, the Python code runs that the compiled code was made from (`python_code`). Compiled code itself
runs outside of modes, in place (see `snapshot.restored`), as a copy of a model does not carry it.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn


def is_compiled(module: nn.Module) -> bool:
    """Whether a module is a wrapper made by torch.compile, or compiled in place."""
    return "_orig_mod" in module._modules or vars(module).get("_compiled_call_impl") is not None


def holds_compiled(model: object) -> bool:
    """Whether a part of a model is compiled."""
    return isinstance(model, nn.Module) and any(map(is_compiled, model.modules()))


def python_code() -> AbstractContextManager[Any]:
    """A context in which no compiled code runs and nothing is compiled, but the Python code behind it.

    It holds for the whole process: hold `PROCESS`.
    """
    # Without dynamo there is no compiled code, and its import takes seconds.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
