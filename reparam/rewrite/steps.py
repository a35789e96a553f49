"""Edits of the graph of a call, step by step, until it is the new forward of its module."""

from __future__ import annotations

import operator
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Mapping, Sequence

from torch import fx, nn
from torch.nn.utils.parametrize import ParametrizationList

from reparam.capture.graph import Node
from reparam.capture.norms import without_affine
from reparam.capture.ops import CHECKS, op_name
from reparam.rewrite.call_graph import CallGraph
from reparam.rewrite.code import set_forward
from reparam.rewrite.edits import Piece
from reparam.rewrite.index import StepIndex, computes_only
from reparam.rewrite.program import Program
from reparam.rewrite.users import size_readers

_IDLE_MODULES = (  # in eval
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
_UNMATCHED = object()


def size_readers_of(code: CallGraph) -> Mapping[Node, Collection[fx.Node]]:
    """For each tensor, the steps that read its size: from the step that computes it, or from one that hands it on."""
    readers: dict[Node, set[fx.Node]] = defaultdict(set)
    for step, value in code.tree.items():
        if isinstance(value, Node):
            readers[value].update(
                reader for reader in size_readers(code, step) if reader.op in ("call_function", "call_method")
            )
    return readers


def redirect_size_reads(
    code: CallGraph, piece: Piece, start: fx.Node, replacement: fx.Node, readers: Mapping[Node, Collection[fx.Node]]
) -> None:
    """Let code that reads the size of a removed tensor read that of an end of the piece, which has the same size.

    The ends are `start`, its base, and `replacement`, its result.
    """
    for node in piece.nodes:
        end = piece.same_size_end(node)
        if node is piece.sink or end is None:
            continue
        for reader in readers.get(node, ()):
            for step in reader.all_input_nodes:
                if code.tree.get(step) is node:  # an edit may have replaced it already
                    reader.replace_input_with(step, start if end is piece.base else replacement)


def drop_affine_arguments(index: StepIndex, norm: Node) -> None:
    """Take weight and bias from the call of a normalisation."""
    step = index.code.at[norm]
    step.args, step.kwargs = without_affine(norm.function, step.args, step.kwargs)  # type: ignore[arg-type]
    index.set_node(step, norm)


def erase_removed(code: CallGraph, removed: Collection[Node], dead: Collection[Node]) -> None:
    """Erase the steps that nobody reads: removed operations, their constants and sizes, and checks of these.

    Dead operations, on which no output depends, are erased as well: they may read what is removed.
    """
    graph = code.graph
    erasable = {*removed, *dead}
    about_removed = set[fx.Node]()
    for step in graph.nodes:
        computes_removed = computes_only(code, step, removed)
        if step.op == "call_function" and step.target is operator.setitem and not computes_removed:
            # Assignment returns None: whoever reads the step means the tensor assigned to.
            step.replace_all_uses_with(step.args[0])
        if computes_removed or (step not in code.tree and about_removed.intersection(step.all_input_nodes)):
            about_removed.add(step)
    for step in reversed(list(graph.nodes)):
        if step.users or step.op in ("placeholder", "output"):
            continue
        is_check = op_name(step.target) in CHECKS and step not in about_removed
        value = code.tree.get(step, _UNMATCHED)
        is_size = value is _UNMATCHED and step.op != "call_module" and not is_check
        if is_size or value is None or computes_only(code, step, erasable):
            graph.erase_node(step)


def read_computed_weights(code: CallGraph) -> None:
    """Read a parametrized weight by its name, where fx has traced into what computes it."""
    for step in code.graph.find_nodes(op="call_module"):
        if isinstance(_called_module(code, step), ParametrizationList):
            path, _, name = str(step.target).rpartition("parametrizations.")
            step.op, step.target, step.args, step.kwargs = "get_attr", path + name, (), {}


def erase_idle_calls(code: CallGraph, pinned: Collection[nn.Module]) -> set[str]:
    """Erase the calls of modules that return their input; returns the paths of these modules."""
    paths = set()
    for step in list(code.graph.nodes):
        module = _called_module(code, step) if step.op == "call_module" else None
        if type(module) in _IDLE_MODULES and module not in pinned:  # a hook may be all that one is for
            paths.add(str(step.target))
            operand = step.all_input_nodes[0]
            step.replace_all_uses_with(operand)
            code.at.update({node: operand for node, other in code.at.items() if other is step})
            code.graph.erase_node(step)
    return paths


def _called_module(code: CallGraph, step: fx.Node) -> nn.Module | None:
    """The module that a step calls; None where another edit has deleted it, because nothing needs the step."""
    try:
        return code.module.get_submodule(str(step.target))
    except AttributeError:
        return None


def write_forward(code: CallGraph) -> set[str]:
    """Make the edited code the forward of its module; returns the qualified names that the forward uses."""
    program = Program.of(code.graph)
    set_forward(code.module, program)
    names = program.members()
    vars(code.module).update({name: tensor for name, tensor in code.literals.items() if name in names})
    return names


def called_modules(code: CallGraph) -> list[str] | None:
    """The names of the modules that the code calls, if it does nothing but call one after another."""
    names: list[str] = []
    before: fx.Node | None = None
    for step in code.graph.nodes:
        if step.op == "placeholder" and before is None:
            before = step
        elif step.op == "call_module" and step.args == (before,) and not step.kwargs:
            names.append(str(step.target))
            before = step
        elif step.op == "output":
            return names if step.args == (before,) else None
        elif step in code.tree or step.op != "call_function":
            return None  # not a check of sizes
    return None


def as_sequence(module: nn.Module, names: Sequence[str]) -> nn.Module:
    """The inner modules of these names as a sequence; nn.Identity if there are none."""
    if not names:
        return nn.Identity().eval()
    return nn.Sequential(OrderedDict((name.replace(".", "_"), module.get_submodule(name)) for name in names)).eval()
