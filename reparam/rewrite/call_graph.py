"""The code of a call as a graph, built from the record: what it becomes when its forward is written anew.

A call whose decisions are settled is its own program. Its operations stand in the graph in their order, sizes as the
expressions that they are. The code of *opened* inner modules is written out; every other inner call is one step.
What the forward was handed beside tensors it checks: the program holds for calls with these flags.
"""

from __future__ import annotations

import dataclasses
import inspect
import operator
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam.capture.graph import Call, Node, nodes_in, tuple_item
from reparam.capture.norms import affine_part
from reparam.capture.ops import CONVOLUTIONS
from reparam.capture.symbolic import FUNCTIONS, ITEM, SIZE, Decision, Shape, Symbolic
from reparam.capture.tree import field_values
from reparam.errors import Refusal
from reparam.rewrite.program import own_forward

_STARS: Mapping[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
_LITERALS = (type(None), bool, int, float, str)
_ASKED = (torch.dtype, torch.device)
_ARGUMENTS = (
    *_LITERALS, *_ASKED, torch.memory_format, torch.layout, torch.Size, type(...), complex, bytes,
)  # fmt: skip


def unproven(call: Call, what: str, remedy: str = "") -> Refusal:
    """The refusal to rewrite a forward, for the reason `what`."""
    where = f"{call.path or 'the model itself'} ({type(call.module).__name__})"
    return Refusal(f"the forward of {where} cannot be rewritten: {what}", remedy)


class CallGraph:
    """The graph of one call. `tree[n]` is what fx node n was in the record, `at[node]` the way back.

    tree: a node, a container of nodes, or None for what is computed from constants alone. Steps that compute sizes, and
        checks, are not in it.
    inner: the steps that call modules. literals: tensors that no module registers, under the names of attributes that
        the graph reads them from.

    unchecked: where given, it only checks what the forward is handed, but for these parameters, and calls that of the
        module's own class.

    Raises Refusal where the call is no program of its own.
    """

    def __init__(
        self,
        call: Call,
        opened: Collection[nn.Module],
        decisions: Mapping[Call | None, Sequence[Decision]],
        unchecked: Set[str] | None = None,
    ) -> None:
        self.call, self.module, self.opened = call, call.module, opened
        self.decisions = decisions
        self.graph = fx.Graph()
        self.tree: dict[fx.Node, Any] = {}
        self.at: dict[Node, fx.Node] = {}
        self.inner: dict[fx.Node, Call] = {}
        self.literals: dict[str, Tensor] = {}
        self._steps: dict[Node, fx.Node] = {}  # the last step that computed a tensor, or handed it on
        self._numbers: dict[Any, fx.Node] = {}
        self._told: dict[Any, fx.Node] = {}  # dtypes and devices that the forward was handed
        self._items: list[fx.Node] = []
        self._names = {inner: path for path, inner in call.module.named_modules(remove_duplicate=False)}
        self._held: dict[int, str] | None = None
        self._parameters(unchecked or frozenset())
        if unchecked is not None:
            given = tuple(self.graph.find_nodes(op="placeholder"))
            self.graph.output(self.graph.call_function(own_forward, given))
        else:
            self._events(call)
            self.graph.output(self._argument(call.result))
        self._drop_unread_items()

    # --- what goes in

    def _parameters(self, unchecked: Set[str]) -> None:
        given = _bound(self.call)
        steps = {}
        for name, parameter in inspect.signature(self.module.forward).parameters.items():
            star = _STARS.get(parameter.kind, "")
            default = () if star or parameter.default is parameter.empty else (parameter.default,)
            steps[name] = self.graph.create_node("placeholder", star + name, default, name=name)
        for name, step in steps.items():
            default = inspect.signature(self.module.forward).parameters[name].default
            self._bind(step, given[name], check=name not in unchecked, default=default)

    def _bind(self, step: fx.Node, value: Any, *, check: bool, default: Any = None) -> None:
        """Note that a step gives a value. `check`: that it does is checked, as far as the value is no tensor."""
        if isinstance(value, Node):
            self._put(step, value)
        elif isinstance(value, Symbolic):
            self._numbers.setdefault(value.expression, step)
        elif isinstance(value, Mapping):
            self._check(check, operator.eq, self._call(list, step) if check else step, list(value))
            self._bind_items(step, value, {key: (operator.getitem, key) for key in value}, check)
        elif isinstance(value, (tuple, list)):
            self._check(check, operator.eq, self._call(len, step) if check else step, len(value))
            self._bind_items(step, value, {i: (operator.getitem, i) for i in range(len(value))}, check)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            values = field_values(value)
            self._bind_items(step, values, {name: (getattr, name) for name in values}, check)
        elif isinstance(value, _ASKED):
            self._told.setdefault(value, step)
        elif type(value) in _LITERALS:
            self._check(check, operator.is_ if value is None else operator.eq, step, value)
        elif check and value is not default:
            raise unproven(self.call, f"it is called with a {type(value).__name__}", "tensors and flags would fold")

    def _bind_items(
        self, step: fx.Node, values: Any, ways: Mapping[Any, tuple[Callable[..., Any], Any]], check: bool
    ) -> None:
        if any(not node.constant for node in nodes_in(values)):
            self.tree[step] = values
        for key, (function, index) in ways.items():
            if nodes_in(values[key]) or isinstance(values[key], Symbolic) or (check and type(values[key]) in _LITERALS):
                item = self._call(function, step, index)
                self._items.append(item)
                self._bind(item, values[key], check=check)

    def _put(self, step: fx.Node, node: Node) -> None:
        self._steps[node] = step
        self.tree[step] = None if node.constant else node
        if not node.constant:
            self.at.setdefault(node, step)

    def _check(self, wanted: bool, function: Callable[..., Any], *args: Any) -> None:
        if wanted:
            path = self.call.path or "the model"
            message = f"{path} was converted for calls with other arguments than these; give it such example inputs"
            self._call(torch._assert, self._call(function, *args), message)

    def _call(self, function: Callable[..., Any], *args: Any) -> fx.Node:
        return self.graph.call_function(function, args)

    # --- what the code does

    def _events(self, call: Call) -> None:
        decisions = list(self.decisions.get(call, ()))
        for place, event in enumerate([*call.events, None]):
            while decisions and decisions[0].place <= place:
                self._require(decisions.pop(0))
            if isinstance(event, Call):
                if event.module in self.opened:
                    self._events(event)
                else:
                    self._inner_call(event)
            elif event is not None and event.function is not affine_part:
                self._operation(event)

    def _require(self, decision: Decision) -> None:
        """Check a decision that no input has been seen to take otherwise."""
        if not decision.checked or not self._is_known(decision.expression):
            return
        condition = self._number(decision.expression)
        if isinstance(condition, fx.Node):
            holds = condition if decision.value else self._call(operator.not_, condition)
            name = type(self.module if decision.call is None else decision.call.module).__name__
            self._call(torch._assert, holds, f"{name} takes no input of such a size")

    def _inner_call(self, call: Call) -> None:
        if call.module not in self._names:
            raise unproven(self.call, f"it calls {call.path or type(call.module).__name__}, which is not inside it")
        args, kwargs = self._argument(call.args), self._argument(call.kwargs)
        step = self.graph.create_node("call_module", self._names[call.module], args, kwargs)
        if any(not node.constant for node in nodes_in((call.args, call.kwargs, call.result))):
            self.inner[step] = call
        else:
            self.tree[step] = None
        self._bind(step, call.result, check=False)

    def _operation(self, node: Node) -> None:
        if node.function is None:
            if node.inputs and node.inputs[0] in self._steps:  # the same tensor, overwritten through another one
                self._steps[node] = self._steps[node.inputs[0]]
            return
        if node.function is tuple_item:
            step = self._call(operator.getitem, self._step(node.args[0]), node.args[1])
            self._items.append(step)
            self._put(step, node)
            return
        function, args, kwargs = node.spelled
        kind, target, args = _spelled(function, self._argument(args))
        step = self.graph.create_node(kind, target, args, self._argument(kwargs))
        if node.passthrough:
            operand = node.operands[0] if node.operands else node.inputs[0]
            self._put(step, operand)
            self.at.setdefault(node, step)
        elif node.dtype is not None:
            self._put(step, node.affine_part or node)
            if not node.constant:
                self.at[node] = step
        elif any(reader.function is tuple_item for reader in node.readers):
            self._steps[node] = step
            self.tree[step] = None if node.constant else parts(node)
            if not node.constant:
                self.at[node] = step
        else:
            self._numbers[ITEM, node.inputs[0]] = step
            self.at.setdefault(node, step)

    def _drop_unread_items(self) -> None:
        for step in reversed(self._items):
            if not step.users:
                node = self.tree.pop(step, None)
                if isinstance(node, Node) and self.at.get(node) is step:
                    del self.at[node]
                self.graph.erase_node(step)

    # --- arguments

    def _argument(self, value: Any) -> Any:
        """An argument with steps in the place of nodes and of numbers that depend on the input."""
        kind = type(value)
        if isinstance(value, Node):
            return self._step(value)
        if issubclass(kind, Symbolic):
            return self._number(value.expression)
        if isinstance(value, Mapping):
            return self._made(kind, {key: self._argument(item) for key, item in value.items()}, dict)
        if isinstance(value, (tuple, list)):
            return self._sequence(value)
        if kind is slice:
            return slice(self._argument(value.start), self._argument(value.stop), self._argument(value.step))
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
            return self._made(kind, {name: self._argument(item) for name, item in fields.items()}, None)
        if isinstance(value, _ASKED):
            return self._asked(value)
        if isinstance(value, _ARGUMENTS) or callable(value):
            return value
        raise unproven(self.call, f"it hands on a {kind.__name__}, whose contents may depend on the input")

    def _sequence(self, value: Any) -> Any:
        kind = type(value)
        if kind is list:
            return list(map(self._argument, value))
        if kind not in (tuple, Shape, torch.Size):  # a named one
            return self._call(kind, *map(self._argument, value))
        whole = _whole_shape(value)
        return tuple(map(self._argument, value)) if whole is None else self._call(getattr, self._step(whole), "shape")

    def _made(self, kind: type, items: dict[Any, Any], plain: type | None) -> Any:
        if kind is plain:
            return items
        if not all(isinstance(key, str) for key in items):
            raise unproven(self.call, f"it makes a {kind.__name__}, whose keys are no names")
        return self.graph.call_function(kind, (), items)

    def _asked(self, value: Any) -> Any:
        """A dtype or device: the parameter that it came by, that of a tensor that the code has asked, or itself."""
        if value in self._told:
            return self._told[value]
        node = next((call.asked[value] for call in self.call.stack() if value in call.asked), None)
        node = next((each.asked[value] for each in written_out(self.call, self.opened) if value in each.asked), node)
        if node is None or (node not in self._steps and node.tensor is None):
            return value
        return self._call(getattr, self._step(node), "dtype" if isinstance(value, torch.dtype) else "device")

    def _step(self, node: Node) -> fx.Node:
        if node not in self._steps:
            if node.tensor is None:
                raise unproven(self.call, f"it reads {node.name}, a tensor that it was not handed")
            step = self.graph.create_node("get_attr", self._attribute(node.tensor))
            self._put(step, node)
        return self._steps[node]

    def _attribute(self, tensor: Tensor) -> str:
        """The path below the module where a tensor of the model is; a new name for one in a plain container."""
        if self._held is None:
            tensors: list[tuple[str, Tensor]] = [*self.module.named_parameters(remove_duplicate=False)]
            tensors += self.module.named_buffers(remove_duplicate=False)
            for inner, path in self._names.items():
                own = ((name, value) for name, value in vars(inner).items() if isinstance(value, Tensor))
                tensors += ((f"{path}.{name}" if path else name, value) for name, value in own)
            self._held = {}
            for path, held in tensors:
                self._held.setdefault(id(held), path)
        if id(tensor) not in self._held:
            if isinstance(tensor, nn.Parameter):
                raise unproven(self.call, "it reads a parameter of a module that is not inside it")
            self._held[id(tensor)] = name = f"_tensor_constant{len(self.literals)}"
            self.literals[name] = tensor
        return self._held[id(tensor)]

    def _is_known(self, expression: Any) -> bool:
        """Whether this code was handed what a number is computed from."""
        if not isinstance(expression, tuple) or expression in self._numbers:
            return True
        name, *parts = expression
        if name == SIZE:
            return parts[0] in self._steps or parts[0].tensor is not None
        return name in FUNCTIONS and all(map(self._is_known, parts))

    def _number(self, expression: Any) -> Any:
        """A number that depends on the input, as steps."""
        if not isinstance(expression, tuple):
            return expression
        if expression not in self._numbers:
            name, *parts = expression
            if name == SIZE:
                step = self.graph.call_method("size", (self._step(parts[0]), parts[1]))
            elif name in FUNCTIONS:
                step = self._call(FUNCTIONS[name], *map(self._number, parts))
            else:
                raise unproven(self.call, "it goes by a number that it was not handed")
            self._numbers[expression] = step
        return self._numbers[expression]


def written_out(call: Call, opened: Collection[nn.Module]) -> list[Call]:
    """A call, and those of opened modules inside it."""
    inner = [event for event in call.events if isinstance(event, Call) and event.module in opened]
    return [call, *(each for event in inner for each in written_out(event, opened))]


def parts(node: Node) -> list[Node | None]:
    """The entries of the tuple that an operation returned."""
    found = {reader.args[1]: reader for reader in node.readers if reader.function is tuple_item}
    return [found.get(i) for i in range(max(found, default=-1) + 1)]


def takes_size(node: Node) -> bool:
    """Whether an operation takes an argument that depends on the size of the input.

    The groups of a convolution do not, however they are computed: they are its channels over those of its kernel.
    """
    if not node.resized:
        return False
    _, args, kwargs = node.spelled
    if node.op in CONVOLUTIONS:
        args, kwargs = args[:6], {name: value for name, value in kwargs.items() if name != "groups"}
    return any(isinstance(leaf, Symbolic) for leaf in _leaves((args, kwargs)))


def takes_flags(call: Call) -> bool:
    """Whether a forward has parameters for anything but tensors and sizes, whether or not they were given."""
    try:
        given = _bound(call)
    except Refusal:
        return True
    return not all(isinstance(value, (Node, Symbolic)) for value in given.values())


def flags_of(call: Call) -> Mapping[str, Any]:
    """What a forward was handed, by name, without its tensors and sizes. Raises Refusal."""
    return {name: _without_tensors(value) for name, value in _bound(call).items()}


def _without_tensors(tree: Any) -> Any:
    if isinstance(tree, (Node, Symbolic)):
        return Node
    if isinstance(tree, Mapping):
        return {key: _without_tensors(value) for key, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return [_without_tensors(item) for item in tree]
    return tree if type(tree) in _LITERALS else type(tree)


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    if isinstance(tree, slice):
        tree = [tree.start, tree.stop, tree.step]
    return [leaf for item in tree for leaf in _leaves(item)] if isinstance(tree, (tuple, list)) else [tree]


def _bound(call: Call) -> Mapping[str, Any]:
    """What the forward of a call was handed, by name, with the defaults for what was not."""
    try:
        return call.arguments()
    except (TypeError, ValueError) as error:
        raise unproven(call, f"it is called in another way ({error})") from None


def _whole_shape(sizes: Sequence[Any]) -> Node | None:
    """The tensor whose shape it is, if it is a whole one."""
    nodes = {size.expression[1] for size in sizes if isinstance(size, Symbolic) and size.expression[0] == SIZE}
    node = nodes.pop() if len(nodes) == 1 else None
    whole = node is not None and len(node.shape) == len(sizes) and all(isinstance(size, Symbolic) for size in sizes)
    return node if whole and [size.expression[2] for size in sizes] == list(range(len(sizes))) else None


# Methods that Python's operators call.
_OPERATORS = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "matmul": operator.matmul,
}


def _spelled(function: Any, args: tuple[Any, ...]) -> tuple[str, Any, tuple[Any, ...]]:
    """The kind, target and arguments of the fx node that calls a torch function."""
    name = getattr(function, "__name__", "")
    if getattr(Tensor, f"__{name}__", None) is function:  # torch wraps some, such as pow
        name = f"__{name}__"
    if name == "__get__":
        return "call_function", getattr, (args[0], function.__self__.__name__)
    if name.startswith("__") and name.endswith("__"):
        own = name[2:-2]
        own = {"div": "truediv", "rdiv": "rtruediv", "idiv": "itruediv", "and": "and_", "or": "or_"}.get(own, own)
        operators = vars(operator)
        if own[0] == "r" and len(args) == 2 and own[1:] in operators:
            return "call_function", operators[own[1:]], (args[1], args[0])
        if own in operators:
            return "call_function", operators[own], args
    if getattr(Tensor, name, None) is function:
        if name in _OPERATORS and len(args) == 2:
            return "call_function", _OPERATORS[name], args
        return "call_method", name, args
    return "call_function", function, args
