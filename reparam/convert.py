"""From a trained model to the plain one: record, plan, prepare, emit, verify."""

from __future__ import annotations

import copy
import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from reparam.algebra.lazy import cache_scope
from reparam.capture.example_inputs import guessed_inputs
from reparam.capture.graph import Node, Record, leaves_of
from reparam.capture.inputs import Inputs, likeness
from reparam.capture.preconditions import _require_usable
from reparam.capture.recorder import record
from reparam.capture.rerun import of_one_size
from reparam.capture.snapshot import copied
from reparam.compare.bisect import bisect
from reparam.compare.border import Border, borders
from reparam.compare.folds import fold_error
from reparam.compare.levels import FULL, NONE, Level, Verify, level_of
from reparam.compare.verification import EXACT, Verification
from reparam.compare.verify import verify as verify_models
from reparam.errors import InputError, ModelError, VerificationError
from reparam.plan import cost as costs
from reparam.plan.cost import Cost, MeasuredCost, Setting
from reparam.plan.fold import Fold, Fusion
from reparam.plan.horizontal import fused
from reparam.plan.liveness import Dead, around, dead_weight
from reparam.plan.plan import Plan, plan
from reparam.report.quantisation import Ranges, Weights
from reparam.report.report import report
from reparam.report.steps import weighed
from reparam.rewrite.apply import Emitted, emit
from reparam.rewrite.origin import Origin, digests, key_map, named, skeleton
from reparam.rewrite.prune import REMOVED, Pruner
from reparam.rewrite.settle import Settled, settle
from reparam.rewrite.weights import Waiting, aliases, fill, loosened, own, same


@torch.inference_mode(
    False
)  # a recording follows writes by the versions of tensors, which inference mode does not keep
def reparameterize(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    inplace: bool = False,
    verify: Verify = True,
    keep: Sequence[str] = (),
    cost: str | Cost | MeasuredCost = "static",
    prune: bool = False,
    fixed_size: bool = False,
    progress: bool | Callable[[str], object] = False,
) -> nn.Module:
    """The same model with every linear region folded into plain convolutions and linear layers, where that pays.

    model: any trained module in eval mode; it is left as it is unless `inplace`.
    example_inputs: a tensor, a tuple (positional) or a dict (keyword) that the model accepts; without them a symbolic
        trace of the model has to tell their shapes.
    inplace: change `model` itself, after everything has been verified; it is returned as well. Unless `verify` is
        "full" or `prune` is given, old and new weights are then never held at once: each new one is made as the old
        ones are given up. Should memory run out at that, the model has to be loaded again, and a ModelError says so.
    verify: True or "full": compare every fold, and then the whole model with the original, in float64 and in its own
        dtype, at several sizes. "folds": compare every fold alone, in float64, which takes a fraction of the time and
        runs the model no more often than without. False: compare nothing.
    keep: names of modules, or patterns such as "backbone.stage*.out", whose outputs must stay available.
    cost: what a plan is judged by. "static" predicts times by a roofline of the kind of device that the model is on;
        "measured" times the candidates there, at the size of the inputs, for half a minute at most; "params" counts
        numbers stored, "flops" multiply-adds. Or an object: a `StaticCost` (of constants fitted to your device), a
        `MeasuredCost` (with a time of your choice), a `Cost` of your own.
    prune: remove the dead weight that the report names (auxiliary heads, results that are dropped), where the model is
        proven to do the same without it. What only training calls is gone then: the result cannot be trained on.
    fixed_size: every image will be as large as the example (batches may differ): what zero padding makes of a bias is
        then folded into one number per channel and pixel, where that is cheaper. Give no other sizes afterwards: they
        raise an error, except where a stride makes as many pixels of them; there the border would be wrong.
    progress: say on stderr what is being done, or hand each step to this function.

    Returns a model of the same class, dtype, device and memory format, in eval mode, whose new weights do not require
    gradients; `reparam_report` on it says what was done, `reparam_origin` what it was before. Raises TrainModeError,
    InputError, ModelError for what cannot be converted, VerificationError if the result is not equal: nothing has been
    changed then (but see `inplace` for the one error that comes later).
    """
    say = _speaker(progress)
    level = level_of(verify)
    _require_usable(model)
    judge = costs.chosen(cost, next((each.device.type for each in model.parameters()), "cpu"))
    if isinstance(model, nn.DataParallel):
        patterns = [pattern.removeprefix("module.") for pattern in _patterns(keep)]
        inner = reparameterize(
            model.module,
            example_inputs,
            inplace=inplace,
            verify=verify,
            keep=patterns,
            cost=cost,
            prune=prune,
            fixed_size=fixed_size,
            progress=progress,
        )
        return _wrapped(model, inner, inplace)
    inputs = guessed_inputs(_copied(model)) if example_inputs is None else Inputs.of(example_inputs)
    asked = _Asked(keep, judge, prune, fixed_size)
    named_cost = cost if isinstance(cost, str) else cost.name
    options = {"keep": list(_patterns(keep)), "cost": named_cost, "prune": prune, "fixed_size": fixed_size}
    folded, waiting = _folded(model, inputs, asked, level, options, inplace, say)
    if inplace:
        _moved_into(model, folded)
        fill(waiting)
        return model
    return folded


