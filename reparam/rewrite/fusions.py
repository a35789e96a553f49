"""Fusions: the pieces of code that one wide convolution replaces."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence

from reparam.capture.graph import common_call, model_tensors, used_only_by
from reparam.errors import Refusal
from reparam.plan.fold import Fusion
from reparam.rewrite.chains import Part
from reparam.rewrite.context import Context
from reparam.rewrite.edits import Piece
from reparam.rewrite.refused import OUTSIDE, Refused


def fused_pieces(parts: Iterable[Part], context: Context, refused: Refused) -> list[Piece]:
    """The pieces of every fusion, once for all calls of the code around it."""
    parts_of_fusion: dict[Fusion, list[Part]] = defaultdict(list)
    for part in parts:
        for fusion in part.fold.shared:
            parts_of_fusion[fusion].append(part)
    groups: dict[Hashable, list[Fusion]] = defaultdict(list)
    for fusion, fused in parts_of_fusion.items():
        groups[context.code_key(node for part in fused for node in part.fold.nodes)].append(fusion)
    pieces: list[Piece] = []
    for group in groups.values():
        try:
            pieces += _pieces(group, parts_of_fusion[group[0]], context)
        except Refusal:
            refused.refuse_fusions(group)
    return pieces


def _pieces(group: Sequence[Fusion], parts: Sequence[Part], context: Context) -> list[Piece]:
    """The pieces of the first fusion of a group, in the smallest call around all of its operations. Raises Refusal."""
    for fusion in group:
        for view in fusion.views.required:
            context.require_proven_sizes(view, fusion.views)
    call = common_call([node for part in parts for node in part.fold.nodes])
    if call is None:
        raise Refusal(OUTSIDE)
    context.require_every_call(call, len(group))
    for part in parts:
        nodes = part.fold.nodes
        context.require_not_pinned(call, nodes)
        readers = (reader for tensor in model_tensors(nodes) for reader in context.readers[id(tensor)])
        if len(nodes) == 1 and not all(used_only_by(reader, context.removed) for reader in readers):
            raise Refusal("its weight would be held twice")
    return [Piece(call, part.fold.nodes, part.fold.base, part.fold.sink, part, part.fold.value) for part in parts]
