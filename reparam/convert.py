"""`reparameterize`: the stages of a conversion, one after the other.

    record   one run of the model, written down         capture/runs.py
    values   what each tensor is, of which anchor       rules/interpret.py
    plan     the folds that pay                         plan/plan.py
    edits    how the model's code carries them          rewrite/settle.py
    result   the copy of the model, edited              rewrite/apply.py
    checks   each fold alone, then the whole model      compare/
    report   what was done, what was not, and why       report/

The user's model is not touched before the last check has passed.
"""

from __future__ import annotations

import copy
import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from reparam.algebra.lazy import cache_scope
from reparam.capture.example_inputs import guessed_inputs
from reparam.capture.graph import Node, Record, model_tensors
from reparam.capture.inputs import Inputs
from reparam.capture.preconditions import require_usable
from reparam.capture.process import exclusive
from reparam.capture.snapshot import copied
from reparam.capture.witness import of_one_size, witnessed
from reparam.compare.bisect import bisect
from reparam.compare.border import Border, borders
from reparam.compare.bounds import EXACT
from reparam.compare.folds import fold_error, imprecision, overflow
from reparam.compare.levels import FULL, NONE, Level, Verify, level_of
from reparam.compare.verification import Verification
from reparam.compare.verify import verify as verify_models
from reparam.errors import InputError, ModelError, Refusal, VerificationError
from reparam.plan import cost as costs
from reparam.plan.cost import Cost, MeasuredCost, Setting
from reparam.plan.fold import Fold, Fusion
from reparam.plan.horizontal import fused
from reparam.plan.liveness import Dead, dead_weight, with_pinned
from reparam.plan.plan import Constraints, Plan, plan
from reparam.report.evidence import Evidence
from reparam.report.kernels import weights_of
from reparam.report.quantisation import Ranges, Weights
from reparam.report.report import report
from reparam.rewrite.apply import Emitted, emit
from reparam.rewrite.origin import Origin, digests, key_map, keys_by_tensor, skeleton
from reparam.rewrite.prune import REMOVED, Pruner
from reparam.rewrite.settle import Settled, settle
from reparam.rewrite.weights import Refill, aliases, copy_aliases, release_graph, run_refills, shared_tensors


@exclusive
@torch.inference_mode(mode=False)  # a recording follows writes by tensor versions, which inference mode does not keep
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
    """Fold every linear region of a model into plain convolutions and linear layers, where that pays.

    model: any trained module in eval mode, in float64, float32, bfloat16 or float16. It stays as it is unless
        `inplace`.
    example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments that the model accepts.
        Without them their shapes are guessed from a symbolic trace of the model.
    inplace: change `model` itself and return it. Everything is verified first. Unless `verify` is "full" or `prune` is
        given, old and new weights are never in memory together: each new weight is computed when the old ones it
        replaces are freed. If memory runs out during that, a ModelError says that the model has to be loaded again.
    verify: True or "full" compares every fold and then the whole model with the original, in float64 and in its own
        dtype, at several sizes. "folds" compares every fold alone, in float64; it takes a fraction of the time. False
        compares nothing.
    keep: names of modules, or patterns such as "backbone.stage*.out", whose outputs must stay available.
    cost: the cost model. "static" predicts times with a roofline of the model's device; "measured" times the candidates
        on it, at the size of the inputs, for half a minute at most; "params" counts stored numbers, "flops"
        multiply-adds. Or an object: a `StaticCost` with constants fitted to your device, a `MeasuredCost` with a time
        budget, or a `Cost` of your own.
    prune: also remove the dead weight that the report names (auxiliary heads, results that are dropped), where the
        model is proven to compute the same without it. What only training calls is removed too, so the result cannot
        be trained.
    fixed_size: promise that every image will be as large as the example (batches may differ). What zero padding makes
        of a bias is then folded into one number per channel and pixel, where that is cheaper. Other sizes raise a
        ValueError afterwards, unless a stride makes the same number of pixels of them: then borders are wrong.
    progress: True prints each step to stderr; a function is called with its name.

    Returns a model of the same class, dtype, device and memory format, in eval mode; its new weights do not require
    gradients. `reparam_report` on it says what was done, `reparam_origin` what it was before.

    Raises TrainModeError, InputError or ModelError for what cannot be converted, VerificationError if the result is not
    equal to the original. The model is unchanged then, with the one exception named under `inplace`.
    """
    say = _speaker(progress)
    level = level_of(verify)
    require_usable(model)
    judge = costs.chosen(cost, next((parameter.device.type for parameter in model.parameters()), "cpu"))
    patterns = [keep] if isinstance(keep, str) else list(keep)
    if isinstance(model, nn.DataParallel):
        inner = reparameterize(
            model.module,
            example_inputs,
            inplace=inplace,
            verify=verify,
            keep=[pattern.removeprefix("module.") for pattern in patterns],
            cost=cost,
            prune=prune,
            fixed_size=fixed_size,
            progress=progress,
        )
        return _wrapped(model, inner, inplace)
    inputs = guessed_inputs(_copied(model)) if example_inputs is None else Inputs.of(example_inputs)
    options = {
        "keep": patterns,
        "cost": cost if isinstance(cost, str) else cost.name,
        "prune": prune,
        "fixed_size": fixed_size,
    }
    request = _Request(model, inputs, patterns, judge, prune, fixed_size, level, inplace, options)
    folded, refills = _folded(request, say)
    if not inplace:
        return folded
    _become(model, folded)
    run_refills(refills)
    return model


