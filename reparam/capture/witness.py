"""What a record says of other inputs: witnesses, and the decisions that they settle.

A run in which no number of the input became a plain value does the same for every input. Where numbers did, other runs
are recorded, the *witnesses*: at the smallest size that the model takes, at an odd one and a larger one, with other
answers to questions about the process. What happens in all of them alike may fold.

A decision is settled if a witness took the other way, if the model fails wherever it goes the other way, if its
expression is the same number for every input, or if no size that the model takes changes it. After a decision that is
not settled nothing folds.
"""

from __future__ import annotations

import inspect
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from typing import Any

from torch import nn

from reparam.capture.dims import Dims
from reparam.capture.graph import Call, Node, Record, nodes_in
from reparam.capture.inputs import Inputs
from reparam.capture.likeness import Likeness
from reparam.capture.questions import EXPORTERS
from reparam.capture.recorder import VALUES
from reparam.capture.runs import Runs, recording
from reparam.capture.symbolic import BOTH_WAYS, FAILS_OTHERWISE, ITEM, NO_SIZE, SAME, Decision, Probe, Symbolic, atoms

# Sizes at which conditions are evaluated: all small ones, and larger ones at growing distances.
_PROBES = (
    *range(1, 260),
    *(2**power + more for power in range(8, 21) for more in (-1, 0, 1)),
    *(10**n for n in range(3, 7)),
)
_AFFORDABLE = 4  # times as large as the example
_FEW_PIXELS = 32 * 32
_TURNS = 3  # sizes that are tried for one decision, and for each set of dimensions
_CONSTANTS = 4  # numbers that code knows which are tried as sizes


def witnessed(model: nn.Module, inputs: Inputs, fixed_size: bool = False) -> Record:
    """The record of a run on `inputs`, with its witnesses and what they settle. The model is left as it was.

    fixed_size: images keep the size of the example; only the batch differs.

    Raises ModelError if the model fails on its inputs.
    """
    with recording(model) as runs:
        return _Witnesses(runs, inputs, fixed_size).record()


