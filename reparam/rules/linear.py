"""Linear layers, and products with a constant matrix."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.algebra.affine import AffineConv, Constant
from reparam.algebra.lazy import Lazy
from reparam.errors import Refusal
from reparam.rules.arithmetic import add, mul
from reparam.rules.table import Case, Op, Value, affine, as_ints, channels_at, constant, optional_constant, rule


@rule(
    "linear",
    folds=lambda: [
        Case(nn.Linear(4, 6), spatial=0),
        Case(nn.Linear(4, 6, bias=False), spatial=2, channels_last=True),
        Case(Op(lambda m, x: F.linear(x, m.w * 2, m.b), w=torch.randn(3, 4), b=torch.randn(3)), spatial=0),
        Case(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), spatial=1, channels_last=True),
    ],
    keeps=lambda: [
        (Case(nn.Sequential(nn.Conv1d(4, 4, 1), nn.Linear(7, 7)), spatial=1, smallest=7, fixed=True), "channels"),
        (Case(Op(lambda m, x: F.linear(x, x.relu()[:3])), spatial=0), "kernel"),
        (Case(Op(lambda m, x: F.linear(x, m.w), w=torch.randn(4)), spatial=1, channels_last=True), "vector"),
    ],
)
def linear(input: Value, weight: Value, bias: Value = None) -> AffineConv:
    """A linear layer is a convolution without spatial axes, over the last dimension."""
    kernel = constant(weight, "kernel")
    if len(kernel.shape) != 2:
        raise Refusal("its weight is a vector", "a weight of shape (1, in_features) would fold")
    return affine(input).with_layout(0).then(AffineConv.conv(kernel, optional_constant(bias, "bias")))


def _apply_matrix(x: AffineConv, dim: int, matrix: Constant) -> AffineConv:
    """A matrix of shape (in, out) applied along dimension `dim`."""
    inner = channels_at(x, dim)
    shape = (*reversed(matrix.shape), *[1] * len(inner.axes))
    kernel = Lazy(lambda: matrix.value().to(torch.float64).T.reshape(shape))
    return inner.then(AffineConv.conv(Constant(shape, kernel)))


def _transpose(matrix: Constant) -> Constant:
    return Constant(matrix.shape[::-1], Lazy(lambda: matrix.value().T))


def _single_matrix(factor: Constant, x: AffineConv) -> Constant:
    """The matrix that a constant factor holds, perhaps once for each entry of the batch.

    Raises Refusal if these differ.
    """
    rank = len(x.anchor.shape)
    if min(len(factor.shape), rank) < 2:
        raise Refusal("one factor is a vector, so a dimension is dropped", "a matrix of one column would fold")
    batch = (*[1] * (rank - len(factor.shape)), *factor.shape[:-2])
    unbatched = all(size == 1 for size in batch)
    if len(factor.shape) > rank or not (unbatched or batch == x.shape()[:-2]):
        raise Refusal("the constant factor adds dimensions or entries to the batch", "a single matrix would fold")

    def first() -> Tensor:
        return factor.value().flatten(0, -3)[0] if len(factor.shape) > 2 else factor.value()

    if not unbatched and not bool((factor.value() == first()).all()):
        raise Refusal(
            "the constant factor holds a different matrix for each entry of the batch", "a single matrix would fold"
        )
    return Constant(factor.shape[-2:], Lazy(first))


def _matrix_product(input: Value, other: Value) -> AffineConv:
    if isinstance(input, Constant) and not isinstance(other, Constant):
        x = affine(other)
        matrix = _single_matrix(input, x)
        return _apply_matrix(x, len(x.anchor.shape) - 2, _transpose(matrix))
    x = affine(input)
    if not isinstance(other, Constant):
        raise Refusal("both factors depend on the input")
    return _apply_matrix(x, len(x.anchor.shape) - 1, _single_matrix(other, x))


@rule(
    "matmul",
    "linalg_matmul",
    "mm",
    "bmm",
    folds=lambda: [
        Case(Op(lambda m, x: x @ m.w, w=torch.randn(4, 3)), spatial=0),
        Case(Op(lambda m, x: torch.matmul(x, m.w.T), w=torch.randn(3, 4)), spatial=2, channels_last=True),
        Case(Op(lambda m, x: torch.linalg.matmul(x, m.w), w=torch.randn(1, 4, 3)), spatial=1, channels_last=True),
        Case(Op(lambda m, x: m.w @ x, w=torch.randn(3, 4)), spatial=1),
        Case(Op(lambda m, x: m.inner[0](x) @ m.w, nn.Linear(4, 5), w=torch.randn(5, 3)), spatial=1, channels_last=True),
        Case(Op(lambda m, x: torch.bmm(m.w.expand(len(x), -1, -1), m.inner[0](x)), nn.Conv1d(4, 5, 1, bias=False),
                w=torch.randn(3, 5)), spatial=1),
        Case(Op(lambda m, x: torch.mm(x, m.w), w=torch.randn(4, 3)), spatial=0),
    ],
    keeps=lambda: [
        (Case(Op(lambda m, x: x @ x), spatial=1, smallest=4, fixed=True), "both"),
        (Case(Op(lambda m, x: x @ m.w, w=torch.randn(4)), spatial=0), "vector"),
        (Case(Op(lambda m, x: m.w @ x, w=torch.randn(3, 7)), smallest=7, fixed=True), "dimension 2 of 4"),
        (Case(Op(lambda m, x: x @ m.w, w=torch.randn(4, 4, 3)), spatial=2, smallest=4, fixed=True,
              channels_last=True), "entries"),
        (Case(Op(lambda m, x: x @ m.w, w=torch.randn(5, 1, 4, 3)), spatial=1, channels_last=True), "entries"),
        (Case(Op(lambda m, x: m.inner[0](x) @ m.w, nn.Conv1d(4, 4, 1), w=torch.randn(7, 3)), spatial=1, smallest=7,
              fixed=True), "channels last"),
    ],
)  # fmt: skip
def matmul(input: Value, other: Value) -> AffineConv:
    """A product with a constant matrix: a map of the last dimension, or of the second of three."""
    return _matrix_product(input, other)


@rule(
    "addmm",
    "baddbmm",
    folds=lambda: [
        Case(Op(lambda m, x: torch.addmm(m.b, x, m.w), w=torch.randn(4, 3), b=torch.randn(3)), spatial=0),
        Case(Op(lambda m, x: torch.addmm(x, m.inner[0](x), m.w, beta=2, alpha=-0.5), nn.Linear(4, 2),
                w=torch.randn(2, 4)), spatial=0),
        Case(Op(lambda m, x: torch.baddbmm(m.b, m.w.expand(len(x), -1, -1), x), w=torch.randn(3, 4),
                b=torch.randn(1, 3, 1)), spatial=1),
    ],
    keeps=lambda: [
        (Case(Op(lambda m, x: torch.addmm(m.b, x, m.w), w=torch.randn(4, 3), b=torch.randn(3, 3)), spatial=0),
         "per channel"),
        (Case(Op(lambda m, x: torch.addmm(x, x, x.T @ x)), spatial=0), "both"),
    ],
)  # fmt: skip
def addmm(input: Value, mat1: Value, mat2: Value, *, beta: float = 1, alpha: float = 1) -> AffineConv:
    """beta * input + alpha * product."""
    product = mul(_matrix_product(mat1, mat2), alpha)
    if beta == 0:
        return product
    if isinstance(input, Constant):
        return add(product, input, alpha=beta)
    return add(mul(input, beta), product)


@rule(
    "inner",
    folds=lambda: [Case(Op(lambda m, x: torch.inner(x, m.w), w=torch.randn(3, 4)), spatial=1, channels_last=True)],
    keeps=lambda: [(Case(Op(lambda m, x: torch.inner(x, m.w), w=torch.randn(4)), spatial=0), "matrix")],
)
def inner(input: Value, other: Value) -> AffineConv:
    """A sum of products along the last dimension of both."""
    x, weight = affine(input), constant(other, "second factor")
    if len(weight.shape) != 2:
        raise Refusal("its second factor is not a matrix", "a matrix would fold")
    return linear(x, weight)


@rule(
    "einsum",
    folds=lambda: [
        Case(Op(lambda m, x: torch.einsum("bnc,cd->bnd", x, m.w), w=torch.randn(4, 3)), spatial=1, channels_last=True),
        Case(Op(lambda m, x: torch.einsum("dc, b c h w -> b d h w", m.w, m.inner[0](x)), nn.Conv2d(4, 5, 3, padding=1),
                w=torch.randn(3, 5))),
        Case(Op(lambda m, x: torch.einsum("b c ..., c -> b c ...", [x, m.s]), s=torch.randn(4)), spatial=3),
        Case(Op(lambda m, x: torch.einsum("...i,ij", x, m.w), w=torch.randn(4, 3)), spatial=2, channels_last=True),
    ],
    keeps=lambda: [
        (Case(Op(lambda m, x: torch.einsum("bc,bd->bcd", x, x)), spatial=0), "one constant"),
        (Case(Op(lambda m, x: torch.einsum("bchw,dc->bhwd", x, m.w), w=torch.randn(3, 4))), "order"),
        (Case(Op(lambda m, x: torch.einsum("bchw,cd->bd", x, m.w), w=torch.randn(4, 3))), "order"),
        (Case(Op(lambda m, x: torch.einsum("bchw,hd->bcdw", x, m.w), w=torch.randn(7, 3)), smallest=7, fixed=True),
         "dimension 2 of 4"),
        (Case(Op(lambda m, x: torch.einsum("bcl,cld->bd", x, m.w), w=torch.randn(4, 7, 3)), spatial=1, smallest=7,
              fixed=True), "one dimension"),
        (Case(Op(lambda m, x: torch.einsum("bcl,cd->bcl", x, m.w), w=torch.randn(4, 3)), spatial=1), "sums"),
        (Case(Op(lambda m, x: torch.einsum("bcl,c->bcl", x, m.w), w=torch.randn(4)), spatial=1, channels=1),
         "broadcasts"),
        (Case(Op(lambda m, x: torch.einsum("bnc,cd->bnd", x, m.w), w=torch.randn(1, 3)), spatial=1, channels=1,
              channels_last=True), "another size"),
    ],
)  # fmt: skip
def einsum(equation: str, *operands: Value) -> AffineConv:
    """A sum over one dimension with a constant matrix, or one factor per channel."""
    factors = [*operands[0]] if len(operands) == 1 and isinstance(operands[0], (tuple, list)) else [*operands]
    weights = [factor for factor in factors if isinstance(factor, Constant)]
    if len(factors) != 2 or len(weights) != 1:
        raise Refusal("it is not a product of the input and one constant")
    weight, at = weights[0], factors.index(weights[0])
    x = affine(factors[1 - at])
    ranks = [len(f.shape) if isinstance(f, Constant) else len(x.anchor.shape) for f in factors]
    labels, result = _labels(equation, ranks)
    mine, theirs = labels[1 - at], labels[at]
    shared = [label for label in theirs if label in mine]
    if len(shared) != 1 or len({*mine}) < len(mine) or len({*theirs}) < len(theirs) or len(theirs) > 2:
        raise Refusal("the input and the constant do not share just one dimension")
    dim, (channel,) = mine.index(shared[0]), shared
    if weight.shape[theirs.index(channel)] != x.shape()[dim] or x.shape()[dim] == 1:
        raise Refusal("one of its factors broadcasts, or would at another size", "more than one channel would fold")
    if channel in result:
        if theirs != shared or result != mine:
            raise Refusal("it sums over entries of the constant, or puts the dimensions in another order")
        return channels_at(x, dim).scale_shift(scale=Lazy(lambda: weight.value().to(torch.float64)))
    new = [label for label in theirs if label != channel]
    if len(new) != 1 or result != [new[0] if label == channel else label for label in mine]:
        raise Refusal(
            "it sums over more than the shared dimension, or puts the dimensions in another order",
            "a result with its dimensions in the order of the input would fold",
        )
    return _apply_matrix(x, dim, weight if theirs[0] == channel else _transpose(weight))


def _labels(equation: str, ranks: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    """The labels of every factor and of the result; an ellipsis becomes numbers, counted from the end."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    counts = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]

    def spelled(term: str, dots: int) -> list[str]:
        front, ellipsis, end = term.partition("...")
        return [*front, *(str(i) for i in range(dots, 0, -1) if ellipsis), *end]

    labels = [spelled(term, dots) for term, dots in zip(terms, counts, strict=True)]
    dots = max((dots for term, dots in zip(terms, counts, strict=True) if "..." in term), default=0)
    if arrow:
        return labels, spelled(right, dots)
    all_labels = [label for term in labels for label in term]
    once = sorted(label for label in all_labels if all_labels.count(label) == 1 and label.isalpha())
    return labels, [*spelled("..." if dots else "", dots), *once]


