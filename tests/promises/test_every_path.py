"""Code that does what neither a record nor a trace shows: what depends on it is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

import reparam
from tests.helpers import EXACT, Block, Forward, convs_ran, distance, image, norms_ran, trained, trained_and_converted

SIZES = [(2, 4, 5, 6), (1, 4, 3, 3), (2, 4, 7, 9)]


def equal(model: nn.Module) -> int:
    """How many folds are made, all of them exact at every size."""
    folded = reparam.reparameterize(model, image(*SIZES[0]), verify=False)
    for size in SIZES:
        assert distance(model, folded, image(*size)) < EXACT, size
    return len(folded.reparam_report.folds)


# --- tensors in the place of a module's own, for one call


class _Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight)


class _Scaled(_Own):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def _parametrized() -> nn.Module:
    conv = nn.Conv2d(4, 4, 1)
    parametrize.register_parametrization(conv, "weight", _Scaled())
    return conv


def _by_hand(m: nn.Module, x: Tensor) -> Tensor:
    weight = m.conv.weight
    del m.conv.weight
    m.conv.weight = weight * 2
    y = m.conv(x)
    del m.conv.weight
    m.conv.weight = weight
    return m.bn(y)


LENT: dict[str, Forward] = {
    "to a layer": lambda m, x: m.bn(functional_call(m.conv, {"weight": m.conv.weight * 2}, (x,))),
    "to a norm": lambda m, x: m.conv(functional_call(m.bn, {"weight": m.bn.weight * 2}, (x,))),
    "to a layer inside": lambda m, x: functional_call(m.both, {"0.weight": m.conv.weight * 2}, (x,)),
    "to code": lambda m, x: m.bn(functional_call(m.own, {"weight": m.own.weight * 2}, (x,))),
    "to a parametrization": lambda m, x: m.bn(
        functional_call(m.made, {"parametrizations.weight.0.weight": m.own.weight * 3}, (x,))
    ),
    "before code that is rewritten": lambda m, x: m.bn(
        functional_call(m.conv, {"weight": m.conv.weight * 2}, (x,)) + m.other(x)
    ),
    "by hand": _by_hand,
}


@pytest.mark.parametrize("name", LENT)
def test_functional_call_with_other_weights_is_kept(name: str) -> None:
    conv, bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    members = {"conv": conv, "bn": bn, "both": nn.Sequential(conv, bn), "other": nn.Conv2d(4, 4, 1)}
    assert equal(trained(Block(LENT[name], own=_Own(), made=_parametrized(), **members))) == 0


def test_functional_call_with_the_modules_own_weights_folds() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.bn(functional_call(m.conv, dict(m.conv.named_parameters()), (x,)))

    assert equal(trained(Block(forward, conv=nn.Conv2d(4, 4, 1), bn=nn.BatchNorm2d(4)))) == 1


# --- exceptions that are caught


def _another_way(m: nn.Module, x: Tensor) -> Tensor:
    y = m.conv(x)
    try:
        m.large(y)
        y = m.bn(y)
    except RuntimeError:
        pass
    return y


def _in_a_helper(m: nn.Module, x: Tensor) -> Tensor:
    def normed(y: Tensor) -> Tensor:
        try:
            return m.bn(F.max_pool2d(y, 5))
        except (ValueError, RuntimeError):
            return y

    return normed(m.conv(x))


def _by_a_size(m: nn.Module, x: Tensor) -> Tensor:
    y = m.conv(x)
    height = y.shape[2]
    try:
        y = y * (1 / (height - 3) / (1 / (height - 3)))
    except ZeroDivisionError:
        return y
    return m.bn(y)


def _suppressed(m: nn.Module, x: Tensor) -> Tensor:
    y = m.conv(x)
    with suppress(RuntimeError):
        m.large(y)
        y = m.bn(y)
    return y


@pytest.mark.parametrize("forward", [_another_way, _in_a_helper, _by_a_size, _suppressed])
def test_code_behind_a_caught_exception_is_kept(forward: Forward) -> None:
    members = {"conv": nn.Conv2d(4, 4, 1), "bn": nn.BatchNorm2d(4), "large": nn.Conv2d(4, 4, 4)}
    assert equal(trained(Block(forward, **members))) == 0


def test_a_block_inside_try_folds() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        try:
            return m.block(x)
        except RuntimeError:
            return x

    block = nn.Sequential(nn.Conv2d(4, 4, 4), nn.BatchNorm2d(4))
    assert equal(trained(Block(forward, block=block))) == 1


def test_exceptions_that_no_input_raises_are_ignored() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        try:
            y = m.conv(x)
        except TypeError:
            y = m.conv(x, None)
        try:
            y = y * 1
        except (AttributeError, TypeError):
            y = y + 1
        try:
            with torch.no_grad():
                return m.bn(sum([each * 1 for each in (y,)]))
        finally:
            m.eval()

    assert equal(trained(Block(forward, conv=nn.Conv2d(4, 4, 1), bn=nn.BatchNorm2d(4)))) == 1


# --- code that asks whether gradients are recorded


# --- modules that say what another one is to do


class _Says(nn.Module):
    """Returns whether an image is high, alone or beside a tensor."""

    def __init__(self, beside: bool) -> None:
        super().__init__()
        self.beside = beside

    def forward(self, x: Tensor) -> bool | tuple[Tensor, bool]:
        high = x.shape[2] > 4
        return (x, high) if self.beside else high


@pytest.mark.parametrize("beside", [False, True])
def test_a_module_may_return_a_bool_that_depends_on_the_size(beside: bool) -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        said = m.says(x)
        y = m.conv(x)
        return m.bn(y) if (said[1] if beside else said) else y

    model = Block(forward, conv=nn.Conv2d(4, 4, 1), bn=nn.BatchNorm2d(4), says=_Says(beside))
    assert equal(trained(model)) == 0


class _Answers(nn.Module):
    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(x)


ANSWERS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], bool]]] = {
    "a list": (lambda x: [x] * (x.shape[2] // 3), lambda said: len(said) == 1),
    "pieces": (lambda x: x.unbind(2), lambda said: len(said) == 5),
    "pieces of pieces": (lambda x: (x, [*x.unbind(2)]), lambda said: len(said[1]) == 5),
    "nothing": (lambda x: None if x.shape[2] == 5 else x, lambda said: said is None),
    "a string": (lambda x: "high" if x.shape[2] > 6 else "low", lambda said: said == "low"),
    "a dict": (lambda x: {"high" if x.shape[2] > 6 else "low": x}, lambda said: "low" in said),
    "a function": (lambda x: len if x.shape[2] == 5 else max, lambda said: said is len),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_module_may_return_another_object_that_depends_on_the_size(name: str) -> None:
    answer, normalizes = ANSWERS[name]

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        said = m.answers(x)
        return m.bn(m.conv(x)) if normalizes(said) else m.conv(x)

    model = Block(forward, conv=nn.Conv2d(4, 4, 1), bn=nn.BatchNorm2d(4), answers=_Answers(answer))
    assert equal(trained(model)) == 0


def test_a_module_may_return_none_at_other_sizes() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y, there = m.conv(x), m.answers(x)
        return m.bn(y) if there is not None else y

    model = Block(forward, conv=nn.Conv2d(4, 4, 1), bn=nn.BatchNorm2d(4))
    model.answers = _Answers(lambda x: x if x.shape[2] == 5 else None)
    assert equal(trained(model)) == 0


def test_unpacked_outputs_fold() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        a, b = m.answers(x)
        return m.bn(m.conv(a)).relu() + b

    model = Block(forward, conv=nn.Conv2d(4, 4, 1), bn=nn.BatchNorm2d(4))
    model.answers = _Answers(lambda x: (x, x.relu().reshape(x.shape)))
    assert equal(trained(model)) == 1


class _Told(nn.Module):
    """A convolution, and a norm behind it if its caller says so."""

    def __init__(self, normalizes: Callable[[Any], bool]) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.normalizes = normalizes

    def forward(self, x: Tensor, how: Any = None) -> Tensor:
        y = self.conv(x)
        return self.bn(y) if self.normalizes(how) else y


class _Hands(_Told):
    """The same module behind one that passes its argument on."""

    def forward(self, x: Tensor, how: Any = None) -> Tensor:
        return self.inner(x, how=how)


class _Given(_Told):
    """A convolution, and a norm behind it if there is another image."""

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        y = self.conv(x)
        if other is not None:
            y = self.bn(y)
        return y


class _Missing(_Told):
    def forward(self, x: Tensor, other: Tensor | None) -> Tensor:
        y, alone = self.conv(x), other is None
        return self.bn(y) if alone else y


def _sizes_apart(x: Tensor) -> bool:
    """Whether an image of SIZES is as high as the example."""
    return 4 < x.shape[2] < 7


TELLS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], bool]]] = {
    "a flag": (_sizes_apart, bool),
    "a string": (lambda x: "norm" if _sizes_apart(x) else "plain", lambda how: how == "norm"),
    "a list": (lambda x: [_sizes_apart(x)], lambda how: how[0]),
    "a dict": (lambda x: {"norm": _sizes_apart(x)}, lambda how: how["norm"]),
    "a function": (lambda x: bool if _sizes_apart(x) else len, lambda how: how is bool),
}


@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize("name", TELLS)
def test_a_caller_may_pass_an_argument_that_depends_on_the_size(name: str, between: bool) -> None:
    tell, normalizes = TELLS[name]
    told = _Told(normalizes)
    if between:
        told = _Hands(normalizes)
        told.inner = _Told(normalizes)
    model = trained(Block(lambda m, x: m.told(x, tell(x)), told=told))
    assert equal(model) == 0


@pytest.mark.parametrize(("kind", "given"), [(_Given, _sizes_apart), (_Missing, lambda x: not _sizes_apart(x))])
def test_a_caller_may_pass_none_at_other_sizes(kind: type[_Told], given: Callable[[Tensor], bool]) -> None:
    assert equal(trained(Block(lambda m, x: m.told(x, x if given(x) else None), told=kind(bool)))) == 0


def test_constant_arguments_fold() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.flag(m.other(x, x).relu().reshape(x.shape), True)

    assert equal(trained(Block(forward, flag=_Told(bool), other=_Given(bool)))) == 2


class _HandsOn(_Told):
    """Passes its arguments on without using them."""

    def forward(self, x: Tensor, *rest: Any, **kwargs: Any) -> Tensor:
        y = self.bn(self.conv(x))
        return self.inner(y.relu(), **kwargs)


class _Counts(_Told):
    """It asks for the number of its own modules, not for that of its arguments."""

    def __init__(self) -> None:
        super().__init__(bool)
        self.scale = nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        y = self.bn(self.conv(x)) if len(self._modules) == 2 else x
        return y * self.scale


class _Requires(_Told):
    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        if other is not None:
            raise ValueError("one is enough")
        return self.bn(self.conv(x))


def test_arguments_that_decide_nothing_fold() -> None:
    told = _HandsOn(bool)
    told.inner = _Told(bool)
    assert equal(trained(Block(lambda m, x: m.told(x, how=_sizes_apart(x)), told=told))) == 1
    assert equal(trained(Block(lambda m, x: m.told(x, None if len(x) else x), told=_Requires(bool)))) == 1
    assert equal(trained(Block(lambda m, x: m.told(x, x if len(x) else None), told=_Counts()))) == 1


# --- attributes that are set on other modules


class _Attribute(_Told):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) if self.how else y


class _Rows(_Told):
    """Tokens; an attribute says how many of them are a row of the image."""

    def forward(self, x: Tensor) -> Tensor:
        image = x.transpose(1, 2).unflatten(2, (self.rows, -1))
        return self.bn(self.conv(image))


def _sets(m: nn.Module, x: Tensor) -> Tensor:
    m.told.how = _sizes_apart(x)
    return m.told(x)


def _sets_rows(m: nn.Module, x: Tensor) -> Tensor:
    m.told.rows = x.shape[2]
    return m.told(x.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("branches", [False, True])
@pytest.mark.parametrize(("kind", "forward"), [(_Attribute, _sets), (_Rows, _sets_rows)])
def test_a_module_may_set_attributes_of_another_module(
    kind: type[_Told], forward: Callable[[nn.Module, Tensor], Tensor], branches: bool
) -> None:
    """The same where the code that sets them would be rewritten."""

    def outer(m: nn.Module, x: Tensor) -> Tensor:
        return forward(m, m.a(x) + m.b(x) if branches else x)

    model = Block(outer, told=kind(bool), a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 4, 3, padding=1))
    assert equal(trained(model, image(*SIZES[0]))) == (kind is _Rows)


def test_setting_its_own_attributes_and_eval_folds() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        m.size = x.shape
        m.inner.eval()
        return m.inner(x)

    setting = nn.Module.__setattr__
    assert equal(trained(Block(forward, inner=nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))))) == 1
    assert nn.Module.__setattr__ is setting


# --- questions whose answer is no number

QUESTIONS: dict[str, Callable[[Tensor], Any]] = {
    "is it in a set": lambda x: x.shape[2] not in {7},
    "is it a key": lambda x: {7: False}.get(x.shape[2], True),
    "are all of them a key": lambda x: tuple(x.shape) not in {SIZES[2]},
    "its hash": lambda x: hash(x.shape[2]) != 7,
    "the text of a size": lambda x: f"{x.shape[2]}" != "7",
    "the text of all": lambda x: str(x.shape) != "torch.Size([2, 4, 7, 9])",
    "the text of a tensor": lambda x: repr(x[0, 0, 0]).count(",") < 8,
    "is it of one size": lambda x: x.is_same_size(torch.zeros(SIZES[0])),
    "how many rows": lambda x: len(x.unbind(2)) == 5,
    "how many pieces": lambda x: len(x.split(3, 2)) < 3,
    "how many parts": lambda x: len(torch.chunk(x, 6, 2)) < 6,
    "its memory": lambda x: x.untyped_storage().nbytes() < 8 * 300,
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_question_about_a_size_is_seen(name: str) -> None:
    model = Block(lambda m, x: m.bn(m.conv(x)) if QUESTIONS[name](x) else m.conv(x))
    model.conv, model.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    assert equal(trained(model)) == 0


@pytest.mark.parametrize("asks", [lambda x: x.is_contiguous(), lambda x: x.stride(1) > 1, lambda x: x.stride()[1] > 1])
def test_code_may_ask_for_strides(asks: Callable[[Tensor], bool]) -> None:
    model = Block(lambda m, x: m.bn(m.conv(x)) if asks(x) else m.conv(x), conv=nn.Conv2d(4, 4, 1), bn=nn.BatchNorm2d(4))
    folded = reparam.reparameterize(trained(model), image(*SIZES[0]), verify=False)
    assert distance(model, folded, image(*SIZES[1]).to(memory_format=torch.channels_last)) < EXACT


def test_error_messages_and_unpacked_chunks_decide_nothing() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        torch._assert(x.shape[2] > 2, f"{x.shape[2]} rows are too few")
        if x.shape[3] < 3:
            raise ValueError(f"{x.shape[3]} columns")
        a, b = m.conv(x).chunk(2, 1)
        return m.bn(torch.cat([a, b], 1).chunk(2, 1)[0])

    assert equal(trained(Block(forward, conv=nn.Conv2d(4, 4, 1), bn=nn.BatchNorm2d(2)))) == 1


class _AddsToAConstant(nn.Module):
    """Adds an optional argument to a table, which is a constant without it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.table = nn.Parameter(torch.randn(1, 1, 8, 8))

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        table = self.table.sigmoid()
        if more is not None:
            table = table + more
        return (self.first(x) + self.second(x)).relu() * table


