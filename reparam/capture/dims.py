"""Which sizes are one size: every dimension of a recorded tensor in terms of the dimensions of earlier ones.

A length is a polynomial with integer coefficients: it maps products of atoms (sorted tuples) to their coefficients. An
atom is a dimension that nothing else determines, or an integer division that does not come out even. Two lengths with
the same polynomial are equal for every input, and one without atoms is the same number for every input.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from reparam.capture.graph import Node, tuple_item
from reparam.capture.ops import (
    ADAPTIVE_POOLS,
    BATCH_PRESERVING,
    BROADCASTING,
    CONVOLUTIONS,
    LAYERS,
    POOLS,
    SHAPE_PRESERVING,
    Kind,
    facts,
)
from reparam.capture.symbolic import FUNCTIONS, SIZE, Symbolic, atoms

Length = Mapping[tuple[Hashable, ...], int]


def constant(number: int) -> Length:
    return {(): number} if number else {}


class Dims:
    """The lengths of the dimensions of a record's tensors. `fixed`: atoms that are the same number for every input."""

    def __init__(self, fixed: Mapping[Hashable, int] | None = None) -> None:
        self.fixed = fixed or {}
        self._lengths: dict[Node, tuple[Length, ...]] = {}

    def of(self, node: Node) -> tuple[Length, ...]:
        """The length of each dimension."""
        waiting = [node]  # no recursion: networks are a thousand operations deep
        while waiting:
            here = waiting[-1]
            unknown = [operand for operand in here.inputs if operand not in self._lengths]
            if unknown and here not in self._lengths:
                waiting += unknown
                continue
            waiting.pop()
            if here not in self._lengths:
                self._lengths[here] = self._lengths_of(here)
        return self._lengths[node]

    def number(self, expression: Any) -> int | float | bool | None:
        """The number that an expression is for every input; None where it may differ."""
        length = self.length(expression)
        if length is None:
            return None
        return length.get((), 0) if not any(length) else None

    def length(self, expression: Any) -> Length | None:
        """The length that an expression is; None where it is none."""
        if isinstance(expression, bool) or not isinstance(expression, int | tuple):
            return None
        if isinstance(expression, int):
            return constant(expression)
        name, *parts = expression
        if name == SIZE:
            return self.of(parts[0])[parts[1]]
        lengths = [self.length(part) for part in parts]
        if any(length is None for length in lengths):
            return None
        return _applied(name, lengths)  # type: ignore[arg-type]

    def free(self, expression: Any) -> set[Any]:
        """The dimensions that nothing determines of which an expression is made."""
        found: set[Any] = set()
        for _, node, dim in atoms(expression, SIZE):
            _collect(self.of(node)[dim], found)
        return found

    def evaluate(self, expression: Any, sizes: Mapping[Hashable, int]) -> Any:
        """The value of an expression where its free dimensions have these sizes. Raises what its arithmetic raises."""
        if not isinstance(expression, tuple):
            return expression
        name, *parts = expression
        if name == SIZE:
            return _value(self.of(parts[0])[parts[1]], sizes)
        return FUNCTIONS[name](*(self.evaluate(part, sizes) for part in parts))

    def _own(self, node: Node, dim: int) -> Length:
        atom = (SIZE, node, dim)
        return constant(self.fixed[atom]) if atom in self.fixed else {(atom,): 1}

    def _lengths_of(self, node: Node) -> tuple[Length, ...]:
        if node.tensor is not None or node.invariant:
            return tuple(map(constant, node.shape))
        own = tuple(self._own(node, dim) for dim in range(len(node.shape)))
        try:
            lengths = self._known(node, own) if node.inputs and node.function is not None else None
        except (LookupError, TypeError, ValueError):  # spelled in another way than the rules below expect
            lengths = None
        return own if lengths is None or len(lengths) != len(own) else tuple(lengths)

    def _known(self, node: Node, own: Sequence[Length]) -> Sequence[Length] | None:
        first = self._lengths[node.inputs[0]]
        if node.inplace or (node.op in SHAPE_PRESERVING and len(node.operands) == 1):
            return first
        if node.function is tuple_item:
            return self._of_part(node, own)
        rule = _RULES.get(node.op)
        if rule is not None:
            return rule(self, node, first, own)
        if facts(node.op).kind is Kind.ELEMENTWISE and len(node.inputs) == 1:
            return first
        return [*first[:1], *own[1:]] if node.op in BATCH_PRESERVING else None

    def _of_part(self, node: Node, own: Sequence[Length]) -> Sequence[Length] | None:
        cut, whole = node.inputs[0], node.inputs[0].inputs[0]
        if cut.op not in ("chunk", "split", "split_with_sizes"):
            return None
        at = _dimension(cut.kwargs.get("dim", _item(cut.args, 2, 0)), len(whole.shape))
        parts = list(self._lengths[whole])
        parts[at] = own[at] if any(parts[at]) else constant(node.shape[at])
        return parts

    def _of_pool(self, node: Node, first: Sequence[Length], own: Sequence[Length]) -> Sequence[Length] | None:
        _, args, kwargs = node.spelled
        spatial = facts(node.op).spatial
        if kwargs or len(args) > 4 or len(own) != spatial + 2:
            return None
        kernel = _each(args[1], spatial)
        stride = _each(_item(args, 2, None) or args[1], spatial)
        padding = _each(_item(args, 3, 0), spatial)
        sizes = zip(first[2:], kernel, stride, padding, strict=True)
        return [*first[:2], *(_windows(length, k, s, 2 * p) for length, k, s, p in sizes)]

    def _permuted(self, node: Node, first: Sequence[Length], own: Sequence[Length]) -> Sequence[Length]:
        args = node.spelled[1]
        return [first[dim] for dim in (args[1] if isinstance(args[1], tuple | list) else args[1:])]

    def _transposed(self, node: Node, first: Sequence[Length], own: Sequence[Length]) -> Sequence[Length]:
        _, a, b = node.spelled[1]
        swapped = list(first)
        swapped[a], swapped[b] = swapped[b], swapped[a]
        return swapped

    def _flattened(self, node: Node, first: Sequence[Length], own: Sequence[Length]) -> Sequence[Length]:
        _, args, kwargs = node.spelled
        start = _dimension(kwargs.get("start_dim", _item(args, 1, 0)), len(first))
        stop = _dimension(kwargs.get("end_dim", _item(args, 2, -1)), len(first)) + 1
        return [*first[:start], product_of(first[start:stop]), *first[stop:]]

    def _unsqueezed(self, node: Node, first: Sequence[Length], own: Sequence[Length]) -> Sequence[Length]:
        at = _dimension(node.spelled[1][1], len(own))
        return [*first[:at], constant(1), *first[at:]]

    def _resampled(self, node: Node, first: Sequence[Length], own: Sequence[Length]) -> Sequence[Length]:
        _, args, kwargs = node.spelled
        given = kwargs.get("size", kwargs.get("output_size", _item(args, 1, None)))
        sizes = list(given) if isinstance(given, tuple | list) else [given] * (len(own) - 2)
        lengths = [self.length(item.expression if isinstance(item, Symbolic) else item) for item in sizes]
        return [
            *first[:2],
            *(mine if length is None else length for mine, length in zip(own[2:], lengths, strict=True)),
        ]

    def _attended(self, node: Node, first: Sequence[Length], own: Sequence[Length]) -> Sequence[Length]:
        return [*first[:-1], self._lengths[node.inputs[2]][-1]]

    def _multiplied(self, node: Node, first: Sequence[Length], own: Sequence[Length]) -> Sequence[Length] | None:
        second = self._lengths[node.inputs[1]]
        return [*first[:-1], second[-1]] if len(second) >= 2 and len(first) == len(own) else None

    def _joined(self, node: Node, first: Sequence[Length], own: Sequence[Length]) -> Sequence[Length]:
        _, args, kwargs = node.spelled
        at = _dimension(kwargs.get("dim", _item(args, 1, 0)), len(own))
        lengths = [self._lengths[operand] for operand in node.inputs]
        return [sum_of(each[dim] for each in lengths) if dim == at else first[dim] for dim in range(len(own))]

    def _indexed(self, node: Node, first: Sequence[Length], own: Sequence[Length]) -> Sequence[Length] | None:
        args = node.spelled[1]
        return _indexed(args[1], first, own) if node.inputs == (args[0],) else None

    def _of_layer(self, node: Node, first: Sequence[Length], own: Sequence[Length]) -> Sequence[Length] | None:
        spatial = facts(node.op).spatial
        if not spatial:
            return [*first[:-1], constant(node.shape[-1])]
        if len(node.shape) != spatial + 2:
            return None
        channels = constant(node.shape[1])
        if node.op not in CONVOLUTIONS:
            return [first[0], channels, *own[2:]]
        _, args, kwargs = node.spelled
        weight = args[1] if len(args) > 1 else kwargs["weight"]
        stride, padding, dilation = (
            kwargs.get(name, _item(args, position, default))
            for name, position, default in (("stride", 3, 1), ("padding", 4, 0), ("dilation", 5, 1))
        )
        if padding == "same":
            return [first[0], channels, *first[2:]]
        around = (0,) * spatial if padding == "valid" else _each(padding, spatial)
        spans = [d * (k - 1) + 1 for d, k in zip(_each(dilation, spatial), weight.shape[2:], strict=True)]
        sizes = zip(first[2:], spans, _each(stride, spatial), around, strict=True)
        return [first[0], channels, *(_windows(length, span, s, 2 * p) for length, span, s, p in sizes)]

    def _reshaped(self, node: Node, before: Sequence[Length], own: Sequence[Length]) -> Sequence[Length] | None:
        args = node.spelled[1]
        given = args[1] if isinstance(args[1], tuple | list) else args[1:]
        lengths = [self.length(item.expression if isinstance(item, Symbolic) else item) for item in given]
        inferred = [i for i, item in enumerate(given) if isinstance(item, int) and type(item) is int and item == -1]
        for i in inferred:
            others = [length for j, length in enumerate(lengths) if j != i]
            whole = product_of(before)
            rest = None if None in others else divided(whole, product_of(others))  # type: ignore[arg-type]
            lengths[i] = own[i] if rest is None else rest
        return [own[i] if length is None else length for i, length in enumerate(lengths)]

    def _broadcast(self, node: Node, first: Sequence[Length], own: Sequence[Length]) -> Sequence[Length]:
        result: list[Length] = []
        operands = [self._lengths[operand] for operand in node.inputs]
        for dim, length in enumerate(own, -len(own)):
            here = [lengths[dim] for lengths in operands if len(lengths) >= -dim]
            there = [each for each in here if each != constant(1)]
            known = next((each for each in there if not any(each)), None)
            same = not there or all(each == there[0] for each in there)
            result.append(known if known is not None else (there or here)[0] if same else length)
        return result


