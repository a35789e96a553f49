"""Training-time blocks become one plain convolution each: those of `reparam.nn`, and published ones as written here.

The blocks of this file follow their papers' code in style, so that nothing in it is made for this package.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from reparam.nn import ACBlock, DiverseBranchBlock, IdentityBasedConv1x1, MobileOneBlock, RepVGGBlock
from tests.helpers import (
    EXACT,
    ScaledBranches,
    convs_ran,
    distance,
    fold_exactly,
    image,
    norms_ran,
    plain_convs,
    ran,
    trained,
)


def accepted_sizes(model: nn.Module, channels: int, spatial: int = 2) -> list[tuple[int, ...]]:
    """The smallest size that the model takes, one pixel more along one axis, and larger ones, odd and even."""
    for smallest in range(1, 20):
        try:
            model(image(1, channels, *[smallest] * spatial))
        except (RuntimeError, ValueError):
            continue
        every = [[smallest + more for more in extra] for extra in ([0, 0, 0], [0, 1, 2], [6, 3, 1], [5, 8, 2])]
        return [tuple(size[:spatial]) for size in every]
    raise AssertionError("no size is accepted")


def fold_to_one(model: nn.Module, channels: int, spatial: int = 2, activations: int = 0) -> nn.Module:
    """The model becomes one plain convolution and its activation, at all sizes; returns it."""
    model = trained(model)
    every = accepted_sizes(model, channels, spatial)
    images = [image(3, channels, *size) for size in every]
    result = fold_exactly(model, image(2, channels, *every[-1]), *images, verify=False)
    counted = ran(result, image(2, channels, *every[-1]))
    shape = {name: count for name, count in counted.items() if name not in _FREE}
    assert counted["convolution"] == len(plain_convs(result)) == 1, result.reparam_report
    assert sum(shape.values()) == 1 + activations, shape
    assert not any(parameter.requires_grad for parameter in plain_convs(result)[0].parameters())
    return result


# Operations that cost nothing: views, the entry points of convolutions, and padding (cheaper than a wider kernel).
_FREE = ("detach", "alias", "view", "constant_pad_nd", "t", "_unsafe_view")

GEOMETRY = [
    pytest.param(channels, kernel, stride, groups, id=f"{channels[0]}-{channels[1]} k{kernel} s{stride} g{groups}")
    for channels, kernel, stride, groups in product([(4, 4), (4, 6), (4, 8)], [1, 2, 3, 4, 5], [1, 2], [1, 2, 4])
    if channels[1] % groups == 0
]


@pytest.mark.parametrize("block", [RepVGGBlock, ACBlock, DiverseBranchBlock, MobileOneBlock])
@pytest.mark.parametrize(("channels", "kernel", "stride", "groups"), GEOMETRY)
def test_every_geometry(
    block: type[nn.Module], channels: tuple[int, int], kernel: int, stride: int, groups: int
) -> None:
    model = block(*channels, kernel, stride=stride, groups=groups, activation=nn.ReLU)
    result = fold_to_one(model, channels[0], activations=1)
    conv = plain_convs(result)[0]
    assert (conv.groups, conv.stride) == (groups, (stride, stride))


@pytest.mark.parametrize("block", [RepVGGBlock, ACBlock, DiverseBranchBlock])
@pytest.mark.parametrize(("kernel", "padding", "dilation"), [(3, 0, 1), (3, 2, 2), (3, 1, 2), (5, 1, 1), (4, 3, 1)])
def test_paddings_and_dilations(block: type[nn.Module], kernel: int, padding: int, dilation: int) -> None:
    fold_to_one(block(4, 4, kernel, padding=padding, dilation=dilation, groups=2, activation=None), 4)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_identity_based_conv(groups: int) -> None:
    result = fold_to_one(nn.Sequential(IdentityBasedConv1x1(4, groups), nn.Identity()), 4)
    assert type(result[0]) is nn.Conv2d
    assert result[0].kernel_size == (1, 1)
    assert result[0].groups == groups


# --- published blocks


class IdentityConvSubclass(nn.Conv2d):
    """A 1x1 convolution whose kernel is its weight plus the identity."""

    def __init__(self, channels: int, groups: int = 1) -> None:
        super().__init__(channels, channels, 1, groups=groups, bias=False)
        kernel = torch.zeros(channels, channels // groups, 1, 1)
        for i in range(channels):
            kernel[i, i % (channels // groups), 0, 0] = 1
        self.id_tensor = kernel  # neither a parameter nor a buffer
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight + self.id_tensor.to(self.weight.device).type_as(self.weight)
        return F.conv2d(x, kernel, None, stride=1, padding=0, dilation=self.dilation, groups=self.groups)


class QARepVGG(nn.Module):
    """Bare 1x1 and identity, and one norm after the sum."""

    def __init__(self, channels: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.rbr_dense = nn.Sequential()
        self.rbr_dense.add_module("conv", nn.Conv2d(channels, channels, 3, stride, 1, groups=groups, bias=False))
        self.rbr_dense.add_module("bn", nn.BatchNorm2d(channels))
        self.rbr_1x1 = nn.Conv2d(channels, channels, 1, stride, 0, groups=groups, bias=False)
        self.rbr_identity = nn.Identity() if stride == 1 else None
        self.bn = nn.BatchNorm2d(channels)
        self.nonlinearity = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        id_out = 0 if self.rbr_identity is None else self.rbr_identity(inputs)
        return self.nonlinearity(self.bn(self.rbr_dense(inputs) + self.rbr_1x1(inputs) + id_out))


class OREPA(nn.Module):
    """The branches are factors of a kernel, which is put together in every forward."""

    def __init__(self, inner: int, outer: int, kernel: int = 3, groups: int = 1) -> None:
        super().__init__()
        self.groups, self.kernel_size = groups, kernel
        self.origin = nn.Parameter(torch.randn(outer, inner // groups, kernel, kernel))
        self.avg = nn.Parameter(torch.randn(outer, inner // groups, 1, 1))
        self.register_buffer("avg_avg", torch.full((kernel, kernel), 1 / kernel**2))
        self.idconv1 = nn.Parameter(torch.zeros(inner, inner // groups, 1, 1))
        self.register_buffer("id_tensor", torch.eye(inner // groups).repeat(groups, 1)[:, :, None, None])
        self.conv2 = nn.Parameter(torch.randn(outer, inner // groups, kernel, kernel))
        self.dw = nn.Parameter(torch.randn(4 * (inner // groups), 1, kernel, kernel))
        self.pw = nn.Parameter(torch.randn(outer, 4 * (inner // groups), 1, 1))
        self.vector = nn.Parameter(torch.rand(4, outer))
        self.bn = nn.BatchNorm2d(outer)

    def weight_gen(self) -> Tensor:
        origin = torch.einsum("oihw,o->oihw", self.origin, self.vector[0])
        average = torch.einsum(
            "oihw,o->oihw", torch.einsum("oi,hw->oihw", self.avg.flatten(1), self.avg_avg), self.vector[1]
        )
        first = (self.idconv1 + self.id_tensor).squeeze(3).squeeze(2)
        g, o = self.groups, self.conv2.shape[0]
        first = first.view(g, -1, first.shape[1])
        second = self.conv2.view(g, o // g, first.shape[1], self.kernel_size, self.kernel_size)
        chained = torch.einsum("gti,gothw->goihw", first, second).reshape(self.conv2.shape)
        chained = chained * self.vector[2].view(-1, 1, 1, 1)
        dw = self.dw.view(self.origin.shape[1], 4, self.kernel_size, self.kernel_size)
        pw = self.pw.view(o, self.origin.shape[1], 4)
        separable = torch.einsum("imhw,oim->oihw", dw, pw) * self.vector[3].view(-1, 1, 1, 1)
        return origin + average + chained + separable

    def forward(self, inputs: Tensor) -> Tensor:
        out = F.conv2d(inputs, self.weight_gen(), None, 1, self.kernel_size // 2, 1, self.groups)
        return F.relu(self.bn(out))


class SeqConv3x3(nn.Module):
    """A 1x1 convolution, a border that holds its bias, then a 3x3 convolution or a fixed mask, channel by channel."""

    def __init__(self, kind: str, channels: int) -> None:
        super().__init__()
        self.kind = kind
        first = nn.Conv2d(channels, channels, 1)
        self.k0, self.b0 = first.weight, first.bias
        if kind == "conv3x3":
            second = nn.Conv2d(channels, channels, 3)
            self.k1, self.b1 = second.weight, second.bias
            return
        self.scale = nn.Parameter(torch.randn(channels, 1, 1, 1))
        self.bias = nn.Parameter(torch.randn(channels))
        edges = {
            "sobelx": [[1, 0, -1], [2, 0, -2], [1, 0, -1]],
            "sobely": [[1, 2, 1], [0, 0, 0], [-1, -2, -1]],
            "laplacian": [[0, 1, 0], [1, -4, 1], [0, 1, 0]],
        }
        mask = torch.tensor(edges[kind], dtype=torch.float32).expand(channels, 1, 3, 3).clone()
        self.mask = nn.Parameter(mask, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y0 = F.conv2d(input=x, weight=self.k0, bias=self.b0, stride=1)
        y0 = F.pad(y0, (1, 1, 1, 1), "constant", 0)
        b0_pad = self.b0.view(1, -1, 1, 1)
        y0[:, :, 0:1, :] = b0_pad
        y0[:, :, -1:, :] = b0_pad
        y0[:, :, :, 0:1] = b0_pad
        y0[:, :, :, -1:] = b0_pad
        if self.kind == "conv3x3":
            return F.conv2d(input=y0, weight=self.k1, bias=self.b1, stride=1)
        return F.conv2d(input=y0, weight=self.scale * self.mask, bias=self.bias, stride=1, groups=y0.shape[1])


class ECB(nn.Module):
    """Edge-oriented convolution block."""

    def __init__(self, channels: int, with_idt: bool) -> None:
        super().__init__()
        self.with_idt = with_idt
        self.conv3x3 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv1x1_3x3 = SeqConv3x3("conv3x3", channels)
        self.conv1x1_sbx = SeqConv3x3("sobelx", channels)
        self.conv1x1_sby = SeqConv3x3("sobely", channels)
        self.conv1x1_lpl = SeqConv3x3("laplacian", channels)
        self.act = nn.PReLU(num_parameters=channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3x3(x) + self.conv1x1_3x3(x) + self.conv1x1_sbx(x) + self.conv1x1_sby(x) + self.conv1x1_lpl(x)
        if self.with_idt:
            y += x
        return self.act(y)


class RepMixer(nn.Module):
    """`x + layer_scale * (mixer(x) - norm(x))`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.mixer = MobileOneBlock(channels, channels, 3, groups=channels, branches=1, activation=None)
        self.layer_scale = nn.Parameter(1e-5 * torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer_scale * (self.mixer(x) - self.norm(x))


class DilatedReparam(nn.Module):
    """A large depthwise kernel beside dilated small ones, each with its norm, looked up by their names."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lk_origin = nn.Conv2d(channels, channels, 9, padding=4, groups=channels, bias=False)
        self.origin_bn = nn.BatchNorm2d(channels)
        self.kernel_sizes, self.dilates = [5, 5, 3, 3], [1, 2, 3, 4]
        for k, r in zip(self.kernel_sizes, self.dilates, strict=True):
            conv = nn.Conv2d(channels, channels, k, padding=r * (k - 1) // 2, dilation=r, groups=channels, bias=False)
            self.__setattr__(f"dil_conv_k{k}_{r}", conv)
            self.__setattr__(f"dil_bn_k{k}_{r}", nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "origin_bn"):
            return self.lk_origin(x)
        out = self.origin_bn(self.lk_origin(x))
        for k, r in zip(self.kernel_sizes, self.dilates, strict=True):
            conv = self.__getattr__(f"dil_conv_k{k}_{r}")
            out = out + self.__getattr__(f"dil_bn_k{k}_{r}")(conv(x))
        return out


class RepVGGDW(nn.Module):
    """A depthwise 3x3 with norm, a bare 1x1 and the identity, then one norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential()
        self.conv.add_module("c", nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False))
        self.conv.add_module("bn", nn.BatchNorm2d(channels))
        self.conv1 = nn.Conv2d(channels, channels, 1, 1, 0, groups=channels)
        self.dim = channels
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn((self.conv(x) + self.conv1(x)) + x)


