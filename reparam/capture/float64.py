"""What "float64 truth" means, said once.

A model that was only `.double()`d still rounds: factories that name float32, casts, plain tensor attributes. `Float64`
is a mode in which none of that happens, so two ways of computing the same function agree to about 1e-15 or are
different functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from reparam.capture.snapshot import M, copied
from reparam.capture.tree import T, mapped, tensors

# float8 and quantised dtypes are not here: rounding to those is what a model that uses them means to do.
_WIDENED = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}


class Float64(TorchDispatchMode):
    """Within this mode no operation returns a tensor of a lower floating dtype than float64 (complex: complex128).

    Dtype arguments are widened, floating inputs of a lower dtype are promoted before they are computed with, and the
    default dtype is float64, so that `torch.tensor(0.1)` and `torch.arange(3) * 0.1` are exact to float64 too.
    Two things stay what they are, because their identity is their meaning: a view, and the destination of an in-place
    operation, which the other operands then follow. A value that was rounded before any operation could see it
    (`torch.tensor(0.1, dtype=torch.float32)`, a float32 attribute) keeps its rounded value.

    The default dtype belongs to the process: do not enter this mode while another thread builds models.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._defaults: list[torch.dtype] = []

    def __enter__(self) -> Float64:
        self._defaults.append(torch.get_default_dtype())
        torch.set_default_dtype(torch.float64)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        torch.set_default_dtype(self._defaults.pop())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():
            # Inference mode hands over composite operations whole; the casts inside them must be seen as well.
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        views, written = _aliasing(func)
        if views:
            return func(*args, **kwargs)
        change = _follower(_destinations(written, args, kwargs))
        return func(*mapped(args, change), **mapped(kwargs, change))


@cache
def _aliasing(func: Any) -> tuple[bool, tuple[tuple[int, str], ...]]:
    """Whether an operator returns a view of an argument, and the (position, name) of each argument it writes to."""
    aliased = [(i, a) for i, a in enumerate(func._schema.arguments) if a.alias_info is not None]
    written = tuple((i, a.name) for i, a in aliased if a.alias_info.is_write)
    return bool(aliased) and not written, written


def _destinations(written: Sequence[tuple[int, str]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    found = [args[i] if i < len(args) else kwargs.get(name) for i, name in written]
    return [tensor for _, tensor in tensors(found)]


def _follower(destinations: Sequence[Tensor]) -> Callable[[Any], Any]:
    """What happens to each argument: widened, or made to fit a destination that has to stay of a lower dtype."""
    narrow = next((t.dtype for t in destinations if t.dtype in _WIDENED), None)
    if narrow is None:
        return _widened
    fixed = {id(t) for t in destinations}

    def follow(value: Any) -> Any:
        if not isinstance(value, Tensor) or id(value) in fixed:
            return value
        if value.is_complex():
            return value.to(narrow.to_complex())
        return value.to(narrow.to_real()) if value.is_floating_point() else value

    return follow


def _widened(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return _WIDENED.get(value, value)
    if isinstance(value, Tensor) and value.dtype in _WIDENED:
        return value.to(_WIDENED[value.dtype])
    return value


def double(model: M) -> M:
    """A deep copy of `model` whose floating parameters and buffers are float64 (complex ones complex128).

    Run it under `Float64`: the copy alone still holds whatever casts and plain attributes its forward uses.
    """
    twin = copied(model).double()
    for tensor in (*twin.parameters(), *twin.buffers()):
        if tensor.is_complex():  # nn.Module.double() leaves these alone
            tensor.data = tensor.data.to(torch.complex128)
    return twin


def as_float64(tree: T) -> T:
    """`tree` with every floating tensor in float64 and every complex one in complex128; all else is left as it is.

    Looks into tuples, named tuples, lists, mappings and dataclasses, and keeps their types. The input is not changed.
    """
    return mapped(tree, lambda leaf: _widened(leaf) if isinstance(leaf, Tensor) else leaf)