def test_an_optional_argument_that_was_none_stays_none() -> None:
    """A symbolic trace sees a value in every argument; the new code must not compute with None."""
    x = torch.randn(2, 4, 8, 8)
    folded = trained_and_converted(nn.Sequential(_AddsToAConstant()), x)
    assert convs_ran(folded, x) == 1


class _PadsBySize(nn.Module):
    """As TensorFlow pads: by more on one side, depending on whether the stride divides the size."""

    def __init__(self, strays: bool = False) -> None:
        super().__init__()
        self.strays = strays
        self.conv = nn.Conv2d(4, 4, 3, stride=2)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        down = 1 if height % 2 == 0 else 2
        right = 1 if width % 2 == 0 else 2
        y = self.conv(F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2)))
        if self.strays and width > 100:
            return y
        return self.bn(y)


def test_branches_on_sizes_that_join_again_are_followed() -> None:
    # transformers mobilenet_v1, mobilenet_v2: all batch norms were left.
    x = torch.randn(2, 4, 9, 8)
    model = nn.Sequential(_PadsBySize(), nn.ReLU())
    folded = trained_and_converted(model, x)
    assert (convs_ran(folded, x), norms_ran(folded, x)) == (1, 0)
    for size in ((9, 9), (8, 9), (8, 8), (3, 10)):
        other = torch.randn(1, 4, *size)
        torch.testing.assert_close(folded(other), model(other), atol=1e-5, rtol=1e-5)


