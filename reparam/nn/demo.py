"""A small image classifier that uses every block of this package."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from reparam.nn.acnet import ACBlock
from reparam.nn.dbb import DiverseBranchBlock
from reparam.nn.identity_conv import IdentityBasedConv1x1
from reparam.nn.layers import chain, check_positive
from reparam.nn.mobileone import MobileOneBlock
from reparam.nn.repvgg import RepVGGBlock


class Residual(nn.Module):
    """`x + body(x)`; the body keeps the shape (N, C, H, W) of its input."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.body(x)
        return result


def demo_network(num_classes: int = 10) -> nn.Sequential:
    """A multi-branch classifier of 24 blocks, in train mode and untrained.

    Input (N, 3, H, W) of float32 images, H and W of at least 1 (it halves them four times, so 96 is a good size);
    output (N, num_classes) logits. Its norms have fresh statistics: `draw_constants` and `draw_statistics` make them
    look trained.

    Raises ValueError if num_classes is not a positive integer.
    """
    check_positive("demo_network", num_classes=num_classes)
    stages: dict[str, nn.Module] = {
        "stem": RepVGGBlock(3, 16, stride=2),
        "repvgg": nn.Sequential(RepVGGBlock(16, 16), RepVGGBlock(16, 16, groups=2)),
        "dbb": _dbb_stage(16, 32),
        "acnet": _acnet_stage(32, 48),
        "mobileone": _mobileone_stage(48, 96),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "head": nn.Linear(96, num_classes),
    }
    return nn.Sequential(OrderedDict(stages))


def _dbb_stage(in_channels: int, channels: int) -> nn.Sequential:
    """Four blocks: dense, with fewer internal channels, grouped, depthwise."""
    return nn.Sequential(
        DiverseBranchBlock(in_channels, channels, 3, stride=2, activation=nn.ReLU),
        DiverseBranchBlock(channels, channels, 3, internal_channels=channels // 2, activation=nn.ReLU),
        Residual(DiverseBranchBlock(channels, channels, 3, groups=4)),
        DiverseBranchBlock(channels, channels, 5, groups=channels, activation=nn.ReLU),
    )


def _acnet_stage(in_channels: int, channels: int) -> nn.Sequential:
    """Strided, plain, then a plain and a dilated block as the body of a residual."""
    return nn.Sequential(
        ACBlock(in_channels, channels, 3, stride=2, activation=nn.ReLU),
        ACBlock(channels, channels, 3, activation=nn.ReLU),
        Residual(
            nn.Sequential(
                ACBlock(channels, channels, 3, activation=nn.ReLU),
                ACBlock(channels, channels, 3, padding=2, dilation=2),
            )
        ),
        _mixer(channels, groups=3),
    )


def _mobileone_stage(in_channels: int, channels: int) -> nn.Sequential:
    """Pairs of a depthwise 3x3 and a pointwise block; the first pair halves the image and adds channels."""
    return nn.Sequential(
        MobileOneBlock(in_channels, in_channels, 3, stride=2, groups=in_channels),
        MobileOneBlock(in_channels, channels, 1),
        *[block for _ in range(4) for block in _mobileone_pair(channels)],
        _mixer(channels, groups=1),
    )


def _mobileone_pair(channels: int) -> tuple[nn.Module, nn.Module]:
    return MobileOneBlock(channels, channels, 3, groups=channels), MobileOneBlock(channels, channels, 1)


def _mixer(channels: int, groups: int) -> nn.Sequential:
    return chain(conv=IdentityBasedConv1x1(channels, groups), norm=nn.BatchNorm2d(channels), activation=nn.ReLU())
