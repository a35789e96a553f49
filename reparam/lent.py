"""A copy to work on whose parameters lie in the memory of the model's own, until those that are left get their own.

Edits put new tensors in the place of old ones and write into none, so most parameters need never be copied: folding
takes them away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn


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