@dataclass(frozen=True, eq=False)
class _Request:
    """The arguments of `reparameterize`, checked. options: what provenance says of them."""

    model: nn.Module
    inputs: Inputs
    keep: Sequence[str]
    cost: Cost | MeasuredCost
    prune: bool
    fixed_size: bool
    level: Level
    inplace: bool
    options: Mapping[str, Any]

    @property
    def refills(self) -> bool:
        """Whether new weights are computed when the old ones have been freed: nothing runs the new model before."""
        return self.inplace and self.level != FULL and not self.prune

    def verify(self, emitted: Emitted) -> Verification:
        """The comparison of a converted model with the original."""
        return verify_models(self.model, emitted.model, self.inputs, exact=emitted.exact, fixed_size=self.fixed_size)


def _folded(request: _Request, say: Callable[[str], object]) -> tuple[nn.Module, list[Refill]]:
    """The folded model with its report and provenance, and the weights that are computed when the old ones are freed.

    Everything else that the conversion knows refers to the old weights and is forgotten here.
    """
    model = request.model
    memo = shared_tensors(model) if request.inplace else aliases(model)
    left_out: dict[int, Refusal] = {}
    while True:
        checks = _FoldChecks(request.level != NONE)
        with _collector_paused():
            conversion = _convert(_copied(model, memo), request, say, checks, left_out=left_out)
        if request.level != NONE:
            _require_exact(checks.errors, conversion)
        verification, imprecise = None, checks.overflows
        if request.level == FULL and conversion.changed and not imprecise:
            say("comparing the models")
            verification = request.verify(conversion.emitted)
            if not verification.ok:
                imprecise = _imprecise(request, conversion, verification, left_out)
        if not imprecise:
            break
        left_out |= {conversion.record.nodes.index(fold.sink): why for fold, why in imprecise.items()}
    stopped = borders(conversion.plan.walk, conversion.plan.live)
    folded = conversion.emitted.model
    with _collector_paused():
        evidence = Evidence(
            record=conversion.record,
            settled=conversion.settled,
            original=model,
            folded=folded,
            inputs=str(request.inputs),
            cost=conversion.judge,
            names=conversion.emitted.names,
            groups=conversion.emitted.groups,
            weights=checks.weights,
            errors=checks.errors,
            borders=stopped,
            border_errors=_border_errors(stopped) if request.level != NONE else {},
            dead=conversion.dead,
            verification=verification,
        )
        folded.reparam_report = report(evidence)  # type: ignore[assignment]
        if conversion.changed or "reparam_origin" not in vars(model):
            origin = Origin(skeleton(model), digests(model), conversion.keys, request.inputs.outline(), request.options)
            folded.reparam_origin = origin  # type: ignore[assignment]
    if request.inplace:
        release_graph(conversion.record)
    else:
        copy_aliases(folded, memo.values())
    return folded, conversion.emitted.refills


