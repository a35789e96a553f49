"""Random networks, converted and compared with themselves; what fails is made small and printed as a program.

    python benchmarks/fuzz.py --nets 2000 --seed 1

A network fails if its conversion computes something else at any size, raises an error, changes the model given, costs
more than what came in, or cannot be copied or pickled although the model can. A conversion that leaves folds for a
second one is counted: a fold that is refused in one plan may fit the next.
Networks in float64 are compared here, those in other dtypes by `verify`. A layer that torch computes wrongly in its
dtype is none of the conversion's mistakes: such a network counts as not converted. Of some networks the refusals of the
padding law are questioned too: the fold that ignores the law has to be wrong.
"""

from __future__ import annotations

import argparse
import copy
import gc
import linecache
import pickle
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tabulate import tabulate
from torch import Tensor, nn

import benchmarks.fuzz.layers
import benchmarks.fuzz.spellings
import benchmarks.fuzz.structure  # noqa: F401
import reparam
from benchmarks.common import write_json
from benchmarks.fuzz.drawing import OPERATIONS, WEIGHTS
from benchmarks.fuzz.networks import Program, network, smaller
from benchmarks.fuzz.torch_limits import miscomputed
from reparam.algebra.affine import AffineConv, Number
from reparam.capture.graph import Node
from reparam.capture.inputs import Inputs
from reparam.capture.recorder import record
from reparam.capture.snapshot import copied
from reparam.capture.tree import tensors
from reparam.compare.error import relative_error
from reparam.compare.folds import fold_error
from reparam.compare.verification import EXACT
from reparam.compare.verify import rerounded
from reparam.errors import ReparamError, VerificationError
from reparam.plan import cost
from reparam.plan.fold import Fold
from reparam.plan.plan import plan
from reparam.report.outcome import Counts
from reparam.report.report import Report
from reparam.rewrite import code as rewrite
from reparam.rules.interpret import Interpretation, between

QUICK = 100
_LENGTHS = (1, 2, 3, 4, 6, 8, 10, 14)
_DTYPES = [torch.float64] * 18 + [torch.float32, torch.bfloat16]
_NONE = -9  # of so many more images than there are, none is left
# (batch, sizes) beyond the example: one more image, larger and smaller ones where the network takes them, and none.
_VARIANTS = (
    (0, (0, 0, 0)),
    (1, (0, 0, 0)),
    (0, (3, 2, 1)),
    (1, (1, 4, 2)),
    (0, (-1, -1, 0)),
    (0, (-2, 0, -1)),
    (_NONE, (0, 0, 0)),
)
_SMALL = 1e-3  # outputs below this are what is left of larger numbers that cancelled
_QUESTIONED = 5  # the refusals of one network in so many are questioned
_SHRINKING = 60.0  # seconds
_PADDING = ("padding after a", "the padding holds another value")


@dataclass(frozen=True)
class Failure:
    """What is wrong with a conversion: the kind stays the same while the network is made smaller."""

    kind: str
    detail: str


@dataclass
class Outcome:
    """What became of one network."""

    failure: Failure | None = None
    rejected: str = ""
    folds: int = 0
    left: int = 0
    removed: int = 0
    refusals: list[str] = field(default_factory=list)


class _Failed(Exception):
    def __init__(self, kind: str, detail: object) -> None:
        super().__init__(kind)
        self.failure = Failure(kind, str(detail))


def check(program: Program) -> Outcome:
    """Convert one network and compare."""
    try:
        model, inputs = program.built()
        truths = list(_truths(program, model))
    except Exception as error:  # noqa: BLE001 the network itself does not run: that is no matter of the conversion
        return Outcome(rejected=f"does not run: {type(error).__name__}: {error}")
    if not truths or not all(tensor.isfinite().all() for _, tensor in tensors(truths[0])):
        return Outcome(rejected="does not run on its example")
    try:
        return _checked(program, model, inputs, truths)
    except _Failed as failed:
        return Outcome(failed.failure)
    except VerificationError as error:
        wrong = set() if program.dtype == torch.float64 else miscomputed(program)
        if wrong:
            return Outcome(rejected=f"torch computes {', '.join(sorted(wrong))} wrongly in {program.dtype}")
        return Outcome(Failure("verification", str(error)))
    except ReparamError as error:
        return Outcome(rejected=f"{type(error).__name__}: {error}")
    except Exception as error:  # noqa: BLE001 any other exception is a failure
        return Outcome(Failure(f"{type(error).__name__} {_place(error)}", str(error)))


