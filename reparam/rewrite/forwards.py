"""Rewrites of forwards: the pieces of code inside one call, edited together in its code.

A piece is edited in the forward of the smallest module around its operations. The code of inner modules is written out
there (the modules are *opened*) where the piece is in them, or where they have to be proven to hand on a tensor of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence, Set

from torch import nn

from reparam.capture.graph import Call, Node, calls_around, has_user_code
from reparam.errors import Refusal
from reparam.plan.strides import CHANGES_LAYOUT
from reparam.rewrite.call_graph import CallGraph, takes_size
from reparam.rewrite.context import Context
from reparam.rewrite.edits import Piece, Rewrite, Swap
from reparam.rewrite.refused import SIZE_READ, RefusalAt, Refused
from reparam.rewrite.users import is_passed_unread, returned_nodes, size_is_used, unordered_reader


def rewrites_of(pieces: Iterable[Piece], swaps: Iterable[Swap], context: Context, refused: Refused) -> list[Rewrite]:
    """One rewrite per module, for all pieces in it. Pieces that cannot be rewritten are refused."""
    places, opened = _places(pieces, context)
    swapped = frozenset(swap.module for swap in swaps)
    pieces_at: dict[Call, list[Piece]] = defaultdict(list)
    for piece, place in places.items():
        pieces_at[place].append(piece)
    rewrites: list[Rewrite] = []
    for place, modules in opened.items():
        inside = pieces_at[place]
        try:
            _require_no_other_edit(place, modules, inside, swapped, context)
            rewrites.append(_rewrite_call(place, modules, inside, context))
        except Refusal as refusal:
            if refused.refuse_fusions(fusion for piece in inside for fusion in piece.fold.shared):
                continue
            # A piece that was moved out here by another one may stay in its own code in the next plan.
            for piece in [piece for piece in inside if piece.call is place] or inside:
                refused.refuse_fold(refusal, piece.part.fold.nodes, piece.part.planned.steps, piece.call)
    return rewrites


def _places(pieces: Iterable[Piece], context: Context) -> tuple[Mapping[Piece, Call], Mapping[Call, Set[nn.Module]]]:
    """The call in whose code each piece is edited, and the modules that are opened there.

    A piece inside code that another piece opens moves out to that call.
    """
    places = {piece: piece.call for piece in pieces}
    while True:
        opened: dict[Call, set[nn.Module]] = defaultdict(set)
        for piece, place in places.items():
            opened[place] |= _opened_modules(piece, place, context)
        moved = False
        for piece, place in places.items():
            outer = next(
                (call for call in place.stack() if call is not place and place.module in opened.get(call, ())), None
            )
            if outer is not None:
                places[piece], moved = outer, True
        if not moved:
            return places, opened


def _opened_modules(piece: Piece, place: Call, context: Context) -> Set[nn.Module]:
    """The modules whose code is written out in that of `place`."""
    opened = {place.module}
    for node in piece.nodes:
        for call in node.call.stack() if node.call else ():
            if call is place:
                break
            if has_user_code(call.module) or not _holds_only(call, piece.nodes):
                opened.add(call.module)
    # A module that only hands on a tensor of the piece (a drop path) has to prove that it always does.
    for call in context.passing_calls({*piece.nodes[:-1], piece.base}, place):
        if not context.proofs.alike(call.module):
            opened |= {outer.module for outer in call.stack(place) if has_user_code(outer.module)}
    return opened


def _holds_only(call: Call, nodes: Collection[Node]) -> bool:
    """Whether a call runs nothing but these operations."""
    return all(node.constant or node in nodes for node in call.nodes())


def _require_no_other_edit(
    place: Call, opened: Set[nn.Module], pieces: Sequence[Piece], swapped: Set[nn.Module], context: Context
) -> None:
    """Raise Refusal if code that is written out in `place` is also edited where it stands."""
    if not opened.isdisjoint(swapped):
        raise Refusal("another fold replaces a module whose code this fold would have to write out")
    for piece in pieces:
        inner = [call for call in calls_around(piece.nodes[0], place) if call is not place]
        if piece.call is not place and any(len(context.calls(call.module)) > 1 for call in inner):
            raise Refusal("its code is called several times, and another fold would write out one of the calls")


def _rewrite_call(place: Call, opened: Set[nn.Module], pieces: Sequence[Piece], context: Context) -> Rewrite:
    """The rewrite of one call. Raises Refusal where its code cannot be rewritten."""
    pinned = [module for module in opened if module in context.pinned and module is not place.module]
    if pinned:
        raise Refusal(f"{context.path(pinned[0])} is pinned by a hook or `keep=`", "without it this would fold")
    if not has_user_code(place.module) and context.read_elsewhere(place.module):
        raise Refusal(f"other code reads the parameters of {place.path}", "code that reads its own would fold")
    code = context.proofs.code(place, frozenset(opened))
    replaced = {node for piece in pieces for node in piece.nodes}
    returned = returned_nodes(code)
    for piece in pieces:
        _require_unneeded(code, piece, replaced, returned, context)
    return Rewrite(code, pieces)


def _require_unneeded(
    code: CallGraph, piece: Piece, replaced: Collection[Node], returned: Collection[Node], context: Context
) -> None:
    """Raise RefusalAt where code that stays needs a tensor that the piece takes away."""
    if piece.base not in code.at:
        raise RefusalAt(piece.nodes[0], "its forward takes a list of tensors whose length may differ")
    if not context.layout_sensitive.isdisjoint(piece.nodes):
        reader = unordered_reader(code, piece.base, piece.nodes)
        if reader is not None:
            raise RefusalAt(reader, *CHANGES_LAYOUT)
    for node in piece.nodes:
        if node not in code.at:
            continue
        if takes_size(node) and node not in piece.fold.reshapes:
            raise RefusalAt(node, f"{node.name} takes an argument that depends on the size of the input")
        if node is not piece.sink and node in context.gone:
            _require_unseen(code, node, returned)
        if node is not piece.sink and piece.same_size_end(node) is None and size_is_used(code, node, replaced):
            raise RefusalAt(next(reader for reader in piece.nodes if node in reader.operands), SIZE_READ)


def _require_unseen(code: CallGraph, node: Node, returned: Collection[Node]) -> None:
    """Raise RefusalAt where code that does not read a tensor returns it or passes it on."""
    if node in returned:
        raise RefusalAt(node, "its code also returns it, although nobody reads it")
    if is_passed_unread(code, node):
        raise RefusalAt(node, "its code also calls a module with it that does not read it")