@rule(
    "tensordot",
    folds=lambda: [
        Case(Op(lambda m, x: torch.tensordot(x, m.w, 1), w=torch.randn(4, 3)), spatial=1, channels_last=True),
        Case(Op(lambda m, x: torch.tensordot(x, m.w, dims=([-1], [1])), w=torch.randn(3, 4)), spatial=2,
             channels_last=True),
    ],
    keeps=lambda: [
        (Case(Op(lambda m, x: torch.tensordot(x, m.w, ([1], [0])), w=torch.randn(4, 3))), "another dimension"),
        (Case(Op(lambda m, x: torch.tensordot(x, m.w, 1), w=torch.randn(1, 3)), spatial=1, channels=1,
              channels_last=True), "single row"),
        (Case(Op(lambda m, x: torch.tensordot(x, m.w), w=torch.randn(7, 4, 3)), spatial=1, smallest=7, fixed=True,
              channels_last=True), "one dimension"),
        (Case(Op(lambda m, x: torch.tensordot(m.w, x, 1), w=torch.randn(3, 3)), spatial=0), "one dimension"),
    ],
)  # fmt: skip
def tensordot(a: Value, b: Value, dims: Value = 2, out: Value = None) -> AffineConv:
    """A sum of products along the last dimension and one of a constant matrix."""
    pairs = (
        [(-1, 0)] * (dims == 1)
        if isinstance(dims, int)
        else list(zip(*map(partial(as_ints, count=1), dims), strict=True))
    )
    if not isinstance(b, Constant) or isinstance(a, Constant) or len(b.shape) != 2 or len(pairs) != 1:
        raise Refusal("it does not sum over one dimension of the input and of a constant matrix")
    x, ((mine, theirs),) = affine(a), pairs
    rank = len(x.anchor.shape)
    if b.shape[theirs] == 1:
        raise Refusal("a single row broadcasts at other sizes of the input", "more than one channel would fold")
    if mine % rank != rank - 1:
        raise Refusal("it moves the channels to another dimension", "summing over the last dimension would fold")
    return _apply_matrix(x, rank - 1, b if theirs % 2 == 0 else _transpose(b))
