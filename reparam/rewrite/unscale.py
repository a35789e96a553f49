"""Norms without weights: the scale and shift of a normalisation go into the folds that read it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence

from torch import nn

from reparam.capture.graph import Call, Node, is_torch_layer, model_tensors
from reparam.capture.norms import NORM_MODULES, affine_part
from reparam.errors import Refusal
from reparam.plan.fold import Fold
from reparam.rewrite.chains import Part
from reparam.rewrite.context import Context
from reparam.rewrite.edits import Piece
from reparam.rewrite.refused import OUTSIDE, Refused

_FORWARDS = tuple(kind.forward for kind in NORM_MODULES)


def unscale(folds: Iterable[Fold], context: Context, refused: Refused) -> tuple[list[nn.Module], list[Piece]]:
    """The norms that lose their weight and bias: modules of torch, and pieces of all other code."""
    first = {fold.nodes[0]: fold for fold in folds if fold.nodes[0].function is affine_part}
    groups: dict[Hashable, list[Part]] = defaultdict(list)
    for affine, fold in first.items():
        head = Fold(fold.base, affine, fold.value, (affine,), fold.sizes, fold.extents)
        groups[context.code_key([affine])].append(Part(head, head))
    modules: list[nn.Module] = []
    pieces: list[Piece] = []
    for group in groups.values():
        try:
            edit = _unscaled(group, context)
        except Refusal as refusal:
            refused.refuse_operations((part.fold.sink for part in group), refusal)
        else:
            if isinstance(edit, Piece):
                pieces.append(edit)
            else:
                modules.append(edit)
    return modules, pieces


def _unscaled(group: Sequence[Part], context: Context) -> nn.Module | Piece:
    """The edit of one norm, in all calls of its code. Raises Refusal."""
    if not all(part.fold.sink in context.removed for part in group):
        raise Refusal("not every operation that reads it can take its scale")
    part = group[0]
    affine, call = part.fold.sink, part.fold.sink.call
    if call is None:
        raise Refusal(OUTSIDE)
    context.require_every_call(call, len(group))
    inspectors = (context.record.inspectors.get(id(tensor), ()) for tensor in model_tensors([affine]))
    if any(module is not call.module for modules in inspectors for module in modules):
        raise Refusal("other code asks for the dtype, device or size of its weight")
    if not _is_torch_norm(call, affine):
        return Piece(call, part.fold.nodes, part.fold.base, affine, part, None)
    if call.parent is not None and is_torch_layer(call.parent.module):  # its fused kernels may read all weights inside
        raise Refusal(f"{context.path(call.parent.module)} may read its weight without calling it")
    if not context.only_removed_read(call.module):
        raise Refusal(f"other code reads the parameters of {call.path}", "code that reads its own would fold")
    return call.module


def _is_torch_norm(call: Call, affine: Node) -> bool:
    """Whether the module's forward is that of torch's norm, and the weights are its own parameters."""
    parameters = call.module._parameters.values()
    own = all(any(operand.tensor is parameter for parameter in parameters) for operand in affine.inputs[1:])
    return own and type(call.module).forward in _FORWARDS
