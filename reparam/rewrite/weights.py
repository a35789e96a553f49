"""Memory of weights: refills of a model that is converted in place, and copies that share parameters.

A conversion in place never holds old and new weights together. First everything that can fail is done, with new layers
that have no weights: each kernel is computed once, checked and freed. Then the old weights are given up one layer after
another, and the kernels are computed again and kept.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from reparam.algebra.affine import AffineConv
from reparam.algebra.lazy import cache_scope
from reparam.capture.graph import Record
from reparam.errors import ModelError
from reparam.rewrite.computed import Source
from reparam.rewrite.layers import plain_layer, rounded


@dataclass(frozen=True, eq=False)
class Refill:
    """New parameters that are on the meta device. size: how many numbers they hold; run: computes them."""

    size: int
    run: Callable[[], None]


def fill_layer(layer: nn.Module, value: AffineConv, like: Tensor) -> None:
    """Give a new layer its weights, by the arguments of `plain_layer`."""
    with cache_scope():
        full_layer, _ = plain_layer(value, like)
    for empty, full in zip(layer.modules(), full_layer.modules(), strict=True):
        empty._parameters.update(full._parameters)


def fill_weight(module: nn.Module, name: str, source: Source, like: Tensor) -> None:
    """Give a layer the weight that it once computed at every call."""
    setattr(module, name, rounded(source.value(), like))


def release_graph(record: Record) -> None:
    """Cut the references between the nodes of a record, except from a constant to what it is computed from.

    A kernel refers to the node that it starts from, and through that to the whole record and all weights.
    """
    for node in {*record.nodes, *(operand for reader in record.nodes for operand in reader.inputs)}:
        node.readers, node.call = [], None
        if not node.constant:
            node.inputs, node.args, node.kwargs = (), (), {}


def run_refills(refills: list[Refill]) -> None:
    """Run and remove each refill, the largest layer first. The list is empty afterwards.

    Raises ModelError if memory runs out: the model has then lost its weights.
    """
    gc.collect()  # modules and calls refer to one another
    refills.sort(key=lambda refill: refill.size)
    try:
        while refills:
            refills.pop().run()
    except Exception as error:
        raise ModelError(
            f"the new weights cannot be computed: {type(error).__name__}: {error}; the model has lost its weights and "
            "has to be loaded again. With inplace=False it would have stayed as it was"
        ) from error


def shared_tensors(model: nn.Module) -> Mapping[int, Tensor]:
    """The tensors of a model by id, as the memo of a deep copy that will become the model itself."""
    tensors = (*model.parameters(), *model.buffers())
    return {id(tensor): tensor for tensor in tensors if not tensor.is_inference()}


def aliases(model: nn.Module) -> Mapping[int, Tensor]:
    """New parameters in the memory of the model's, by the id of these, as the memo of a deep copy of the model.

    Buffers are not among them, so they are copied: a forward may write to them.
    """
    own = (p for p in model.parameters() if type(p) is nn.Parameter and not p.is_inference())
    return {id(parameter): nn.Parameter(parameter.data, parameter.requires_grad) for parameter in own}


def copy_aliases(model: nn.Module, aliases: Iterable[Tensor]) -> None:
    """Give the parameters of `model` that are among the aliases memory of their own."""
    ids = {id(alias) for alias in aliases}
    for parameter in model.parameters():
        if id(parameter) in ids:
            parameter.data = parameter.data.clone()