class ReparamLargeKernel(nn.Module):
    """RepLKNet: a large and a small kernel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lkb_origin = nn.Sequential(
            nn.Conv2d(channels, channels, 13, 1, 6, groups=channels, bias=False), nn.BatchNorm2d(channels)
        )
        self.small_conv = nn.Sequential(
            nn.Conv2d(channels, channels, 5, 1, 2, groups=channels, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        out = self.lkb_origin(inputs)
        if hasattr(self, "small_conv"):
            out += self.small_conv(inputs)
        return out


class RepVGGAny(nn.Module):
    """RepVGG in one and three dimensions."""

    def __init__(self, spatial: int, channels: int) -> None:
        super().__init__()
        conv = {1: nn.Conv1d, 3: nn.Conv3d}[spatial]
        norm = {1: nn.BatchNorm1d, 3: nn.BatchNorm3d}[spatial]
        self.dense = nn.Sequential(conv(channels, channels, 3, padding=1, bias=False), norm(channels))
        self.point = nn.Sequential(conv(channels, channels, 1, bias=False), norm(channels))
        self.skip = norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = 0
        for branch in (self.dense, self.point, self.skip):
            out += branch(x)
        return F.relu(out)


class StackedSum(nn.Module):
    """Branches in a list, stacked and summed (YOLO-MIF)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, channels, k, padding=(k[0] // 2, k[1] // 2)), nn.BatchNorm2d(channels))
            for k in [(3, 3), (1, 3), (3, 1), (1, 1)]
        )
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(torch.stack([branch(x) for branch in self.branches], dim=0).sum(dim=0))


