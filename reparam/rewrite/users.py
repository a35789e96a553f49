"""What the code of a call needs of a tensor besides its values: its size, its layout, or that it exists."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from torch import fx

from reparam.capture.graph import Node, nodes_in
from reparam.capture.ops import CHECKS, op_name
from reparam.rewrite.call_graph import CallGraph


def size_readers(code: CallGraph, step: fx.Node) -> Iterator[fx.Node]:
    """The steps that read the size of a step's tensor: they compute no tensor."""
    return (user for user in step.users if user not in code.tree)


def size_is_used(code: CallGraph, node: Node, removed: Collection[Node]) -> bool:
    """Whether anything besides checks and removed operations uses the size of a tensor."""
    steps = [step for step, value in code.tree.items() if value is node]  # computes it, or hands it on
    pending = [reader for step in steps for reader in size_readers(code, step)]
    for reader in pending:
        value = code.tree.get(reader)
        if reader.op == "output" or (reader in code.tree and not (isinstance(value, Node) and value in removed)):
            return True
        if reader not in code.tree and op_name(reader.target) not in CHECKS:
            pending += reader.users
    return False


def is_passed_unread(code: CallGraph, node: Node) -> bool:
    """Whether a module is called with the tensor and neither reads nor returns it."""
    calls = [code.inner[step] for step in code.at[node].users if step in code.inner]
    return not all(
        node in nodes_in(call.result) or any(node in inner.inputs for inner in call.nodes()) for call in calls
    )


def returned_nodes(code: CallGraph) -> set[Node]:
    """The tensors that the code returns."""
    steps = (step for output in code.graph.find_nodes(op="output") for step in output.all_input_nodes)
    return {value for value in map(code.tree.get, steps) if isinstance(value, Node)}


def unordered_reader(code: CallGraph, base: Node, nodes: Sequence[Node]) -> Node | None:
    """The first of the nodes that reads a tensor which code has made contiguous, where a fold would not make it so.

    In this run the tensor was contiguous already, so no node shows it. If all nodes read the base behind that
    operation, the operation stays, and the base needs no check.
    """
    steps = {code.at[node] for node in nodes if node in code.at}
    base_steps = {read for step in steps for read in step.all_input_nodes if code.tree.get(read) is base}
    unordered = {node for node in nodes[:-1] if _is_made_contiguous(code, node)}
    unordered |= {base} if len(base_steps) > 1 and _is_made_contiguous(code, base) else set()
    return next((node for node in nodes if unordered.intersection(node.operands)), None)


def _is_made_contiguous(code: CallGraph, node: Node) -> bool:
    """Whether code calls `contiguous` on the tensor, which returned it as it was."""
    pending = [code.at[node]] if node in code.at else []
    while pending:
        for user in pending.pop().users:
            if code.tree.get(user) is node and op_name(user.target) == "contiguous":
                return True
            pending += [user] if code.tree.get(user) is node else []
    return False
