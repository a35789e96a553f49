"""What the tests of the engine share: trained models, what a model runs, and whether two compute the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import reparam
from reparam.capture.tree import tensors
from reparam.nn import draw_constants, draw_statistics
from reparam.plan.cost import Price, Work
from reparam.report.report import Report

# A few hundred float64 additions in another order; verification itself allows a thousand times as much.
EXACT = 1e-12

Forward = Callable[[nn.Module, Tensor], Tensor]  # what `Block` makes a module of


class Block(nn.Module):
    """A module whose forward is a function of itself and its inputs."""

    def __init__(self, function: Callable[..., Any], **members: Any) -> None:
        super().__init__()
        self.function = function
        for name, member in members.items():
            if isinstance(member, Tensor) and not isinstance(member, nn.Parameter):
                self.register_buffer(name, member)
            else:
                setattr(self, name, member)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def conv(*args: int, bias: bool = False, **kwargs: Any) -> nn.Conv2d:
    """A convolution as it stands in front of a batch norm: without a bias."""
    return nn.Conv2d(*args, bias=bias, **kwargs)


def same_conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, **kwargs: Any) -> nn.Conv2d:
    """A convolution with a bias, padded so that it keeps the size if its kernel is odd and its stride one."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, **kwargs)


def bn(channels: int = 4, **kwargs: Any) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, **kwargs)


def seq(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(*modules)


def summed(*branches: nn.Module) -> nn.Module:
    """An activation of the sum of branches that read one tensor."""
    return Block(lambda m, x: F.relu(sum(branch(x) for branch in m.branches)), branches=nn.ModuleList(branches))


def between(function: Callable[[Tensor], Tensor], first: nn.Module, second: nn.Module) -> nn.Module:
    """A function, written out in a forward, between two layers."""
    return Block(lambda m, x: m.second(function(m.first(x))), first=first, second=second)


def trained(model: nn.Module, *inputs: Any, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The model in eval and `dtype`, with the numbers that a trained one would have."""
    return draw_statistics(draw_constants(model.to(dtype)), inputs=inputs).eval()


def image(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """A drawn input."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def accepted(model: nn.Module, channels: int, sizes: Iterable[Sequence[int]]) -> Iterator[Tensor]:
    """Pairs of images, of those sizes that the model takes."""
    for size in sizes:
        x = image(2, channels, *size)
        try:
            model(x)
        except (RuntimeError, ValueError):
            continue
        yield x


def converted(model: nn.Module, *inputs: Tensor, **options: Any) -> nn.Module:
    """The model converted on `inputs`."""
    return reparam.reparameterize(model, inputs, **options)


def trained_and_converted(model: nn.Module, *inputs: Tensor) -> nn.Module:
    """The model in float32, with the numbers that a trained one would have, and then converted."""
    return converted(trained(model, dtype=torch.float32), *inputs)


def report_of(model: nn.Module) -> Report:
    """The report of a converted model."""
    report = model.reparam_report
    assert isinstance(report, Report)
    return report


def fold_exactly(
    model: nn.Module, *images: Tensor, convs: int | None = None, norms: int | None = None, **options: Any
) -> nn.Module:
    """The model converted on the first image: it computes the same on every image.

    `convs` and `norms` are how many convolutions and batch norms have to be left, where that matters.
    """
    folded = reparam.reparameterize(model, images[0], **options)
    for count, left in ((convs_ran, convs), (norms_ran, norms)):
        assert left is None or count(folded, images[0]) == left, folded.reparam_report
    for x in images:
        assert distance(model, folded, x) < EXACT, tuple(x.shape)
    return folded


class _Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.ran: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ran[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


class _Linears(TorchFunctionMode):
    """Linear layers, which aten knows as any of addmm, mm and bmm by the layout of their input."""

    def __init__(self, ran: Counter[str]) -> None:
        super().__init__()
        self.ran = ran

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ran["linear"] += func is F.linear
        return func(*args, **(kwargs or {}))


_CONVS = ("convolution", "linear")
_NORMS = ("native_batch_norm", "_native_batch_norm_legit_no_training", "_batch_norm_no_update", "cudnn_batch_norm")


def ran(model: nn.Module, *inputs: Any) -> Counter[str]:
    """How often one forward runs each operation of aten: what is counted knows nothing of modules or of reparam."""
    with torch.no_grad(), _Operations() as operations, _Linears(operations.ran):
        model(*inputs)
    return operations.ran


def convs_ran(model: nn.Module, *inputs: Any) -> int:
    """Convolutions, transposed ones among them, and linear layers."""
    counted = ran(model, *inputs)
    return sum(counted[name] for name in _CONVS)


def norms_ran(model: nn.Module, *inputs: Any) -> int:
    """Batch norms."""
    counted = ran(model, *inputs)
    return sum(counted[name] for name in _NORMS)


def distance(original: nn.Module, folded: nn.Module, *inputs: Any) -> float:
    """The largest difference of any output, relative to its own max|y|; the outputs have the same form."""
    with torch.no_grad():
        truth, value = tensors(original(*inputs)), tensors(folded(*inputs))
    assert [(name, t.shape, t.dtype) for name, t in truth] == [(name, t.shape, t.dtype) for name, t in value]
    assert truth
    return max(
        ((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max()).item()
        for (_, theirs), (_, ours) in zip(truth, value, strict=True)
    )


def plain_convs(model: nn.Module) -> list[nn.Module]:
    """Every module that is exactly a torch convolution or linear layer, and no subclass of one."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    return [module for module in model.modules() if type(module) in kinds]


class Launches:
    """A cost by which every operation costs one: whatever can be one layer becomes one."""

    name = "launches"

    def price(self, work: Work) -> Price:
        return Price(0 if work.kind == "view" else 1)


class ScaledBranches(nn.Module):
    """Branches weighted by numbers: a parameter asked for its truth, a Python float, a vector, a negative one.

    It stands here because pytest rewrites the assertions of test files, and that of a user's forward is a plain one.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.conv2 = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.alpha, self.beta = nn.Parameter(torch.ones(1)), 0.7
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.gamma.shape[0], "other channels"
        if len(x.size()) != 4 or x.dim() == 3:
            raise ValueError("an image")
        y = self.conv1(x) * self.beta
        if self.alpha:
            y = y + self.alpha * self.conv2(x)
        return torch.sigmoid(y - self.gamma.view(1, -1, 1, 1) * x / 2)
