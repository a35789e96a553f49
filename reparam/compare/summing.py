"""How far the sums of a model may be off in the dtype that they are made in, measured while the model runs in float64.

A convolution, a linear layer or a matrix product adds up n terms, products of a weight and an input. Each of its n
partial sums is rounded, by a number that is uniform between -u and u of it, where u is half the eps of the dtype. The
variance of the total is u^2/3 times the sum of the squares of the partial sums. In an order that nobody knows, and all
are equally likely, that sum is y^2 n/3 + q n/6 on average, where y is the result and q the sum of the squares of the
terms. So terms that cancel (|w| * |x| far above |y|) and terms that are many cost precision, and both are measured.

The average over a random order: a partial sum of k terms is k/n y, and varies by k (n - k) / (n - 1) times the variance
of the terms, q/n - (y/n)^2 (a sample without replacement: Cochran, Sampling Techniques, theorem 2.2).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from reparam.capture.float64 import Float64, as_float64
from reparam.capture.tree import mapped

_SUMS = {
    torch.ops.aten.convolution,
    torch.ops.aten.mm,
    torch.ops.aten.addmm,
    torch.ops.aten.bmm,
    torch.ops.aten.baddbmm,
    torch.ops.aten.mv,
    torch.ops.aten.addmv,
    torch.ops.aten.dot,
}


class Summing(Float64):
    """Float64, in which every sum of products is off by a random number as large as its rounding in another dtype.

    eps: of the dtype in which sums are made.
    """

    def __init__(self, eps: float, generator: torch.Generator) -> None:
        super().__init__()
        self._unit = eps / 2
        self._generator = generator

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if func.overloadpacket not in _SUMS or not result.is_floating_point():
            return result
        wide = as_float64((args, kwargs or {}))
        ones, squared = (mapped(wide, partial(_changed, change)) for change in (torch.ones_like, torch.square))
        counts, squares = func(*ones[0], **ones[1]), func(*squared[0], **squared[1])
        variance = counts * (result.square() / 3 + squares / 6) / 3
        noise = torch.randn(result.shape, generator=self._generator, dtype=result.dtype).to(result.device)
        return result + self._unit * variance.sqrt() * noise


def _changed(change: Callable[[Tensor], Tensor], leaf: Any) -> Any:
    return change(leaf) if isinstance(leaf, Tensor) else leaf
