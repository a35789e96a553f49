"""One network, converted and compared with itself.

A conversion fails if the result computes something else at any size, if it raises an error, changes the model given,
costs more than the original, or cannot be printed, copied or pickled. Networks in float64 are compared
here, networks in other dtypes by `verify`. Where torch itself computes a layer wrongly in the dtype of the network, the
network counts as not converted.
"""

from __future__ import annotations

import copy
import hashlib
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import reparam
from benchmarks.common import general
from benchmarks.fuzz.networks import TO_ONE, Program
from benchmarks.fuzz.torch_limits import miscomputed
from reparam.capture.inputs import Inputs
from reparam.capture.runs import record
from reparam.capture.snapshot import copied
from reparam.capture.tree import tensors
from reparam.compare.bounds import EXACT
from reparam.compare.error import relative_error
from reparam.compare.weights import rerounded
from reparam.errors import ReparamError, VerificationError
from reparam.plan import cost
from reparam.plan.liveness import alive
from reparam.report.outcome import Counts, FoldLine
from reparam.report.report import Report

_EMPTY = -9  # more images removed than any example has: an empty batch
# What is added to the batch and to the size along each axis: nothing, one image more and one alone, larger and smaller
# images, those of one pixel, and none.
_VARIANTS = (
    (0, (0, 0, 0)),
    (1, (0, 0, 0)),
    (TO_ONE, (0, 0, 0)),
    (0, (3, 2, 1)),
    (1, (1, 4, 2)),
    (0, (9, 6, 4)),
    (0, (-1, -1, 0)),
    (0, (-2, 0, -1)),
    (1, (-3, -2, -1)),
    (0, (TO_ONE, TO_ONE, TO_ONE)),
    (_EMPTY, (0, 0, 0)),
)
_SMALL = 1e-3  # outputs below this are the rest of larger numbers that cancelled


@dataclass(frozen=True)
class Failure:
    """What is wrong with a conversion. A network that is made smaller still has to fail with the same kind."""

    kind: str
    detail: str


@dataclass(frozen=True)
class Outcome:
    """The result of one network.

    failure: what is wrong with the conversion, if anything is; rejected: why there is no conversion, if there is none.
    folded: each fold as the module that holds it and the operations that it replaces, sorted; second: how many folds a
    second conversion finds; removed: by how many convolutions, norms and elementwise operations the network shrinks.
    """

    failure: Failure | None = None
    rejected: str = ""
    folded: tuple[str, ...] = ()
    second: int = 0
    removed: int = 0
    refusals: tuple[str, ...] = ()

    def digest(self) -> str:
        """One line that stays the same as long as the same operations fold, whatever the refusals say.

        Number of folds, number of removed operations, a hash of what was folded, number of refusals.
        """
        if self.failure is not None or self.rejected:
            return "failed" if self.failure is not None else "rejected"
        code = hashlib.sha256("\n".join(self.folded).encode()).hexdigest()[:12]
        return f"{len(self.folded)} {self.removed} {code} {len(self.refusals)}"


class _ConversionFailed(Exception):
    def __init__(self, kind: str, detail: object) -> None:
        super().__init__(kind)
        self.failure = Failure(kind, str(detail))


def check(program: Program) -> Outcome:
    """Convert one network and compare."""
    try:
        model, inputs = program.build()
        truths = list(_truths(program, model))
    except Exception as error:  # noqa: BLE001 the network itself does not run, so there is nothing to convert
        return Outcome(rejected=f"does not run: {type(error).__name__}: {error}")
    if not truths or not all(tensor.isfinite().all() for _, tensor in tensors(truths[0])):
        return Outcome(rejected="does not run on its example")
    try:
        return _convert(program, model, inputs, truths)
    except _ConversionFailed as failed:
        return Outcome(failed.failure)
    except VerificationError as error:
        wrong = set() if program.dtype == torch.float64 else miscomputed(program)
        if wrong:
            return Outcome(rejected=f"torch computes {', '.join(sorted(wrong))} wrongly in {program.dtype}")
        return Outcome(Failure("verification", str(error)))
    except ReparamError as error:
        return Outcome(rejected=f"{type(error).__name__}: {error}")
    except Exception as error:  # noqa: BLE001 any other exception is a failure of the conversion
        return Outcome(Failure(f"{type(error).__name__} {_place(error)}", str(error)))


def _convert(program: Program, model: nn.Module, inputs: tuple[Tensor, ...], truths: list[Any]) -> Outcome:
    before = _state(model)
    given = tuple(x.clone() for x in inputs)
    exact = program.dtype == torch.float64
    folded = reparam.reparameterize(model, given, verify=not exact, fixed_size=program.fixed_size)
    if _state(model) != before or not all(map(torch.equal, given, inputs)):
        raise _ConversionFailed("mutated", "the conversion changed the model or its inputs")
    if exact:
        _compare(program, model, folded, truths)
    _require_portable(folded, program)
    again = reparam.reparameterize(folded, inputs, verify=False, fixed_size=program.fixed_size)
    cost_before, cost_after = _cost(model, inputs), _cost(folded, inputs)
    if cost_after > cost_before + 1e-9:
        raise _ConversionFailed("costs more", f"cost {cost_before:.3f} before, {cost_after:.3f} after")
    report = _report(folded)
    return Outcome(
        folded=tuple(sorted(map(_folded, report.folds))),
        second=len(_report(again).folds),
        removed=_operations(report.before) - _operations(report.after),
        refusals=tuple(general(refusal.reason) for refusal in report.refusals),
    )


