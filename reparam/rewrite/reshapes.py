"""The proof that code gives a reshape sizes that are right for every input.

A record holds the sizes of one run, and the expressions that they come from: sizes of tensors, multiplied and divided.
They are expressed in the lengths that depend on the input, and compared with what the fold requires of the reshape.
Numbers written in the code are the same for every input; the batch and the pixels are not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from reparam.algebra.index_map import Length
from reparam.capture.graph import Node, has_user_code
from reparam.capture.ops import BROADCASTING, CONVOLUTIONS, SHAPE_PRESERVING, facts
from reparam.capture.symbolic import SIZE, Symbolic
from reparam.errors import Refusal
from reparam.plan.shapes import Extents, IntactChannels, Lengths, same_size_input, same_size_origin
from reparam.rules import RULES

_INFERRED = Length.constant(-1)  # torch infers this size from the others
_ONE = Length.constant(1)


def require_proven_sizes(node: Node, extents: Extents) -> None:
    """Raise Refusal unless the sizes that a node is given are as required, for every input."""
    required = extents.required[node]
    given = _given_sizes(node, extents.lengths)
    if node.op == "unflatten" and isinstance(required, tuple):
        dim = node.args[1] if len(node.args) > 1 else node.kwargs["dim"]
        dim %= len(node.operands[0].shape)
        required = required[dim : dim + len(given or ())]
    right = given and (
        _keeps_channels(given, required) if isinstance(required, IntactChannels) else _matches(given, required)
    )
    if not right:
        raise Refusal(
            "the sizes that it is given are not proven to be those of its input, for every input",
            "sizes read from its own input (`x.shape`) would fold",
        )


def _given_sizes(node: Node, lengths: Mapping[Node, Lengths]) -> Sequence[Length | None] | None:
    """The sizes that a node is given; None where they are unknown."""
    code = _SizeExpressions(lengths)
    _, args, kwargs = node.spelled
    try:
        arguments = RULES[node.op].signature.bind(*args, **kwargs).arguments
        sizes = code.sizes(next(arguments[name] for name in ("sizes", "shape", "output_size") if name in arguments))
        if sizes and "output_size" in arguments and len(sizes) == 1:
            return [*sizes] * (len(node.shape) - 2)
        return sizes
    except (StopIteration, TypeError):
        return None


def _keeps_channels(given: Sequence[Length | None], required: IntactChannels) -> bool:
    """Whether a reshape to these sizes keeps the channel dimension, or torch refuses it.

    The number of entries does not change. So the channels are kept if two of three parts (before, in and after the
    channels) are as long as required. A part that torch infers does not count, nor does one that was rounded down.
    Where all three are right up to rounding and torch infers none, rounding gives too few entries, and torch refuses.
    """
    index = required.position
    parts = given[:index], given[index : index + 1], given[index + 1 :]
    lengths = [_product(part) for part in parts]
    required_lengths = required.before, required.channels, required.after
    right = [
        length is not None and length.same(required_length)
        for length, required_length in zip(lengths, required_lengths, strict=True)
    ]
    exact = [same and length is not None and length.exact for same, length in zip(right, lengths, strict=True)]
    exact[1] = exact[1] or required.checked
    return sum(exact) >= 2 or (all(right) and _INFERRED not in given)


def _matches(given: Sequence[Length | None], required: Sequence[Length]) -> bool:
    """Whether a reshape to these sizes is the required one, or torch refuses it.

    A size that was rounded down gives too few entries, which torch refuses unless it infers another size.
    """
    known = [(size, length) for size, length in zip(given, required, strict=False) if size != _INFERRED]
    if len(given) != len(required) or len(given) - len(known) > 1:
        return False
    none_inferred = len(known) == len(given)
    return all(size is not None and size.same(length) and (none_inferred or size.exact) for size, length in known)


def _product(sizes: Sequence[Length | None]) -> Length | None:
    """The number of entries of some dimensions; None where a size is unknown or inferred."""
    known = [size for size in sizes if size is not None and size != _INFERRED]
    return math.prod(known, start=_ONE) if len(known) == len(sizes) else None


class _SizeExpressions:
    """Sizes that code has computed, as lengths. `lengths`: of the tensors of a fold, its base first."""

    def __init__(self, lengths: Mapping[Node, Lengths]) -> None:
        self.lengths = {same_size_origin(node): node_lengths for node, node_lengths in lengths.items()}
        self.base = next(iter(lengths))
        self._shapes: dict[Node, Lengths] = {}
        self._origins: dict[Node, Node] = {}
        self.base_batch: Node | None = None  # until it is known: batch_origin may ask for sizes
        self.base_batch = self.batch_origin(self.base)
        self._shapes.clear()

    def sizes(self, given: Any) -> Sequence[Length | None] | None:
        """A shape, given as several sizes or as one sequence of them."""
        first = given[0] if isinstance(given, (tuple, list)) and len(given) == 1 else given
        return tuple(map(self.value, first)) if isinstance(first, (tuple, list)) else (self.value(first),)

    def shape(self, node: Node) -> Lengths:
        """The lengths of a tensor."""
        if node not in self._shapes:
            self._shapes[node] = self._shape(node)
        return self._shapes[node]

    def _shape(self, node: Node) -> Lengths:
        if same_size_origin(node) in self.lengths:
            return self.lengths[same_size_origin(node)]
        lengths = _lengths_outside(node)
        return (Length(Fraction(1), (0,)), *lengths[1:]) if self.batch_origin(node) is self.base_batch else lengths

    def batch_origin(self, node: Node) -> Node:
        """The first tensor on the way to this one that has the same batch (length of dimension 0) for every input."""
        before, behind = node, list[Node]()
        while before not in self._origins:
            behind.append(before)
            origin = self._same_batch_input(before)
            if origin is None:
                self._origins[before] = before
            else:
                before = origin
        self._origins.update(dict.fromkeys(behind, self._origins[before]))
        return self._origins[before]

    def _same_batch_input(self, node: Node) -> Node | None:
        if node.op in ("view", "reshape"):
            given = node.spelled[1][1:]
            first = given[0] if given and not isinstance(given[0], tuple | list) else (given[0][:1] or [None])[0]
            return self._tensor_of_batch(self.value(first))
        keeps = node.op in SHAPE_PRESERVING or _batched_rank(node.op) == len(node.shape) or _keeps_first_dimension(node)
        return node.operands[0] if keeps and len(node.operands) == 1 else None

    def _tensor_of_batch(self, length: Length | None) -> Node | None:
        """The tensor whose batch this length is."""
        if length is None or not length.same(Length(Fraction(1), length.of[:1])) or not length.of:
            return None
        (symbol,) = length.of
        if symbol == 0:
            return self.base
        return symbol[0] if isinstance(symbol, tuple) and symbol[1] == 0 else None

    def value(self, size: Any) -> Length | None:
        """The length that a size is; None where it is none."""
        if isinstance(size, Symbolic):
            return self._length(size.expression)
        return Length.constant(size) if type(size) is int else None

    def _length(self, expression: Any) -> Length | None:
        if not isinstance(expression, tuple):
            return Length.constant(expression) if type(expression) is int else None
        name, *parts = expression
        if name == SIZE:
            return self.shape(parts[0])[parts[1]]
        if name not in ("mul", "floordiv"):
            return None
        a, b = map(self._length, parts)
        if a is None or b is None:
            return None
        return a * b if name == "mul" else a // b


def _batched_rank(name: str) -> int | None:
    """The number of dimensions that a convolution reads where there is a batch; None for any other operation."""
    return facts(name).spatial + 2 if name in CONVOLUTIONS else None


def _keeps_first_dimension(node: Node) -> bool:
    """Whether it permutes dimensions, all but the first."""
    if node.op not in ("permute", "transpose"):
        return False
    rank = len(node.shape)
    dims = [dim % rank for arg in node.args[1:] for dim in (arg if isinstance(arg, (tuple, list)) else (arg,))]
    return dims[:1] == [0] if node.op == "permute" else len(dims) == 2 and 0 not in dims


def _lengths_outside(node: Node) -> Lengths:
    """The lengths of a tensor outside the fold: unknown, except for channels that a layer reads or computes."""
    known, origin = _known_dimensions(node), same_size_origin(node)
    return tuple(
        Length.constant(size) if dim in known else Length(Fraction(1), ((origin, dim),))
        for dim, size in enumerate(node.shape)
    )


def _known_dimensions(node: Node, joins: int = 2) -> set[int]:
    """The dimensions that have the same length for every input; the search passes so many `joins`."""
    same_size = [node]
    while (before := same_size_input(same_size[-1])) is not None:
        same_size.append(before)
    readers = (reader for tensor in same_size for reader in tensor.readers if reader.operands[:1] == (tensor,))
    layers = [layer for layer in (*same_size, *readers) if layer.function is not None and _is_called_by_torch(layer)]
    rank = len(node.shape)
    dims = [facts(layer.op).channels for layer in layers if _batched_rank(layer.op) in (None, rank)]
    known = {dim % rank for dim in dims if dim is not None}
    origin = same_size[-1]
    if joins and origin.op in BROADCASTING:
        for operand in origin.inputs:  # the result is as long as an operand that is longer than 1
            # A constant that is computed may have been repeated as often as the input is long.
            held_dims = range(len(operand.shape)) if operand.tensor is not None else ()
            operand_dims = held_dims if operand.constant else _known_dimensions(operand, joins - 1)
            known |= {rank - len(operand.shape) + dim for dim in operand_dims if operand.shape[dim] > 1}
    return known


def _is_called_by_torch(node: Node) -> bool:
    """Whether a module of torch runs it, so that its number of groups does not depend on the input."""
    return node.call is not None and not has_user_code(node.call.module)
