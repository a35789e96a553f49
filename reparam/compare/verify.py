"""Are two models the same function? Judged against float64, with bounds that are measured and not typed.

Every comparison has two kinds. "fp64": both models doubled and run under `Float64`, where equal functions agree to
about 1e-15. "own dtype": both as they are, each against the float64 truth; a conversion may add no more noise than the
original has. All of it is repeated at other batch sizes and resolutions, wherever the original takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from reparam.capture.float64 import Float64, double
from reparam.capture.inputs import Inputs
from reparam.capture.preconditions import require_eval
from reparam.capture.snapshot import copied
from reparam.compare.error import _both, _is_floating, relative_error
from reparam.compare.isolated import Leaves, ModelFailure, run
from reparam.compare.verification import _FP64, _LOST, _OWN, _REJECTED, EXACT, Check, Verification
from reparam.errors import InputError, ModelError

NOISE = 3
"""How many times the original's own rounding noise a conversion may have. Noise is a maximum over a few thousand random
values and varies by less than 2 from one order of additions to another; a fold that is wrong is off by far more."""

FLOOR = 4
"""Noise below this many eps of max|y| is luck (an identity rounds nothing) and binds nobody."""

SUMMING = 16
"""Nor does noise below this many eps of float32, in which the sums are made: one convolution adds up what several added
up in parts, so its partial sums are larger, and a few hundred products in another order round by as much."""

_WRONG = 1.0  # an error of the original itself, relative to max|truth|, as large as that of nothing but zeros: no noise
_DRAWS = 2  # of the example: itself and once redrawn; the variants are drawn once each
_MORE_DRAWS = 16  # near a measured bound: the noise of a single number is often small by luck, that of 16 never
_NEAR = 100  # times the bound; what lies further out is wrong and not unlucky
_VOLUME = 5  # axes of a batch of 3-D images
_ROWS = 2  # of a larger batch, at other sizes and as another batch
_MORE, _ODD = (32, 64), (1, 3)  # by how much images grow
_LITTLE = (8, 16, 32)  # by how much its depth, height and width grow


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
    """Compare two models in eval mode, whoever converted the second one. Neither is changed: copies are run.

    A candidate that is no module (a compiled function, an exported program, a session of another runtime) is called as
    it is and compared in its own dtype alone, with the float64 truth of the original.

    `example_inputs` is a tensor, a tuple of positional arguments or a dict of keyword arguments, on the models' device;
    floating tensors are used as they are and drawn anew in their likeness. `exact` maps names of parameters and buffers
    of the candidate to their float64 values before they were rounded to its dtype; with it (and for float64 models) the
    functions must agree to `EXACT`, or, where the original answers one ulp of float64 in its weights by more than that,
    to `NOISE` times as much. Without it the weights of the candidate carry a rounding that no one can undo, so
    the bound is `NOISE` times what re-rounding the original's own weights does to it.

    Integer and bool outputs are compared entry by entry and in float64 only, since a near tie is decided by rounding.
    Entries where both are NaN, or the same infinity, count as equal. With `variants`, other batch sizes and resolutions
    are compared wherever the original accepts them; with `fixed_size`, other batch sizes alone. Random operations of
    torch see the same seed in both models.

    Raises TrainModeError where a part of either model is in train mode, ModelError where the original fails on its
    inputs or cannot be computed in float64, InputError for unusable arguments. A candidate that fails on inputs that
    the original takes is a failed check.
    """
    require_eval(original, "original")
    if isinstance(candidate, nn.Module):
        require_eval(candidate, "candidate")
    elif exact:
        raise InputError("exact: the candidate is no module and has no weights to compare; leave it out")
    inputs = Inputs.of(example_inputs)
    generator = torch.Generator().manual_seed(seed)
    bench = _Bench.of(original, candidate, inputs, exact, seed)
    checks = [*_rounding_checks(candidate, exact)] if isinstance(candidate, nn.Module) and exact else []
    checks += _compare("example", inputs, bench, generator, _DRAWS)
    if variants:
        for name, tries in _variants(inputs, fixed_size).items():
            found: list[Check] = []
            for variant in tries:
                found = _compare(name, variant.drawn(generator), bench, generator, draws=1)
                if all(check.kind != _REJECTED for check in found):
                    break
            checks += found
    return Verification(tuple(checks))


def rerounded(original: nn.Module, generator: torch.Generator) -> nn.Module:
    """The original in float64, every floating weight off by a random part of one ulp of the dtype that it had.

    Whole numbers stay (a mask, a scale of one, an index kept as a float): no rounding has touched them.
    """
    twin = double(original)
    for (_, before), (_, after) in zip(
        chain(original.named_parameters(), original.named_buffers()),
        chain(twin.named_parameters(), twin.named_buffers()),
        strict=True,
    ):
        if before.is_floating_point():
            part = torch.rand(after.shape, generator=generator, dtype=torch.float64).to(after.device) * 2 - 1
            ulp = torch.ldexp(torch.full_like(after, _eps(before)), torch.frexp(after).exponent - 1)
            after.data.copy_(torch.where(after == after.round(), after, after + part * ulp))
    return twin


# How one draw of inputs is measured.


@dataclass(frozen=True)
class _Reading:
    """One output tensor of one draw: the candidate's error, the original's own, and the one that measures the bound."""

    name: str
    kind: str
    error: float
    noise: float = 0.0
    slack: float = 0.0
    detail: str = ""


@dataclass(frozen=True)
class _Bench:
    """Private copies of both models in both precisions, and how far a comparison of them may be off."""

    original: nn.Module
    candidate: Callable[..., Any]
    truth: nn.Module
    twin: nn.Module | None  # the candidate in float64, unrounded as far as `exact` is known; None if it is no module
    rounded: bool  # the twin's weights are rounded, so its float64 bound has to be measured
    eps: float
    seed: int

    @classmethod
    def of(
        cls,
        original: nn.Module,
        candidate: Callable[..., Any],
        inputs: Inputs,
        exact: Mapping[str, Tensor] | None,
        seed: int,
    ) -> _Bench:
        twin = _restored(double(candidate), exact or {}) if isinstance(candidate, nn.Module) else None
        eps = max((_eps(tensor) for _, tensor in (*_state(original), *inputs.tensors())), default=0.0)
        return cls(
            original=copied(original),
            candidate=copied(candidate) if isinstance(candidate, nn.Module) else candidate,
            truth=double(original),
            twin=twin,
            rounded=exact is None and eps > torch.finfo(torch.float64).eps,
            eps=eps,
            seed=seed,
        )

    def bound(self, kind: str, slack: float) -> float:
        """The largest error that passes, where the original itself shows `slack`."""
        if kind == _FP64:
            # The slack is what one ulp of the weights does; in float64 an ulp is so much smaller.
            finer = 1.0 if self.rounded else torch.finfo(torch.float64).eps / self.eps if self.eps else 0.0
            return max(EXACT, NOISE * slack * finer)
        summing = SUMMING * torch.finfo(torch.float32).eps if self.eps > EXACT else 0.0
        return max(EXACT, FLOOR * self.eps, summing, NOISE * slack)

    @property
    def kind(self) -> str:
        """The strictest comparison there is."""
        return _OWN if self.twin is None else _FP64

    def measure(self, inputs: Inputs, generator: torch.Generator, shaking: bool) -> list[_Reading]:
        """Both models on one draw. Raises ModelFailure where the original fails; a failing candidate is a reading.

        shaking: measure as well what re-rounding the original's weights does to it.
        """
        wide = inputs.as_float64()
        plain = run(self.original, inputs, self.seed)
        truth = run(self.truth, wide, self.seed, Float64())
        shaken = run(rerounded(self.original, generator), wide, self.seed, Float64()) if shaking else {}
        try:
            value = None if self.twin is None else run(self.twin, wide, self.seed, Float64())
            own = run(self.candidate, inputs, self.seed)
            own = own if isinstance(self.candidate, nn.Module) else _named_alike(own, plain)
        except ModelFailure as failure:
            return [_broken(self.kind, f"the candidate fails where the original runs: {failure}")]
        for kind, expected, other in ((_FP64, truth, value), (_OWN, plain, own)):
            if other is not None and (difference := _difference(expected, other)):
                return [_broken(kind, difference)]
        if not _numbers(truth):
            return [_broken(self.kind, "the output holds no tensor and no number to compare")]
        found, *others = (_numbers(run or {}) for run in (value, shaken, plain, own))
        return list(
            chain.from_iterable(
                _readings(name, tensor, found.get(name), *(other.get(name) for other in others))
                for name, tensor in _numbers(truth).items()
            )
        )


def _broken(kind: str, detail: str) -> _Reading:
    return _Reading("call", kind, float("inf"), detail=detail)


def _readings(
    name: str, truth: Tensor, value: Tensor | None, shaken: Tensor | None, plain: Tensor | None, own: Tensor | None
) -> Iterator[_Reading]:
    """`value` is None for a candidate without a float64 twin: then its own dtype has to do for every tensor."""
    weights = _error_where_comparable(truth, shaken)
    weights = weights if weights < float("inf") else 0.0  # re-rounding pushed it over a cliff: that measures nothing
    if value is not None and not _is_floating(truth):
        detail = "share of entries that differ, in float64 only"
        yield _Reading(name, _FP64, relative_error(truth, value), weights, weights, detail)
        return
    detail = (
        "" if truth.isfinite().all() else "non-finite in the original, and the same in the candidate where it passes"
    )
    if value is not None:
        yield _Reading(name, _FP64, relative_error(truth, value), weights, weights, detail)
    # New weights have to be rounded, which the original's, true by definition, never are: that is no one's mistake.
    noise = _error_where_comparable(truth, plain)
    lost = ""  # unless it overflows, counts other boxes, or a kernel of torch computes something else
    if noise >= _WRONG and value is not None:
        lost, noise = f"{_LOST} (off by {noise:.2g}): nothing follows from it", float("inf")
    yield _Reading(name, _OWN, _error_where_comparable(truth, own), noise, max(noise, weights), lost)


def _error_where_comparable(truth: Tensor, value: Tensor | None) -> float:
    """Sizes may depend on values (a count of boxes); then rounding alone changes them and there is no distance."""
    return float("inf") if value is None or value.shape != truth.shape else relative_error(truth, value)


def _difference(expected: Leaves, found: Leaves) -> str:
    """Where two outputs differ in anything but numbers, in words; empty where they do not."""
    if missing := [path for path in expected if path not in found]:
        return f"{missing[0]} is missing from the output of the candidate"
    if extra := [path for path in found if path not in expected]:
        return f"{extra[0]} is in the output of the candidate alone"
    for path, leaf in expected.items():
        if _form(leaf) != _form(found[path]):
            return f"{path} is {_form(leaf)} in the original and {_form(found[path])} in the candidate"
    return ""


def _named_alike(found: Leaves, expected: Leaves) -> Leaves:
    """A runtime returns its tensors in a row: they are those of the original in order, where there are as many."""
    ours = [leaf for leaf in found.values() if isinstance(leaf, Tensor)]
    paths = [path for path, leaf in expected.items() if isinstance(leaf, Tensor)]
    if set(found) == set(expected) or len(ours) != len(paths):
        return found
    return expected | dict(zip(paths, ours, strict=True))


def _form(leaf: Any) -> str:
    """All of a leaf that must be equal outright. Objects of unknown kinds compare by type: they may hold addresses."""
    if isinstance(leaf, Tensor):
        return f"a {str(leaf.dtype).removeprefix('torch.')} tensor of shape {tuple(leaf.shape)}"
    return repr(leaf) if isinstance(leaf, bool | int | str | bytes | None) else f"a {type(leaf).__name__}"


def _numbers(output: Leaves) -> dict[str, Tensor]:
    """What can be off by a little: tensors, and Python floats as tensors."""
    floats = {path: torch.tensor(leaf, dtype=torch.float64) for path, leaf in output.items() if isinstance(leaf, float)}
    return floats | {path: leaf for path, leaf in output.items() if isinstance(leaf, Tensor)}


# From readings to checks.


def _compare(name: str, inputs: Inputs, bench: _Bench, generator: torch.Generator, draws: int) -> list[Check]:
    """The checks of one variant. What re-rounded weights do is measured where the bound is made of it, or where
    something fails without it: it only ever widens the bound, at the price of every third float64 run.
    """
    if not bench.rounded:
        checks = _checks(name, inputs, bench, generator, draws, shaking=False)
        if all(check.passed for check in checks):
            return checks
    return _checks(name, inputs, bench, generator, draws, shaking=True)


def _checks(
    name: str, inputs: Inputs, bench: _Bench, generator: torch.Generator, draws: int, shaking: bool
) -> list[Check]:
    """Each check over all draws: worst error of either model against the other's.

    Failing by a little, against a bound that is itself a measured maximum, may be luck: it is drawn again before it
    counts. The example must run; a variant that the original does not take is recorded and passes.
    """
    where = f"{name} {inputs}"
    readings: list[_Reading] = []
    draw = inputs
    for count in range(1, _MORE_DRAWS + 1):
        try:
            readings += bench.measure(draw, generator, shaking)
        except ModelFailure as failure:
            if name == "example":
                raise ModelError(f"original: fails on inputs {inputs}: {failure}; mend that first") from failure
            return [Check("call", where, _REJECTED, 0.0, 0.0, 0.0, True, f"by the original: {failure}".split("\n")[0])]
        checks = _pooled(readings, where, bench)
        failed = [check for check in checks if not check.passed]
        near = shaking and failed and all(check.error < _NEAR * check.bound for check in failed)
        if count >= draws and not near:
            break
        draw = inputs.drawn(generator)
    return checks


def _pooled(readings: Sequence[_Reading], where: str, bench: _Bench) -> list[Check]:
    groups: dict[tuple[str, str], list[_Reading]] = {}
    for reading in readings:
        groups.setdefault((reading.name, reading.kind), []).append(reading)
    checks = []
    for (name, kind), group in groups.items():
        error, noise = max(r.error for r in group), max(r.noise for r in group)
        bound = bench.bound(kind, max(r.slack for r in group))
        detail = next((r.detail for r in group if r.detail), "")
        checks.append(Check(name, where, kind, error, bound, noise, error <= bound, detail))
    return checks


def _variants(inputs: Inputs, fixed_size: bool) -> dict[str, list[Inputs]]:
    """Another batch, another resolution that most networks take, and one that flips the parity of height and width.

    Of each those to try in turn, until the original takes one. Few rows come first: what a size does to one image it
    does to all, and the whole batch of the example has been compared at its own. Volumes grow by little first, as 32
    more of everything would make a hundred small ones of them.
    """
    few = inputs.shortened(_ROWS)
    batches = [few, inputs] if few is not inputs else [inputs]
    variants = {"batch": [*batches[:-1], *inputs.resized(size=()).values()]}
    if not fixed_size:
        volumes = any(len(shape) == _VOLUME for shape in inputs.shapes())
        for name, sizes in {"size": [_LITTLE, _MORE] if volumes else [_MORE], "odd size": [_ODD]}.items():
            resized = [each.resized(batch=0, size=size) for size in sizes for each in batches]
            variants[name] = [larger for found in resized for larger in found.values()]
    return {name: tries for name, tries in variants.items() if tries}


# The state of a model.


def _state(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers by every name that they have."""
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def _eps(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).eps if _is_floating(tensor) else 0.0