def _folded(
    model: nn.Module,
    inputs: Inputs,
    asked: _Asked,
    level: Level,
    options: dict[str, Any],
    inplace: bool,
    say: Callable[[str], object],
) -> tuple[nn.Module, list[Waiting]]:
    """The folded model, with all that is noted on it, and what of it is to be filled when `model` is given up.

    All else that has been found out is forgotten here: it holds the old weights.
    """
    looks = _Looks(level != NONE)
    lent = same(model) if inplace else aliases(model)
    later = inplace and level != FULL and not asked.prune  # else the folded model is run while there is the old one
    with _uncollected():
        conversion = _convert(_copied(model, lent), inputs, asked, say, looks, exact=level == FULL, later=later)
    stopped = borders(conversion.plan.walk, conversion.plan.live)
    naive = _naive_errors(stopped) if level != NONE else {}
    verification = None
    if level != NONE:
        _require_exact(looks.errors, conversion)
    if level == FULL and conversion.changed:
        say("comparing the models")
        verification = verify_models(
            model, conversion.emitted.model, inputs, exact=conversion.emitted.exact, fixed_size=asked.fixed_size
        )
        if not verification.ok:
            raise _guilty(model, inputs, asked, conversion, verification)
    folded = conversion.emitted.model
    with _uncollected():
        outcome = report(
            conversion.record, conversion.plan, model, folded, conversion.emitted.names, looks.errors, looks.weights,
            stopped, naive, conversion.dead, conversion.judge,
        )  # fmt: skip
        folded.reparam_report = replace(outcome, verification=verification, inputs=str(inputs))  # type: ignore[assignment]
        if conversion.changed or "reparam_origin" not in vars(model):
            folded.reparam_origin = _origin(model, conversion, inputs, options)  # type: ignore[assignment]
    if inplace:
        loosened(conversion.record)
    else:
        own(folded, lent.values())
    return folded, conversion.emitted.waiting


@dataclass(frozen=True)
class _Asked:
    """What the caller wants besides equality: see `reparameterize`."""

    keep: Sequence[str]
    cost: Cost | MeasuredCost
    prune: bool
    fixed_size: bool


@dataclass(frozen=True, eq=False)
class _Conversion:
    record: Record
    judge: Cost
    plan: Plan
    emitted: Emitted
    dead: dict[Dead, str]
    keys: dict[str, tuple[str, ...]]  # old to new
    settled: Settled

    @property
    def changed(self) -> bool:
        return bool(self.plan.folds) or any(fate == REMOVED for fate in self.dead.values())


class _Looks:
    """What is noted of each fold while its kernel is known: the ranges of its weights, and (`checking`) its error."""

    def __init__(self, checking: bool) -> None:
        self.checking = checking
        self.generator = torch.Generator().manual_seed(0)
        self.weights: dict[Fold, Weights | None] = {}
        self.kernels: dict[Node, Ranges | None] = {}
        self.errors: dict[Fold, float] = {}

    def __call__(self, fold: Fold) -> None:
        if fold not in self.weights:
            self.weights[fold] = weighed(fold, self.kernels)
            self.errors.update({fold: fold_error(fold, self.generator)} if self.checking else {})


def _convert(
    target: nn.Module,
    inputs: Inputs,
    asked: _Asked,
    say: Callable[[str], object],
    look: Callable[[Fold], None],
    *,
    exact: bool,
    later: bool = False,
    only: int | None = None,
) -> _Conversion:
    """Convert `target` itself; `only` so many of the folds, in order, and then merges, where it is given.

    exact, later: see `emit`.
    """
    kept = _kept(target, asked.keep)
    say("recording a run")
    recorded = record(target, inputs)
    recorded.walls.update(around(recorded, kept))
    fixed = of_one_size(target, inputs, recorded) if asked.fixed_size else ()

    def priced(judge: Cost) -> None:
        fused(recorded, plan(recorded, judge, fixed=fixed), judge, ())

    judge = _judge(target, inputs, asked, say, priced)
    say("planning")
    settled = settle(recorded, judge, kept, fixed, only)
    planned = settled.plan
    say(f"folding {len(planned.folds)} regions")
    dead = dead_weight(target, recorded, planned.live)
    pruner = Pruner(target, dead)
    before = named(target)
    emitted = emit(target, recorded, settled.edits, planned.live, look, exact, later)
    for fold in planned.folds:  # those that have become nothing by themselves
        with cache_scope():
            look(fold)
    fates = dict.fromkeys(dead, "left")
    if asked.prune and dead:
        say(f"pruning {len(dead)} pieces of dead weight")
        fates = pruner.prune(emitted.model, inputs, kept)
    made = [(name, leaves_of(fold.nodes)) for fold, name in emitted.names.items()]
    return _Conversion(recorded, judge, planned, emitted, fates, key_map(before, emitted.model, made), settled)


