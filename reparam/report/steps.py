"""A fold as a small graph of named operations: what a person needs to see of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from reparam.algebra.kernels import transposed
from reparam.capture.evaluate import evaluate
from reparam.capture.graph import Node
from reparam.capture.norms import affine_part
from reparam.plan import cost
from reparam.plan.fold import Fold
from reparam.report.outcome import START, Step
from reparam.report.quantisation import Ranges, Weights, ranges
from reparam.rules import RULES
from reparam.rules.table import as_ints

_SCALES = ("add", "sub", "rsub", "mul", "div")
_RUNS = ("setitem",)  # an assignment to each side of a border is one thing to look at


def called(node: Node) -> str:
    """What an operation is called in tables."""
    return node.name if node.function is affine_part else node.op


def place(node: Node) -> str:
    """The module that computed it."""
    return (node.call.path if node.call else "") or "the model itself"


def sketched(fold: Fold, order: Mapping[Node, int]) -> tuple[Step, ...]:
    """The operations of a fold, in the order of the run; a chain of sums is one sum, a run of assignments one step."""
    at: dict[Node, int] = {fold.base: START}
    steps: list[Step] = []
    for node in sorted(fold.nodes, key=order.__getitem__):
        if node.function is None:
            continue
        known = [operand for operand in node.operands if operand in at]
        if len(known) == 1 and _idle(node):
            at[node] = at[known[0]]
            continue
        name, reads = called(node), [at[operand] for operand in known]
        if name == "add" and (inner := _summand(node, fold)) is not None and steps[at[inner]].operation == "add":
            index = at[inner]
            more = [read for operand, read in zip(known, reads, strict=True) if operand is not inner]
            steps[index] = Step("add", "", place(node), tuple(sorted((*steps[index].reads, *more))))
        elif name in _RUNS and reads and reads[0] == len(steps) - 1 and steps[reads[0]].operation == name:
            index, run = reads[0], steps[reads[0]]
            steps[index] = Step(name, run.geometry, run.where, run.reads, run.count + 1)
        else:
            index = len(steps)
            steps.append(Step(name, geometry(node), place(node), tuple(reads)))
        at[node] = index
    steps += [Step(name, "", place(fold.sink), (at[fold.sink],)) for name in fold.beyond]
    return _ordered(steps)


def _idle(node: Node) -> bool:
    """Whether it adds nothing, as sums in Python do that start from 0, or multiplies by one."""
    name = called(node)
    numbers = {"add": 0, "sub": 0, "mul": 1, "div": 1}
    return name in numbers and len(node.inputs) == 1 and any(each == numbers[name] for each in _numbers(node))


def _numbers(node: Node) -> list[float]:
    return [each for each in node.args if isinstance(each, (int, float)) and not isinstance(each, bool)]


def _summand(node: Node, fold: Fold) -> Node | None:
    """A summand that is a sum of two tensors itself, for this one alone: the two are one sum of more tensors."""
    if len(node.operands) < 2 or not all(operand is fold.base or operand in fold.nodes for operand in node.operands):
        return None
    sums = [each for each in node.operands if each in fold.nodes and each.function is not None]
    alone = (each for each in sums if called(each) == "add" and len(each.operands) > 1 and each.readers == [node])
    return next(alone, None)


def _ordered(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps so that each stands behind those that it reads: a sum has taken in what came later."""
    order: list[int] = []
    waiting = list(range(len(steps)))
    while waiting:
        index = next((i for i in waiting if all(read == START or read in order for read in steps[i].reads)), None)
        if index is None:
            raise ValueError("the operations of a fold read one another in a circle")
        order.append(index)
        waiting.remove(index)
    new = {START: START, **{old: i for i, old in enumerate(order)}}
    moved = (steps[index] for index in order)
    return tuple(Step(s.operation, s.geometry, s.where, tuple(new[read] for read in s.reads), s.count) for s in moved)


def become(fold: Fold, description: str) -> tuple[str, ...]:
    """What is computed instead: `description` of the convolution, and the steps that stay around it."""
    own = () if fold.value.identity else tuple(description.split(" + "))
    around = [node for node in fold.nodes if node in fold.steps or node is fold.place]
    return tuple(text for node in around for text in (own if node is fold.place else (called(node),)))


