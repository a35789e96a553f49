"""Whatever Python a forward is made of, its linear regions are found, and what was found holds for other inputs."""

from __future__ import annotations

import functools
import importlib
import math
import pickle
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

import reparam
from reparam.capture.graph import READ, SIZE
from reparam.errors import ModelError
from reparam.report.report import Report
from tests.helpers import EXACT, convs_ran, distance, norms_ran, ran, trained


class Layer(nn.Sequential):
    """A convolution and its batch norm."""

    def __init__(self, before: int = 4, after: int = 4, taps: int = 3) -> None:
        super().__init__(nn.Conv2d(before, after, taps, padding=taps // 2, bias=False), nn.BatchNorm2d(after))


class Block(nn.Module):
    """A residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Layer()
        self.point = Layer(taps=1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.layer(x) + self.point(x) + x).relu()


SIZES = ((2, 4, 9, 7), (1, 4, 9, 7), (3, 4, 12, 5), (2, 4, 16, 17))


def images(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def folded(model: nn.Module, left: int = 0, given: Any = lambda x: (x,), sizes: Any = SIZES) -> nn.Module:
    """The model converted, with `left` batch norms left; `given` makes the arguments of an image.

    It is compared at every size, of which the first is what the conversion sees.
    """
    inputs = given(images(*sizes[0]))
    model = trained(model, *inputs)
    result = reparam.reparameterize(model, inputs)
    assert norms_ran(result, *inputs) == left
    for size in sizes:
        inputs = given(images(*size))
        assert distance(model, result, *inputs) < EXACT
    return result


# --- Python between the layers


class OnSizes(nn.Module):
    """Another layer, and another number of them, for other sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large, self.last = Block(), Block(), Block()

    def forward(self, x: Tensor) -> Tensor:
        x = self.large(x) if x.shape[2] * x.shape[3] > 100 else self.small(x)
        for _ in range(x.shape[0]):
            x = self.last(x)
        return x if x.shape[-1] % 2 else F.pad(x, (0, 1))


def test_control_flow_on_sizes() -> None:
    result = folded(OnSizes(), sizes=((2, 4, 9, 7), (1, 4, 8, 6), (3, 4, 12, 5)))
    assert [norms_ran(each, images(1, 4, 3, 3)) for each in result.children()] == [0, 2, 0]  # one was never run
    model = trained(OnSizes(), images(2, 4, 9, 7))
    result = reparam.reparameterize(model, images(2, 4, 9, 7))
    assert distance(model, result, images(2, 4, 16, 17)) < EXACT  # it still takes the other branch


class PassesOn(nn.Module):
    """A container that hands on whatever it was given."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        for block in self.blocks:
            args = (block(*args, **kwargs), *args[1:])
        return args[0]


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = Layer(), Layer()

    def forward(self, x: Tensor, *others: Tensor, scale: float = 1.0, gate: Tensor | None = None) -> Tensor:
        y = self.left(x) + self.right(x)
        for other in others:
            y = y + other
        return (y * scale).relu() if gate is None else (y * scale).relu() * gate


@pytest.mark.parametrize("more", [{}, {"scale": 0.5}, {"gate": None}])
def test_arguments_that_are_passed_on(more: dict[str, Any]) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = PassesOn(PassesOn(Gated()), Gated())

        def forward(self, x: Tensor, y: Tensor) -> Any:
            return self.body(x, y, **more)

    result = folded(Network(), given=lambda x: (x, x.cos()))
    assert convs_ran(result, images(1, 4, 8, 8), images(1, 4, 8, 8)) == 2


class Modes(nn.Module):
    """What its parent writes out decides what it does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other, self.up = Layer(), Layer(taps=1), Layer()

    def forward(self, x: Tensor, mode: str, times: int, flag: bool, scale: float, none: Tensor | None) -> Tensor:
        y = self.layer(x)
        if mode == "both":
            y = y + self.other(x)
        for _ in range(times):
            y = y * scale
        if flag and none is None:
            y = y + x
        return self.up(y.relu())


class Parent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.modes = Modes()

    def forward(self, x: Tensor) -> Any:
        y = self.modes(x, "both", 2, True, scale=0.5, none=None)
        return self.modes(y.sin(), "both", 2, True, scale=0.5, none=None)


def test_literals_of_the_parent() -> None:
    result = folded(Parent())
    assert convs_ran(result, images(1, 4, 8, 8)) == 4


class TwoWays(Parent):
    def forward(self, x: Tensor) -> Any:
        y = self.modes(x, "both", 2, True, scale=0.5, none=None)
        return self.modes(y.sin(), "one", 1, False, scale=0.25, none=None)


def test_literals_that_differ_from_call_to_call() -> None:
    result = folded(TwoWays())  # each layer folds by itself, and no code is rewritten
    assert convs_ran(result, images(1, 4, 8, 8)) == 5


class SizeHandedOn(Parent):
    def forward(self, x: Tensor) -> Any:
        return self.modes(x, "both", x.shape[0], True, scale=0.5, none=None)


def test_a_size_that_is_handed_on_is_no_literal() -> None:
    folded(SizeHandedOn())  # at another batch there are other products


class Looks(nn.Module):
    """What it does between a convolution and its batch norm, and which norm that is, is for the input to say."""

    def __init__(self, decide: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.decide = decide
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))
        self.block = Block()

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        y = self.norms[0](y) if self.decide(x) else self.norms[1](y).sin()
        return self.block(y * 1.5)


def by_height(x: Tensor) -> bool:
    return x.shape[2] > 8


def by_batch(x: Tensor) -> bool:
    return len(x) == 2


def by_value(x: Tensor) -> bool:
    return x.numel() == 504 and x.amax().item() > 0


def by_truth(x: Tensor) -> bool:
    return bool((x.amax() > 4.0).any())


@pytest.mark.parametrize(
    ("decide", "kinds"), [(by_height, [SIZE]), (by_batch, [SIZE]), (by_value, [SIZE, READ]), (by_truth, [READ])]
)
def test_no_fold_relies_on_the_way_that_was_recorded(decide: Callable[[Tensor], Any], kinds: list[str]) -> None:
    model = Looks(decide)
    result = folded(model, left=1, sizes=(*SIZES, (2, 4, 6, 21)))  # in the block alone
    for scale in (0.1, 100.0):
        assert distance(model, result, scale * images(2, 4, 9, 7)) < EXACT
    report = report_of(result)
    assert [(look.where, look.what) for look in report.baked] == [("the model itself", kind) for kind in kinds]
    assert f"the model itself: {kinds[0]}" in str(report)


def test_where_nothing_looks_nothing_is_said() -> None:
    report = report_of(folded(nn.Sequential(Block(), nn.Flatten(2))))
    assert report.baked == ()
    assert "another way" not in str(report)


# --- what goes in and what comes out


@dataclass
class Output:
    features: Tensor
    pooled: Tensor | None = None


class Named(NamedTuple):
    features: Tensor
    pooled: Tensor


class ModelOutput(dict[str, Any]):
    """As in transformers: a mapping whose entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def as_dataclass(features: Tensor, pooled: Tensor) -> Output:
    return Output(features, pooled=pooled)


def as_dict(features: Tensor, pooled: Tensor) -> dict[str, Tensor]:
    return {"features": features, "pooled": pooled}


def as_output(features: Tensor, pooled: Tensor) -> ModelOutput:
    return ModelOutput(features=features, pooled=pooled)


class Structured(nn.Module):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make
        self.first, self.second = Layer(), Layer(taps=1)

    def forward(self, x: Tensor) -> Any:
        y = self.first(x) + self.second(x)
        return self.make(y.relu(), y.mean((2, 3)))


class Reads(nn.Module):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.body = Structured(make)
        self.block = Block()

    def forward(self, x: Tensor) -> Any:
        out = self.body(x)
        features = out["features"] if isinstance(out, dict) else out.features
        return self.body.make(self.block(features), features.mean((2, 3)))


@pytest.mark.parametrize("make", [as_dataclass, Named, as_dict, as_output])
def test_structured_outputs(make: Any) -> None:
    x = images(1, 4, 8, 8)
    result = folded(Reads(make))
    assert type(result(x)) is type(make(x, x))
    assert convs_ran(result, x) == 2


class Nested(nn.Module):
    """Tensors in lists, tuples and dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = Layer(), Layer(taps=1), Layer()

    def forward(self, images: Any) -> Any:
        x, (y,), rest = images["list"][0], images["pair"], images["more"]
        return [(self.a(x) + self.b(x)).relu(), (self.c(y) + rest["z"]).relu()]


class Nests(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.nested = Nested()

    def forward(self, x: Tensor) -> Any:
        return self.nested({"list": [x.sin()], "pair": (x.cos(),), "more": {"z": x}})[::-1]


def nested(x: Tensor) -> Any:
    return ({"list": [x.sin()], "pair": (x.cos(),), "more": {"z": x}},)


@pytest.mark.parametrize(("model", "given"), [(Nested(), nested), (Nests(), lambda x: (x,))])
def test_tensors_in_containers(model: nn.Module, given: Any) -> None:
    result = folded(model, given=given)
    assert convs_ran(result, *given(images(1, 4, 8, 8))) == 2


class ReturnsInput(nn.Module):
    """It returns what it was given, with and without having looked at it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.same = Layer(), PassesOn()

    def forward(self, x: Tensor) -> Any:
        y = self.layer(self.same(x))
        return x, self.same(y) + x


def test_an_input_that_is_returned() -> None:
    result = folded(ReturnsInput())
    x = images(1, 4, 8, 8)
    assert result(x)[0] is x


# --- modules and weights in several places


class Shared(nn.Module):
    """One block, called several times and known by two names, and a weight that belongs to two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.again = self.block
        self.left, self.right = Layer(), Layer()
        self.right[0].weight = self.left[0].weight

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = self.again(self.block(x))
        return (self.left(x) - self.right(x)).relu()


def test_shared_modules_and_tied_weights() -> None:
    result = folded(Shared())
    assert convs_ran(result, images(1, 4, 8, 8)) == 5
    assert result.again is result.block


# --- what Python's libraries put between the layers


@functools.lru_cache(maxsize=4)
def grid(height: int, width: int) -> Tensor:
    """A table of positions."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    return torch.stack([x, y, x * y, x + y])[None]


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Layer(), Layer(taps=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x) + self.second(x) + grid(x.shape[2], x.shape[3])
        return y.relu()


class Pyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.positions, self.head = Block(), Positions(), Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.positions(self.block(x)))


@pytest.mark.parametrize("warm", [False, True])
def test_a_cached_table_of_positions(warm: bool) -> None:
    grid.cache_clear()
    if warm:
        Pyramid()(torch.randn(SIZES[0]))
    result = folded(Pyramid())
    assert convs_ran(result, images(1, 4, 8, 8)) == 3
    assert all(type(grid(*size[2:])) is Tensor for size in SIZES)
    pickle.loads(pickle.dumps(result))(images(1, 4, 8, 8))


def test_a_cache_keeps_nothing_of_a_verification() -> None:
    model = trained(Pyramid(), torch.randn(2, 4, 9, 7), dtype=torch.float32)
    result = reparam.reparameterize(model, torch.randn(2, 4, 9, 7))
    for size in SIZES:
        x = torch.randn(size)
        assert result(x).dtype == model(x).dtype == torch.float32
    assert all(grid(*size[2:]).dtype == torch.float32 for size in SIZES)


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


class Efficient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = Layer(), Layer(taps=1), Layer()

    def forward(self, x: Tensor) -> Any:
        return self.last(Swish.apply(self.first(x) + self.second(x)))


def test_an_autograd_function_of_its_own() -> None:
    folded(Efficient())


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant: bool) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(Block(), Block())

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=reentrant)
            return x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about an input without gradient
        result = folded(Network())
    assert convs_ran(result, images(1, 4, 8, 8)) == 2


class Checkpointed(nn.Module):
    """Its own code goes through a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Layer(), Layer(taps=1)

    def inner(self, x: Tensor) -> Any:
        return (self.first(x) + self.second(x)).relu()

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.inner, x, use_reentrant=False)


def test_a_forward_through_a_checkpoint() -> None:
    folded(Checkpointed())


class Fourier(nn.Module):
    """A branch in the frequency domain."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = Layer(), Layer(taps=1), Layer()
        self.mix = Layer(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x) + self.second(x)
        spectrum = torch.fft.rfft2(y, norm="ortho")
        parts = self.mix(torch.cat([spectrum.real, spectrum.imag], 1)).relu()
        real, imag = parts.chunk(2, 1)
        return self.last(y + torch.fft.irfft2(torch.complex(real, imag), s=y.shape[-2:], norm="ortho"))


def test_complex_tensors_pass_by() -> None:
    result = folded(Fourier())
    assert convs_ran(result, images(1, 4, 8, 8)) == 3


class Mixed(nn.Module):
    """A part in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = Block(), Block(), Block()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.middle(x)
        return self.last(x.float())


def test_autocast_inside_is_kept_and_named() -> None:
    inputs = torch.randn(2, 4, 9, 7)
    model = trained(Mixed(), inputs, dtype=torch.float32)
    result = reparam.reparameterize(model, inputs)
    assert [norms_ran(each, inputs) for each in result.children()] == [0, 2, 0]
    assert any("dtype" in line.reason and line.where.startswith("middle") for line in report_of(result).refusals)
    assert distance(model, result, torch.randn(1, 4, 12, 5)) < 1e-2


def report_of(model: nn.Module) -> Report:
    report = model.reparam_report
    assert isinstance(report, Report)
    return report


# --- blocks that merge on the fly


class OnTheFly(nn.Module):
    """In eval, its kernel is computed from its branches at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.point = nn.Conv2d(4, 4, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))

    def fused(self, weight: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
        assert norm.running_var is not None
        assert norm.running_mean is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        return weight * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale

    def merged(self) -> tuple[Tensor, Tensor]:
        identity = torch.zeros_like(self.conv.weight)
        for i in range(identity.shape[0]):
            identity[i, i, 1, 1] = 1.0
        weights = (self.conv.weight, F.pad(self.point.weight, [1, 1, 1, 1]), identity)
        kernels, biases = zip(*(self.fused(w, n) for w, n in zip(weights, self.norms, strict=True)), strict=True)
        return sum(kernels), sum(biases)  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return (self.norms[0](self.conv(x)) + self.norms[1](self.point(x)) + self.norms[2](x)).relu()
        kernel, bias = self.merged()
        return F.conv2d(x, kernel, bias, padding=1).relu()


class Orepa(nn.Module):
    """In eval as in training, one kernel of many factors."""

    def __init__(self) -> None:
        super().__init__()
        self.origin = nn.Parameter(torch.randn(4, 4, 3, 3))
        self.squeeze, self.expand = nn.Parameter(torch.randn(8, 4, 1, 1)), nn.Parameter(torch.randn(4, 8, 3, 3))
        self.vector = nn.Parameter(torch.randn(2, 4))
        self.register_buffer("average", torch.full((3, 3), 1 / 9))
        self.norm = nn.BatchNorm2d(4)

    def weight(self) -> Tensor:
        product = torch.einsum("ti,ots->ois", self.squeeze.flatten(1), self.expand.flatten(2)).view(4, 4, 3, 3)
        branches = [self.origin, product + self.average]
        return torch.einsum("bo,boikl->oikl", self.vector, torch.stack(branches))

    def forward(self, x: Tensor) -> Any:
        weight = self.weight() if self.training or not hasattr(self, "merged") else self.merged
        return self.norm(F.conv2d(x, weight, padding=1)).relu()


@pytest.mark.parametrize("make", [OnTheFly, Orepa])
def test_a_kernel_that_is_computed_at_every_call(make: type[nn.Module]) -> None:
    result = folded(nn.Sequential(make(), make()))
    assert [type(each) for each in result.modules() if isinstance(each, nn.Conv2d)] == [nn.Conv2d] * 2
    x = images(1, 4, 8, 8)
    assert set(ran(result, x)) <= {"convolution", "relu", "linear"}
    assert sum(parameter.numel() for parameter in result.parameters()) == 2 * (4 * 4 * 9 + 4)


# --- modules that are not what they seem


class Tricky(nn.Module):
    """It answers for what its inner module has, and for what nobody has."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Block()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_"):
                raise
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x: Tensor) -> Any:
        return (self.layer(x) + self.point(x)).relu() + self.inner(x)