def _judge(
    model: nn.Module,
    inputs: Inputs,
    asked: _Asked,
    say: Callable[[str], object],
    priced: Callable[[Cost], object],
) -> Cost:
    """What this model's plan is judged by."""
    if not isinstance(asked.cost, MeasuredCost):
        return asked.cost
    setting = Setting.of(model, inputs)
    with cache_scope():
        return asked.cost.timed(priced, setting, costs.DEVICES.get(setting.device.type, costs.CPU), say)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Python's search for objects that hold one another put off till later.

    Nearly all that a conversion makes lives until its end, and the searches that it sets off look through everything
    that the process holds.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _origin(model: nn.Module, conversion: _Conversion, inputs: Inputs, options: dict[str, Any]) -> Origin:
    return Origin(skeleton(model), digests(model), conversion.keys, likeness(inputs), options)


def _copied(model: nn.Module, memo: Mapping[int, torch.Tensor] | None = None) -> nn.Module:
    """A copy to work on; `memo`: what stands in it for tensors of the model, by their ids."""
    try:
        return copied(model, dict(memo or {}))
    except Exception as error:
        raise ModelError(
            f"the model cannot be copied: {type(error).__name__}: {error}; detach tensors that are kept on its modules"
        ) from error


def _wrapped(model: nn.Module, inner: nn.Module, inplace: bool) -> nn.Module:
    """The wrapper `model`, or a copy of it, around the converted model."""
    wrapper = model if inplace else copy.deepcopy(model, {id(model.module): inner})
    wrapper.reparam_report = inner.reparam_report
    return wrapper


def _patterns(keep: Sequence[str]) -> Sequence[str]:
    return [keep] if isinstance(keep, str) else keep


def _kept(model: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    names = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    kept = []
    for pattern in _patterns(patterns):
        found = [module for name, module in names.items() if fnmatchcase(name, pattern)]
        if not found:
            raise InputError(f"keep={pattern!r} matches no module; the names are those of model.named_modules()")
        kept += found
    return kept


def _naive_errors(stopped: Mapping[Node, Border]) -> dict[Node, float]:
    generator = torch.Generator().manual_seed(0)
    errors: dict[Node, float] = {}
    for node, border in stopped.items():
        with cache_scope():
            errors[node] = border.error(generator)
    return errors


def _require_exact(errors: Mapping[Fold, float], conversion: _Conversion) -> None:
    for fold in conversion.plan.folds:
        error = errors[fold]
        if not error <= EXACT:
            name = conversion.emitted.names.get(fold) or fold.sink.where
            raise VerificationError(
                f"the fold {name} is not exact: float64 error {error:.2g} of its own operations on drawn inputs, bound "
                f"{EXACT:g}; nothing has been changed. Leave it out with keep=, and please report it"
            )


def _guilty(
    model: nn.Module, inputs: Inputs, asked: _Asked, conversion: _Conversion, verification: Verification
) -> VerificationError:
    """The error for a whole that is wrong although each fold is right, with the fold that makes the difference."""

    again = replace(asked, cost=conversion.judge)

    def fails(steps: Sequence[Fold | Fusion]) -> bool:
        target, ignored = _copied(model), lambda _: None
        tried = _convert(target, inputs, again, ignored, ignored, exact=True, only=len(steps)).emitted
        return not verify_models(model, tried.model, inputs, exact=tried.exact, fixed_size=asked.fixed_size).ok

    guilty = bisect(conversion.settled.choices, fails)
    pruned = any(fate == REMOVED for fate in conversion.dead.values())
    other = "what prune=True has removed" if pruned else "no single fold"
    name = other if guilty is None else (guilty.sinks[0] if isinstance(guilty, Fusion) else guilty.sink).where
    return VerificationError(
        f"the folded model is not equal to the original: {verification.worst}. Guilty: {name}. Nothing has been "
        "changed. Leave it out with keep=, and please report it"
    )


def _moved_into(model: nn.Module, folded: nn.Module) -> nn.Module:
    """Make `model` what `folded` is: from here on nothing can fail, but for want of memory."""
    model.__class__ = type(folded)
    vars(model).clear()
    vars(model).update(vars(folded))
    return model


def _speaker(progress: bool | Callable[[str], object]) -> Callable[[str], object]:
    if callable(progress):
        return progress
    return (lambda text: sys.stderr.write(f"reparam: {text}\n")) if progress else lambda text: None