def test_a_branch_on_a_size_that_returns_early_is_refused() -> None:
    x = torch.randn(2, 4, 9, 8)
    model = nn.Sequential(_PadsBySize(strays=True), nn.ReLU())
    folded = trained_and_converted(model, x)
    assert norms_ran(folded, x) == 1
    wide = torch.randn(1, 4, 9, 120)
    torch.testing.assert_close(folded(wide), model(wide))


class _NormedIfLarge(nn.Module):
    """Returns its input at some sizes, in the container that `how` makes, as the first entry."""

    def __init__(self, how: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.how = how
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> object:
        return self.how(self.norm(x) if x.shape[-1] > 5 else x)


class _WithinAnother(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> object:
        return self.inner(x), x.sigmoid()


def _summed(m: nn.Module, x: Tensor) -> Tensor:
    return m.first(x) + m.second(m.between(x)[0])


def _one_behind_another(m: nn.Module, x: Tensor) -> Tensor:
    return m.second(m.between(m.first(x))[0])


@pytest.mark.parametrize("forward", [_summed, _one_behind_another])
@pytest.mark.parametrize(
    "between",
    [
        nn.Sequential(_NormedIfLarge(lambda y: y), nn.Unflatten(0, (1, -1))),
        _NormedIfLarge(lambda y: (y, y.relu())),
        _NormedIfLarge(lambda y: [y]),
        _WithinAnother(_NormedIfLarge(lambda y: y)),
    ],
    ids=["alone", "with another", "in a list", "by a module inside"],
)
def test_a_module_may_return_its_input_or_a_new_tensor_by_the_size(
    between: nn.Module, forward: Callable[[nn.Module, Tensor], Tensor]
) -> None:
    layers = {"first": nn.Conv2d(4, 4, 1), "between": copy.deepcopy(between), "second": nn.Conv2d(4, 4, 1)}
    model = trained(Block(forward, **layers))
    folded = reparam.reparameterize(model, image(1, 4, 4, 4), verify=False)
    for size in [(4, 4), (1, 1), (7, 7), (3, 6)]:
        assert distance(model, folded, image(2, 4, *size)) < EXACT


def test_a_module_that_always_returns_its_input_folds() -> None:
    layers = {"first": nn.Conv2d(4, 4, 1), "between": _WithinAnother(nn.Identity()), "second": nn.Conv2d(4, 4, 1)}
    model = trained(Block(_one_behind_another, **layers))
    folded = reparam.reparameterize(model, image(1, 4, 4, 4))
    assert convs_ran(folded, image(1, 4, 4, 4)) == 1