class Conv3XC(nn.Module):
    """SPAN: the padding stands before the first of three convolutions, which are widened by a gain."""

    def __init__(self, inner: int, outer: int, gain: int = 2) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(inner, inner * gain, 1),
            nn.Conv2d(inner * gain, outer * gain, 3),
            nn.Conv2d(outer * gain, outer, 1),
        )
        self.sk = nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor) -> Tensor:
        x_pad = F.pad(x, (1, 1, 1, 1), "constant", 0)
        return F.leaky_relu(self.conv(x_pad) + self.sk(x), negative_slope=0.05)


BLOCKS: dict[str, tuple[Callable[[], nn.Module], int, int, int]] = {
    # name: block, channels, spatial axes, activations
    "identity conv subclass": (lambda: nn.Sequential(IdentityConvSubclass(4)), 4, 2, 0),
    "identity conv subclass, groups": (lambda: nn.Sequential(IdentityConvSubclass(4, 2)), 4, 2, 0),
    "QARepVGG": (lambda: QARepVGG(4), 4, 2, 1),
    "QARepVGG, stride": (lambda: QARepVGG(4, 2), 4, 2, 1),
    "QARepVGG, groups": (lambda: QARepVGG(4, groups=2), 4, 2, 1),
    "OREPA": (lambda: OREPA(4, 6), 4, 2, 1),
    "OREPA, groups": (lambda: OREPA(4, 4, groups=2), 4, 2, 1),
    "ECB": (lambda: ECB(4, False), 4, 2, 1),
    "ECB, identity": (lambda: ECB(4, True), 4, 2, 1),
    "RepMixer": (lambda: RepMixer(4), 4, 2, 0),
    "dilated reparam": (lambda: DilatedReparam(4), 4, 2, 0),
    "RepVGGDW": (lambda: RepVGGDW(4), 4, 2, 0),
    "RepLKNet": (lambda: ReparamLargeKernel(4), 4, 2, 0),
    "RepVGG 1-D": (lambda: RepVGGAny(1, 4), 4, 1, 1),
    "RepVGG 3-D": (lambda: RepVGGAny(3, 4), 4, 3, 1),
    "stacked sum": (lambda: StackedSum(4), 4, 2, 1),
    "Conv3XC": (lambda: Conv3XC(4, 6), 4, 2, 1),
    "scaled branches": (lambda: ScaledBranches(4), 4, 2, 1),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_published_block(name: str) -> None:
    make, channels, spatial, activations = BLOCKS[name]
    result = fold_to_one(make(), channels, spatial, activations)
    assert norms_ran(result, image(2, channels, *[9] * spatial)) == 0


def test_the_identity_conv_is_a_plain_one_inside_a_network() -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), IdentityConvSubclass(4), nn.ReLU()))
    result = reparam.reparameterize(model, image(1, 3, 9, 7), verify=False)
    assert type(result[2]) is nn.Conv2d
    assert result[2].bias is None