_Rule = Callable[[Dims, Node, Sequence[Length], Sequence[Length]], Sequence[Length] | None]
_RULES: Mapping[str, _Rule] = {
    **dict.fromkeys(LAYERS, Dims._of_layer),
    **dict.fromkeys(POOLS, Dims._of_pool),
    **dict.fromkeys(BROADCASTING, Dims._broadcast),
    **dict.fromkeys(("view", "reshape"), Dims._reshaped),
    "permute": Dims._permuted,
    "transpose": Dims._transposed,
    **dict.fromkeys(("interpolate", *ADAPTIVE_POOLS), Dims._resampled),
    **dict.fromkeys(("matmul", "bmm"), Dims._multiplied),
    "scaled_dot_product_attention": Dims._attended,
    "flatten": Dims._flattened,
    "unsqueeze": Dims._unsqueezed,
    "cat": Dims._joined,
    "getitem": Dims._indexed,
}


def _applied(name: str, lengths: Sequence[Length]) -> Length | None:
    if name == "add":
        return sum_of(lengths)
    if name == "sub":
        return sum_of([lengths[0], product_of([constant(-1), lengths[1]])])
    if name == "mul":
        return product_of(lengths)
    if name == "neg":
        return product_of([constant(-1), lengths[0]])
    if name in ("floordiv", "mod"):
        exact = divided(lengths[0], lengths[1])
        if name == "mod":
            return {} if exact is not None else _opaque(name, lengths)
        return _opaque(name, lengths) if exact is None else exact
    if not any(map(any, lengths)) and name == "pow":
        base, exponent = (length.get((), 0) for length in lengths)
        return constant(base**exponent) if exponent >= 0 else None
    return None


