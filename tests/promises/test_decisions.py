"""Whatever code concludes from a size, and whatever carries the news: folds are right at every size."""

from __future__ import annotations

import contextvars
import copy
import functools
import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.helpers import EXACT, Block, conv, convs_ran, distance, image, norms_ran, report_of, seq, trained

EXAMPLE = (2, 4, 9, 7)
SIZES = (EXAMPLE, (2, 4, 3, 3), (1, 4, 4, 13), (1, 4, 1, 2), (3, 4, 6, 8), (2, 4, 17, 16), (1, 4, 5, 5))

_registry: dict[str, Any] = {}
_stack: list[bool] = []
_context = contextvars.ContextVar("large", default=True)
_weak: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


class _Flag:
    value = True


@dataclass
class _Setting:
    large: bool = True


@functools.lru_cache(maxsize=8)
def _cached(height: int) -> bool:
    return height > 4


def _generated(x: Tensor) -> Iterator[bool]:
    yield x.shape[2] > 4


def _by_exception(x: Tensor) -> bool:
    try:
        [0, 1, 2, 3, 4][x.shape[2]]
    except IndexError:
        return True
    return False


def _by_failure(x: Tensor) -> bool:
    try:
        F.conv2d(x, torch.ones(1, 4, 5, 1, dtype=x.dtype))
    except RuntimeError:
        return False
    return True


def _by_match(x: Tensor) -> bool:
    match x.shape:
        case (_, _, 1 | 2 | 3 | 4, _):
            return False
    return True


def _by_registry(x: Tensor) -> bool:
    _registry["large"] = x.shape[2] > 4
    return bool(_registry["large"])


def _by_stack(x: Tensor) -> bool:
    _stack.append(x.shape[2] > 4)
    return _stack.pop()


def _by_class_attribute(x: Tensor) -> bool:
    _Flag.value = x.shape[2] > 4
    return _Flag.value


def _by_context(x: Tensor) -> bool:
    _context.set(x.shape[2] > 4)
    return _context.get()


def _by_weak_dictionary(x: Tensor) -> bool:
    holder = _Shared()
    holder.large = x.shape[2] > 4
    _weak[0] = holder
    return bool(_weak[0].large)


def _by_default(x: Tensor, seen: list[int] = []) -> bool:  # noqa: B006
    seen[:] = [x.shape[2]]
    return seen[0] > 4


def _by_closure(x: Tensor) -> bool:
    height = x.shape[2]
    return (lambda: height > 4)()


def _by_key(x: Tensor) -> bool:
    return {1: False, 2: False, 3: False, 4: False}.get(x.shape[2], True)


WAYS: dict[str, Callable[[Tensor], Any]] = {
    "comparison": lambda x: x.shape[2] > 4,
    "closure": _by_closure,
    "lru_cache": lambda x: _cached(x.shape[2]),
    "class attribute": _by_class_attribute,
    "generator": lambda x: next(_generated(x)),
    "dataclass": lambda x: _Setting(x.shape[2] > 4).large,
    "numpy scalar": lambda x: np.int64(x.shape[2]) > 4,
    "numpy array": lambda x: bool((np.array(x.shape[2:]) > 4).all()) or x.shape[2] > 4,
    "exception of Python": _by_exception,
    "exception of torch": _by_failure,
    "match": _by_match,
    "weak dictionary": _by_weak_dictionary,
    "context variable": _by_context,
    "registry of a file": _by_registry,
    "stack of a file": _by_stack,
    "mutable default": _by_default,
    "dictionary": _by_key,
    "sorting": lambda x: sorted([4, x.shape[2]])[0] == 4 and x.shape[2] != 4,
    "arithmetic of torch.Size": lambda x: (x.shape[2:] + x.shape[:1]).numel() > 8 * x.shape[0] * x.shape[3] / 2,
    "isqrt": lambda x: math.isqrt(x.shape[2]) > 2,
    "divmod": lambda x: divmod(x.shape[2], 5)[0] > 0,
    "text": lambda x: int(f"{x.shape[2]}") > 4,
    "torch.tensor": lambda x: bool((torch.tensor(x.shape[2:]) > 4)[0]),
    "any": lambda x: any(size > 4 for size in x.shape[2:3]),
    "all": lambda x: all(size > 4 for size in [x.shape[2]]),
    "min with a key": lambda x: min((x.shape[2], 5), key=lambda size: size) == 5,
    "max": lambda x: max(4, x.shape[2]) != 4,
    "range": lambda x: len(range(0, x.shape[2], 5)) > 1,
    "slice": lambda x: len("abcdefgh"[4 : x.shape[2]]) > 0,
    "length of a tensor": lambda x: len(x[0, 0]) > 4,
    "number of chunks": lambda x: len(x.split(4, 2)) > 1,
    "value of a tensor": lambda x: int(torch.ones(x.shape[2]).sum()) > 4,
    "number in a tensor": lambda x: torch.tensor(x.shape[2]).item() > 4,
    "numbers in a tensor": lambda x: bool(torch.tensor(x.shape).amax() > 7),
    "real type": lambda x: x.shape[2] > 4 if type(x.shape[2]) is int else True,
    "strides": lambda x: x.contiguous().stride(1) > 4 * x.contiguous().stride(2),
    "same size": lambda x: not x.is_same_size(x[:, :, :4]),
}


