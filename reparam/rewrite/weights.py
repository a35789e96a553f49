"""New weights that wait for the memory of the old ones.

A model that is changed in place never needs both: everything that can fail has been done when the first old weight is
given up. By then every kernel has been worked out once, to be looked at, and forgotten; now each is worked out again
and kept, and what only it was made of goes with it.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from reparam.algebra.affine import AffineConv
from reparam.algebra.lazy import cache_scope
from reparam.capture.graph import Record
from reparam.errors import ModelError
from reparam.rewrite.layers import plain


@dataclass(frozen=True, eq=False)
class Waiting:
    """A plain module whose parameters are on the meta device, and what they are made of (see `plain`)."""

    module: nn.Module
    value: AffineConv
    like: Tensor

    def fill(self) -> None:
        """Give the module its numbers."""
        with cache_scope():
            made, _ = plain(self.value, self.like)
        for empty, full in zip(self.module.modules(), made.modules(), strict=True):
            empty._parameters.update(full._parameters)


def loosened(record: Record) -> None:
    """Let a constant hold nothing but what it is computed from, and every other node nothing at all.

    Kernels know the tensor that they start from, and from any node of a record the whole model can be reached.
    """
    for node in {*record.nodes, *(operand for reader in record.nodes for operand in reader.inputs)}:
        node.readers, node.call = [], None
        if not node.constant:
            node.inputs, node.args, node.kwargs = (), (), {}


def fill(waiting: list[Waiting]) -> None:
    """Fill one module after the other, and forget it. Raises ModelError if memory runs out: half is done then.

    The largest comes first, and every other kernel fits where its own has been.
    """
    gc.collect()  # modules and calls hold one another
    waiting.sort(key=lambda each: sum(parameter.numel() for parameter in each.module.parameters()))
    try:
        while waiting:
            waiting.pop().fill()
    except Exception as error:
        raise ModelError(
            f"the new weights cannot be made: {type(error).__name__}: {error}; the model has lost its old ones and has "
            "to be loaded again. With inplace=False it would have stayed as it was"
        ) from error


def same(model: nn.Module) -> Mapping[int, Tensor]:
    """The tensors of a model as they are, for a copy that will become the model itself; by id."""
    return {id(each): each for each in (*model.parameters(), *model.buffers()) if not each.is_inference()}


def aliases(model: nn.Module) -> Mapping[int, Tensor]:
    """Other parameters in the same memory, for a copy that will be a model of its own; by the id of the model's.

    Buffers are copied: a forward may write to them.
    """
    held = (each for each in model.parameters() if type(each) is nn.Parameter and not each.is_inference())
    return {id(each): nn.Parameter(each.data, each.requires_grad) for each in held}


def own(model: nn.Module, lent: Iterable[Tensor]) -> None:
    """Give those of the parameters of `model` that were lent memory of their own."""
    ids = {id(each) for each in lent}
    for parameter in model.parameters():
        if id(parameter) in ids:
            parameter.data = parameter.data.clone()
