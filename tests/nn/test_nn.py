"""The training-time blocks: each equals its formula, written here once more with plain functional calls."""

from __future__ import annotations

import ast
import copy
import io
import itertools
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import reparam.nn
from reparam.nn import (
    ACBlock,
    DiverseBranchBlock,
    IdentityBasedConv1x1,
    MobileOneBlock,
    PaddedBatchNorm2d,
    RepVGGBlock,
    demo_network,
    draw_constants,
    draw_statistics,
)

Formula = Callable[[nn.Module, Tensor], Tensor]


def drawn_block(block: nn.Module, seed: int = 0) -> nn.Module:
    """The block in float64 and eval mode, with every number drawn."""
    return draw_statistics(draw_constants(block.double(), seed), seed).eval()


def pixels(channels: int, height: int, width: int, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64)


def relative_error(ours: Tensor, truth: Tensor) -> float:
    assert ours.shape == truth.shape
    return float(((ours - truth).abs().max() / truth.abs().max()).detach())


# --- the formulas ---------------------------------------------------------------------------------------------------
# All of them for a block's own window: kernel k, stride s, padding p, dilation d, groups g. The small windows are
# written as a k x k kernel with zeros around, so that nothing here knows about margins and crops.


def norm(m: nn.BatchNorm2d, x: Tensor) -> Tensor:
    scale = m.weight / torch.sqrt(m.running_var + m.eps)
    return (x - m.running_mean[:, None, None]) * scale[:, None, None] + m.bias[:, None, None]


