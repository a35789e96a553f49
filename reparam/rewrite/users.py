"""What the code of a traced forward needs of a tensor besides its values: its size, or that it exists."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from torch import fx

from reparam.capture.graph import Call, Node, nodes_in
from reparam.capture.ops import CHECKS, SHAPED_AS, op_name
from reparam.rewrite.trace import Trace


def askers(trace: Trace, place: fx.Node) -> Iterator[fx.Node]:
    """The steps that ask for the size of the tensor at a place: they compute none, or give another one its shape."""
    for step in place.users:
        if step not in trace.tree or (op_name(step.target) in SHAPED_AS and place is not step.all_input_nodes[0]):
            yield step


def asked(trace: Trace, node: Node, gone: Collection[Node]) -> bool:
    """Whether something besides what is gone, and checks, uses the size of a tensor."""
    places = [place for place, seen in trace.tree.items() if seen is node]  # what computes it, or hands it on
    waiting = [step for place in places for step in askers(trace, place)]
    for step in waiting:
        seen = trace.tree.get(step)
        if step.op == "output" or (step in trace.tree and not (isinstance(seen, Node) and seen in gone)):
            return True
        if step not in trace.tree and op_name(step.target) not in CHECKS:
            waiting += step.users
    return False


def handed_in(trace: Trace, node: Node) -> bool:
    """Whether a module is called with the tensor, and neither reads it nor hands it on."""
    calls = [trace.inner[step] for step in trace.at[node].users if step in trace.inner]
    return not all(node in nodes_in(call.result) or _reads(call, node) for call in calls)


def _reads(call: Call, node: Node) -> bool:
    return any(node in each.inputs for each in call.nodes())


def returned(trace: Trace) -> set[Node]:
    """The tensors that its code returns."""
    places = (place for step in trace.graph.find_nodes(op="output") for place in step.all_input_nodes)
    return {seen for seen in map(trace.tree.get, places) if isinstance(seen, Node)}


def unordered(trace: Trace, base: Node, nodes: Sequence[Node]) -> Node | None:
    """The first of the nodes that reads what code has put in order, where a convolution of `base` would not.

    In this run that changed nothing, so no node tells of it. Behind the base it stays, if all nodes read it there.
    """
    places = {trace.at[node] for node in nodes if node in trace.at}
    read = {step for place in places for step in place.all_input_nodes if trace.tree.get(step) is base}
    lost = {node for node in nodes[:-1] if _left_alone(trace, node)}
    lost |= {base} if len(read) > 1 and _left_alone(trace, base) else set()
    return next((node for node in nodes if lost.intersection(node.operands)), None)


def _left_alone(trace: Trace, node: Node) -> bool:
    """Whether code puts the tensor in an order that it has in this run."""
    waiting = [trace.at[node]] if node in trace.at else []
    while waiting:
        for step in waiting.pop().users:
            if trace.tree.get(step) is node and op_name(step.target) == "contiguous":
                return True
            waiting += [step] if trace.tree.get(step) is node else []
    return False