def _exact_at_every_size(model: nn.Module, sizes: Any = SIZES, **options: Any) -> nn.Module:
    """Both models are called at every size, one after the other, so what they keep plays a part."""
    x = image(*EXAMPLE)
    model = trained(model, x)
    folded = reparam.reparameterize(copy.deepcopy(model), x, verify=False, **options)
    for seed, size in enumerate((*sizes, *reversed(sizes))):
        x = image(*size, seed=seed)
        assert distance(model, folded, x) < EXACT, (size, folded.reparam_report)
    return folded


@pytest.mark.parametrize("way", WAYS)
def test_a_norm_that_small_images_do_without(way: str) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        return (m.norm(y) if WAYS[way](x) else y).relu()

    folded = _exact_at_every_size(Block(forward, conv=conv(4, 4, 3, padding=1), norm=nn.BatchNorm2d(4)))
    assert norms_ran(folded, image(*EXAMPLE)) == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_norm_that_all_images_pass(way: str) -> None:
    """Code that goes another way behind it is no reason to keep it."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.norm(m.conv(x))
        return y if WAYS[way](x) else y * 2

    folded = _exact_at_every_size(Block(forward, conv=conv(4, 4, 3, padding=1), norm=nn.BatchNorm2d(4)))
    assert norms_ran(folded, image(*EXAMPLE)) == 0


# --- news of a size that travels between modules


def _exists(value: Any) -> bool:
    return value is not None


class _Asks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.conv(x)
        return (self.norm(y) if _exists(mask) else y).relu()


def test_a_tensor_that_is_missing_for_small_images() -> None:
    _exact_at_every_size(Block(lambda m, x: m.inner(x, x if x.shape[2] > 4 else None), inner=_Asks()))


def test_a_tensor_or_another_one() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        small = m.conv(x) if x.shape[2] <= 4 else None
        return m.norm(m.conv(x)).relu() if small is None else small

    _exact_at_every_size(Block(forward, conv=conv(4, 4, 3, padding=1), norm=nn.BatchNorm2d(4)))


class _Shared:
    """A plain object that two modules hold."""

    large = True


class _Tells(nn.Module):
    def __init__(self, tell: Callable[[Any], None]) -> None:
        super().__init__()
        self.tell = tell

    def forward(self, x: Tensor) -> Tensor:
        self.tell(x.shape[2] > 4)
        return x.tanh()


class _IsTold(_Asks):
    def __init__(self, ask: Callable[[], Any]) -> None:
        super().__init__()
        self.ask = ask

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.conv(x)
        return (self.norm(y) if self.ask() else y).relu()


_shared = _Shared()
_between: list[Any] = []
CARRIERS: dict[str, tuple[Callable[[Any], None], Callable[[], Any]]] = {
    "object": (lambda large: setattr(_shared, "large", large), lambda: _shared.large),
    "dictionary": (lambda large: _registry.update(shared=large), lambda: _registry["shared"]),
    "list": (_between.append, _between.pop),
}


@pytest.mark.parametrize("carrier", CARRIERS)
def test_news_that_one_module_leaves_for_another(carrier: str) -> None:
    tell, ask = CARRIERS[carrier]
    _exact_at_every_size(seq(_Tells(tell), _IsTold(ask)))


class _Compares(nn.Module):
    """Compares a size that it sees with one that it was not handed, and uses the one that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(4, 4, 3, padding=1), conv(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] * 2 + _registry["height"] < 4:
            raise ValueError("too small")
        return (self.a(x) + self.b(x))[:, :, : x.shape[2] * 2 - 1]