@dataclass(frozen=True, eq=False)
class _Conversion:
    """What the stages have made. keys: the old names of every new parameter."""

    record: Record
    judge: Cost
    settled: Settled
    emitted: Emitted
    dead: dict[Dead, str]
    keys: dict[str, tuple[str, ...]]

    @property
    def plan(self) -> Plan:
        return self.settled.plan

    @property
    def changed(self) -> bool:
        """Whether the model is another one than before."""
        return bool(self.plan.folds or self.emitted.plain) or any(fate == REMOVED for fate in self.dead.values())


class _FoldChecks:
    """Collects what there is to know of each fold while its kernel is in memory.

    weights: the ranges of its weights. overflows: why they do not fit into its dtype. errors: its own, if `checking`.
    """

    def __init__(self, checking: bool) -> None:
        self.checking = checking
        self.generator = torch.Generator().manual_seed(0)
        self.weights: dict[Fold, Weights | None] = {}
        self.kernels: dict[Node, Ranges | None] = {}
        self.overflows: dict[Fold, Refusal] = {}
        self.errors: dict[Fold, float] = {}

    def __call__(self, fold: Fold) -> None:
        if fold in self.weights:
            return
        self.weights[fold] = weights_of(fold, self.kernels)
        if (why := overflow(fold)) is not None:
            self.overflows[fold] = why
        if self.checking:
            self.errors[fold] = fold_error(fold, self.generator)


def _convert(
    target: nn.Module,
    request: _Request,
    say: Callable[[str], object],
    look: Callable[[Fold], None],
    only: int | None = None,
    left_out: Mapping[int, Refusal] = MappingProxyType({}),
) -> _Conversion:
    """Convert `target`, a copy of the model, in place.

    look: is called with each fold while its kernel is in memory.
    only: carry out so many of the choices (see `settle`), if given.
    left_out: the operations of the record, by number, that no fold may replace, and why.
    """
    pinned = _matching(target, request.keep)
    say("recording a run")
    recorded = with_pinned(witnessed(target, request.inputs, request.fixed_size), pinned)
    fixed = of_one_size(recorded) if request.fixed_size else ()

    def candidates(judge: Cost) -> None:
        fused(recorded, plan(recorded, judge, fixed_size=fixed), judge, ())

    judge = _judge(request.cost, target, request.inputs, candidates, say)
    say("planning")
    constraints = Constraints(opaque={recorded.nodes[number]: why for number, why in left_out.items()})
    settled = settle(recorded, judge, pinned, fixed, only, constraints)
    say(f"folding {len(settled.plan.folds)} regions")
    dead = dead_weight(target, recorded, settled.plan.live)
    pruner = Pruner(target, dead)
    before = keys_by_tensor(target)
    emitted = emit(
        target, recorded, settled.edits, settled.plan.live, look, request.level == FULL, later=request.refills
    )
    for fold in settled.plan.folds:  # those that nothing is left of have no kernel to wait for
        with cache_scope():
            look(fold)
    fates = dict.fromkeys(dead, "left")
    if request.prune and dead:
        say(f"pruning {len(dead)} pieces of dead weight")
        fates = pruner.prune(emitted.model, request.inputs, pinned)
    sources = [(name, model_tensors(fold.nodes)) for fold, name in emitted.names.items()]
    sources += emitted.plain.items()
    return _Conversion(recorded, judge, settled, emitted, fates, key_map(before, emitted.model, sources))


