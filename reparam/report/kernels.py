"""The kernels that go into a fold and the one that comes out, as ranges of channels: see `quantisation`."""

from __future__ import annotations

from torch import Tensor

from reparam.algebra.kernels import transposed
from reparam.capture.evaluate import evaluate
from reparam.capture.graph import Node
from reparam.capture.ops import KERNELS, PRODUCTS, TRANSPOSED_CONVOLUTIONS
from reparam.plan.fold import Fold
from reparam.report.quantisation import Ranges, Weights, ranges
from reparam.report.steps import bound_arguments, operation_name


def weights_of(fold: Fold, cache: dict[Node, Ranges | None]) -> Weights | None:
    """The ranges before and after; None where the fold leaves no kernel. The kernel after has no name yet.

    cache: the ranges of operations, which this adds to, as a thousand folds may be partial sums of the same branches.
    """
    if fold.value.identity:
        return None
    after = ranges("", fold.value.kernel())
    if after is None:
        return None
    cache.update((node, _ranges_of(node)) for node in fold.nodes if node.function is not None and node not in cache)
    before = map(cache.get, fold.nodes)
    return Weights(tuple(kernel for kernel in before if kernel is not None), after)


def _ranges_of(node: Node) -> Ranges | None:
    """The ranges of the weight that an operation multiplies with; None where it has none with output channels."""
    name = operation_name(node)
    if name not in KERNELS or name == "einsum":
        return None
    weight = next((operand for operand in node.inputs if operand.constant and len(operand.shape) > 1), None)
    if weight is None:
        return None
    value = evaluate(weight, {}) if weight.tensor is None else weight.tensor.detach().cpu()
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return None
    if name in TRANSPOSED_CONVOLUTIONS:
        value = transposed(value, bound_arguments(node).get("groups", 1))
    elif name in PRODUCTS:  # x @ weight, or weight @ x
        value = value.movedim(-2 if node.inputs[0] is weight else -1, 0)
    return ranges(node.path, value)