def test_a_size_that_code_was_not_handed() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        _registry["height"] = x.shape[2]
        return m.inner(F.avg_pool2d(x, 2, ceil_mode=True))

    model = Block(forward, inner=_Compares())
    assert convs_ran(_exact_at_every_size(model, [size for size in SIZES if size[2] > 1]), image(*EXAMPLE)) == 1


class _Counts(nn.Module):
    """Keeps a number."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return (self.norm(self.conv(x)) * (1 if self.calls < 2 else 2)).relu()


def test_a_number_that_a_module_keeps() -> None:
    _exact_at_every_size(_Counts())


def test_a_head_that_keeps_the_last_size() -> None:
    """As the heads of detectors keep their anchors: the second image of one size is another case than the first."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branches = nn.ModuleList(seq(conv(4, 4, 3, padding=1), nn.BatchNorm2d(4)) for _ in range(2))
            self.shape: Any = None
            self.anchors = torch.zeros(1)

        def forward(self, maps: list[Tensor]) -> Tensor:
            for i, branch in enumerate(self.branches):
                maps[i] = branch(maps[i]).relu()
            if self.shape != maps[0].shape:
                self.shape = maps[0].shape
                self.anchors = torch.arange(self.shape[3], dtype=maps[0].dtype)
            return maps[0] + maps[1] * self.anchors

    model = Block(lambda m, x: m.head([x, x.tanh()]), head=Head())
    folded = _exact_at_every_size(model)
    assert norms_ran(folded, image(*EXAMPLE)) == 0


# --- questions about the process


def _asking(question: Callable[[Tensor], Any]) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        return (y if question(y) else m.norm(y)).relu()

    return trained(Block(forward, conv=conv(4, 4, 3, padding=1), norm=nn.BatchNorm2d(4)), image(*EXAMPLE))


