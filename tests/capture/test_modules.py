"""Modules that are shared, tied, hooked, or compute their kernels at every call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.capture.residual import Layer, Residual, fold_at
from tests.helpers import convs_ran, image, ran


class CalledTwice(nn.Module):
    """One block, called several times and known by two names, and a weight that belongs to two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Residual()
        self.again = self.block
        self.left, self.right = Layer(), Layer()
        self.right[0].weight = self.left[0].weight

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = self.again(self.block(x))
        return (self.left(x) - self.right(x)).relu()


def test_shared_modules_and_tied_weights() -> None:
    result = fold_at(CalledTwice())
    assert convs_ran(result, image(1, 4, 8, 8)) == 5
    assert result.again is result.block


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
    """One kernel of many factors, in eval as in training."""

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
    result = fold_at(nn.Sequential(make(), make()))
    assert [type(each) for each in result.modules() if isinstance(each, nn.Conv2d)] == [nn.Conv2d] * 2
    x = image(1, 4, 8, 8)
    assert set(ran(result, x)) <= {"convolution", "relu", "linear"}
    assert sum(parameter.numel() for parameter in result.parameters()) == 2 * (4 * 4 * 9 + 4)


class Tricky(nn.Module):
    """Forwards unknown attributes to its inner module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Residual()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_"):
                raise
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x: Tensor) -> Any:
        return (self.layer(x) + self.point(x)).relu() + self.inner(x)


def test_a_module_that_forwards_attributes() -> None:
    fold_at(Tricky())


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
    result = fold_at(nn.Sequential(Everything(), Everything()))
    assert convs_ran(result, image(1, 4, 8, 8)) == 2


def test_hooks_that_change_what_goes_in_and_out() -> None:
    model = nn.Sequential(Residual(), Residual(), Residual())
    model[1].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    model[1].register_forward_hook(lambda module, args, result: result + 1)
    model[2].layer.register_forward_hook(lambda module, args, result: None)
    result = fold_at(model)
    assert convs_ran(result, image(1, 4, 8, 8)) == 5  # what is watched is there
