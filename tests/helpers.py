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

from reparam.capture.tree import tensors
from reparam.nn import draw_constants, draw_statistics

# A few hundred float64 additions in another order; verification itself allows a thousand times as much.
EXACT = 1e-12


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
