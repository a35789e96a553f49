"""A checker is worth what it catches: right folds must pass, and every known way of being wrong must not."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reparam.capture.inputs import Inputs
from reparam.capture.runs import record
from reparam.compare.bounds import EXACT, Bounds
from reparam.compare.folds import fold_error
from reparam.compare.verification import Check, Verification
from reparam.compare.verify import verify
from reparam.errors import InputError, ModelError, TrainModeError, VerificationError
from reparam.plan.plan import plan

X = torch.randn(2, 4, 9, 12, generator=torch.Generator().manual_seed(5))  # square nowhere
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


class Do(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


class Original(nn.Module):
    """conv, BN, relu, conv, with every attribute that a fold can lose: bias, groups, stride, dilation, padding."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2)
        self.bn = with_drawn_statistics(nn.BatchNorm2d(6, eps=1e-3))
        self.second = nn.Conv2d(6, 5, (3, 2), stride=2, padding=1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.second(F.relu(self.bn(self.first(x))))
        return y, 3 * y + 1


class Candidate(nn.Module):
    """The original with its BN folded by hand in float64, and attributes for every mutation."""

    def __init__(self, original: Original) -> None:
        super().__init__()
        conv, bn = copy.deepcopy(original.first).double(), copy.deepcopy(original.bn).double()
        self.enter, self.act, self.leave = nn.Identity(), nn.ReLU(), nn.Identity()
        self.first, self.second = conv, copy.deepcopy(original.second).double()
        self.fold(bn.weight / (bn.running_var + bn.eps).sqrt(), bn.running_mean, bn.bias)

    def fold(self, gain: Tensor, mean: Tensor, shift: Tensor) -> None:
        self.first.weight.data = self.first.weight.data * gain.detach().view(-1, 1, 1, 1)
        self.first.bias.data = (self.first.bias.data - mean) * gain.detach() + shift.detach()

    def forward(self, x: Tensor) -> Any:
        y = self.second(self.act(self.first(self.enter(x))))
        return self.leave((y, 3 * y + 1))


def with_drawn_statistics(bn: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """Drawn statistics: default values would hide mistakes."""
    bn.running_mean.normal_(0.0, 0.5)
    bn.running_var.uniform_(0.3, 2.5)
    nn.init.uniform_(bn.weight, 0.5, 1.5)
    nn.init.normal_(bn.bias, 0.0, 0.5)
    return bn


Mutation = Callable[[Candidate, Original], None]


def pair(dtype: torch.dtype, mutate: Mutation | None = None) -> tuple[Original, Candidate, dict[str, Tensor]]:
    """An original, its fold rounded to `dtype`, and the values that were rounded."""
    original = Original().eval().to(dtype)
    candidate = Candidate(original)
    if mutate:
        mutate(candidate, copy.deepcopy(original).double())
    exact = {name: parameter.detach().clone() for name, parameter in candidate.named_parameters()}
    return original, candidate.eval().to(dtype), exact


def attributes(**values: Any) -> Mutation:
    """Change attributes, named as in `first__padding`."""

    def mutate(candidate: Candidate, original: Original) -> None:
        for path, value in values.items():
            *owner, name = path.split("__")
            setattr(candidate.get_submodule(".".join(owner)), name, value)

    return mutate


def kernel(change: Callable[[Tensor], Tensor], of: str = "first.weight") -> Mutation:
    """Change one parameter of the fold."""

    def mutate(candidate: Candidate, original: Original) -> None:
        candidate.get_parameter(of).data = change(candidate.get_parameter(of).data).contiguous()

    return mutate


def refolded(statistics: Callable[[nn.BatchNorm2d], tuple[Tensor, Tensor, Tensor]]) -> Mutation:
    """Fold other statistics than the right ones: (gain, mean, shift)."""

    def mutate(candidate: Candidate, original: Original) -> None:
        candidate.first = original.first
        candidate.fold(*statistics(original.bn))

    return mutate


def right_gain(bn: nn.BatchNorm2d) -> Tensor:
    return bn.weight / (bn.running_var + bn.eps).sqrt()


def out(change: Callable[[Tensor, Tensor], Any]) -> Mutation:
    return attributes(leave=Do(lambda pair: change(*pair)))


def wrong_if(condition: Callable[[Tensor], bool]) -> Mutation:
    return attributes(enter=Do(lambda x: x * 1.01 if condition(x) else x))


MUTANTS: dict[str, Mutation] = {
    "flipped kernel": kernel(lambda w: w.flip(2, 3)),
    "transposed kernel": kernel(lambda w: w.transpose(2, 3)),
    "lost bias": kernel(torch.zeros_like, "first.bias"),
    "doubled bias": kernel(lambda b: 2 * b, "first.bias"),
    "one channel's bias lost": kernel(lambda b: torch.cat([b[:-1], b[:1] * 0]), "first.bias"),
    "two channels swapped": kernel(lambda w: w[[1, 0, 2, 3, 4, 5]]),
    "groups in another order": attributes(enter=Do(lambda x: x.roll(2, 1))),
    "window shifted by one": attributes(enter=Do(lambda x: F.pad(x, (3, 1, 2, 2))), first__padding=(0, 0)),
    "stride phase off by one": attributes(act=Do(lambda y: F.pad(F.relu(y), (1, -1, 1, -1)))),
    "padding forgotten": attributes(first__padding=(0, 0)),
    "padding forgotten, size kept": attributes(
        first__padding=(0, 0), act=Do(lambda y: F.pad(F.relu(y), (2, 2, 2, 2)))
    ),
    "another value in the padding": attributes(
        enter=Do(lambda x: F.pad(x, (2, 2, 2, 2), value=0.1)), first__padding=(0, 0)
    ),
    "dilation dropped": attributes(first__dilation=(1, 1), first__padding=(1, 1)),
    "activation dropped": attributes(act=nn.Identity()),
    "activation leaks": attributes(act=nn.LeakyReLU(0.001)),
    "epsilon forgotten": refolded(lambda bn: (bn.weight / bn.running_var.sqrt(), bn.running_mean, bn.bias)),
    "default epsilon": refolded(lambda bn: (bn.weight / (bn.running_var + 1e-5).sqrt(), bn.running_mean, bn.bias)),
    "mean forgotten": refolded(lambda bn: (right_gain(bn), bn.running_mean * 0, bn.bias)),
    "variance taken for deviation": refolded(
        lambda bn: (bn.weight / (bn.running_var + bn.eps), bn.running_mean, bn.bias)
    ),
    "gamma forgotten": refolded(lambda bn: (right_gain(bn) / bn.weight, bn.running_mean, bn.bias)),
    "beta forgotten": refolded(lambda bn: (right_gain(bn), bn.running_mean, bn.bias * 0)),
    "scaled by 1.0001": kernel(lambda w: w * 1.0001),
    "one tap off by a thousandth": kernel(lambda w: w + 1e-3 * F.one_hot(torch.tensor(40), w.numel()).view_as(w)),
    "batch baked in": out(lambda y, z: (y.reshape(2, *y.shape[1:]), z)),
    "wrong at another batch": wrong_if(lambda x: len(x) != 2),
    "wrong at another size": wrong_if(lambda x: x.shape[2:] != (9, 12)),
    "wrong at the other parity": wrong_if(lambda x: x.shape[2] % 2 == 0),
    "fails at another size": attributes(enter=Do(lambda x: x.reshape(-1, 4, 9, 12))),
    "outputs in another order": out(lambda y, z: (z, y)),
    "one output missing": out(lambda y, z: (y,)),
    "another container": out(lambda y, z: {"y": y, "z": z}),
    "an output added": out(lambda y, z: (y, z, y)),
    "last output alone wrong": out(lambda y, z: (y, z * 1.0001)),
    "layout changed": out(lambda y, z: (y.transpose(2, 3), z)),
    "dtype changed": out(lambda y, z: (y, z.to(torch.float16))),
    "a NaN": out(lambda y, z: (y, z.masked_fill(z == z.max(), float("nan")))),
    "an infinity": out(lambda y, z: (y, z.masked_fill(z == z.max(), float("inf")))),
    "zeros": out(lambda y, z: (y, z * 0)),
    "dropout left on": attributes(act=Do(lambda y: F.dropout(F.relu(y), 0.1, training=True))),
    "raises": attributes(enter=Do(lambda x: x.nonsense)),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("known", [True, False], ids=["exact", "rounded"])
@pytest.mark.parametrize("seed", range(4))
def test_a_right_fold_passes(dtype: torch.dtype, known: bool, seed: int) -> None:
    torch.manual_seed(seed)
    original, candidate, exact = pair(dtype)
    verification = verify(original, candidate, X.to(dtype), exact=exact if known else None, seed=seed)
    assert verification.ok, str(verification)
    names = {check.inputs.rsplit(" ", 1)[0] for check in verification.checks}
    assert names == {"example", "batch", "size", "odd size", "small size"}
    if known:
        assert verification.fp64_error < 1e-13


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.parametrize(
    ("dtype", "known"), [(torch.float64, False), (torch.float32, False), (torch.float32, True), (torch.bfloat16, True)]
)
def test_a_mutant_is_caught(mutant: str, dtype: torch.dtype, known: bool) -> None:
    original, candidate, exact = pair(dtype, MUTANTS[mutant])
    verification = verify(original, candidate, X.to(dtype), exact=exact if known else None)
    assert not verification.ok, str(verification)
    assert verification.worst is not None
    with pytest.raises(VerificationError, match="not equal"):
        verification.raise_if_failed()


def test_batch_norm_folded_through_zero_padding_is_caught() -> None:
    """Wrong at the border alone: the padding zeros are no zeros in front of the norm."""
    bn, conv = with_drawn_statistics(nn.BatchNorm2d(4)).double().eval(), nn.Conv2d(4, 3, 3, padding=1).double()
    gain = bn.weight / (bn.running_var + bn.eps).sqrt()
    shift = bn.bias - bn.running_mean * gain
    folded = copy.deepcopy(conv)
    folded.weight.data = (conv.weight * gain.view(1, -1, 1, 1)).detach()
    folded.bias.data = (conv.bias + torch.einsum("oihw,i->o", conv.weight, shift)).detach()

    def inside(model: nn.Module) -> nn.Module:
        return nn.Sequential(model, Do(lambda y: y[:, :, 1:-1, 1:-1])).eval()

    original = nn.Sequential(bn, conv).eval()
    assert verify(inside(original), inside(folded), X.double()).ok
    assert not verify(original, folded.eval(), X.double()).ok


def test_arithmetic_in_a_lower_dtype_is_caught_in_its_own_dtype_alone() -> None:
    original, candidate, exact = pair(torch.float32, attributes(enter=Do(lambda x: x.half().float())))
    failed = [check for check in verify(original, candidate, X, exact=exact).checks if not check.passed]
    assert {check.kind for check in failed} == {"own dtype"}


def test_a_weight_that_is_not_its_exact_value_rounded_is_caught() -> None:
    original, candidate, exact = pair(torch.bfloat16)
    candidate.first.weight.data.view(-1)[7] *= 1.02  # within the noise of the whole, not of the weight
    verification = verify(original, candidate, X.bfloat16(), exact=exact)
    assert [check.name for check in verification.checks if not check.passed] == ["first.weight"]


def test_a_single_value_does_not_fail_by_chance() -> None:
    """In a single value the rounding error of the original is often nearly zero by chance."""
    for seed in range(20):
        torch.manual_seed(seed)
        original, candidate, exact = pair(torch.bfloat16)
        models = [nn.Sequential(m, Do(lambda pair: pair[0][:1, :1].mean())).eval() for m in (original, candidate)]
        given = {f"0.{name}": value for name, value in exact.items()}
        verification = verify(*models, X.bfloat16(), exact=given, seed=seed)
        assert verification.ok, str(verification)


def argmax(model: nn.Module, among: int = 5) -> nn.Module:
    return nn.Sequential(model, Do(lambda pair: (pair[0][:, :among].argmax(1), pair[0] > 0, pair[1]))).eval()


def test_integer_outputs_are_compared_exactly_and_in_float64_only() -> None:
    original, candidate, exact = pair(torch.float32)
    given = {f"0.{name}": value for name, value in exact.items()}
    verification = verify(argmax(original), argmax(candidate), X, exact=given)
    assert verification.ok, str(verification)
    whole = [check for check in verification.checks if check.name == "out[0]"]
    assert {check.kind for check in whole} == {"fp64"}
    assert all(check.error == 0 and "float64 only" in check.detail for check in whole)
    assert not verify(argmax(original), argmax(candidate, among=4), X, exact=given).ok


def masked(fill: float) -> nn.Module:
    return Do(lambda x: torch.cat([x, torch.full_like(x[:, :1], fill)], 1)).eval()


def test_equal_non_finite_entries_pass_and_are_mentioned() -> None:
    verification = verify(masked(float("-inf")), masked(float("-inf")), X)
    assert verification.ok
    assert all("non-finite" in check.detail for check in verification.checks if check.kind == "fp64")
    assert not verify(masked(float("-inf")), masked(float("nan")), X).ok
    assert not verify(masked(float("-inf")), masked(float("inf")), X).ok
    assert not verify(masked(float("-inf")), masked(0.0), X).ok


def test_huge_mask_values_hide_no_error() -> None:
    def model(scale: float) -> nn.Module:
        return Do(lambda x: torch.cat([x * scale, torch.full_like(x[:, :1], torch.finfo(x.dtype).min)], 1)).eval()

    assert verify(model(1.0), model(1.0), X).ok
    assert not verify(model(1.0), model(1.01), X).ok


def test_random_models_see_the_same_seed_and_leave_the_users_alone() -> None:
    noisy = Do(lambda x: x + torch.randn_like(x)).eval()
    state = torch.get_rng_state()
    assert all(check.passed for check in verify(noisy, noisy, X.double()).checks)
    assert torch.equal(torch.get_rng_state(), state)
    assert not verify(noisy, Do(lambda x: x + torch.rand_like(x)).eval(), X.double()).ok


def test_inputs_that_the_original_rejects_are_recorded() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4 * 9 * 12, 3)).eval()
    verification = verify(model, copy.deepcopy(model), X)
    assert verification.ok
    rejected = [check for check in verification.checks if check.kind == "not accepted"]
    assert [check.inputs.rsplit(" ", 1)[0] for check in rejected] == ["size", "odd size", "small size"]
    assert all("RuntimeError" in check.detail for check in rejected)
    assert verification.summary.endswith(
        "checked at 2 input shapes; the original itself does not take size 2x4x13x12 and odd size 2x4x10x15 and small "
        "size 2x4x5x7"
    )


def test_the_summary_says_where_the_models_were_compared() -> None:
    original, candidate, _ = pair(torch.float64)
    summary = verify(original, candidate, X.double()).summary
    assert summary.endswith("; checked at 5 input shapes")
    alone = verify(original, candidate, X.double(), variants=False).summary
    assert alone.endswith("; checked at 1 input shape")


@pytest.mark.parametrize("fixed", [False, True])
def test_other_sizes_are_compared_on_few_rows_where_the_original_takes_them(fixed: bool) -> None:
    """A few rows of a large batch are enough; a model with a fixed batch needs them all."""
    seen: list[tuple[int, ...]] = []

    def forward(x: Tensor) -> Tensor:
        if fixed and len(x) not in (8, 9):
            raise ValueError("eight rows, or nine")
        seen.append((len(x), x.shape[2]))
        return x * 2

    verification = verify(Do(forward).eval(), Do(lambda x: x + x).eval(), torch.randn(8, 2, 6, 7))
    assert verification.ok
    rows = {size: {count for count, each in seen if each == size} for _, size in seen}
    assert rows == {6: {8, 9} if fixed else {8, 2}, 5: {8} if fixed else {2}, 1: {8} if fixed else {2}}
    assert verification.summary.endswith("; checked at 5 input shapes")


@pytest.mark.parametrize(
    ("step", "example"),
    [
        (1, (12, 12)),
        (1, (6, 6, 6)),
        (4, (16, 16, 16)),
        (32, (32, 32, 32)),
        (32, (32, 32)),
        (32, (224, 224)),
        (1, (40,)),
    ],
)
def test_no_size_costs_more_than_twice_the_example(step: int, example: tuple[int, ...]) -> None:
    """Attention over all pixels takes as much as the square of their number; networks of many levels need multiples."""
    sizes = set()

    def forward(x: Tensor) -> Tensor:
        if any(size % step for size in x.shape[2:]):
            raise ValueError("of no size that can be halved so often")
        sizes.add(tuple(x.shape[2:]))
        return x * 2

    verification = verify(Do(forward).eval(), Do(lambda x: x + x).eval(), torch.randn(1, 2, *example))
    assert verification.ok
    assert [check.inputs for check in verification.checks if check.compared and check.inputs.startswith("size ")]
    pixels = {size: math.prod(size) for size in sizes}
    assert math.prod(example) < max(pixels.values()) <= 2 * math.prod(example)
    assert step > 1 or min(pixels.values()) == 1


@pytest.mark.parametrize("known", [True, False])
def test_weights_are_re_rounded_only_where_the_bound_depends_on_it(known: bool) -> None:
    original, candidate, exact = pair(torch.float32)
    runs = []
    counting = nn.Sequential(Do(lambda x: runs.append(x.dtype) or x), original).eval()
    given = {f"1.{name}": value for name, value in exact.items()}
    same = nn.Sequential(nn.Identity(), candidate).eval()
    assert verify(counting, same, X, exact=given if known else None).ok
    assert runs.count(torch.float64) == runs.count(torch.float32) * (1 if known else 2)


def test_without_variants_only_the_example_is_compared() -> None:
    original, candidate, _ = pair(torch.float64)
    assert {check.inputs for check in verify(original, candidate, X.double(), variants=False).checks} == {
        "example 2x4x9x12"
    }


@pytest.mark.parametrize("role", [0, 1])
def test_train_mode_is_an_error_that_names_the_module(role: int) -> None:
    models = pair(torch.float32)[:2]
    models[role].first.train()
    with pytest.raises(TrainModeError, match=r"(original|candidate): in train mode: first.*eval"):
        verify(*models, X)


def test_an_original_that_fails_is_an_error() -> None:
    original, candidate, _ = pair(torch.float32)
    with pytest.raises(ModelError, match="2x3x9x12"):
        verify(original, candidate, X[:, :3])


@pytest.mark.parametrize("exact", [{"nowhere": torch.ones(1)}, {"first.bias": torch.ones(5)}])
def test_exact_values_that_fit_nothing_are_an_error(exact: dict[str, Tensor]) -> None:
    original, candidate, _ = pair(torch.float32)
    with pytest.raises(InputError, match="exact"):
        verify(original, candidate, X, exact=exact)


def test_a_model_without_numbers_in_its_output_is_not_called_equal() -> None:
    silent = Do(lambda x: None).eval()
    assert not verify(silent, silent, X).ok


def test_numbers_and_flags_beside_tensors_count() -> None:
    def model(number: float, flag: bool) -> nn.Module:
        return Do(lambda x: {"y": x, "loss": number, "flag": flag}).eval()

    assert verify(model(1.5, True), model(1.5, True), X).ok
    assert not verify(model(1.5, True), model(1.6, True), X).ok
    assert not verify(model(1.5, True), model(1.5, False), X).ok


def test_neither_model_nor_input_is_changed() -> None:
    original, candidate, exact = pair(torch.float32, attributes(enter=Do(lambda x: x.mul_(1.0))))
    models, x = (original, candidate), X.clone()
    original.register_buffer("calls", torch.zeros(1))
    original.register_forward_pre_hook(lambda module, args: module.calls.add_(1) and None)
    before = [copy.deepcopy(model.state_dict()) for model in models]
    verify(*models, x, exact=exact)
    assert torch.equal(x, X)
    for model, state in zip(models, before, strict=True):
        assert model.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert not any(module.training for module in model.modules())


def test_keyword_inputs() -> None:
    model = Do(lambda x, scale: x * scale).eval()
    other = Do(lambda x, scale: x + scale).eval()
    inputs = {"x": X, "scale": torch.randn(4, 1, 1)}
    assert verify(model, model, inputs).ok
    assert not verify(model, other, inputs).ok


def test_errors_of_the_original_in_its_own_dtype_are_found() -> None:
    def model(absurd: float) -> nn.Module:
        return Do(lambda x: (x * 2, x * absurd if x.dtype == torch.float32 else x)).eval()

    for absurd in (1e20, float("nan"), -1.0):
        found = verify(model(absurd), model(3.0), X)
        assert found.ok
        assert [finding.partition(":")[0] for finding in found.findings] == ["out[1]"]
        assert "Found: out[1]" in found.summary
    assert not verify(model(1.0), model(3.0), X).findings
    assert not verify(model(1.0), model(3.0), X).ok


def test_the_result_prints_and_pickles() -> None:
    original, candidate, exact = pair(torch.float32)
    right = verify(original, candidate, X, exact=exact)
    wrong = verify(original, pair(torch.float32)[1], X)
    assert "equal: float64 error" in str(right)
    assert "example 2x4x9x12" in str(right)
    assert "NOT EQUAL" in str(wrong)
    assert "FAILED" in str(wrong)
    assert right.raise_if_failed() is right
    assert 0 < right.noise_floor < 1e-5
    assert 0 < right.own_error < 1e-5
    for verification in (right, wrong):
        assert str(pickle.loads(pickle.dumps(verification))) == str(verification)


def test_the_worst_check_is_the_one_furthest_beyond_its_bound() -> None:
    checks = [Check(name, "x", "fp64", error, bound, 0.0, error <= bound) for name, error, bound in
              [("a", 1e-3, 1e-4), ("b", 1e-4, 1e-10), ("c", 1.0, 2.0)]]  # fmt: skip
    worst = Verification(tuple(checks)).worst
    assert worst is not None
    assert worst.name == "b"


def test_the_exact_bound_lies_between_rounding_and_mistakes() -> None:
    assert 1e-13 < EXACT < 1e-9


@pytest.mark.parametrize("noise", [0.0, 1e-9, 1e-6, 0.3])
@pytest.mark.parametrize("dtype", [None, *DTYPES], ids=str)
def test_the_bounds_are_what_the_documents_say(dtype: torch.dtype | None, noise: float) -> None:
    """3 times the noise, and what no model is without: 4 eps of its dtype."""
    eps = torch.finfo(dtype).eps if dtype else 0.0
    bounds, part = Bounds(eps), torch.finfo(torch.float64).eps / eps if dtype else 0.0
    assert bounds.float64(noise) == max(EXACT, 3 * noise * part)
    assert Bounds(eps, rounded=True).float64(noise) == max(EXACT, 3 * noise)
    assert bounds.own_dtype(noise) == max(EXACT, 4 * eps, 3 * noise)
    assert bounds.timed(noise, other_runtime=False) == max(EXACT, 4 * eps, 3 * noise)
    assert bounds.timed(noise, other_runtime=True) == max(EXACT, 4 * eps, 9 * noise)
    assert Bounds.rebuilt(noise) == max(EXACT, 30 * noise)


class _Steep(nn.Module):
    """The sine of large numbers: an ulp of float32 in a weight moves it anywhere, one of float64 by less than 1e-9."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bn = nn.Linear(8, 8), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.bn(self.linear(x)) * 1e6)


def _steep(off: float) -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
    """The network, its fold by hand with an error of `off` relative to its weights, and the float64 weights."""
    torch.manual_seed(3)
    original = _Steep().eval()
    original.bn.running_mean.normal_()
    original.bn.running_var.uniform_(0.5, 2.0)
    candidate = copy.deepcopy(original)
    linear, bn = copy.deepcopy(original.linear).double(), copy.deepcopy(original.bn).double()
    gain = (bn.running_var + bn.eps).rsqrt() * bn.weight.detach()
    exact = {
        "linear.weight": linear.weight.detach() * gain[:, None] * (1 + off),
        "linear.bias": (linear.bias.detach() - bn.running_mean) * gain + bn.bias.detach(),
    }
    candidate.bn = nn.Identity().eval()
    for name, value in exact.items():
        candidate.get_parameter(name).data.copy_(value)
    return original, candidate, exact


def test_a_network_that_magnifies_rounding_gets_a_wider_bound() -> None:
    original, candidate, exact = _steep(0.0)
    x = torch.randn(64, 8)
    right = verify(original, candidate, x, exact=exact)
    checks = [check for check in right.checks if check.kind == "fp64"]
    assert right.ok
    assert max(check.error for check in checks) > EXACT  # as any two orders of summation are
    original, candidate, exact = _steep(1e-13)  # far below an ulp of float32
    assert not verify(original, candidate, x, exact=exact).ok


def test_a_candidate_that_is_no_module_is_compared_in_its_own_dtype() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    x = torch.randn(2, 3, 9, 11)

    def flat(x: Tensor) -> list[Tensor]:
        return [model(x)]

    outcome = verify(model, flat, x)
    assert outcome.ok
    assert {check.kind for check in outcome.checks} == {"own dtype"}
    assert "float64" not in outcome.summary
    assert not verify(model, lambda x: model(x) * 1.001, x).ok
    assert not verify(model, lambda x: model(x)[:1], x).ok
    with pytest.raises(InputError, match="no weights to compare"):
        verify(model, flat, x, exact={"0.weight": torch.ones(1)})


def test_a_candidate_that_is_no_module_and_returns_whole_numbers() -> None:
    model = nn.Conv2d(3, 4, 3).eval()
    x = torch.randn(2, 3, 9, 11)

    class Classes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = self.model(x)
            return {"scores": y, "classes": y.argmax(1)}

    original = Classes().eval()
    assert verify(original, lambda x: tuple(original(x).values()), x).ok
    assert not verify(original, lambda x: (original(x)["scores"], original(x)["classes"] * 0), x).ok
    assert not verify(original, lambda x: original(x)["scores"], x).ok


def test_a_fold_whose_result_has_another_shape_is_not_exact() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    (fold,) = plan(record(model, Inputs.of(torch.randn(2, 3, 7, 5)))).folds
    generator = torch.Generator().manual_seed(0)
    assert fold_error(fold, generator) <= EXACT
    assert fold_error(replace(fold, value=fold.value.take([0, 1])), generator) == float("inf")


@pytest.mark.parametrize(("times", "ok"), [(0.7, True), (2.0, False), (3.0, False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_bound_of_the_own_dtype_is_the_bound(dtype: torch.dtype, times: float, ok: bool) -> None:
    """A candidate that is exact in float64 and off by a multiple of the bound in its own dtype."""
    layer = nn.Linear(12, 5).eval().to(dtype)

    def off_by(part: float) -> nn.Module:
        return nn.Sequential(layer, Do(lambda y: y if y.dtype == torch.float64 else y.float() * (1 + part))).eval()

    original = nn.Sequential(layer, Do(lambda y: y if y.dtype == torch.float64 else y.float())).eval()
    exact = {"0.weight": layer.weight.detach().double(), "0.bias": layer.bias.detach().double()}
    bounds = {
        check.bound
        for seed in range(3)
        for check in verify(original, original, X.to(dtype), exact=exact, seed=seed).checks
        if check.kind == "own dtype"
    }
    verification = verify(original, off_by(times * max(bounds) * (1 if ok else 1.2)), X.to(dtype), exact=exact)
    failed = {check.kind for check in verification.checks if not check.passed}
    assert failed == (set() if ok else {"own dtype"}), str(verification)