def test_attributes_that_are_made_up() -> None:
    folded(Tricky())


class Everything(nn.Module):
    """It has every attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Layer(), Layer(taps=1)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):
                raise
            return None

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x) + self.second(x)
        return y.relu() if self.activation is None else self.activation(y)


def test_a_module_that_has_every_attribute() -> None:
    result = folded(nn.Sequential(Everything(), Everything()))
    assert convs_ran(result, images(1, 4, 8, 8)) == 2


def test_hooks_that_change_what_goes_in_and_out() -> None:
    model = nn.Sequential(Block(), Block(), Block())
    model[1].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    model[1].register_forward_hook(lambda module, args, result: result + 1)
    model[2].layer.register_forward_hook(lambda module, args, result: None)
    result = folded(model)
    assert convs_ran(result, images(1, 4, 8, 8)) == 5  # what is watched is there


# --- wrappers


def test_data_parallel() -> None:
    model = folded(nn.DataParallel(nn.Sequential(Block(), Block())))
    assert isinstance(model, nn.DataParallel)
    assert convs_ran(model.module, images(1, 4, 8, 8)) == 2


@pytest.fixture
def _group(tmp_path: Path) -> Iterator[None]:
    if not torch.distributed.is_available():
        pytest.skip("torch was built without distributed")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'init'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("_group")
def test_distributed_data_parallel_is_explained() -> None:
    model = nn.parallel.DistributedDataParallel(trained(Block(), images(2, 4, 9, 7))).eval()
    with pytest.raises(ModelError, match=r"model\.module"):
        reparam.reparameterize(model, images(2, 4, 9, 7))


def test_a_compiled_model_is_explained() -> None:
    model = torch.compile(trained(Block(), images(2, 4, 9, 7)), backend="eager")
    with pytest.raises(ModelError, match="_orig_mod"):
        reparam.reparameterize(model, images(2, 4, 9, 7))


def test_a_compiled_part_is_explained() -> None:
    inner = torch.compile(Block(), backend="eager")
    model = trained(nn.Sequential(nn.ReLU(), Block()), images(2, 4, 9, 7))
    model.append(inner.eval().double())
    with pytest.raises(ModelError, match=r"2 .*_orig_mod"):
        reparam.reparameterize(model, images(2, 4, 9, 7))


class _Masked(nn.Module):
    """Takes another kernel where a mask is given, which nothing but weights tells."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.point = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.kernel = nn.Parameter(torch.randn(4, 4, 1, 1))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        kernel = self.kernel
        if mask is not None:
            kernel = kernel * 2
        return torch.relu(self.dense(x) + self.point(x) + F.conv2d(x, kernel))