def _judge(
    cost: Cost | MeasuredCost,
    model: nn.Module,
    inputs: Inputs,
    candidates: Callable[[Cost], object],
    say: Callable[[str], object],
) -> Cost:
    """The cost model itself, or one that has timed the candidates; `candidates` prices them all with a cost."""
    if not isinstance(cost, MeasuredCost):
        return cost
    setting = Setting.of(model, inputs)
    with cache_scope():
        return cost.timed(candidates, setting, costs.DEVICES.get(setting.device.type, costs.CPU), say)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Python's cyclic garbage collector put off until the end.

    Nearly all objects of a conversion live until its end, and each pass of the collector visits all of them: with it a
    conversion takes 7 to 43 % longer (four networks of timm, verify=False).
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _copied(model: nn.Module, memo: Mapping[int, torch.Tensor] | None = None) -> nn.Module:
    """A copy to work on; `memo` gives the tensors that replace those of the model in it, by id."""
    try:
        return copied(model, dict(memo or {}))
    except Exception as error:
        raise ModelError(
            f"the model cannot be copied: {type(error).__name__}: {error}; detach tensors that are kept on its modules"
        ) from error


def _wrapped(wrapper: nn.DataParallel[nn.Module], inner: nn.Module, inplace: bool) -> nn.Module:
    """The wrapper, or a copy of it, around the converted model."""
    outer = wrapper if inplace else copy.deepcopy(wrapper, {id(wrapper.module): inner})
    outer.reparam_report = inner.reparam_report
    return outer


def _matching(model: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    """The modules whose names match. Raises InputError for a pattern without a match."""
    names = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    modules: list[nn.Module] = []
    for pattern in patterns:
        matches = [module for name, module in names.items() if fnmatchcase(name, pattern)]
        if not matches:
            raise InputError(f"keep={pattern!r} matches no module; the names are those of model.named_modules()")
        modules += matches
    return modules


def _border_errors(stopped: Mapping[Node, Border]) -> dict[Node, float]:
    """How wrong the folds refused at a border would be."""
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
                f"the fold {name} is not exact: float64 error {error:.2g} against its own operations on random inputs, "
                f"bound {EXACT:g}. Nothing has been changed. Exclude it with keep=, and please report it"
            )


def _imprecise(
    request: _Request, conversion: _Conversion, verification: Verification, left_out: Mapping[int, Refusal]
) -> dict[Fold, Refusal]:
    """The fold that makes an equal model round too much, and why. Raises VerificationError for a model that is wrong.

    Each fold alone is exact; bisection finds the guilty one.
    """
    again = replace(request, cost=conversion.judge, inplace=False)

    def fails(choices: Sequence[Fold | Fusion]) -> bool:
        count = len(choices)
        attempt = _convert(_copied(request.model), again, lambda _: None, lambda _: None, count, left_out)
        return not request.verify(attempt.emitted).ok

    guilty = bisect(conversion.settled.choices, fails)
    if verification.imprecise and verification.worst is not None and isinstance(guilty, Fold):
        return {guilty: imprecision(verification.worst)}
    if guilty is not None:
        name = (guilty.sinks[0] if isinstance(guilty, Fusion) else guilty.sink).where
    else:
        pruned = any(fate == REMOVED for fate in conversion.dead.values())
        name = "what prune=True has removed" if pruned else "no single fold"
    raise VerificationError(
        f"the folded model is not equal to the original: {verification.worst}. Guilty: {name}. Nothing has been "
        "changed. Exclude it with keep=, and please report it"
    )


def _become(model: nn.Module, folded: nn.Module) -> None:
    """Turn `model` into `folded`. From here on nothing can fail, except for want of memory."""
    model.__class__ = type(folded)
    vars(model).clear()
    vars(model).update(vars(folded))


def _speaker(progress: bool | Callable[[str], object]) -> Callable[[str], object]:
    if callable(progress):
        return progress
    return (lambda text: sys.stderr.write(f"reparam: {text}\n")) if progress else lambda text: None
