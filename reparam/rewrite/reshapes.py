"""The proof that the sizes which code hands to a reshape are those of what it reads, for every input.

A record knows the numbers of one run. Code that was traced shows where they come from: sizes of tensors, multiplied
and divided. That is worked out in terms of the lengths that depend on the input, and compared with what the fold took
the reshape for. Numbers that are written out are the same for every input; the batch and the pixels are not.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from torch import fx

from reparam.algebra.index_map import Length
from reparam.capture.graph import Node, has_user_code
from reparam.capture.ops import BROADCASTING, CONVOLUTIONS, SHAPE_PRESERVING, SHAPED_AS, facts, op_name
from reparam.errors import Refusal
from reparam.plan.shapes import Extents, IntactChannels, Lengths, same_size_input, same_size_origin
from reparam.rewrite.trace import Trace
from reparam.rules import RULES

_REST = Length.constant(-1)


def require_stated(node: Node, trace: Trace | None, extents: Extents) -> None:
    """Raises Refusal where the sizes that a node is given are not proven to be what they have to be for every input.

    trace: of the code that calls it; None where that hands on numbers that it holds.
    """
    expected = extents.required[node]
    stated = _stated(node, trace, extents.lengths)
    if node.op == "unflatten" and isinstance(expected, tuple):
        at = node.args[1] if len(node.args) > 1 else node.kwargs["dim"]
        at %= len(node.operands[0].shape)
        expected = expected[at : at + len(stated or ())]
    if not stated or not (
        _keep(stated, expected) if isinstance(expected, IntactChannels) else _agree(stated, expected)
    ):
        raise Refusal(
            "the sizes that it is given are not proven to be those of what it reads, for every input",
            "sizes that are read from its very input (x.shape) would fold",
        )


def _stated(node: Node, trace: Trace | None, lengths: Mapping[Node, Lengths]) -> Sequence[Length | None] | None:
    """The sizes that a node is given; None for what is no such length."""
    name = node.op
    code = _Code(trace, lengths)
    try:
        step = None if trace is None else trace.at[node]
        args, kwargs = (node.args, node.kwargs) if step is None else (step.args, step.kwargs)
        if step is not None and op_name(step.target) in SHAPED_AS:
            return code.shape(args[1])
        given = RULES[name].signature.bind(*args, **kwargs).arguments
        sizes = code.sizes(next(given[each] for each in ("sizes", "shape", "output_size") if each in given))
        return [*sizes] * (len(node.shape) - 2) if sizes and "output_size" in given and len(sizes) == 1 else sizes
    except (KeyError, TypeError):
        return None


def _keep(stated: Sequence[Length | None], whole: IntactChannels) -> bool:
    """Whether a reshape to these sizes leaves channels whole, or torch refuses it.

    There are as many entries as before: so it does where two of the three parts, before, in and behind the channels,
    are as large as they were. One whose size torch is to work out is none of these, nor is one that was rounded down;
    but a size that was rounded down and nothing that is left to torch gives too few entries, which torch refuses.
    """
    parts = stated[: whole.position], stated[whole.position : whole.position + 1], stated[whole.position + 1 :]
    lengths = [_product(part) for part in parts]
    same = [
        length is not None and length.same(each)
        for length, each in zip(lengths, (whole.before, whole.channels, whole.after), strict=True)
    ]
    exact = [alike and length is not None and length.exact for alike, length in zip(same, lengths, strict=True)]
    exact[1] = exact[1] or whole.checked
    return sum(exact) >= 2 or (all(same) and _REST not in stated)


def _product(sizes: Sequence[Length | None]) -> Length | None:
    """How many entries there are under some sizes, if all of them are known."""
    known = [size for size in sizes if size is not None and size != _REST]
    return math.prod(known, start=Length.constant(1)) if len(known) == len(sizes) else None


def _agree(stated: Sequence[Length | None], expected: Sequence[Length]) -> bool:
    """Whether a reshape to these sizes is the expected one, or torch refuses it.

    A size that was rounded down is smaller than it should be, and torch refuses the lot as too small; unless it is to
    work out another one from what is left.
    """
    known = [(ours, length) for ours, length in zip(stated, expected, strict=False) if ours != _REST]
    if len(stated) != len(expected) or len(stated) - len(known) > 1:
        return False
    exact = len(known) == len(stated)
    return all(ours is not None and ours.same(length) and (exact or ours.exact) for ours, length in known)


class _Code:
    """Steps of a trace that are about sizes, as lengths."""

    def __init__(self, trace: Trace | None, lengths: Mapping[Node, Lengths]) -> None:
        self.trace = trace
        self.lengths = {same_size_origin(node): each for node, each in lengths.items()}
        self.base = next(iter(lengths))
        self.images: Node | None = None
        self.images = self.batch(self.base)

    def sizes(self, given: Any) -> Sequence[Length | None] | None:
        """A shape, however it is spelled: some sizes, or one sequence of them."""
        first = given[0] if isinstance(given, (tuple, list)) and len(given) == 1 else given
        value = self.value(first)
        return value if isinstance(value, tuple) else None if value is None else (value,)

    def shape(self, tensor: Any) -> Lengths | None:
        seen = self.trace.tree.get(tensor) if self.trace is not None and isinstance(tensor, fx.Node) else None
        if not isinstance(seen, Node) or same_size_origin(seen) in self.lengths:
            return self.lengths.get(same_size_origin(seen)) if isinstance(seen, Node) else None
        found = _told(seen)
        return (Length(Fraction(1), (0,)), *found[1:]) if self.batch(seen) is self.images else found

    def batch(self, node: Node) -> Node:
        """The first tensor on the way to this one that has as many images (entries of dimension 0) for every input."""
        before: Node | None = node
        while before is not None:
            node, before = before, self._as_many(before)
        return node

    def _as_many(self, node: Node) -> Node | None:
        """A tensor before this one with as many images, if there is one."""
        name = node.op
        if name in ("view", "reshape"):
            step = self.trace.at.get(node) if self.trace is not None else None
            sizes = None if step is None or len(step.args) < 2 else self.sizes(step.args[1:])
            return self._first(sizes[0]) if sizes else None
        kept = name in SHAPE_PRESERVING or _batched_rank(name) == len(node.shape) or _keeps_first(name, node)
        return node.operands[0] if kept and len(node.operands) == 1 else None

    def _first(self, length: Length | None) -> Node | None:
        """The tensor whose number of images this length is."""
        if length is None or not length.same(Length(Fraction(1), length.of[:1])) or not length.of:
            return None
        (whole,) = length.of
        return self.base if whole == 0 else whole[0] if isinstance(whole, tuple) and whole[1] == 0 else None

    def value(self, item: Any) -> Any:
        """A Length, a tuple of them, or None for what is neither."""
        if isinstance(item, (tuple, list)):
            return tuple(map(self.value, item))
        if isinstance(item, int) and not isinstance(item, bool):
            return Length.constant(item)
        if not isinstance(item, fx.Node):
            return None
        if item.op == "call_method" and item.target == "size":
            whole = self.shape(item.args[0])
            place = item.kwargs.get("dim", item.args[1] if len(item.args) > 1 else None)
            return whole if place is None else _entry(whole, place)
        if item.target is getattr and item.args[1] == "shape":
            return self.shape(item.args[0])
        if item.target is len:
            return _entry(self.shape(item.args[0]), 0)
        if item.op == "call_function" and len(item.args) == 2:
            return self._computed(item)
        return None

    def _computed(self, step: fx.Node) -> Any:
        if step.target is operator.getitem:
            return _entry(self.value(step.args[0]), step.args[1])
        a, b = map(self.value, step.args)
        if isinstance(a, tuple) and isinstance(b, tuple) and step.target is operator.add:
            return (*a, *b)
        if isinstance(a, Length) and isinstance(b, Length):
            if step.target is operator.mul:
                return a * b
            if step.target is operator.floordiv:
                return a // b
        return None


def _keeps_first(name: str, node: Node) -> bool:
    """Whether it puts dimensions in another order, all but the first."""
    if name not in ("permute", "transpose"):
        return False
    rank = len(node.shape)
    dims = [dim % rank for each in node.args[1:] for dim in (each if isinstance(each, (tuple, list)) else (each,))]
    return dims[:1] == [0] if name == "permute" else len(dims) == 2 and 0 not in dims


def _batched_rank(name: str) -> int | None:
    """The number of dimensions that a convolution reads where there is a batch; None for any other operation."""
    return facts(name).spatial + 2 if name in CONVOLUTIONS else None


def _told(node: Node) -> Lengths:
    """The lengths of a tensor that is no part of a fold: unknown, but for the channels that a layer reads or makes."""
    counted, whole = _counted(node), same_size_origin(node)
    unknown = [Length(Fraction(1), ((whole, dim),)) for dim in range(len(node.shape))]
    return tuple(Length.constant(size) if dim in counted else unknown[dim] for dim, size in enumerate(node.shape))


def _counted(node: Node, joins: int = 2) -> set[int]:
    """The dimensions that are as long for every input; it is looked behind so many `joins`."""
    alike = [node]
    while (before := same_size_input(alike[-1])) is not None:
        alike.append(before)
    layers = [*alike, *(reader for each in alike for reader in each.readers if reader.operands[:1] == (each,))]
    names = [each.op for each in layers if each.function is not None and _of_torch(each)]
    rank = len(node.shape)
    dims = [facts(name).channels for name in names if _batched_rank(name) in (None, rank)]
    found = {dim % rank for dim in dims if dim is not None}
    whole = alike[-1]
    if joins and whole.op in BROADCASTING:
        for each in whole.inputs:  # the result is as long as one of them, if that is longer than 1
            # What is computed from tensors that the model holds may have been repeated as often as the input is long.
            held = range(len(each.shape)) if each.tensor is not None else ()
            told = held if each.constant else _counted(each, joins - 1)
            found |= {rank - len(each.shape) + dim for dim in told if each.shape[dim] > 1}
    return found


def _of_torch(node: Node) -> bool:
    """Whether a module of torch calls it: how many groups there are does not depend on the input."""
    return node.call is not None and not has_user_code(node.call.module)


def _entry(whole: Any, place: Any) -> Any:
    if not isinstance(whole, tuple) or not isinstance(place, (int, slice)):
        return None
    if isinstance(place, slice) and any(isinstance(part, fx.Node) for part in (place.start, place.stop, place.step)):
        return None
    return whole[place]