def embedded(kernel: Tensor, k: int) -> Tensor:
    """A kernel of 1 x 1, k x 1 or 1 x k taps as one of k x k, about the centre k // 2."""
    whole = kernel.new_zeros(*kernel.shape[:2], k, k)
    rows = slice(None) if kernel.shape[2] == k else slice(k // 2, k // 2 + 1)
    columns = slice(None) if kernel.shape[3] == k else slice(k // 2, k // 2 + 1)
    whole[:, :, rows, columns] = kernel
    return whole


def dirac(channels: int, k: int) -> Tensor:
    """The depthwise kernel that picks the centre."""
    return embedded(torch.ones(channels, 1, 1, 1, dtype=torch.float64), k)


def slide(x: Tensor, kernel: Tensor, k: int, s: int, p: int, d: int, g: int) -> Tensor:
    return F.conv2d(x, embedded(kernel, k), None, s, p, d, g)


def repvgg_formula(m: nn.Module, x: Tensor, k: int, s: int, p: int, d: int, g: int) -> Tensor:
    b = m.branches
    y = norm(b.dense.norm, slide(x, b.dense.conv.weight, k, s, p, d, g))
    y = y + norm(b.pointwise.norm, slide(x, b.pointwise.conv.weight, k, s, p, d, g))
    if "identity" in b:
        y = y + norm(b.identity.norm, F.conv2d(x, dirac(x.shape[1], k), None, 1, p, d, x.shape[1]))
    return y


def acnet_formula(m: nn.Module, x: Tensor, k: int, s: int, p: int, d: int, g: int) -> Tensor:
    return sum(norm(b.norm, slide(x, b.conv.weight, k, s, p, d, g)) for b in m.branches.values())


def dbb_formula(m: nn.Module, x: Tensor, k: int, s: int, p: int, d: int, g: int) -> Tensor:
    """The padded norms as what their border stands for: zero padding in front of the 1x1 convolution."""
    b = m.branches
    padded = F.pad(x, (p, p, p, p))
    y = norm(b.dense.norm, slide(x, b.dense.conv.weight, k, s, p, d, g))
    if "pointwise" in b:
        y = y + norm(b.pointwise.norm, slide(x, b.pointwise.conv.weight, k, s, p, d, g))
    squeeze = b.bottleneck.squeeze
    kernel = squeeze.weight
    if isinstance(squeeze, IdentityBasedConv1x1):
        kernel = kernel + identity_kernel(x.shape[1], g)
    inner = norm(b.bottleneck.padded.norm, F.conv2d(padded, kernel, groups=g))
    y = y + norm(b.bottleneck.norm, F.conv2d(inner, b.bottleneck.conv.weight, None, s, 0, d, g))
    mixed = x if "mix" not in b.average._modules else F.conv2d(x, b.average.mix.weight, groups=g)
    # The average as a depthwise kernel of d * (k - 1) + 1 taps, dense around the window's centre.
    span = d * (k - 1) + 1
    start = d * (k // 2) - k // 2
    window = torch.zeros(mixed.shape[1], 1, span, span, dtype=torch.float64)
    window[:, :, start : start + k, start : start + k] = 1 / k**2
    if "mix" in b.average._modules:
        # Pad generously, norm, then slide: every border value is the norm of a zero.
        mixed = norm(b.average.padded.norm, F.pad(mixed, (p, p, p, p)))
        pooled = F.conv2d(mixed, window, None, s, 0, 1, mixed.shape[1])
    else:
        pooled = F.conv2d(mixed, window, None, s, p, 1, mixed.shape[1])
    return y + norm(b.average.norm, pooled)


def mobileone_formula(m: nn.Module, x: Tensor, k: int, s: int, g: int) -> Tensor:
    parts = dict(m.branches.items())
    skip = parts.pop("skip", None)
    y = sum(norm(b.norm, slide(x, b.conv.weight, k, s, k // 2, 1, g)) for b in parts.values())
    if skip is not None:
        y = y + norm(skip.norm, F.conv2d(x, dirac(x.shape[1], k), None, 1, k // 2, 1, x.shape[1]))
    return y


def identity_kernel(channels: int, groups: int) -> Tensor:
    """Output o of a grouped convolution reads input o, which is number o % (channels / groups) of its group."""
    kernel = torch.zeros(channels, channels // groups, 1, 1, dtype=torch.float64)
    for o in range(channels):
        kernel[o, o % (channels // groups)] = 1
    return kernel


# --- every block equals its formula ---------------------------------------------------------------------------------

WINDOWS = [  # kernel, stride, padding, dilation
    (k, s, p, d)
    for k, s, d in itertools.product((1, 2, 3, 4, 5), (1, 2, 3), (1, 2))
    for p in sorted({0, k // 2, d * (k - 1) // 2, k // 2 + 2})
]
CHANNELS = [(4, 4, 1), (4, 4, 2), (4, 4, 4), (4, 8, 4), (6, 4, 2), (3, 5, 1)]  # in, out, groups: dense to depthwise
FORMULAS = [(RepVGGBlock, repvgg_formula), (ACBlock, acnet_formula), (DiverseBranchBlock, dbb_formula)]


def window_sizes(k: int, p: int, d: int) -> list[tuple[int, int]]:
    """Odd and not square, and the smallest legal one: a single position of the window, on both axes and on one."""
    least = max(1, d * (k - 1) + 1 - 2 * p)
    return [(least, least), (least, least + 4), (least + 9, least + 6)]


@pytest.mark.parametrize("channels", CHANNELS, ids=str)
@pytest.mark.parametrize(("block", "formula"), FORMULAS, ids=lambda part: getattr(part, "__name__", ""))
def test_windowed_block_equals_its_formula(block: type, formula: Formula, channels: tuple[int, int, int]) -> None:
    in_channels, out_channels, groups = channels
    for k, s, p, d in WINDOWS:
        module = drawn_block(block(in_channels, out_channels, k, s, p, d, groups, activation=None))
        for height, width in window_sizes(k, p, d):
            x = pixels(in_channels, height, width)
            y = module(x)
            expected = [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size in (height, width)]
            assert y.shape == (2, out_channels, *expected)
            error = relative_error(y, formula(module, x, k, s, p, d, groups))
            assert error < 1e-12, (k, s, p, d, height, width, error)


@pytest.mark.parametrize("channels", CHANNELS, ids=str)
def test_mobileone_equals_its_formula(channels: tuple[int, int, int]) -> None:
    in_channels, out_channels, groups = channels
    for k, s, branches in itertools.product((1, 2, 3, 5, 7), (1, 2, 3), (1, 4)):
        module = drawn_block(MobileOneBlock(in_channels, out_channels, k, s, groups, branches, activation=None))
        for height, width in window_sizes(k, k // 2, 1):
            x = pixels(in_channels, height, width)
            assert relative_error(module(x), mobileone_formula(module, x, k, s, groups)) < 1e-12


@pytest.mark.parametrize("internal", [2, 4, 8])
def test_dbb_internal_channels(internal: int) -> None:
    module = drawn_block(DiverseBranchBlock(4, 6, 3, stride=2, groups=2, internal_channels=internal))
    x = pixels(4, 7, 10)
    assert module.branches.bottleneck.padded.norm.num_features == internal
    assert isinstance(module.branches.bottleneck.squeeze, IdentityBasedConv1x1) == (internal == 4)
    assert relative_error(module(x), dbb_formula(module, x, 3, 2, 1, 1, 2)) < 1e-12


def test_depthwise_dbb_is_as_published() -> None:
    branches = DiverseBranchBlock(4, 4, 3, groups=4).branches
    assert list(branches) == ["dense", "bottleneck", "average"]
    assert branches.bottleneck.padded.norm.num_features == 8
    assert [type(step) for step in branches.average] == [nn.ZeroPad2d, nn.AvgPool2d, nn.BatchNorm2d]


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_identity_based_conv(groups: int) -> None:
    conv = IdentityBasedConv1x1(6, groups).double()
    x = pixels(6, 3, 5)
    assert torch.equal(conv(x), x)
    draw_constants(conv)
    assert relative_error(conv(x), F.conv2d(x, conv.weight + identity_kernel(6, groups), groups=groups)) < 1e-14
    assert relative_error(conv(x), x) > 1e-2
    assert list(conv.state_dict()) == ["weight"]


@pytest.mark.parametrize("margins", [(0, 0), (1, 1), (3, 3), (0, 1), (2, 0), (-1, -1), (-1, 2)], ids=str)
def test_padded_norm_is_padding_before_the_norm(margins: tuple[int, int]) -> None:
    module = drawn_block(PaddedBatchNorm2d(3, margins))
    x = pixels(3, 5, 4)
    truth = norm(module.norm, F.pad(x, margins * 2))
    assert relative_error(module(x), truth) < 1e-14
    if max(margins) > 0:
        assert relative_error(F.pad(module.norm(x), margins * 2), truth) > 1e-2  # zeros there would be another function


def test_formula_check_can_fail() -> None:
    """A flipped kernel in one branch and a zero border in another are noticed."""
    x = pixels(4, 7, 5)
    module = drawn_block(DiverseBranchBlock(4, 4, 3))
    flipped = copy.deepcopy(module)
    flipped.branches.bottleneck.conv.weight.data = module.branches.bottleneck.conv.weight.data.flip(-1)
    assert relative_error(flipped(x), dbb_formula(module, x, 3, 1, 1, 1, 1)) > 1e-3
    zeros = copy.deepcopy(module)
    zeros.branches.average.padded.border = lambda: torch.zeros((), dtype=torch.float64)
    assert relative_error(zeros(x), dbb_formula(module, x, 3, 1, 1, 1, 1)) > 1e-3


@pytest.mark.parametrize("block", [RepVGGBlock, MobileOneBlock])
def test_identity_branch_needs_equal_channels_and_stride_1(block: type) -> None:
    names = {"identity", "skip"}
    assert names & set(block(4, 4, 3).branches)
    assert not names & set(block(4, 8, 3).branches)
    assert not names & set(block(4, 4, 3, stride=2).branches)


def test_activation_comes_after_the_sum() -> None:
    x = pixels(4, 5, 6)
    for block in (RepVGGBlock, ACBlock, DiverseBranchBlock, MobileOneBlock):
        plain = drawn_block(block(4, 4, 3, activation=None))
        active = drawn_block(block(4, 4, 3, activation=nn.Hardswish))
        active.load_state_dict(plain.state_dict())
        assert torch.equal(active(x), F.hardswish(plain(x)))
    assert isinstance(RepVGGBlock(4, 4).activation, nn.ReLU)
    assert isinstance(MobileOneBlock(4, 4, 3).activation, nn.ReLU)


# --- what every block can do ----------------------------------------------------------------------------------------

BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "identity conv": lambda: IdentityBasedConv1x1(4, 2),
    "padded norm": lambda: PaddedBatchNorm2d(4, (2, 1)),
    "repvgg": lambda: RepVGGBlock(4, 4, groups=2),
    "repvgg even": lambda: RepVGGBlock(4, 4, 4),
    "acnet": lambda: ACBlock(4, 8, 5, stride=2, padding=1),
    "dbb": lambda: DiverseBranchBlock(4, 4, 3, activation=nn.GELU),
    "dbb strided": lambda: DiverseBranchBlock(4, 8, 3, stride=2, groups=2),
    "dbb depthwise": lambda: DiverseBranchBlock(4, 4, 5, groups=4),
    "mobileone depthwise": lambda: MobileOneBlock(4, 4, 3, groups=4),
    "mobileone pointwise": lambda: MobileOneBlock(4, 8, 1),
}
WITH_ITEM_ASSIGNMENT = {"padded norm", "dbb", "dbb strided", "dbb depthwise"}
every_block = pytest.mark.parametrize("name", BLOCKS)


@every_block
@pytest.mark.parametrize("training", [True, False])
def test_gradients_reach_every_parameter(name: str, training: bool) -> None:
    block = drawn_block(BLOCKS[name]()).train(training)
    x = pixels(4, 7, 9).requires_grad_()
    # The mean over all pixels of a norm in train mode has no gradient, so the pixels are weighted.
    y = block(x)
    (y * torch.rand(y.shape, generator=torch.Generator().manual_seed(2), dtype=y.dtype)).sum().backward()
    for key, tensor in [*block.named_parameters(), ("input", x)]:
        assert tensor.grad is not None, key
        assert bool(tensor.grad.isfinite().all()), key
        assert float(tensor.grad.abs().max()) > 0, key


@every_block
def test_a_later_training_forward_leaves_gradients_alone(name: str) -> None:
    """The border of a padded norm is made of running statistics, which every training forward changes in place."""
    block = drawn_block(BLOCKS[name]()).train()
    loss = block(pixels(4, 7, 9)).pow(3).sum()
    before = torch.autograd.grad(loss, list(block.parameters()), retain_graph=True)
    block(10 + pixels(4, 9, 7))
    after = torch.autograd.grad(loss, list(block.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@every_block
def test_state_dict_round_trip(name: str) -> None:
    block, other = drawn_block(BLOCKS[name](), seed=0), drawn_block(BLOCKS[name](), seed=1)
    x = pixels(4, 7, 9)
    y = block(x)
    assert not torch.equal(other(x), y)
    file = io.BytesIO()
    torch.save(block.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), y)


@every_block
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_duplicates_are_equal_and_independent(name: str, duplicate: Callable[[nn.Module], nn.Module]) -> None:
    block = drawn_block(BLOCKS[name]())
    x = pixels(4, 7, 9)
    y = block(x)
    twin = duplicate(block)
    assert torch.equal(twin(x), y)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    assert torch.equal(block(x), y)
    assert not torch.equal(twin(x), y)


@every_block
def test_symbolic_trace(name: str) -> None:
    """All but the blocks that assign to items: torch.fx has no node for that."""
    block = drawn_block(BLOCKS[name]())
    if name in WITH_ITEM_ASSIGNMENT:
        with pytest.raises(TypeError, match="item assignment"):
            fx.symbolic_trace(block)
    else:
        x = pixels(4, 7, 9)
        assert torch.equal(fx.symbolic_trace(block)(x), block(x))


@every_block
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_is_that_of_the_parameters(name: str, dtype: torch.dtype) -> None:
    block = drawn_block(BLOCKS[name]()).to(dtype)
    y = block(pixels(4, 7, 9).to(dtype))
    assert y.dtype == dtype
    assert bool(y.isfinite().all())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RepVGGBlock(4, 4, kernel_size=0), "RepVGGBlock: kernel_size=0.*at least 1"),
        (lambda: RepVGGBlock(4, 4, kernel_size=(3, 3)), r"RepVGGBlock: kernel_size=\(3, 3\).*integer"),
        (lambda: RepVGGBlock(4, 4, padding=-1), "RepVGGBlock: padding=-1.*at least 0"),
        (lambda: RepVGGBlock(0, 4), "RepVGGBlock: in_channels=0"),
        (lambda: ACBlock(4, 4, padding="same"), "ACBlock: padding='same'.*None"),
        (lambda: ACBlock(4, 6, groups=4), "ACBlock: out_channels=6 .*groups=4.*8 channels"),
        (lambda: ACBlock(4, 4, dilation=0), "ACBlock: dilation=0"),
        (lambda: DiverseBranchBlock(4, 4, 3, groups=2, internal_channels=5), "DiverseBranchBlock: internal_channels=5"),
        (lambda: DiverseBranchBlock(4, 4, 3, internal_channels=0), "DiverseBranchBlock: internal_channels=0"),
        (lambda: DiverseBranchBlock(4, 4, 3, stride=0), "DiverseBranchBlock: stride=0"),
        (lambda: MobileOneBlock(4, 4, 3, branches=0), "MobileOneBlock: branches=0"),
        (lambda: MobileOneBlock(5, 4, 3, groups=2), "MobileOneBlock: in_channels=5"),
        (lambda: IdentityBasedConv1x1(4, 3), "IdentityBasedConv1x1: channels=4.*groups=3"),
        (lambda: IdentityBasedConv1x1(4, 0), "IdentityBasedConv1x1: groups=0"),
        (lambda: PaddedBatchNorm2d(0, (1, 1)), "PaddedBatchNorm2d: channels=0"),
        (lambda: demo_network(0), "demo_network: num_classes=0"),
        (lambda: draw_statistics(nn.Sequential(nn.LazyBatchNorm2d())), "0 .LazyBatchNorm2d.*run the model once"),
    ],
)
def test_wrong_arguments_are_explained(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


# --- drawn numbers --------------------------------------------------------------------------------------------------


def numbers(model: nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values()]


def test_draw_statistics_leaves_no_default() -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 1), nn.BatchNorm2d(64), nn.ReLU(), nn.BatchNorm2d(64))
    assert draw_statistics(model) is model
    model.requires_grad_(False)
    for m in (model[1], model[3]):
        assert float(m.running_var.min()) >= 0.5
        assert float(m.running_var.max()) <= 1.5
        assert float(m.weight.abs().min()) >= 0.5
        assert 0 < int((m.weight < 0).sum()) < 20
        assert all(len(tensor.unique()) > 60 for tensor in (m.running_mean, m.running_var, m.weight, m.bias))
    assert not torch.equal(model[1].weight, model[3].weight)


def test_draw_statistics_follows_the_seed_alone() -> None:
    initial = demo_network()
    first, same = (draw_statistics(copy.deepcopy(initial), seed=3) for _ in range(2))
    other = draw_statistics(copy.deepcopy(initial), seed=4)
    state = torch.random.get_rng_state()
    double = draw_statistics(copy.deepcopy(initial).double(), seed=3)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(numbers(first), numbers(same), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(numbers(first), numbers(other), strict=True))
    assert all(torch.equal(a, b.to(a)) for a, b in zip(numbers(first), numbers(double), strict=True))


class Tokens(nn.BatchNorm1d):
    """A norm of the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, -2)).view(x.shape)


@pytest.mark.parametrize("shape", [(64, 7, 4), (64, 4, 4), (3, 64, 5, 4)])
def test_draw_statistics_of_a_norm_that_reshapes(shape: tuple[int, ...]) -> None:
    model = draw_statistics(nn.Sequential(nn.Linear(3, 4), Tokens(4)), inputs=(100 * torch.randn(*shape[:-1], 3),))
    normed = model.eval()[1].running_var
    assert (normed > 50).all()
    assert model(torch.randn(*shape[:-1], 3)).shape == shape


def test_draw_statistics_takes_norms_of_every_kind_and_nothing_else() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gamma = nn.Parameter(1e-5 * torch.ones(4))
            self.conv = IdentityBasedConv1x1(4)
            self.bare = nn.BatchNorm1d(4, affine=False)
            self.untracked = nn.BatchNorm3d(4, track_running_stats=False)
            self.sync = nn.SyncBatchNorm(4)
            self.instance = nn.InstanceNorm2d(4, track_running_stats=True)
            self.layer = nn.LayerNorm(4)

    initial = Scaled()
    drawn = draw_statistics(copy.deepcopy(initial))
    left = {key for key, tensor in drawn.state_dict().items() if torch.equal(tensor, initial.state_dict()[key])}
    assert {key for key in left if "num_batches" not in key} == {"gamma", "conv.weight", "layer.weight", "layer.bias"}
    assert drawn.bare.weight is None
    assert drawn.untracked.running_mean is None


def test_draw_constants_draws_what_starts_constant() -> None:
    model = nn.ModuleDict(
        {"zero": IdentityBasedConv1x1(64), "scale": nn.LayerNorm(64), "conv": nn.Conv2d(64, 64, 1, groups=64)}
    )
    model.requires_grad_(False)
    before = copy.deepcopy(model)
    assert draw_constants(model) is model
    assert torch.equal(model["conv"].weight, before["conv"].weight)
    assert 0.8 < float(model["zero"].weight.std()) / (0.1 / 64**0.5) < 1.2
    assert 0.05 < float((model["scale"].weight - 1).std()) < 0.2
    again = numbers(model)
    assert all(torch.equal(a, b) for a, b in zip(again, numbers(draw_constants(model, seed=9)), strict=True))


STACKS: dict[str, Callable[[], nn.Module]] = {
    "repvgg": lambda: RepVGGBlock(8, 8),
    "dbb": lambda: DiverseBranchBlock(8, 8, 3, activation=nn.ReLU),
    "acnet": lambda: ACBlock(8, 8, activation=nn.ReLU),
    "mobileone": lambda: MobileOneBlock(8, 8, 3, branches=6),
}


@pytest.mark.parametrize("name", STACKS)
def test_thirty_blocks_stay_in_range(name: str) -> None:
    torch.manual_seed(0)
    stack = nn.Sequential(*[STACKS[name]() for _ in range(30)]).eval().requires_grad_(False)
    for conv in stack.modules():
        if isinstance(conv, nn.Conv2d):  # keeps the scale for one branch: too much for a sum of them
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    x = pixels(8, 16, 15).float()
    draw_statistics(draw_constants(stack))
    assert 1e-6 < float(stack(x).std()) < 1e15
    draw_statistics(stack, inputs=(x,))
    y = stack(x)
    assert 0.1 < float(y.std()) < 10
    assert float((y[0] - y[1]).std()) > 0.01 * float(y.std())  # and they still depend on the image


def test_measured_statistics_are_near_the_real_ones_and_change_nothing_else() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), nn.BatchNorm2d(3, affine=False).eval())
    x = 100 + 50 * pixels(3, 16, 16, batch=4).float()
    draw_statistics(model, inputs=(x,))
    first = model[0]
    true_mean, true_variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
    assert bool(((first.running_mean - true_mean).abs() < 4 * 0.3 * true_variance.sqrt()).all())
    assert bool((first.running_var / true_variance > 0.49).all())
    assert bool((first.running_var / true_variance < 1.51).all())
    assert [m.training for m in model] == [True, True, False]
    assert all(not m._forward_pre_hooks for m in model)


def test_a_failing_forward_leaves_no_hook() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Linear(5, 5))
    with pytest.raises(RuntimeError):
        draw_statistics(model, inputs=(torch.zeros(1, 3, 4, 4),))
    assert model.training
    assert not model[0]._forward_pre_hooks


# --- the demo network -----------------------------------------------------------------------------------------------


def test_demo_network_uses_every_block() -> None:
    model = demo_network(7)
    kinds = [type(m) for m in model.modules()]
    blocks = (RepVGGBlock, ACBlock, DiverseBranchBlock, MobileOneBlock)
    assert 20 <= sum(kinds.count(block) for block in blocks) <= 40
    assert set(blocks) | {IdentityBasedConv1x1, PaddedBatchNorm2d} <= set(kinds)
    for size in ((96, 96), (33, 21), (1, 1)):
        assert drawn_block(model)(pixels(3, *size)).shape == (2, 7)


def test_demo_network_can_be_trained() -> None:
    torch.manual_seed(0)
    model = demo_network(3).train()
    assert model.training
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    x, labels = pixels(3, 24, 24, batch=6).float(), torch.arange(6) % 3
    losses = []
    for _ in range(6):
        loss = F.cross_entropy(model(x), labels)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_package_imports_torch_alone() -> None:
    allowed = ("torch", "reparam.nn", "__future__", "collections", "typing", "contextlib")
    for path in Path(reparam.nn.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert all(any(name == top or name.startswith(f"{top}.") for top in allowed) for name in names), path