class _Witnesses:
    def __init__(self, runs: Runs, inputs: Inputs, fixed_size: bool) -> None:
        self.runs, self.inputs, self.fixed_size = runs, inputs, fixed_size
        self.main = runs.require(inputs)
        self.others: list[Record] = []  # failed runs as well
        self.smallest = inputs
        self.moved = False  # whether batch, length and pixels have all been tried otherwise
        self.dims = Dims()
        self.constant: dict[Decision, bool] = {}
        self.lies = frozenset(question for each in self.main.decisions for question in each.questions)  # to be answered
        self.failing_lies: set[str] = set()  # questions of exporters with whose other answer the model fails
        self.ran: dict[Any, bool] = {}  # by sizes and lies, whether the model took them
        self.tried: dict[Any, list[bool]] = {}  # by decision, which of the sizes around its own the model takes
        self.keyed: dict[int, dict[Any, list[Decision]]] = {}  # the decisions of each record, by its id
        self.complete = False  # whether all inputs have been tried that may settle something

    def record(self) -> Record:
        self._run_smallest()
        if self.runs.changed():
            self._run_lying(self.inputs)
        asked = sorted(self.lies)
        if not asked or not self._run(self.smallest, self.lies):
            for question in asked:
                if not self._run(self.smallest, frozenset([question])) and question in EXPORTERS:
                    self.failing_lies.add(question)
        self._run_other_sizes()
        self.main.flags = frozenset(self._flags())
        for other in (self.smallest, self.inputs):
            if any(any(atoms(decision.expression, ITEM)) for decision in self.unsettled()):
                self._run(other, {VALUES})
        self.main.witnesses = [other for other in self.others if not other.error]
        self._note_changes()
        self._reopen()
        return self.main

    def _run_lying(self, inputs: Inputs) -> bool:
        """Run the model once more, with other answers to all questions, or else without; whether it took the inputs."""
        if not self.lies:
            return self._run(inputs)
        if self._run(inputs, self.lies) and _same_operations(self.others[-1], self.main):
            self.lies = frozenset()
            return True
        return self.runs.takes(inputs) and self._run(inputs)

    def _run_other_sizes(self) -> None:
        """Run the model at other sizes, as long as decisions may be taken otherwise there."""
        self.unsettled()
        if any(map(_is_number, self.main.decisions)):
            for other in self._near():
                self._run(other)
        for decision in self.unsettled():
            if _is_branch(decision) and not decision.settled:
                self.tried[decision.key] = [self._run(other) for other in self._turning(decision)]
                self.unsettled()
        for moved, other in self._larger():
            self.moved = moved
            if not any(decision.by_sizes for decision in self.unsettled()):
                break
            self._run(other)
        self.moved = True
        self.complete = True

    def _turning(self, decision: Decision) -> list[Inputs]:
        """Inputs at which the expression of a branch says that it goes the other way, if they are not much larger."""
        found: dict[Any, list[tuple[float, Mapping[Any, int]]]] = defaultdict(list)  # by the dimensions that change
        given = {node.name: node.shape for node in self.main.nodes[: len(self.inputs.tensors())]}
        for sizes in self._flips(decision.expression, decision.value):
            if all(node.function is None and node.call is None and node.name in given for _, node, _ in sizes):
                growth = math.prod(size / given[node.name][dim] for (_, node, dim), size in sizes.items())
                changed = tuple(atom for atom, size in sizes.items() if size != atom[1].shape[atom[2]])
                if growth <= _AFFORDABLE:
                    found[changed].append((abs(math.log(growth)), sizes))
        chosen: list[Mapping[Any, int]] = []
        for group in found.values():
            nearest = [sizes for _, sizes in sorted(group, key=lambda each: each[0])]
            chosen += [*nearest[: _TURNS - 1], *nearest[_TURNS - 1 :][-1:]]
        return [*map(self._with_sizes, chosen), *self._emptied(decision)]

    def _emptied(self, decision: Decision) -> Iterator[Inputs]:
        """The inputs without any row, if the expression of a branch says that it goes the other way then."""
        own = {atom: atom[1].shape[atom[2]] for atom in self.dims.free(decision.expression)}
        empty = {atom: 0 for atom in own if atom[2] == 0}
        with suppress(ArithmeticError):
            if empty and bool(self.dims.evaluate(decision.expression, {**own, **empty})) != decision.value:
                yield self.inputs.cut(0)

    def _with_sizes(self, sizes: Mapping[Any, int]) -> Inputs:
        inputs, pixels = self.inputs, dict[Node, list[int]]()
        for (_, node, dim), size in sizes.items():
            if dim == 0:
                inputs = inputs.cut(size)
            elif dim == 1:
                inputs = inputs.cut(length=size)
            else:
                pixels.setdefault(node, [*node.shape[2:]])[dim - 2] = size
        for lengths in () if self.fixed_size else pixels.values():
            inputs = inputs.cut(pixels=tuple(lengths))
        return inputs

    def _flips(self, expression: Any, value: bool) -> Iterator[Mapping[Any, int]]:
        """Sizes at which a condition has another value, among those that are tried; the smaller ones first."""
        free = list(self.dims.free(expression))
        own = {atom: atom[1].shape[atom[2]] for atom in free}
        for number in _PROBES:
            for changed in (*([atom] for atom in free), free if len(free) > 1 else []):
                sizes = {**own, **dict.fromkeys(changed, number)}
                try:
                    if changed and bool(self.dims.evaluate(expression, sizes)) != value:
                        yield sizes
                except ArithmeticError:
                    yield sizes

    def _run(self, inputs: Inputs, lie: Set[str] = frozenset()) -> bool:
        """Run the model once more; returns whether it took the inputs."""
        key = str(inputs), frozenset(lie)
        if key not in self.ran or (not lie and inputs is self.inputs):
            other = self.runs.run(inputs, lie)
            self.others.append(other)
            self.ran[key] = not other.error
        return self.ran[key]

    def _run_smallest(self) -> None:
        """Run the model on the smallest inputs that it takes, of two rows; of three if the example has two."""
        for candidate in self._smaller():
            # The first try is recorded at once, though that takes longer: most models take it.
            if (not self.ran or self.runs.takes(candidate)) and self._run_lying(candidate):
                self.smallest = candidate
                break
        if self.others and self.main.sizes_asked and self._sees_sizes():
            self.runs.plain, self.others, self.ran = True, [], {}
            self.main = self.runs.require(self.inputs)
            self._run(self.smallest)

    def _sees_sizes(self) -> bool:
        """Whether code does something else as sizes remember. Lies and what a run leaves behind may do so once."""
        last = self.others[-1]
        if last.error or not self.runs.sees_sizes(self.smallest, last):
            return False
        again = self.runs.run(self.smallest)
        self.others.append(again)
        return not again.error and self.runs.sees_sizes(self.smallest, again)

    def _smaller(self) -> Iterator[Inputs]:
        shapes = self.inputs.shapes()
        rows = 3 if next((shape[0] for shape in shapes if len(shape) > 1), 1) == 2 else 2
        if not self.fixed_size:
            yield from self.inputs.smaller(rows)
        yield self.inputs.cut(rows)
        yield self.inputs.cut()

    def _near(self) -> Iterator[Inputs]:
        """Sizes near the smallest, of both parities, and near the numbers that code knows.

        What code does with a plain number is not seen.
        """
        decisions = list(filter(_is_number, self.main.decisions))
        known = {constant for decision in decisions for constant in decision.constants}
        numbers = {constant for constant in known if isinstance(constant, int)}
        near = {number + more for number in numbers for more in (0, -1, 1) if number + more > 0}
        nearest = sorted(near, key=lambda number: (number not in numbers, number))
        if any(dim == 0 for decision in decisions for _, _, dim in self.dims.free(decision.expression)):
            rows = self.inputs.shapes()[0][0]
            for other in [1, *(number for number in nearest if number <= _AFFORDABLE * rows)][:_CONSTANTS]:
                yield self.smallest.cut(other)
        shape = next((shape[2:] for shape in self.smallest.shapes() if 3 <= len(shape) <= 5), ())
        if not shape or self.fixed_size or self.smallest is self.inputs:
            return
        first, last = shape[0], shape[-1]
        step = math.gcd(first, last, 32)
        for more in ((1, 2), (2, 1)):
            yield self.smallest.cut(pixels=(first + step * more[0], last + step * more[1]))
        own = next(shape[2:] for shape in self.inputs.shapes() if 3 <= len(shape) <= 5)
        yield self.smallest.cut(pixels=(own[0] + 5, own[-1] + 3))
        if math.prod(own) < _FEW_PIXELS:
            yield self.smallest.cut(pixels=(own[-1] + 32, own[0] + 64))
        for number in [number for number in nearest if number <= 2 * max(own)][:_CONSTANTS]:
            yield self.smallest.cut(pixels=(number,))
        shapes = [constant for constant in known if isinstance(constant, tuple) and 2 <= len(constant) <= 5]
        for shape in sorted(shapes)[:_CONSTANTS]:
            images, pixels = (shape[0], shape[2:]) if len(shape) > 3 else (None, shape)
            if min(shape) > 0 and all(size <= 2 * max(own) for size in pixels):
                yield self.inputs.cut(images, pixels=pixels)

    def _alone(self) -> Iterator[Inputs]:
        """Inputs of which one dimension of one tensor alone is as short as can be, or longer.

        Those that no run has changed which came as far as a decision that is still open.
        """
        given = self.main.nodes[: len(self.inputs.tensors())]
        for decision in self.unsettled():
            if not decision.by_sizes:
                continue
            reached = [other for other in self.others if not other.error and decision.key in self._by_key(other)]
            for index, dim in ((index, dim) for index, node in enumerate(given) for dim in range(len(node.shape))):
                length = given[index].shape[dim]
                if (self.fixed_size and dim > 1) or any(each.nodes[index].shape[dim] != length for each in reached):
                    continue
                for other in (1, length + 1):
                    if other != length and not decision.settled:
                        yield self.inputs.with_length(index, dim, other)

    def _larger(self) -> Iterator[tuple[bool, Inputs]]:
        """Inputs at which decisions that are still open may be taken otherwise; first one for each kind of size.

        With each goes whether every kind of size has been tried before it.
        """
        shapes = [shape for shape in self.inputs.shapes() if len(shape) > 1]
        if not shapes:
            return
        rows, length = shapes[0][:2]
        own = next((shape[2:] for shape in shapes if 3 <= len(shape) <= 5), ())
        high, wide = (own[0], own[-1]) if own and not self.fixed_size else (0, 0)
        yield False, self.smallest.cut(length=length + 1)
        if high:
            yield False, self.inputs.cut(rows, pixels=(high // 2 | 1, wide * 2 // 3 | 1))
            if high * wide < _FEW_PIXELS:  # else a stride may hide what a few pixels more would change
                yield False, self.inputs.cut(rows, pixels=(wide + 32, high + 64))
        yield from ((False, other) for other in self._alone())
        if high:
            for pixels in ((high, wide + 3), (high + 5, wide), (wide + 32, high + 64), (high * 2, wide * 2)):
                yield True, self.inputs.cut(rows, pixels=pixels)
        for other in (max(1, length // 2), 1, 2 * length):
            yield True, self.inputs.cut(rows, length=other)
        for many in (rows + 1, 4 * rows):
            yield True, self.inputs.cut(many)

    # --- arguments that are no tensors

    def _flags(self) -> list[str]:
        """The parameters of the model by which its code may go: it does something else with a probe in their place."""
        if not self.main.calls:
            return []
        call = self.main.calls[0]
        try:
            given = call.arguments()
        except (TypeError, ValueError):
            return ["its arguments"]
        flags = [name for name, value in given.items() if not isinstance(value, (Node, Symbolic))]
        return [] if not flags or self._hands_on(call, flags) else flags

    def _hands_on(self, call: Call, flags: Sequence[str]) -> bool:
        """Whether the model does the same with a probe in the place of some arguments."""
        parameters = inspect.signature(call.module.forward).parameters
        args, kwargs = list(self.smallest.args), dict(self.smallest.kwargs)
        for position, (name, parameter) in enumerate(parameters.items()):
            if name not in flags:
                continue
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
                return False
            if parameter.kind == parameter.VAR_KEYWORD:
                kwargs["_probe"] = Probe(None)
            elif position < len(args):
                args[position] = Probe(args[position])
            else:
                kwargs[name] = Probe(kwargs.get(name, parameter.default))
        other = self.runs.run(Inputs(tuple(args), kwargs))
        if other.error:
            return False
        likeness = Likeness()
        with _without_flags(call), _without_flags(other.calls[0]):
            return likeness.key(other.calls[0]) == likeness.key(call)

    # --- what they settle

    def unsettled(self) -> list[Decision]:
        """The decisions that nothing has settled yet; those that something has learn what.

        Branches by sizes that a witness alone has come to are among them: they have another way, too.
        """
        records = [self.main, *self.others]
        keyed = list(map(self._by_key, records))
        left: list[Decision] = []
        visited: set[Any] = set()
        for record, decisions_of in zip(records, keyed, strict=True):
            for key, decisions in () if record.error else decisions_of.items():
                if key in visited or not (record is self.main or all(map(_is_branch, decisions))):
                    continue
                visited.add(key)
                others = [
                    (each.get(key, []), bool(other.error))
                    for other, each in zip(records, keyed, strict=True)
                    if other is not record
                ]
                settled = self._settled(decisions, others)
                for decision in decisions:
                    decision.settled = settled
                left += [] if settled else decisions
        return left

    def _by_key(self, record: Record) -> Mapping[Any, list[Decision]]:
        if id(record) not in self.keyed:
            decisions = self.keyed[id(record)] = defaultdict(list)
            for decision in record.decisions:
                decisions[decision.key].append(decision)
        return self.keyed[id(record)]

    def _reopen(self) -> None:
        """Where a witness has come to a branch that is still open, so is the decision by which it came there."""
        main, left = self.main.decisions, set(self.unsettled())
        for other in self.others:
            if not left.isdisjoint(other.decisions):
                pairs = zip(main, other.decisions, strict=False)
                parted = next((one for one, two in pairs if (one.key, one.value) != (two.key, two.value)), None)
                for decision in [parted] if parted else main[-1:]:
                    decision.settled = ""

    def _settled(self, made: Sequence[Decision], others: Sequence[tuple[Sequence[Decision], bool]]) -> str:
        values = [decision.value for decision in made]
        if all(map(self._is_constant, made)):
            return SAME
        runs = [(other, failed) for other, failed in others if other]
        turned = [failed for other, failed in runs if not _continues([d.value for d in other], values, failed)]
        if not all(turned):
            return BOTH_WAYS
        if made[0].questions and self.failing_lies.issuperset(made[0].questions):
            return FAILS_OTHERWISE
        if tried := self.tried.get(made[0].key, []):
            return NO_SIZE if any(tried) else FAILS_OTHERWISE
        if turned and isinstance(values[0], bool) and not made[0].questions:
            return FAILS_OTHERWISE if self.complete else ""
        sizes = [decision.sizes for decision in made]
        reached = [other for other, failed in runs if not failed]
        moved = any([d.sizes for d in other] != sizes for other in reached)
        moved |= not reached and not all(failed for _, failed in others)
        return NO_SIZE if made[0].by_sizes and not moved and self.moved else ""

    def _is_constant(self, decision: Decision) -> bool:
        """Whether a decision is taken in the same way for every input, by its expression alone."""
        if decision not in self.constant:
            items = [node for _, node in atoms(decision.expression, ITEM)]
            invariant = (
                bool(items) and all(node.invariant for node in items) and not self.dims.free(decision.expression)
            )
            by_sizes = decision.by_sizes and self._never_changes(decision.expression, decision.value)
            self.constant[decision] = by_sizes or (invariant and not decision.questions)
        return self.constant[decision]

    def _never_changes(self, expression: Any, value: Any) -> bool:
        if expression[0] == "parts":
            return self.dims.number(expression[1]) is not None
        if not self.dims.free(expression):
            return True
        return isinstance(value, bool) and next(self._flips(expression, value), None) is None

    def _note_changes(self) -> None:
        """Which code changes attributes is seen in a later run."""
        changing = {call.path for other in self.others for call in other.calls if call.changes}
        for call in self.main.calls:
            call.changes |= call.path in changing


@contextmanager
def _without_flags(call: Call) -> Iterator[None]:
    """Within it, a call has been handed its tensors alone."""
    handed = call.args, call.kwargs
    call.args, call.kwargs = tuple(nodes_in(handed)), {}
    try:
        yield
    finally:
        call.args, call.kwargs = handed


def _continues(values: Sequence[Any], main: Sequence[Any], failed: bool) -> bool:
    """Whether a run has decided as the main one; a run that failed may have come less far."""
    return list(values) == list(main[: len(values)] if failed else main)


def _is_branch(decision: Decision) -> bool:
    """Whether code went one way or the other by sizes."""
    return decision.by_sizes and isinstance(decision.value, bool)


def _is_number(decision: Decision) -> bool:
    """Whether a number that depends on a size, or a text, has become a plain one."""
    plain = isinstance(decision.value, str) or (decision.by_sizes and not isinstance(decision.value, bool))
    return plain and not decision.questions and decision.settled != SAME


def _same_operations(one: Record, other: Record) -> bool:
    return [node.op for node in one.nodes] == [node.op for node in other.nodes]


def of_one_size(recorded: Record) -> frozenset[Node]:
    """The nodes whose sizes no batch changes, of a record whose witnesses differ from it in the batch alone.

    None behind a tensor whose sizes it does change: a stride rounds, and may hide that at one batch. All of them where
    the model takes no other batch, none where it does something else then.
    """
    shapes = recorded.nodes[0].shape
    other = next((each for each in recorded.witnesses if each.nodes[0].shape != shapes), None)
    if other is None:
        return frozenset(recorded.nodes)
    if not _same_operations(other, recorded):
        return frozenset()
    found: set[Node] = set()
    for node, twin in zip(recorded.nodes, other.nodes, strict=True):
        if node.shape[1:] == twin.shape[1:] and len(node.shape) == len(twin.shape) and found.issuperset(node.operands):
            found.add(node)
    return frozenset(found)