def _report(model: nn.Module) -> Report:
    report = model.reparam_report
    assert isinstance(report, Report)
    return report


def _folded(fold: FoldLine) -> str:
    """The module that holds a fold, its operations and where they stood; descriptions in words do not count."""
    words = [fold.name, *fold.merged]
    for step in fold.steps:
        words += [step.operation, step.where, str(step.count)]
    return ",".join("-" if " " in word else word for word in words)


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
    """Everything that a conversion must leave as it is, in a form that can be compared."""
    weights = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    numbers = [(name, id(t), t._version, t.requires_grad, t.sum().item()) for name, t in weights.items()]
    modules = [
        (n, id(m), type(m), m.training, sorted(vars(m)), len(m._forward_hooks)) for n, m in model.named_modules()
    ]
    return [numbers, modules]


def _run(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """What two calls return, and their inputs afterwards. They run on a copy, because some models change themselves."""
    model, results = copied(model), []
    for _ in range(2):
        given = tuple(x.clone() for x in inputs)
        with torch.no_grad():
            result = model(*given)
            # Outputs may be views of each other and of the inputs: they are copied before anything else runs.
            results.append(copy.deepcopy((result, given)))
    return results


def _truths(program: Program, model: nn.Module) -> Iterator[Any]:
    """What the original returns for every variant of the inputs; None where it rejects them."""
    example = None
    for i, (batch, sizes) in enumerate(_VARIANTS if program.dtype == torch.float64 else _VARIANTS[:1]):
        inputs = program.inputs(batch, sizes)
        try:
            truth = _run(model, inputs) if batch == _EMPTY or all(x.numel() for x in inputs) else None
            truth = None if program.fixed_size and any(sizes) else truth
            example = truth if example is None else example
            if batch == _EMPTY:
                yield truth if _is_emptied(example, truth) else None
            else:  # no convolution returns an empty image
                yield truth if all(t.numel() for _, t in tensors(truth)) else None
        except (RuntimeError, ValueError, IndexError, AssertionError):
            if not i:
                raise
            yield None


def _is_emptied(example: Any, truth: Any) -> bool:
    """Whether the result for an empty batch has the shape of the example's, with zeros in it.

    It is not so everywhere: `pixel_unshuffle` returns an empty batch unchanged.
    """
    shapes = ((a.shape, b.shape) for (_, a), (_, b) in zip(tensors(example), tensors(truth), strict=True))
    return all(
        len(full) == len(empty) and all(size in (0, whole) for whole, size in zip(full, empty, strict=True))
        for full, empty in shapes
    )


def _compare(program: Program, model: nn.Module, folded: nn.Module, truths: list[Any]) -> None:
    for (batch, sizes), truth in zip(_VARIANTS, truths, strict=True):
        inputs = program.inputs(batch, sizes)
        if truth is None:
            continue
        try:
            value = _run(folded, inputs)
        except Exception as failure:
            where = f"{type(failure).__name__} on {[*map(_shape, inputs)]}"
            raise _ConversionFailed("does not run", f"{where}: {failure}") from failure
        error = _distance(truth, value)
        if not error <= EXACT and not _is_unstable(model, inputs, truth, error):
            raise _ConversionFailed(
                "wrong", f"error {error:.2g} on inputs of {[*map(_shape, inputs)]}\n{folded.reparam_report}"
            )


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))


def _distance(truth: Any, value: Any) -> float:
    """The largest error of any tensor relative to its max|y|; infinite where names, shapes or dtypes differ."""
    a, b = tensors(truth), tensors(value)
    if [(name, t.shape, t.dtype) for name, t in a] != [(name, t.shape, t.dtype) for name, t in b]:
        return float("inf")
    return max((_error(t, v) for (_, t), (_, v) in zip(a, b, strict=True)), default=0.0)


def _error(truth: Tensor, value: Tensor) -> float:
    if truth.numel() and truth.is_floating_point() and truth.abs().max() < _SMALL:
        return ((truth - value).abs().max() / _SMALL).item()
    return relative_error(truth, value)


def _is_unstable(model: nn.Module, inputs: tuple[Tensor, ...], truth: Any, error: float) -> bool:
    """Whether the original has such errors, too, when only the last bits of its weights change."""
    generator = torch.Generator().manual_seed(0)
    noise = max(_distance(truth, _run(rerounded(model, generator), inputs)) for _ in range(3))
    return error <= 100 * noise


def _require_portable(folded: nn.Module, program: Program) -> None:
    exact = program.dtype == torch.float64  # in other dtypes the rounding depends on the alignment of memory
    copiers: dict[str, Callable[[nn.Module], nn.Module]] = {
        "deepcopy": copy.deepcopy,
        "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    }
    try:
        repr(folded)
    except Exception as error:
        raise _ConversionFailed("no repr", f"{type(error).__name__}: {error}") from error
    for name, copier in copiers.items():
        try:
            duplicate = copier(folded)
        except Exception as error:
            raise _ConversionFailed(f"no {name}", f"{type(error).__name__}: {error}") from error
        if exact and not _distance(_run(folded, program.inputs()), _run(duplicate, program.inputs())) <= EXACT:
            raise _ConversionFailed(f"changed by {name}", "the copy computes something else")


def _cost(model: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """Microseconds of all operations that the outputs depend on, by the cost model of the plans."""
    recorded = record(copied(model), Inputs.of(inputs))
    return sum(
        cost.of_node(cost.CPU, node).time for node in alive(recorded) if node.function is not None and not node.constant
    )