def _checked(program: Program, model: nn.Module, inputs: tuple[Tensor, ...], truths: list[Any]) -> Outcome:
    before = _state(model)
    given = tuple(x.clone() for x in inputs)
    exact = program.dtype == torch.float64
    folded = reparam.reparameterize(model, given, verify=not exact, fixed_size=program.fixed)
    if _state(model) != before or not all(map(torch.equal, given, inputs)):
        raise _Failed("mutated", "the model or its inputs are not what they were")
    if exact:
        _compare(program, model, folded, truths)
    _require_portable(model, folded, program)
    again: Report = reparam.reparameterize(folded, inputs, verify=False, fixed_size=program.fixed).reparam_report  # type: ignore[assignment]
    first, last = _price(model, inputs), _price(folded, inputs)
    if last > first + 1e-9:
        raise _Failed("dearer", f"cost {first:.3f} before, {last:.3f} after")
    done: Report = folded.reparam_report  # type: ignore[assignment]
    removed = _operations(done.before) - _operations(done.after)
    reasons = [_general(refusal.reason) for refusal in done.refusals]
    return Outcome(None, "", len(done.folds), len(again.folds), removed, reasons)


def _operations(counts: Counts) -> int:
    return counts.convs + counts.norms + counts.elementwise


def _place(error: Exception) -> str:
    """The innermost function of the package that an exception came through."""
    place, trace = "", error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        place = f"{Path(code.co_filename).name}:{code.co_name}" if "reparam" in code.co_filename else place
        trace = trace.tb_next
    return place


def _state(model: nn.Module) -> list[Any]:
    """Everything that a conversion must leave alone, to be compared."""
    tensors_held = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    numbers = [(name, id(t), t._version, t.requires_grad, t.sum().item()) for name, t in tensors_held.items()]
    modules = [
        (n, id(m), type(m), m.training, sorted(vars(m)), len(m._forward_hooks)) for n, m in model.named_modules()
    ]
    return [numbers, modules]


def _run(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """What a call returns, and what it leaves of its inputs; the model is a copy, as some change themselves."""
    inputs = tuple(x.clone() for x in inputs)
    with torch.no_grad():
        result = copied(model)(*inputs)
        # Outputs may be views of one another and of the inputs: copied before anything else runs.
        return copy.deepcopy((result, inputs))


def _truths(program: Program, model: nn.Module) -> Iterator[Any]:
    """The results of the original for every variant of the inputs; None where it does not take them."""
    example = None
    for i, (batch, sizes) in enumerate(_VARIANTS if program.dtype == torch.float64 else _VARIANTS[:1]):
        inputs = program.inputs(batch, sizes)
        try:
            truth = _run(model, inputs) if batch == _NONE or all(x.numel() for x in inputs) else None
            truth = None if program.fixed and any(sizes) else truth
            example = truth if example is None else example
            if batch == _NONE:
                yield truth if _emptied(example, truth) else None
            else:  # No convolution gives an empty image.
                yield truth if all(t.numel() for _, t in tensors(truth)) else None
        except (RuntimeError, ValueError, IndexError, AssertionError):
            if not i:
                raise
            yield None


def _emptied(example: Any, truth: Any) -> bool:
    """Whether no images have the form of some: torch's own `pixel_unshuffle` hands an empty batch back as it came."""
    forms = zip(tensors(example), tensors(truth), strict=True)
    return all(
        len(some.shape) == len(none.shape) and all(n in (0, s) for s, n in zip(some.shape, none.shape, strict=True))
        for (_, some), (_, none) in forms
    )


def _compare(program: Program, model: nn.Module, folded: nn.Module, truths: list[Any]) -> None:
    for (batch, sizes), truth in zip(_VARIANTS, truths, strict=True):
        inputs = program.inputs(batch, sizes)
        if truth is None:
            continue
        try:
            value = _run(folded, inputs)
        except Exception as error:
            raise _Failed("does not run", f"{type(error).__name__} on {[*map(_shape, inputs)]}: {error}") from error
        off = _distance(truth, value)
        if not off <= EXACT and not _unstable(model, inputs, truth, off):
            raise _Failed("wrong", f"error {off:.2g} on inputs of {[*map(_shape, inputs)]}\n{folded.reparam_report}")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))