def test_depthwise_then_pointwise_stays_two() -> None:
    """As one it would be a dense 3x3: nine times the multiply-adds."""
    model = trained(
        nn.Sequential(
            nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False),
            nn.BatchNorm2d(64),
            nn.Conv2d(64, 64, 1, bias=False),
            nn.BatchNorm2d(64),
        )
    )
    x = image(1, 64, 56, 40)
    result = reparam.reparameterize(model, x, verify=False)
    assert [conv.groups for conv in plain_convs(result)] == [64, 1]
    assert norms_ran(result, x) == 0
    assert distance(model, result, x) < EXACT


def test_linear_then_linear() -> None:
    model = trained(nn.Sequential(nn.Linear(8, 6), nn.Dropout(0.1), nn.Linear(6, 3)))
    x = image(5, 8)
    result = reparam.reparameterize(model, x, verify=False)
    assert convs_ran(result, x) == 1
    assert [tuple(layer.weight.shape) for layer in plain_convs(result)] == [(3, 8)]
    assert distance(model, result, image(2, 8)) < EXACT


def test_two_thin_linear_layers_stay_two() -> None:
    """Two thin matrices are cheaper than the square one that they multiply to."""
    model = trained(nn.Sequential(nn.Linear(512, 8), nn.Linear(8, 512)))
    result = reparam.reparameterize(model, image(64, 512), verify=False)
    assert len(plain_convs(result)) == 2


def test_linear_and_norm_of_tokens() -> None:
    class LinearNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.bn = nn.Linear(8, 6, bias=False), nn.BatchNorm1d(6)

        def forward(self, x: Tensor) -> Tensor:
            x = self.linear(x)
            return self.bn(x.flatten(0, 1)).reshape_as(x)

    model = trained(LinearNorm())
    result = reparam.reparameterize(model, image(2, 5, 8), verify=False)
    assert norms_ran(result, image(2, 5, 8)) == 0
    assert distance(model, result, image(3, 4, 8)) < EXACT


@pytest.mark.parametrize("block", [RepVGGBlock, ACBlock, DiverseBranchBlock, MobileOneBlock])
def test_as_a_user_calls_it_in_float32(block: type[nn.Module]) -> None:
    """With verification: a single block must not miss its bound in float32 by chance."""
    model = trained(block(8, 8, 3), dtype=torch.float32)
    result = reparam.reparameterize(model, image(2, 8, 15, 12, dtype=torch.float32), verify=True)
    assert result.reparam_report.verification.ok
    assert result.reparam_report.verification.fp64_error <= 1e-10