def test_an_argument_that_was_not_given_is_not_given_silently_later() -> None:
    x = torch.randn(2, 4, 7, 9, dtype=torch.float64)
    model = trained(_Masked(), x)
    folded = reparam.reparameterize(model, x)
    assert convs_ran(folded, x) == 1
    assert distance(model, folded, x) < EXACT
    with pytest.raises(AssertionError, match="other arguments"):
        folded(x, torch.ones(1))


class _Masking(nn.Module):
    """Hands its mask on, should it get one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = _Masked()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.inner(x, mask)


def test_an_argument_that_others_may_give_is_left_to_them() -> None:
    x = torch.randn(2, 4, 7, 9, dtype=torch.float64)
    model = trained(_Masking(), x)
    folded = reparam.reparameterize(model, x)
    for arguments in ((x,), (x, torch.ones(1))):
        assert distance(model, folded, *arguments) < EXACT


# --- Python's own functions of sizes


class Sized(nn.Module):
    """A layer whose forward, between the convolution and its batch norm, works something out of the image's size."""

    def __init__(self, work: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.work = work

    def forward(self, x: Tensor) -> Tensor:
        pad = self.work(x)
        return self.norm(self.conv(F.pad(x, (0, int(pad), 1, 1)))).relu()


def as_in_tensorflow(x: Tensor) -> int:
    width = int(x.shape[-1])
    return max(3 - 2, 0) if width % 2 == 0 else max(3 - (width % 2), 0)


def halved(x: Tensor) -> int:
    return int(math.ceil(x.shape[-1] / 2) * 2) - x.shape[-1]


def rounded(x: Tensor) -> int:
    return round(float(x.shape[-1]) / 2 + 0.1) - len(x)


def mapped(x: Tensor) -> int:
    height, width = map(int, x.shape[-2:])
    return max(0, min(height, width) - 3)


def checked(x: Tensor) -> int:
    if not isinstance(x.shape[-1] // 1, (int, fx.Proxy)):
        raise TypeError("a size is a number")
    if x.shape[1] != 4:
        raise ValueError(f"{int(x.shape[1])} channels instead of 4")
    assert x.shape[-1] > 1, f"{len(x)} images are too narrow: {x.shape}"
    return int(x.shape[-1] // 4)


SIZED = [as_in_tensorflow, halved, rounded, mapped, checked]


@pytest.mark.parametrize("work", SIZED)
def test_python_works_out_a_size(work: Callable[[Tensor], Any]) -> None:
    folded(Sized(work), sizes=(*SIZES, (1, 4, 3, 3), (2, 4, 31, 30)))


@pytest.mark.parametrize("work", [halved, rounded, mapped, checked])
def test_code_that_works_out_a_size_is_rewritten(work: Callable[[Tensor], Any]) -> None:
    class Branches(Sized):
        def forward(self, x: Tensor) -> Tensor:
            x = F.pad(x, (0, int(work(x))))
            return (self.norm(self.conv(x)) + self.conv(x)).relu()

    result = folded(Branches(work), sizes=(*SIZES, (2, 4, 31, 30)))
    assert convs_ran(result, images(*SIZES[0])) == 1
    assert not {"int", "float", "len"} & globals().keys()  # whatever tracing has put there


def test_a_forward_that_refuses_a_size_still_does() -> None:
    class Even(Sized):
        def forward(self, x: Tensor) -> Tensor:
            if int(x.shape[-1]) % 2:
                raise ValueError("an odd width")
            return (self.norm(self.conv(x)) + self.conv(x)).relu()

    result = folded(Even(checked), sizes=((2, 4, 9, 8), (1, 4, 5, 4), (3, 4, 6, 6)))
    assert convs_ran(result, images(2, 4, 9, 8)) == 1
    with pytest.raises(AssertionError, match="Even"):
        result(images(2, 4, 9, 7))


class Forgives(nn.Module):
    """A forward in which an exception decides what is computed."""

    def __init__(self, work: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.work = work

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        try:
            self.work(x)
        except (TypeError, ValueError, AssertionError):
            return y
        return self.norm(y)


def refuses_odd(x: Tensor) -> None:
    if x.shape[-1] % 2:
        raise ValueError("an odd width")


def asserts_even(x: Tensor) -> None:
    assert x.shape[-1] % 2 == 0


@pytest.mark.parametrize("work", [refuses_odd, asserts_even, mapped])
def test_an_exception_that_is_caught_decides_nothing_unseen(work: Callable[[Tensor], Any]) -> None:
    folded(Forgives(work), left=1, sizes=((2, 4, 9, 8), (1, 4, 5, 5), (3, 4, 6, 6)))


NARROW = """
def narrow(x):
    width = x.shape[-1]
    return int(width) if CONDITION else 2
"""


@pytest.mark.parametrize("names", [("type(width)", "int"), ("int", "type(width)")])
def test_nothing_stands_in_for_a_type_that_code_compares_with(
    names: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = f"narrow_{names[0][:3]}"
    (tmp_path / f"{file}.py").write_text(NARROW.replace("CONDITION", " is ".join(names)))
    monkeypatch.syspath_prepend(tmp_path)
    folded(Sized(importlib.import_module(file).narrow), left=1)


def test_code_without_a_file_keeps_its_own_numbers() -> None:
    scope: dict[str, Any] = {}
    exec("def whole(x): return int(x.shape[-1])", scope)
    folded(Sized(scope["whole"]), left=1)


# --- containers of tensors that a forward loops over


class Fuses(nn.Module):
    """A head that loops over what it is handed, and asks for sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.sides = nn.ModuleList(Layer() for _ in range(3))
        self.fuse, self.norm = nn.Conv2d(12, 4, 1, bias=False), nn.BatchNorm2d(4)

    def forward(self, features: Any) -> Tensor:
        features = list(features.values()) if isinstance(features, dict) else features
        assert len(features) == 3, f"{len(features)} levels"
        size, found = features[0].shape[-2:], []
        for i, (feature, side) in enumerate(zip(features, self.sides, strict=True)):
            found.append(F.interpolate(side(feature), size) * (i + 1))
        y = self.norm(self.fuse(torch.cat([each.relu() for each in found[::-1]], 1)))
        return y * features[-1].mean((2, 3), keepdim=True) * len(features)


class Levels(nn.Module):
    """Makes a pyramid in a way that no trace follows, of as many levels as `count` says, and hands it to a head."""

    def __init__(self, head: nn.Module, make: Callable[[list[Tensor]], Any], count: Callable[[Tensor], int]) -> None:
        super().__init__()
        self.head, self.make, self.count = head, make, count

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 2:
            x = F.pad(x, (0, 1))
        return self.head(self.make([x[..., i:, i:] for i in range(self.count(x))]))


def in_turns(features: list[Tensor]) -> dict[str, Tensor]:
    """Levels in an order that the batch decides on."""
    names = "abc" if len(features[0]) < 4 else "bca"
    return {name: features["abc".index(name)] for name in names}


def named_levels(features: list[Tensor]) -> dict[str, Tensor]:
    return dict(zip("abc", features, strict=True))


@pytest.mark.parametrize("make", [list, tuple, named_levels])
def test_a_container_of_tensors_is_looped_over(make: Callable[[list[Tensor]], Any]) -> None:
    result = folded(Levels(Fuses(), make, lambda x: 3), sizes=(*SIZES, (1, 4, 4, 4)))
    assert "other arguments" in result.head.code


@pytest.mark.parametrize(
    ("make", "count"),
    [(list, lambda x: 3 if len(x) < 4 else 2), (list, lambda x: max(3, len(x))), (in_turns, lambda x: 3)],
)
def test_another_container_of_tensors_is_refused_by_the_code(make: Any, count: Any) -> None:
    result = folded(Levels(Fuses(), make, count))
    with pytest.raises(AssertionError, match="head was converted for calls with other arguments"):
        result(images(5, 4, 9, 7))


class Optional(nn.Module):
    """A head that leaves out the levels that are missing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)

    def forward(self, features: list[Tensor | None]) -> Tensor:
        there = [feature for feature in features if feature is not None]
        return self.norm(self.conv(sum(F.adaptive_avg_pool2d(each.relu(), there[0].shape[-2:]) for each in there)))


def test_a_level_that_was_missing_has_to_be_missing() -> None:
    def make(features: list[Tensor]) -> list[Tensor | None]:
        return [features[0], None if len(features[0]) < 4 else features[1], features[2]]

    result = folded(Levels(Optional(), make, lambda x: 3))
    with pytest.raises(AssertionError, match="head was converted for calls with other arguments"):
        result(images(5, 4, 9, 7))


def test_a_size_in_a_container_may_be_another_one() -> None:
    class Sizes(Fuses):
        def forward(self, features: Any) -> Tensor:
            *levels, (height, width) = features
            y = self.norm(self.fuse(torch.cat([F.interpolate(each, (height, width)) for each in levels], 1)))
            return y * height

    folded(Levels(Sizes(), lambda levels: [*levels, tuple(levels[1].shape[-2:])], lambda x: 3))