def geometry(node: Node) -> str:
    """Kernel, channels, stride and so on, as far as they are told by the shapes and numbers that it was called with."""
    name = called(node)
    given = _arguments(node)
    if name.startswith("conv"):
        return _of_conv(given, transposed=name.startswith("conv_transpose"))
    if (channels := _channels(node)) is not None:
        return f"{channels[0]}->{channels[1]}"
    if "pool" in name and "kernel_size" in given:
        window = as_ints(given["kernel_size"], len(node.shape) - 2)
        return _fields(s=given.get("stride") or window, p=given.get("padding"), of=window)
    if name == "pad" and "pad" in given:
        mode = given.get("mode", "constant")
        return _fields(p=given["pad"]) + ("" if mode == "constant" else f" {mode}")
    return _factor(node) if name in _SCALES else ""


def _arguments(node: Node) -> Mapping[str, Any]:
    """The arguments of a call by torch's names, as far as there is a rule to tell them."""
    rule = RULES.get(node.op) if node.function is not None else None
    try:
        bound = None if rule is None else rule.signature.bind(*node.args, **node.kwargs)
    except TypeError:
        return {}
    if bound is None:
        return {}
    bound.apply_defaults()
    return bound.arguments


def _of_conv(given: Mapping[str, Any], transposed: bool) -> str:
    weight = given.get("weight")
    if not isinstance(weight, Node) or len(weight.shape) < 3:
        return ""
    groups = given.get("groups", 1)
    first, second, *taps = weight.shape
    ins, outs = (first, second * groups) if transposed else (second * groups, first)
    fields = _fields(
        s=given.get("stride"),
        p=given.get("padding"),
        o=given.get("output_padding"),
        d=given.get("dilation"),
        g=groups,
        of=taps,
    )
    return f"{ins}->{outs} {fields}"


_PLAIN: dict[str, Any] = {"s": 1, "p": 0, "o": 0, "d": 1, "g": 1}


def _fields(of: Sequence[int] | None = None, **values: Any) -> str:
    """`3x3 s2 p1`: the window, and every field that is not what it is without being asked for."""
    texts = [] if of is None else ["x".join(map(str, of))]
    for key, value in values.items():
        numbers = list(value) if isinstance(value, (tuple, list)) else [value]
        if value is not None and any(number != _PLAIN[key] for number in numbers):
            texts.append(f"{key}{numbers[0]}" if len(set(numbers)) == 1 else key + "x".join(map(str, numbers)))
    return " ".join(texts)


def _factor(node: Node) -> str:
    """By what a tensor is scaled or shifted: the name of a parameter or a number."""
    if len(node.operands) != 1:
        return ""
    constants = [each for each in node.inputs if each.constant]
    if constants:
        return constants[-1].name.rpartition(".")[2] if constants[-1].tensor is not None else "a constant"
    return next((f"{number:g}" for number in _numbers(node)), "")


# --- weights


def weighed(fold: Fold, known: dict[Node, Ranges | None]) -> Weights | None:
    """The ranges of the kernels that a fold is made of, and of the one that it has become, which has no name yet.

    `known` are those of operations, and gets more: a thousand folds may be partial sums of the same branches.
    """
    if fold.value.identity:
        return None
    after = ranges("", fold.value.kernel())
    if after is None:
        return None
    known.update((node, _kernel(node)) for node in fold.nodes if node.function is not None and node not in known)
    found = map(known.get, fold.nodes)
    return Weights(tuple(each for each in found if each is not None), after)


def _kernel(node: Node) -> Ranges | None:
    """The ranges of the weight that an operation of the user's multiplies with, if that has output channels."""
    name = called(node)
    if name not in cost.KERNELS or name == "einsum":
        return None
    weights = [each for each in node.inputs if each.constant and len(each.shape) > 1]
    if not weights:
        return None
    held = weights[0].tensor
    value = evaluate(weights[0], {}) if held is None else held.detach().cpu()
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return None
    if name.startswith("conv_transpose"):
        value = transposed(value, _arguments(node).get("groups", 1))
    elif name not in ("linear", "conv1d", "conv2d", "conv3d"):  # x @ weight, or weight @ x
        value = value.movedim(-2 if node.inputs[0] is weights[0] else -1, 0)
    return ranges(place(node), value)


def _channels(node: Node) -> tuple[int, int] | None:
    """The (in, out) channels of a linear layer or a product with a constant; None for any other operation."""
    if called(node) == "linear" and len(node.inputs) > 1 and len(node.inputs[1].shape) == 2:
        return node.inputs[1].shape[1], node.inputs[1].shape[0]
    return cost.product_channels(node)
