"""A fold as a small graph of named operations, for people to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reparam.capture.graph import Node
from reparam.capture.norms import affine_part
from reparam.capture.ops import ARITHMETIC, CONVOLUTIONS, POOLS, TRANSPOSED_CONVOLUTIONS, facts
from reparam.plan import cost
from reparam.plan.fold import Fold
from reparam.report.outcome import START, Step
from reparam.rules import RULES
from reparam.rules.table import as_ints


def operation_name(node: Node) -> str:
    """What reports call an operation."""
    return node.name if node.function is affine_part else node.op


def steps_of(fold: Fold, order: Mapping[Node, int]) -> tuple[Step, ...]:
    """The operations of a fold in the order of the run, with a chain of sums as one sum and a run of assignments as
    one step."""
    index_of: dict[Node, int] = {fold.base: START}
    steps: list[Step] = []
    for node in sorted(fold.nodes, key=order.__getitem__):
        if node.function is None:
            continue
        operands = [operand for operand in node.operands if operand in index_of]
        if len(operands) == 1 and _changes_nothing(node):
            index_of[node] = index_of[operands[0]]
            continue
        name, reads = operation_name(node), [index_of[operand] for operand in operands]
        inner = _inner_sum(node, fold) if name == "add" else None
        if inner is not None and steps[index_of[inner]].operation == "add":
            index = index_of[inner]
            more = [read for operand, read in zip(operands, reads, strict=True) if operand is not inner]
            steps[index] = Step("add", "", node.path, tuple(sorted((*steps[index].reads, *more))))
        elif name == "setitem" and reads and reads[0] == len(steps) - 1 and steps[reads[0]].operation == name:
            index, run = reads[0], steps[reads[0]]  # the sides of a border are assigned one by one
            steps[index] = Step(name, run.geometry, run.where, run.reads, run.count + 1)
        else:
            index = len(steps)
            steps.append(Step(name, geometry(node), node.path, tuple(reads)))
        index_of[node] = index
    steps += [Step(name, "", fold.sink.path, (index_of[fold.sink],)) for name in fold.beyond]
    return _sorted(steps)


def _changes_nothing(node: Node) -> bool:
    """Whether it adds 0, as Python's `sum` does at first, or multiplies by 1."""
    neutral = facts(node.op).neutral
    return neutral is not None and len(node.inputs) == 1 and neutral in _plain_numbers(node)


def _plain_numbers(node: Node) -> list[float]:
    return [value for value in node.args if isinstance(value, (int, float)) and not isinstance(value, bool)]


def _inner_sum(node: Node, fold: Fold) -> Node | None:
    """A sum of tensors that a sum of tensors alone reads, so that the two are one sum."""
    if len(node.operands) < 2 or not all(operand is fold.base or operand in fold.nodes for operand in node.operands):
        return None
    operands = (operand for operand in node.operands if operand in fold.nodes and operand.function is not None)
    sums = (sum_ for sum_ in operands if operation_name(sum_) == "add" and len(sum_.operands) > 1)
    return next((sum_ for sum_ in sums if sum_.readers == [node]), None)


def _sorted(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps with each behind those that it reads: a merged sum may read later steps."""
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


def replacement(fold: Fold, description: str) -> tuple[str, ...]:
    """What is computed instead of the steps: the layers, which `description` names, and the steps that stay."""
    layers = () if fold.value.identity else tuple(description.split(" + "))
    computed = [node for node in fold.nodes if node in fold.steps or node is fold.place]
    return tuple(text for node in computed for text in (layers if node is fold.place else (operation_name(node),)))


def geometry(node: Node) -> str:
    """Kernel, channels, stride and so on, as far as the shapes and numbers of the call say them."""
    name = operation_name(node)
    arguments = bound_arguments(node)
    if name in CONVOLUTIONS or name in TRANSPOSED_CONVOLUTIONS:
        return _conv_geometry(arguments, transposed=name in TRANSPOSED_CONVOLUTIONS)
    if (channels := _product_channels(node)) is not None:
        return f"{channels[0]}->{channels[1]}"
    if name in POOLS and arguments:
        window = as_ints(arguments["kernel_size"], len(node.shape) - 2)
        return _fields(window, s=arguments.get("stride") or window, p=arguments.get("padding"))
    if name == "pad" and "pad" in arguments:
        mode = arguments.get("mode", "constant")
        return _fields(p=arguments["pad"]) + ("" if mode == "constant" else f" {mode}")
    return _factor(node) if name in ARITHMETIC else ""


def bound_arguments(node: Node) -> Mapping[str, Any]:
    """The arguments of a call by torch's names; empty where no rule knows them."""
    rule = RULES.get(node.op) if node.function is not None else None
    if rule is None:
        return {}
    try:
        bound = rule.signature.bind(*node.args, **node.kwargs)
    except TypeError:
        return {}
    bound.apply_defaults()
    return bound.arguments


def _conv_geometry(arguments: Mapping[str, Any], transposed: bool) -> str:
    weight = arguments.get("weight")
    if not isinstance(weight, Node) or len(weight.shape) < 3:
        return ""
    groups = arguments.get("groups", 1)
    first, second, *taps = weight.shape
    ins, outs = (first, second * groups) if transposed else (second * groups, first)
    fields = _fields(
        taps,
        s=arguments.get("stride"),
        p=arguments.get("padding"),
        o=arguments.get("output_padding"),
        d=arguments.get("dilation"),
        g=groups,
    )
    return f"{ins}->{outs} {fields}"


_DEFAULTS: dict[str, Any] = {"s": 1, "p": 0, "o": 0, "d": 1, "g": 1}


def _fields(window: Sequence[int] | None = None, **values: Any) -> str:
    """`3x3 s2 p1`: the window, and every value that is not torch's default."""
    texts = [] if window is None else ["x".join(map(str, window))]
    for key, value in values.items():
        numbers = list(value) if isinstance(value, (tuple, list)) else [value]
        if value is not None and any(number != _DEFAULTS[key] for number in numbers):
            texts.append(f"{key}{numbers[0]}" if len(set(numbers)) == 1 else key + "x".join(map(str, numbers)))
    return " ".join(texts)


def _factor(node: Node) -> str:
    """What a tensor is scaled or shifted by: the name of a parameter, or a number."""
    if len(node.operands) != 1:
        return ""
    constants = [operand for operand in node.inputs if operand.constant]
    if constants:
        return constants[-1].name.rpartition(".")[2] if constants[-1].tensor is not None else "a constant"
    return next((f"{number:g}" for number in _plain_numbers(node)), "")


def _product_channels(node: Node) -> tuple[int, int] | None:
    """The (in, out) channels of a linear layer or a product with a constant; None for any other operation."""
    if operation_name(node) == "linear" and len(node.inputs) > 1 and len(node.inputs[1].shape) == 2:
        return node.inputs[1].shape[1], node.inputs[1].shape[0]
    return cost.product_channels(node)