def _collect(length: Length, found: set[Any]) -> None:
    for atom in (atom for product in length for atom in product):
        if isinstance(atom, tuple) and atom[0] == SIZE:
            found.add(atom)
        elif isinstance(atom, tuple):
            for part in atom[1:]:
                _collect(dict(part), found)


def _value(length: Length, sizes: Mapping[Hashable, int]) -> int:
    total = 0
    for product, count in length.items():
        for atom in product:
            if isinstance(atom, tuple) and atom[0] != SIZE:
                count *= FUNCTIONS[atom[0]](*(_value(dict(part), sizes) for part in atom[1:]))
            else:
                count *= sizes[atom]
        total += count
    return total


def _opaque(name: str, lengths: Sequence[Length]) -> Length | None:
    numbers = [length.get((), 0) for length in lengths]
    if not any(map(any, lengths)):
        if not numbers[1]:
            return None
        return constant(numbers[0] // numbers[1] if name == "floordiv" else numbers[0] % numbers[1])
    return {((name, *map(_key, lengths)),): 1}


def _key(length: Length) -> Hashable:
    return frozenset(length.items())


def sum_of(lengths: Iterable[Length]) -> Length:
    total: dict[tuple[Hashable, ...], int] = {}
    for length in lengths:
        for product, count in length.items():
            total[product] = total.get(product, 0) + count
    return {product: count for product, count in total.items() if count}


def product_of(lengths: Iterable[Length]) -> Length:
    total: Length = constant(1)
    for length in lengths:
        terms: dict[tuple[Hashable, ...], int] = {}
        for a, x in total.items():
            for b, y in length.items():
                product = tuple(sorted((*a, *b), key=hash))
                terms[product] = terms.get(product, 0) + x * y
        total = terms
    return total


def divided(length: Length, by: Length) -> Length | None:
    """The quotient where the division comes out even for every input; None elsewhere."""
    if len(by) != 1:
        return None
    ((product, count),) = by.items()
    result: dict[tuple[Hashable, ...], int] = {}
    for own, times in length.items():
        rest = list(own)
        for atom in product:
            if atom not in rest:
                return None
            rest.remove(atom)
        if times % count:
            return None
        result[tuple(rest)] = times // count
    return result


def _windows(length: Length, span: int, stride: int, padding: int) -> Length:
    """How many windows fit: floor((length + padding - span) / stride) + 1."""
    steps = _applied("floordiv", [sum_of([length, constant(padding - span)]), constant(stride)])
    assert steps is not None
    return sum_of([steps, constant(1)])


def _indexed(index: Any, before: Sequence[Length], own: Sequence[Length]) -> Sequence[Length] | None:
    """Behind slices, numbers and None."""
    items = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(item, list | Node) for item in items):
        return None
    if Ellipsis not in items:
        items.append(Ellipsis)
    at = items.index(Ellipsis)
    consumed = sum(item is not None for item in items) - 1
    items[at : at + 1] = [slice(None)] * (len(before) - consumed)
    result: list[Length] = []
    left = list(before)
    for item in items:
        if item is None:
            result.append(constant(1))
        elif isinstance(item, slice):
            length = left.pop(0)
            result.append(length if item == slice(None) else own[len(result)])
        else:
            left.pop(0)
    return result


def _each(value: Any, count: int) -> tuple[int, ...]:
    """A number for each axis."""
    items = tuple(value) if isinstance(value, tuple | list) else (value,)
    items = items * count if len(items) == 1 else items
    if len(items) != count or not all(type(item) is int for item in items):
        raise ValueError("no plain numbers")
    return items


def _item(args: Sequence[Any], position: int, default: Any) -> Any:
    return args[position] if len(args) > position else default


def _dimension(dim: int, rank: int) -> int:
    return dim % rank
