"""Float64 truth: running a model so that nothing in it rounds to less than float64.

After `.double()` alone a model still rounds, in factories that name float32, in casts, in plain tensor attributes.
Under `Float64` it does not, so two ways of computing the same function agree to about 1e-15, or they are different
functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from reparam.capture.compiled import python_code
from reparam.capture.process import PROCESS
from reparam.capture.snapshot import M, copied
from reparam.capture.tree import T, mapped, tensors

# Not float8 and quantised dtypes: a model that uses those rounds on purpose.
_WIDENED = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}


class Float64(TorchDispatchMode):
    """A mode in which no operation returns a floating tensor of a lower dtype than float64 (complex: complex128).

    Dtype arguments are widened, floating inputs are cast to float64 before they are computed with, and the default
    dtype is float64, so that `torch.tensor(0.1)` and `torch.arange(3) * 0.1` are exact to float64 as well.
    Two things keep their dtype: views, and the destination of an in-place operation, to which the other operands are
    cast. A number that was rounded before any operation (`torch.tensor(0.1, dtype=torch.float32)`, a float32
    attribute) stays rounded.

    Compiled code is for one dtype: the Python code behind it runs instead. That and the default dtype are settings of
    the process, so the mode holds the lock `PROCESS`: a second thread waits for the first.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._settings: list[ExitStack] = []

    def __enter__(self) -> Float64:
        PROCESS.acquire()
        settings = ExitStack()
        settings.callback(torch.set_default_dtype, torch.get_default_dtype())
        settings.enter_context(python_code())
        torch.set_default_dtype(torch.float64)
        self._settings.append(settings)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        self._settings.pop().close()
        PROCESS.release()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():
            # Inference mode dispatches composite operations as one; the casts inside them count as well.
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        views, written = _aliasing(func)
        if views:
            return func(*args, **kwargs)
        change = _cast_for(_destinations(written, args, kwargs))
        return func(*mapped(args, change), **mapped(kwargs, change))


@cache
def _aliasing(func: Any) -> tuple[bool, tuple[tuple[int, str], ...]]:
    """Whether an operator returns a view of an argument, and (position, name) of each argument that it writes to."""
    aliased = [(i, a) for i, a in enumerate(func._schema.arguments) if a.alias_info is not None]
    written = tuple((i, a.name) for i, a in aliased if a.alias_info.is_write)
    return bool(aliased) and not written, written


def _destinations(written: Sequence[tuple[int, str]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    values = [args[i] if i < len(args) else kwargs.get(name) for i, name in written]
    return [tensor for _, tensor in tensors(values)]


def _cast_for(destinations: Sequence[Tensor]) -> Callable[[Any], Any]:
    """The cast of each argument: to float64, or to the dtype of a destination that keeps a lower one."""
    narrow = next((t.dtype for t in destinations if t.dtype in _WIDENED), None)
    if narrow is None:
        return _widened
    fixed = {id(t) for t in destinations}

    def cast(value: Any) -> Any:
        if not isinstance(value, Tensor) or id(value) in fixed:
            return value
        if value.is_complex():
            return value.to(narrow.to_complex())
        return value.to(narrow.to_real()) if value.is_floating_point() else value

    return cast


def _widened(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return _WIDENED.get(value, value)
    if isinstance(value, Tensor) and value.dtype in _WIDENED:
        return value.to(_WIDENED[value.dtype])
    return value


def double(model: M) -> M:
    """A deep copy of `model` whose floating parameters and buffers are float64, and complex ones complex128.

    Run it under `Float64`, as its forward may still cast, or read plain attributes of another dtype.
    """
    copy = copied(model).double()
    for tensor in (*copy.parameters(), *copy.buffers()):
        if tensor.is_complex():  # nn.Module.double() leaves these
            tensor.data = tensor.data.to(torch.complex128)
    return copy


def as_float64(tree: T) -> T:
    """A copy of `tree` with every floating tensor in float64, every complex one in complex128, all else as it is.

    tree: nested tuples, named tuples, lists, mappings and dataclasses; they keep their types.
    """
    return mapped(tree, lambda leaf: _widened(leaf) if isinstance(leaf, Tensor) else leaf)