def _restored(twin: nn.Module, exact: Mapping[str, Tensor]) -> nn.Module:
    """`twin` with its rounded weights replaced by the values that they were rounded from."""
    state = dict(_state(twin))
    for name, value in exact.items():
        if name not in state or state[name].shape != value.shape:
            found = f"has shape {tuple(state[name].shape)}" if name in state else "does not exist"
            raise InputError(
                f"exact: {name!r} {found} in the candidate, the value given has shape {tuple(value.shape)}; give the "
                "float64 values of the candidate's own parameters and buffers under their qualified names"
            )
        state[name].data.copy_(value)
    return twin


def _rounding_checks(candidate: nn.Module, exact: Mapping[str, Tensor]) -> Iterator[Check]:
    """The deployed weights must be the exact ones, rounded: the float64 comparison never sees them otherwise."""
    state = dict(_state(candidate))
    for name, value in exact.items():
        found = state[name]
        if not _is_floating(found):
            continue
        info = torch.finfo(found.dtype)
        truth, weight = _both(value, found.detach(), torch.float64)
        allowed = info.eps * truth.abs() + info.eps * info.smallest_normal
        overflow = truth.abs() > info.max
        if bool(((weight - truth).abs() > allowed).logical_and(~overflow).any()):
            detail = "the weight is not its exact value rounded to its dtype"
            yield Check(name, "weights", _OWN, relative_error(value, found), info.eps, 0.0, False, detail)


# The arithmetic of errors.