def _distance(truth: Any, value: Any) -> float:
    """The largest error of any tensor relative to its max|y|; infinite where the forms differ."""
    a, b = tensors(truth), tensors(value)
    if [(name, t.shape, t.dtype) for name, t in a] != [(name, t.shape, t.dtype) for name, t in b]:
        return float("inf")
    return max((_error(t, v) for (_, t), (_, v) in zip(a, b, strict=True)), default=0.0)


def _error(truth: Tensor, value: Tensor) -> float:
    if truth.numel() and truth.is_floating_point() and truth.abs().max() < _SMALL:
        return ((truth - value).abs().max() / _SMALL).item()
    return relative_error(truth, value)


def _unstable(model: nn.Module, inputs: tuple[Tensor, ...], truth: Any, error: float) -> bool:
    """Whether the original itself answers the last bits of its weights with such errors."""
    generator = torch.Generator().manual_seed(0)
    noise = max(_distance(truth, _run(rerounded(model, generator), inputs)) for _ in range(3))
    return error <= 100 * noise


def _require_portable(model: nn.Module, folded: nn.Module, program: Program) -> None:
    exact = program.dtype == torch.float64  # others round as their memory is aligned
    ways: dict[str, Callable[[nn.Module], nn.Module]] = {
        "deepcopy": copy.deepcopy,
        "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    }
    for name, way in ways.items():
        try:
            way(model)
        except Exception:  # noqa: BLE001 what the original cannot, the conversion need not
            continue
        try:
            twin = way(folded)
        except Exception as error:
            raise _Failed(f"no {name}", f"{type(error).__name__}: {error}") from error
        if exact and not _distance(_run(folded, program.inputs()), _run(twin, program.inputs())) <= EXACT:
            raise _Failed(f"other after {name}", "the copy computes something else")


def _price(model: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """The cost of all operations that the outputs depend on, by the measure of plans."""
    recorded = record(copied(model), Inputs.of(inputs))
    return sum(
        cost.of_node(cost.CPU, n).time
        for n in plan(recorded, recorded.nodes).live
        if n.function is not None and not n.constant
    )


def _general(reason: str) -> str:
    """A reason without the numbers and names of one network."""
    reason = re.sub(r"the forward of \S+ \(\w+\)|the forward of \w+", "the forward of M", reason)
    reason = re.sub(r"tracing it for every input stops.*", "tracing it for every input stops", reason)
    reason = re.sub(r"traced for every input it (\w+ ?\w*).*", r"traced for every input it \1 ...", reason)
    reason = re.sub(r"\(.*\)|(?<=other code reads the parameters of )\S+", "...", reason)
    return re.sub(r"\b(?:[a-z]+\d+\.?)+|-?\d+", "#", reason)


# --- refusals, questioned


def naive_pad(self: AffineConv, pads: Any, value: Number | None = None) -> AffineConv:
    """The padding law without its conditions: what tools do that fold every pair they find."""
    axes = tuple(axis.padded(*p) for axis, p in zip(self.axes, pads, strict=True))
    return replace(self, axes=axes, identity=False, mean=False)


def question(program: Program) -> Counter[str]:
    """What becomes of folds that the padding law refuses, made all the same."""
    model, inputs = program.built()
    recorded = record(model, Inputs.of(inputs))
    exact = Interpretation(recorded.nodes, recorded.walls)
    refused = {node for node, refusal in exact.refusals.items() if refusal.reason.startswith(_PADDING)}
    verdicts: Counter[str] = Counter()
    if not refused:
        return verdicts
    with patch.object(AffineConv, "pad", naive_pad):
        naive = plan(recorded, recorded.walls).folds
        found = Interpretation(recorded.nodes, recorded.walls)
        for node in refused:
            folds = [_up_to(node, f, found) for f in naive if node in f.nodes and _refused(exact, f.base, f.sink)]
            verdicts[_verdict(folds)] += 1
    return verdicts


def _up_to(node: Node, fold: Fold, found: Interpretation) -> Fold:
    """The part of a fold that was refused: what comes behind it may cut the wrong border off again."""
    value = found.value(fold.base, node)
    if not isinstance(value, AffineConv):
        return fold
    return Fold(fold.base, node, value, tuple(between(fold.base, [node])))


def _refused(exact: Interpretation, base: Node, sink: Node) -> bool:
    try:
        return not exact.dominates(base, sink) or exact.value(base, sink) is None
    except KeyError:
        return True


def _verdict(folds: list[Any]) -> str:
    if not folds:
        return "not worth it, or refused for another reason"
    generator = torch.Generator().manual_seed(0)
    errors = []
    for fold in folds:
        try:
            errors.append(fold_error(fold, generator))
        except (RuntimeError, ValueError):
            errors.append(float("inf"))  # not even of the right size
    return "wrong" if max(errors) > EXACT else "right"


# --- making failures small


def shrunk(program: Program, failure: Failure, seconds: float = _SHRINKING) -> Program:
    """The smallest network found that fails in the same way."""
    until = time.monotonic() + seconds
    found = True
    while found and time.monotonic() < until:
        found = False
        for less in smaller(program):
            outcome = check(less)
            if outcome.failure is not None and outcome.failure.kind == failure.kind:
                program, found = less, True
                break
            if time.monotonic() > until:
                break
    return program


def drawn(seed: int) -> Program:
    """The network of one seed."""
    length = _LENGTHS[seed % len(_LENGTHS)]
    return network(seed, OPERATIONS, WEIGHTS, _DTYPES[seed // len(_LENGTHS) % len(_DTYPES)], length)


# --- the whole


@dataclass
class Tally:
    """The outcomes of many networks."""

    networks: int = 0
    folded: int = 0
    folds: int = 0
    left: int = 0
    removed: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    questioned: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, Failure]] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, seed: int, outcome: Outcome) -> None:
        self.networks += 1
        self.folded += outcome.folds > 0
        self.folds += outcome.folds
        self.left += outcome.left > 0
        self.removed += outcome.removed
        self.refusals.update(outcome.refusals)
        self.rejected.update([outcome.rejected[:100]] if outcome.rejected else [])
        self.failures += [(seed, outcome.failure)] if outcome.failure else []

    def __str__(self) -> str:
        rows = [
            ("networks", self.networks), ("of these not converted", sum(self.rejected.values())),
            ("with folds", self.folded), ("folds", self.folds), ("operations removed", self.removed),
            ("with folds for a second conversion", self.left),
            ("operations kept for a reason", sum(self.refusals.values())), ("failures", len(self.failures)),
            ("seconds", round(self.seconds)),
        ]  # fmt: skip
        tables = [tabulate(rows)]
        for title, counted in (("not converted", self.rejected), ("kept because", self.refusals),
                               ("a fold that ignores the padding law is", self.questioned)):  # fmt: skip
            if counted:
                tables.append(tabulate([(count, text) for text, count in counted.most_common()], headers=("", title)))
        return "\n\n".join(tables)


def run(seeds: range, say: Callable[[str], None] = print, most: int = 10) -> Tally:
    """Check the networks of all seeds; every failure is shrunk and said, and after `most` of them no more are made."""
    tally, started = Tally(), time.monotonic()
    for i, seed in enumerate(seeds):
        program = drawn(seed)
        outcome = check(program)
        tally.add(seed, outcome)
        if outcome.failure is not None:
            small = shrunk(program, outcome.failure)
            failure = check(small).failure or outcome.failure
            say(f"\n# seed {seed}: {failure.kind}\n# " + failure.detail.replace("\n", "\n# ") + f"\n{small.script()}\n")
            if len(tally.failures) >= most:
                break
        elif not outcome.rejected and seed % _QUESTIONED == 0 and program.dtype == torch.float64:
            tally.questioned.update(question(program))
        if i % 200 == 199:
            _forget()
    tally.seconds = time.monotonic() - started
    return tally


def _forget() -> None:
    """The classes of networks that are done with."""
    rewrite._shared_subclass.cache_clear()
    for file in [file for file in linecache.cache if file.startswith(("<reparam forward", "<eval_with_key"))]:
        del linecache.cache[file]
    gc.collect()


def main() -> None:
    options = argparse.ArgumentParser(description="Convert random networks and compare them with themselves.")
    options.add_argument("--nets", type=int, default=1000, help="how many networks (default: %(default)s)")
    options.add_argument("--seed", type=int, default=0, help="the first seed; the next network has the next one")
    options.add_argument("--quick", action="store_true", help=f"{QUICK} networks")
    options.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    options.set_defaults(threads=1, batch=1)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    tally = run(range(chosen.seed, chosen.seed + (QUICK if chosen.quick else chosen.nets)))
    print(tally)
    if chosen.json:
        failures = [(seed, failure.kind) for seed, failure in tally.failures]
        write_json(chosen.json, chosen, [{**vars(tally), "failures": failures}])
    sys.exit(1 if tally.failures or tally.questioned["right"] else 0)