QUESTIONS: dict[str, Callable[[Tensor], Any]] = {
    "gradients": lambda y: torch.is_grad_enabled(),
    "gradients of a tensor": lambda y: y.requires_grad,
    "autocast": lambda y: torch.is_autocast_enabled("cpu"),
    "threads": lambda y: torch.get_num_threads() > 1000,
    "compiling": lambda y: torch.compiler.is_compiling(),
    "tracing": lambda y: torch.jit.is_tracing(),
    "scripting": lambda y: torch.jit.is_scripting(),
    "deterministic algorithms": lambda y: torch.are_deterministic_algorithms_enabled(),
    "default dtype": lambda y: torch.get_default_dtype() == torch.float64,
    "a switch of a backend": lambda y: not torch.backends.mkldnn.enabled,
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_about_the_process_decides(name: str) -> None:
    model = _asking(QUESTIONS[name])
    folded = reparam.reparameterize(model, image(*EXAMPLE))
    assert norms_ran(folded, image(*EXAMPLE)) == 1
    assert any("else" in line.reason or "otherwise" in line.reason for line in report_of(folded).refusals)


def test_a_second_input_with_a_batch_of_its_own() -> None:
    """A size of one tensor alone, which code keeps from view in a number of numpy."""

    class TwoInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = conv(4, 4, 3, padding=1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            z = self.conv(x)
            return (self.norm(z) if np.int64(y.shape[0]) > 2 else z) + y.sum()

    model = trained(TwoInputs(), image(*EXAMPLE), image(3, 5))
    folded = reparam.reparameterize(model, (image(*EXAMPLE), image(3, 5)), verify=False)
    for rows in (3, 1, 2, 7):
        inputs = image(*EXAMPLE, seed=rows), image(rows, 5, seed=rows)
        assert distance(model, folded, *inputs) < EXACT, rows


@pytest.mark.parametrize("most", [1, 3])
def test_a_batch_in_a_plain_number(most: int) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        return m.norm(y) if np.int64(x.shape[0]) > most else y

    _exact_at_every_size(Block(forward, conv=conv(4, 4, 3, padding=1), norm=nn.BatchNorm2d(4)))


@pytest.mark.parametrize("way", ["value of a tensor", "number in a tensor", "numbers in a tensor", "numpy scalar"])
def test_a_norm_that_the_small_example_does_without(way: str) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x) * 2
        return (m.norm(y) if WAYS[way](x) else y).relu()

    x = image(2, 4, 1, 1)
    model = trained(Block(forward, conv=conv(4, 4, 3, padding=1), norm=nn.BatchNorm2d(4)), x)
    folded = reparam.reparameterize(model, x, verify=False)
    for seed, size in enumerate(SIZES):
        assert distance(model, folded, image(*size, seed=seed)) < EXACT, size


@pytest.mark.parametrize("fixed", [2, 3])
def test_a_product_of_sizes_of_which_one_is_fixed(fixed: int) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        y = m.norm(y) if x.shape[2:].numel() > 5 else y
        return (y.transpose(2, 3) if fixed == 2 else y) @ m.weight

    members = {"conv": conv(4, 4, 1), "norm": nn.BatchNorm2d(4), "weight": torch.randn(3, 2)}
    model = trained(Block(forward, **members), image(1, 4, 3, 3))
    folded = reparam.reparameterize(model, image(1, 4, 3, 3), verify=False)
    for other in (1, 2, 5):
        x = image(2, 4, other, 3) if fixed == 3 else image(2, 4, 3, other)
        assert distance(model, folded, x) < EXACT, other


CHAINS: dict[str, Callable[[Any], Any]] = {  # what is done with the result: three ways, of which two are alike
    "elif": lambda size: (lambda y, norm: norm(y)) if size < 3 else (lambda y, norm: norm(y)) if size < 6 else None,
    "one line": lambda size: None if not (size == 1 or size == 2 or size == 3) else (lambda y, norm: norm(y)),
    "sizes in turn": lambda size: None if size >= 4 and size >= 6 else (lambda y, norm: norm(y)),
}


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("example", [(2, 4, 7, 2), (2, 4, 17, 3), (2, 4, 1, 1)])
def test_a_branch_that_only_a_witness_comes_to(chain: str, example: tuple[int, ...]) -> None:
    """It has another way, too, at sizes that neither the example nor the witness has."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        does = CHAINS[chain](y.shape[3])
        return y if does is None else does(m.other(y), m.norm)

    members = {"conv": conv(4, 4, 1, stride=3), "other": conv(4, 4, 1), "norm": nn.BatchNorm2d(4)}
    model = trained(Block(forward, **members), image(*example))
    folded = reparam.reparameterize(model, image(*example), verify=False)
    for seed, size in enumerate((*SIZES, (2, 4, 12, 20), (2, 4, 14, 11), (1, 4, 30, 40))):
        assert distance(model, folded, image(*size, seed=seed)) < EXACT, size


CASTS: dict[str, tuple[int, Callable[[Tensor, Tensor], Tensor]]] = {  # with the number of norms that are left
    "to the dtype it has": (0, lambda w, x: w.to(dtype=x.dtype)),
    "that rounds": (1, lambda w, x: w.half().to(x.dtype)),
    "to a memory format": (1, lambda w, x: w.to(memory_format=torch.channels_last)),
}


@pytest.mark.parametrize("cast", CASTS)
def test_a_cast_that_changes_nothing_is_no_other_way(cast: str) -> None:
    """A linear layer of timm casts its weights where it is scripted."""
    left, to = CASTS[cast]

    def forward(m: Any, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return m.norm(F.conv2d(x, weight=to(m.weight, x), bias=None))
        return m.norm(F.conv2d(x, m.weight, None))

    model = Block(forward, weight=nn.Parameter(torch.randn(5, 4, 1, 1)), norm=nn.BatchNorm2d(5))
    folded = _exact_at_every_size(trained(model, image(*EXAMPLE)))
    assert norms_ran(folded, image(*EXAMPLE)) == left


def test_gradients_that_new_weights_do_not_need() -> None:
    model = _asking(lambda y: y.requires_grad)
    folded = reparam.reparameterize(model, image(*EXAMPLE))
    x = image(*EXAMPLE)
    assert (model(x) - folded(x)).abs().max() < EXACT  # with gradients


# --- code that looks, and decides nothing


def _channels(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    if y.shape[1] != m.conv.out_channels:
        raise ValueError("other channels")
    return m.norm(y).relu()


def _same_shape(m: Any, x: Tensor) -> Tensor:
    y, z = m.conv(x), m.norm(x)
    return (y + z if y.shape == z.shape else y).relu()


def _same_dtype(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x) if x.dtype == m.conv.weight.dtype else m.conv(x.to(m.conv.weight.dtype))
    return m.norm(y).relu()


def _same_device(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x) if m.conv.weight.get_device() < 0 and x.device == m.conv.weight.device else x
    return m.norm(y).relu()


def _weight_of_as_many_channels(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    return m.norm(F.conv2d(y, m.weight[:, : y.shape[1]])).relu()


def _checked(m: Any, x: Tensor) -> Tensor:
    torch._assert(x.shape[1] == 4, f"{x.shape} has other channels")
    return m.norm(m.conv(x)).relu()


@pytest.mark.parametrize(
    "forward", [_channels, _same_shape, _same_dtype, _same_device, _weight_of_as_many_channels, _checked]
)
def test_code_that_looks_and_decides_nothing_folds(forward: Callable[[Any, Tensor], Tensor]) -> None:
    members = {
        "conv": conv(4, 4, 3, padding=1),
        "norm": nn.BatchNorm2d(4),
        "weight": nn.Parameter(torch.randn(4, 9, 1, 1)),
    }
    folded = _exact_at_every_size(Block(forward, **members))
    assert (convs_ran(folded, image(*EXAMPLE)), norms_ran(folded, image(*EXAMPLE))) == (1, 0), report_of(folded)


# --- arguments that nobody gives


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.shortcut = conv(4, 4, 1)


class _HandsOnAll(_Layer):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return (self.norm(self.inner(x, *args, **kwargs)) + self.shortcut(x)).relu()

    def inner(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.conv(x, *args, **kwargs)


class _AsksForKeyword(_Layer):
    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        y = self.norm(self.conv(x)) + self.shortcut(x)
        return y.relu() * kwargs.get("n", 1)


class _AsksForPositional(_Layer):
    def forward(self, x: Tensor, *args: Any) -> Tensor:
        y = self.norm(self.conv(x)) + self.shortcut(x)
        return y.relu() if not args else y


class _PopsKeyword(_Layer):
    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        scale = kwargs.pop("scale", None)
        y = self.norm(self.conv(x)) + self.shortcut(x)
        return y.relu() if scale is None else y * scale


def _decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs.setdefault("mode", "relu")
        return function(self, *args, **kwargs)

    return wrapper


class _Decorated(_Layer):
    @_decorated
    def forward(self, x: Tensor, mode: str = "none", **kwargs: Any) -> Tensor:
        y = self.norm(self.conv(x)) + self.shortcut(x)
        return y.relu() if mode == "relu" else y


@pytest.mark.parametrize("layer", [_HandsOnAll, _AsksForKeyword, _AsksForPositional, _PopsKeyword, _Decorated])
@pytest.mark.parametrize("inside", [False, True])
def test_arguments_that_nobody_gives(layer: type[_Layer], inside: bool) -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer()

        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
            return self.layer(x, *args, **kwargs)

    folded = _exact_at_every_size(Around() if inside else layer())
    assert (convs_ran(folded, image(*EXAMPLE)), norms_ran(folded, image(*EXAMPLE))) == (1, 0), report_of(folded)


def test_other_arguments_are_refused_when_they_are_given() -> None:
    model = trained(_AsksForKeyword(), image(*EXAMPLE))
    folded = reparam.reparameterize(model, image(*EXAMPLE))
    with pytest.raises(AssertionError, match="converted for calls with other arguments"):
        folded(image(*EXAMPLE), n=2)
    keyword = reparam.reparameterize(model, {"x": image(*EXAMPLE), "n": 2})
    assert (keyword(x=image(*EXAMPLE), n=2) - model(image(*EXAMPLE), n=2)).abs().max() < EXACT


def test_what_was_decided_stands_in_the_report() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.norm(m.conv(x))
        return y if x.shape[3] > 4 else y * 2

    folded = _exact_at_every_size(Block(forward, conv=conv(4, 4, 3, padding=1), norm=nn.BatchNorm2d(4)))
    (line,) = report_of(folded).decisions
    assert (line.expression, line.value, line.settled) == ("input_0.shape[3] > 4", "True", "a run took the other way")
    assert line.at.startswith("test_decisions.py:")
    assert line.expression in str(report_of(folded))
