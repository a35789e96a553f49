"""Are two models the same function? The truth is float64, and the bounds come from measured noise.

There are two kinds of checks. "fp64": both models in float64 and under `Float64`, where equal functions agree to about
1e-15. "own dtype": both as they are, each against the float64 truth; a conversion may not have much more noise than the
original. Both are repeated at other batch sizes and resolutions, wherever the original takes them.

Compiled code runs in its own dtype and in place, as a copy does not carry it; under `Float64` the Python code behind it
runs. A candidate that has no float64 at all (a function, frozen weights) is compared in its own dtype only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from reparam.capture.compiled import holds_compiled
from reparam.capture.float64 import Float64, double
from reparam.capture.inputs import Inputs
from reparam.capture.preconditions import require_eval
from reparam.capture.process import exclusive
from reparam.capture.snapshot import copied, restored
from reparam.compare.bounds import Bounds
from reparam.compare.error import Leaves, compare, is_floating, numbers, relative_errors
from reparam.compare.isolated import ModelFailure, run
from reparam.compare.summing import Summing
from reparam.compare.verification import (
    COMPILED,
    FLOAT64,
    INACCURATE,
    NOT_ACCEPTED,
    OWN_DTYPE,
    OWN_DTYPE_ONLY,
    Check,
    Verification,
)
from reparam.compare.weights import eps, rerounded, rounding_checks, set_exact, state
from reparam.errors import InputError, ModelError, first_line

_WRONG = 1.0  # an error of the original itself as large as that of an output of zeros
_EXAMPLE_DRAWS = 2  # the example, and once other values of its shape; the variants are drawn once each
_MOST_DRAWS = 16  # near a bound that is measured: the noise of one number is often small by luck, that of 16 never
_NEAR = 100  # times the bound: an error beyond it is a mistake and no bad luck
_MAPS = (3, 4, 5)  # dimensions of a batch of feature maps
_FEW_ROWS = 2  # of a larger batch, at other sizes and as another batch
# Pixels that images get more along the first axis and along the others.
_GROWTHS = [growth for step in (32, 16, 8, 4, 2, 1) for growth in ((step, 2 * step), (0, step), (step, 0))]
_ODD_GROWTH = (1, 3)
_MOST_SIZES = 4  # that are tried
_AFFORDABLE = 2  # times the numbers of the example
_NEGLIGIBLE = 100  # numbers
_WEIGHTS, _SUMS = "weights", "sums"  # of the original: whose noise is measured besides its own error


@exclusive
def verify(
    original: nn.Module,
    candidate: Callable[..., Any],
    example_inputs: Any,
    *,
    exact: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    variants: bool = True,
    fixed_size: bool = False,
) -> Verification:
    """Compare two models in eval mode, whoever converted the second one. Neither model is changed: copies are run, and
    compiled models are put back as they were.

    candidate: a module, an exported program, or any callable (a compiled function, a package of AOTInductor, a session
        of another runtime). What has no float64 is compared in its own dtype only, against the float64 truth of the
        original, and the result says so. Of a compiled model the compiled code is compared in its own dtype, and the
        Python code behind it in float64. torch.compile may compile it again for each shape (see `variants`).
    example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments, on the models' device. The
        values are used as they are, and floating tensors also with other values of their mean and deviation.
    exact: the float64 values of the candidate's parameters and buffers before they were rounded to its dtype, by name.
        With it, and for float64 models, the functions must agree to 1e-10, or to 3 times the error that one ulp of
        float64 in the original's weights makes, if that is more. Without it the candidate's weights carry a rounding
        that cannot be undone, so the bound is 3 times the error that re-rounding the original's own weights makes.
    seed: for drawn values, and for torch's random operations, which draw the same in both models.
    variants: compare other batch sizes and resolutions too, wherever the original takes them.
    fixed_size: compare no other resolutions.

    Integer and bool outputs are compared entry by entry and in float64 only, because rounding decides near ties.
    Entries where both are NaN, or the same infinity, are equal.

    Raises TrainModeError where a part of either model is in train mode, ModelError where the original fails on its
    inputs or cannot be computed in float64, InputError for unusable arguments. A candidate that fails on inputs that
    the original takes is a failed check.
    """
    original, candidate = _module_of(original), _module_of(candidate)
    require_eval(original, "original")
    if isinstance(candidate, nn.Module):
        require_eval(candidate, "candidate")
    elif exact:
        raise InputError("exact: the candidate is no module and has no weights to compare; leave it out")
    inputs = Inputs.of(example_inputs)
    generator = torch.Generator().manual_seed(seed)
    pair = _Pair.of(original, candidate, inputs, exact, seed)
    checks = [*rounding_checks(candidate, exact)] if isinstance(candidate, nn.Module) and exact else []
    with restored(*pair.in_place):
        checks += _compared("example", inputs, pair, generator, _EXAMPLE_DRAWS)
        if variants:
            for name, choices in _variants(inputs, fixed_size, small=not _is_specialized(candidate)):
                compared: list[Check] = []
                for variant in choices:
                    compared = _compared(name, variant.drawn(generator), pair, generator, draws=1)
                    if all(check.compared for check in compared):
                        break
                checks += compared
    return Verification(tuple(checks))


# --- measuring one draw of inputs


@dataclass(frozen=True)
class _Measurement:
    """One output tensor on one draw.

    error: the candidate's. noise: the original's own. other_noise: what re-rounding the original's weights does, or
    adding up in another order.
    """

    name: str
    kind: str
    error: float
    noise: float = 0.0
    other_noise: float = 0.0
    detail: str = ""


@dataclass(frozen=True)
class _Pair:
    """Both models in float64 and as they are, and the bounds on their difference.

    original, candidate: copies, except for what is run `in_place`.
    candidate64: its weights are unrounded where `exact` is given; None for a candidate that has no float64.
    note: how the candidate is compared in its own dtype, if not like any module.
    """

    original: nn.Module
    candidate: Callable[..., Any]
    original64: nn.Module
    candidate64: nn.Module | None
    in_place: tuple[nn.Module, ...]
    note: str
    exact: bool
    bounds: Bounds
    seed: int

    @classmethod
    def of(
        cls,
        original: nn.Module,
        candidate: Callable[..., Any],
        inputs: Inputs,
        exact: Mapping[str, Tensor] | None,
        seed: int,
    ) -> _Pair:
        candidate64, note = _in_float64(candidate)
        if candidate64 is not None:
            set_exact(candidate64, exact or {})
        in_place = [original] if holds_compiled(original) else []
        if isinstance(candidate, nn.Module) and note:
            in_place.append(candidate)
        coarsest = max((eps(tensor) for _, tensor in (*state(original), *inputs.tensors())), default=0.0)
        return cls(
            original=original if original in in_place else copied(original),
            candidate=candidate if note or not isinstance(candidate, nn.Module) else copied(candidate),
            original64=double(original),
            candidate64=candidate64,
            in_place=tuple(in_place),
            note=note,
            exact=bool(exact),
            bounds=Bounds(coarsest, rounded=exact is None and coarsest > torch.finfo(torch.float64).eps),
            seed=seed,
        )

    def bound(self, kind: str, noise: float) -> float:
        """The largest error that passes, where the original itself shows `noise`."""
        return self.bounds.float64(noise) if kind == FLOAT64 else self.bounds.own_dtype(noise)

    @property
    def kind(self) -> str:
        """The strictest kind of check that is possible."""
        return OWN_DTYPE if self.candidate64 is None else FLOAT64

    def measure(self, inputs: Inputs, generator: torch.Generator, noises: Collection[str]) -> list[_Measurement]:
        """Both models on one draw.

        noises: what is measured besides the original's own error: that of its `_WEIGHTS`, and of its `_SUMS`.

        Raises ModelFailure where the original fails; where the candidate fails, that is what was measured.
        """
        inputs64 = inputs.as_float64()
        plain = run(self.original, inputs, self.seed)
        truth = run(self.original64, inputs64, self.seed, Float64())
        reweighted = summed = truth
        if _WEIGHTS in noises:
            reweighted = run(rerounded(self.original, generator), inputs64, self.seed, Float64())
        if _SUMS in noises:
            summed = run(self.original64, inputs64, self.seed, Summing(self.bounds.summing_eps, generator))
        try:
            own = run(self.candidate, inputs, self.seed)
            own = own if isinstance(self.candidate, nn.Module) else _named_alike(own, plain)
            value, note = self._value(inputs64)
        except ModelFailure as failure:
            return [_failed(self.kind, f"the candidate fails where the original runs: {failure}")]
        in_float64 = None if value is None else compare(truth, value)
        in_own_dtype = compare(truth, own, like=plain)
        for kind, difference in ((FLOAT64, in_float64), (OWN_DTYPE, in_own_dtype)):
            if difference is not None and difference.form:
                return [_failed(kind, difference.form)]
        tensors = numbers(truth)
        if not tensors:
            return [_failed(self.kind, "the output holds no tensor and no number to compare")]
        noise, weight_noise, sum_noise = (relative_errors(truth, other) for other in (plain, reweighted, summed))
        return [
            measurement
            for name, tensor in tensors.items()
            for measurement in _measurements(
                name,
                tensor,
                None if in_float64 is None else in_float64.errors[name],
                in_own_dtype.errors[name],
                noise[name],
                _usable(weight_noise[name]),
                _usable(sum_noise[name]),
                note,
            )
        ]

    def _value(self, inputs64: Inputs) -> tuple[Leaves | None, str]:
        """What the candidate computes in float64, if it has one, and the note on its own dtype."""
        if self.candidate64 is None:
            return None, self.note
        try:
            return run(self.candidate64, inputs64, self.seed, Float64()), self.note
        except ModelFailure as failure:
            if self.exact:  # it is a conversion, which runs wherever the original does
                raise
            return None, f"{OWN_DTYPE_ONLY}: in float64 it fails ({first_line(failure)})"


def _module_of(model: Any) -> Any:
    """The module of an exported program, which cannot be called itself; any other model as it is."""
    return model.module() if isinstance(model, torch.export.ExportedProgram) else model


def _in_float64(candidate: Callable[..., Any]) -> tuple[nn.Module | None, str]:
    """A copy of the candidate in float64, if there can be one, and the note on its own dtype."""
    if not isinstance(candidate, nn.Module):
        return None, f"{OWN_DTYPE_ONLY}: a {type(candidate).__name__} is no module"
    try:
        return double(candidate), COMPILED if holds_compiled(candidate) else ""
    except Exception as error:  # noqa: BLE001 other people's code copies itself
        return None, f"{OWN_DTYPE_ONLY}: it cannot be copied ({type(error).__name__}: {first_line(error)})"


def _failed(kind: str, detail: str) -> _Measurement:
    return _Measurement("call", kind, float("inf"), detail=detail)


def _measurements(
    name: str,
    truth: Tensor,
    float64: float | None,
    own: float,
    noise: float,
    weight_noise: float,
    sum_noise: float,
    note: str,
) -> Iterator[_Measurement]:
    """What the errors of one tensor mean. float64: None, and a note, for a candidate that has only its own dtype."""
    if float64 is not None and not is_floating(truth):
        detail = "share of entries that differ, in float64 only"
        yield _Measurement(name, FLOAT64, float64, weight_noise, weight_noise, detail)
        return
    detail = "" if truth.isfinite().all() else "non-finite in the original, and the same in a candidate that passes"
    if float64 is not None:
        yield _Measurement(name, FLOAT64, float64, weight_noise, weight_noise, detail)
    # The original's weights are the truth, but the candidate's had to be rounded: that noise is allowed too.
    detail = note
    if noise >= _WRONG and float64 is not None:  # it overflows, counts other boxes, or torch's kernel is wrong
        detail, noise = f"{INACCURATE} (error {noise:.2g})", float("inf")
    yield _Measurement(name, OWN_DTYPE, own, noise, max(weight_noise, sum_noise), detail)


def _usable(noise: float) -> float:
    """The noise, or none where rounding changed a size or made a NaN: that measures nothing."""
    return 0.0 if noise == float("inf") else noise


def _named_alike(output: Leaves, expected: Leaves) -> Leaves:
    """The output under the paths of `expected`: a runtime returns the same tensors in order, but in a plain tuple."""
    tensors = [leaf for leaf in output.values() if isinstance(leaf, Tensor)]
    paths = [path for path, leaf in expected.items() if isinstance(leaf, Tensor)]
    if set(output) == set(expected) or len(tensors) != len(paths):
        return output
    return expected | dict(zip(paths, tensors, strict=True))


# --- from measurements to checks


def _compared(name: str, inputs: Inputs, pair: _Pair, generator: torch.Generator, draws: int) -> list[Check]:
    """The checks of one variant.

    Each noise takes a float64 run. It can only widen a bound, so it is left out until a check fails, unless the bound
    is made of it.
    """
    few = (_WEIGHTS,) if pair.bounds.rounded else ()
    checks = _checks(name, inputs, pair, generator, draws, few)
    if all(check.passed for check in checks):
        return checks
    return _checks(name, inputs, pair, generator, draws, (_WEIGHTS, _SUMS))


def _checks(
    name: str, inputs: Inputs, pair: _Pair, generator: torch.Generator, draws: int, noises: Collection[str]
) -> list[Check]:
    """One check per tensor and kind: the worst error over all draws against the bound from the worst noise.

    An error just above a measured bound may be bad luck, so more values are drawn before it counts. The original must
    run on the example; where it does not take a variant, that is recorded and passes.
    """
    where = f"{name} {inputs}"
    measurements: list[_Measurement] = []
    draw = inputs
    for count in range(1, _MOST_DRAWS + 1):
        try:
            measurements += pair.measure(draw, generator, noises)
        except ModelFailure as failure:
            if name == "example":
                raise ModelError(f"original: fails on inputs {inputs}: {failure}; mend that first") from failure
            detail = f"by the original: {failure}".split("\n")[0]
            return [Check("call", where, NOT_ACCEPTED, 0.0, 0.0, 0.0, True, detail)]
        checks = _pooled(measurements, where, pair)
        failed = [check for check in checks if not check.passed]
        near = _SUMS in noises and failed and all(check.error < _NEAR * check.bound for check in failed)
        if count >= draws and not near:
            break
        draw = inputs.drawn(generator)
    return checks


def _pooled(measurements: Sequence[_Measurement], where: str, pair: _Pair) -> list[Check]:
    groups: dict[tuple[str, str], list[_Measurement]] = {}
    for measurement in measurements:
        groups.setdefault((measurement.name, measurement.kind), []).append(measurement)
    checks = []
    for (name, kind), group in groups.items():
        error, noise = max(m.error for m in group), max(m.noise for m in group)
        bound = pair.bound(kind, max(noise, *(m.other_noise for m in group)))
        detail = next((m.detail for m in group if m.detail), "")
        checks.append(Check(name, where, kind, error, bound, noise, error <= bound, detail))
    return checks


def _is_specialized(candidate: Callable[..., Any]) -> bool:
    """Whether torch.export may have made it: then it takes no size at which any dimension inside becomes 1.

    https://docs.pytorch.org/docs/main/compile/dynamic_shapes_zero_one_specialization.html
    """
    return not isinstance(candidate, nn.Module) or isinstance(candidate, torch.fx.GraphModule)


def _variants(inputs: Inputs, fixed_size: bool, small: bool) -> Iterator[tuple[str, Iterator[Inputs]]]:
    """Other inputs by name: another batch size, more pixels, another parity of each side, and few pixels.

    Of each there are several to try in turn, until the original takes one. Few rows come first: a size does the same to
    every image of a batch, and the example's batch is compared at its own size. None has more than twice as many
    numbers as the example: attention over all pixels takes as much as their square.
    """
    few = inputs.shortened(_FEW_ROWS)
    batches = [few, inputs] if few is not inputs else [inputs]
    yield "batch", chain(batches[:-1], inputs.resized(size=()).values())
    if any(len(shape) in _MAPS for shape in inputs.shapes()) and not fixed_size:
        yield "size", chain.from_iterable(map(_more_pixels, batches))
        yield "odd size", chain.from_iterable(map(_other_parity, batches))
        if small:
            yield "small size", chain.from_iterable(batch.smaller() for batch in batches)


def _more_pixels(inputs: Inputs) -> Iterator[Inputs]:
    return islice(filter(partial(_is_affordable, inputs), _grown(inputs, _GROWTHS)), _MOST_SIZES)


def _grown(inputs: Inputs, growths: Iterable[tuple[int, int]]) -> Iterator[Inputs]:
    return chain.from_iterable(inputs.resized(batch=0, size=growth).values() for growth in growths)


def _other_parity(inputs: Inputs) -> Iterator[Inputs]:
    """Fewer pixels, odd where the example's are even and the reverse, by about a third in all; or a few pixels more."""
    own = next(shape[2:] for shape in inputs.shapes() if len(shape) in _MAPS)
    shorter = [length * (4 + i) // (5 + i) for i, length in enumerate(own)]
    pixels = tuple(less + 1 - (length - less) % 2 for less, length in zip(shorter, own, strict=True))
    if all(pixels):
        yield inputs.cut(pixels=pixels)
    yield from filter(partial(_is_affordable, inputs), _grown(inputs, [_ODD_GROWTH]))


def _is_affordable(example: Inputs, inputs: Inputs) -> bool:
    before, after = (sum(map(math.prod, each.shapes())) for each in (example, inputs))
    return after <= max(_AFFORDABLE * before, _NEGLIGIBLE)
