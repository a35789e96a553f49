"""The networks whose latency is compared: public ones of timm, and networks of blocks that no model library has."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo.models import build as timm_model
from benchmarks.zoo.models import example_input
from reparam.nn import ACBlock, DiverseBranchBlock, draw_constants, draw_statistics

TIMM = (
    "repvgg_a0",
    "repvgg_b1",
    "mobileone_s0",
    "mobileone_s1",
    "fastvit_t8",
    "repvit_m0_9",
    "ghostnetv3_100",
    "repghostnet_050",
    "nextvit_small",
    "resnet50",
)

Block = Callable[..., nn.Module]


class Residual(nn.Module):
    """The basic block of a ResNet (He et al. 2016) with multi-branch convolutions."""

    def __init__(self, block: Block, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.first = block(in_channels, channels, 3, stride=stride, activation=nn.ReLU)
        self.second = block(channels, channels, 3)
        same = stride == 1 and in_channels == channels
        self.shortcut = nn.Identity() if same else block(in_channels, channels, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x)) + self.shortcut(x))


def resnet18(block: Block) -> nn.Module:
    """A ResNet-18 whose convolutions are all `block`s; (N, 3, H, W) to (N, 1000)."""
    stages: list[nn.Module] = [block(3, 64, 7, stride=2, activation=nn.ReLU), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        stages += [Residual(block, channels, width, stride), Residual(block, width, width, 1)]
        channels = width
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


class FilterBranch(nn.Module):
    """A branch of an ECB: a 1x1 convolution, then a depthwise 3x3 convolution by a fixed filter, scaled per channel."""

    def __init__(self, channels: int, filter_: list[list[float]]) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 1, bias=False)
        self.shift = nn.Parameter(torch.randn(channels, 1, 1) * 1e-1)
        self.filter: Tensor
        self.register_buffer("filter", torch.tensor(filter_).expand(channels, 1, 3, 3).clone())
        self.scale = nn.Parameter(torch.randn(channels, 1, 1, 1) * 1e-1)
        self.bias = nn.Parameter(torch.randn(channels) * 1e-1)

    def forward(self, x: Tensor) -> Tensor:
        # The shift also fills the border, as if the 1x1 convolution had run on an image padded with zeros.
        y = F.pad(self.mix(x), (1, 1, 1, 1)) + self.shift
        return F.conv2d(y, self.scale * self.filter, self.bias, groups=x.shape[1])


class EdgeBlock(nn.Module):
    """An edge-oriented convolution block (Zhang et al., ACM MM 2021): five branches, the input, and a PReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        sobel = [[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]]
        transposed = [list(row) for row in zip(*sobel, strict=True)]
        laplace = [[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]
        self.plain = nn.Conv2d(channels, channels, 3, padding=1)
        self.widen = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.narrow = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.filters = nn.ModuleList(FilterBranch(channels, filter_) for filter_ in (sobel, transposed, laplace))
        self.act = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.plain(x) + self.narrow(self.widen(x))
        for branch in self.filters:
            y = y + branch(x)
        result: Tensor = self.act(y)
        return result


class SuperResolution(nn.Module):
    """A small super-resolution network like ECBSR; (N, 1, H, W) to (N, 1, 2 H, 2 W)."""

    def __init__(self, depth: int = 4, channels: int = 16) -> None:
        super().__init__()
        self.head = nn.Conv2d(1, channels, 3, padding=1)
        self.body = nn.Sequential(*(EdgeBlock(channels) for _ in range(depth)))
        self.tail = nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.tail(self.body(self.head(x))) + x, 2)


OWN: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "dbb_resnet18": (partial(resnet18, DiverseBranchBlock), (3, 224, 224)),
    "acnet_resnet18": (partial(resnet18, ACBlock), (3, 224, 224)),
    "ecbsr_m4c16": (SuperResolution, (1, 120, 160)),
}
MODELS = (*TIMM, *OWN)


def build(name: str, batch: int = 1, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """The network in eval mode with random weights and drawn statistics, and a batch of the size it is made for."""
    if name not in OWN:
        model = timm_model(name, seed)
        return model, example_input(model, batch)
    make, shape = OWN[name]
    torch.manual_seed(seed)
    x = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))
    model = draw_constants(make())
    return draw_statistics(model, inputs=(x[:1],)).eval(), x
