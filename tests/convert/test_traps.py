"""Where other tools fold wrongly, or not at all: every story of the field as a small network.

Each is converted in float64 with drawn statistics, compared with the original at several odd sizes, and has to run
exactly the convolutions and batch norms that are named here; what was refused has to say so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm

import reparam
from reparam.nn import RepVGGBlock
from tests.helpers import (
    EXACT,
    Block,
    bn,
    conv,
    converted,
    convs_ran,
    distance,
    image,
    norms_ran,
    seq,
    summed,
    trained,
)


@dataclass(frozen=True)
class Trap:
    """A network, the convolutions and batch norms that are left in it, and a word of a refusal."""

    make: Callable[[], nn.Module]
    convs: int
    norms: int
    word: str = ""
    sizes: tuple[tuple[int, int], ...] = ((9, 7), (12, 5), (6, 10))


# --- functions that stand for forwards


def used_twice(m: nn.Module, x: Tensor) -> Tensor:
    return F.relu(m.conv(x)) + F.relu(m.bn(m.conv(x)))


def two_norms_of_one(m: nn.Module, x: Tensor) -> Tensor:
    y = m.conv(x)
    return F.relu(m.a(y)) + F.relu(m.b(y))


def two_norms_two_calls(m: nn.Module, x: Tensor) -> Tensor:
    return F.relu(m.a(m.conv(x))) * F.relu(m.b(m.conv(x)))


def alias_read_later(m: nn.Module, x: Tensor) -> Tensor:
    y = m.bn(m.conv(x))
    z = y
    y += x
    return F.relu(y) + F.tanh(z)


def view_read_later(m: nn.Module, x: Tensor) -> Tensor:
    y = m.bn(m.conv(x))
    part = y[:, :2]
    y.relu_()
    return torch.cat([y, part], 1)


def overwritten_through_a_view(m: nn.Module, x: Tensor) -> Tensor:
    y = m.conv(x)
    y[:, :2].relu_()
    return m.bn(y)


def overwritten_before_read(m: nn.Module, x: Tensor) -> Tensor:
    y = m.conv(x)
    before = m.bn(y)
    y.zero_()
    return before + y


def input_overwritten(m: nn.Module, x: Tensor) -> Tensor:
    y = m.bn(m.conv(x))
    x.mul_(2)
    return y + F.relu(x)


def asserted(m: nn.Module, x: Tensor) -> Tensor:
    y = m.conv(x)
    torch._assert(y.ndim == 4, "an image")
    torch._assert(y.shape[2] > 1, f"height {y.shape[2]}")
    return F.relu(m.bn(y))


def number_read(m: nn.Module, x: Tensor) -> Tensor:
    y = m.conv(x)
    return m.bn(y) * (2.0 if y.mean().item() > 1e9 else 1.0)


def norm_if_large(m: nn.Module, x: Tensor) -> Tensor:
    y = m.conv(x)
    return F.relu(m.bn(y) if x.shape[-1] > 8 else y)


def norm_if_bright(m: nn.Module, x: Tensor) -> Tensor:
    y = m.conv(x)
    return F.relu(m.bn(y) if x.mean() > -1 else y)


def index_read(m: nn.Module, x: Tensor) -> Tensor:
    y = m.bn(m.conv(x))
    return y * int(x.shape[-1])


def weight_read_elsewhere(m: nn.Module, x: Tensor) -> Tensor:
    return F.relu(m.body(x)) * m.body[0].weight.abs().mean()


class NormAct(nn.BatchNorm2d):
    """A batch norm that ends in an activation, and calls the function itself."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps)
        return F.relu(y)


class NormActSuper(nn.BatchNorm2d):
    """The same by calling its base class."""

    def forward(self, x: Tensor) -> Tensor:
        return F.hardswish(super().forward(x))


class DropPath(nn.Module):
    """Stochastic depth, as most networks write it."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = torch.rand(x.shape[0], 1, 1, 1) > self.rate
        return x * keep / (1 - self.rate)


class SameConv(nn.Conv2d):
    """Padding as TensorFlow has it: how much depends on the size of the input."""

    def forward(self, x: Tensor) -> Tensor:
        sides = []
        for size, taps, step in zip(x.shape[2:], self.kernel_size, self.stride, strict=True):
            total = max((-(-size // step) - 1) * step + taps - size, 0)
            sides = [total // 2, total - total // 2, *sides]
        return F.conv2d(F.pad(x, sides), self.weight, self.bias, self.stride)


class Branching(nn.Module):
    """Another branch for large images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.other = conv(4, 4, 3, padding=1), bn(), conv(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if x.shape[-1] > 8:
            return F.relu(self.bn(y) + self.other(x))
        return F.relu(y - self.other(x))


class Stores(nn.Module):
    """Stores an intermediate tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = conv(4, 4, 3, padding=1), bn()
        self.feat: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.feat = y
        return F.relu(self.bn(y))


def tied() -> nn.Module:
    first, second = conv(4, 4, 3, padding=1), conv(4, 4, 3, padding=1)
    second.weight = first.weight
    return seq(first, bn(), nn.ReLU(), second, bn())


def tied_norms() -> nn.Module:
    norm = bn()
    return seq(conv(4, 4, 3, padding=1), norm, nn.ReLU(), conv(4, 4, 1), norm)


def block_called_twice() -> nn.Module:
    return Block(lambda m, x: m.block(m.block(x)), block=seq(conv(4, 4, 3, padding=1), bn(), nn.ReLU()))


def repvgg_called_twice() -> nn.Module:
    return Block(lambda m, x: m.block(m.block(x)), block=RepVGGBlock(4, 4))


def conv_called_twice_alike() -> nn.Module:
    return Block(lambda m, x: m.bn(m.conv(F.relu(m.bn(m.conv(x))))), conv=conv(4, 4, 3, padding=1), bn=bn())


def two_names() -> nn.Module:
    norm, layer = bn(), conv(4, 4, 3, padding=1)
    return Block(lambda m, x: F.relu(m.norm(m.layers[0](x))), conv=layer, norm=norm, layers=nn.ModuleList([layer]))


def parametrized(register: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: seq(register(conv(4, 4, 3, padding=1)), bn(), nn.ReLU(), register(conv(4, 6, 1, bias=True)))


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight + weight.flip(2)


def symmetric(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


def functional(m: nn.Module, x: Tensor) -> Tensor:
    y = F.conv2d(x, m.kernel, padding=1)
    return F.relu(F.batch_norm(y, m.mean, m.var, m.gamma, m.beta, False, 0.1, 1e-3))


def functional_block() -> nn.Module:
    return Block(
        functional,
        kernel=nn.Parameter(torch.randn(4, 4, 3, 3)),
        gamma=nn.Parameter(torch.randn(4)),
        beta=nn.Parameter(torch.randn(4)),
        mean=torch.randn(4),
        var=torch.rand(4) + 0.5,
    )


def excited(m: nn.Module, x: Tensor) -> Tensor:
    y = m.bn(m.conv(x))
    return y * torch.sigmoid(m.fc(y.mean((2, 3), keepdim=True)))


def deconv(**kwargs: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(4, 4, 3, bias=False, **kwargs)


TRAPS = {
    # one convolution, several readers
    "conv used twice, norm on one path": Trap(
        lambda: Block(used_twice, conv=conv(4, 4, 3, padding=1), bn=bn()), convs=1, norms=0
    ),
    "two norms of one conv": Trap(
        lambda: Block(two_norms_of_one, conv=conv(4, 4, 3, padding=1), a=bn(), b=bn()), convs=1, norms=2
    ),
    "conv shared by two norms": Trap(
        lambda: Block(two_norms_two_calls, conv=conv(4, 4, 3, padding=1), a=bn(), b=bn()), convs=1, norms=0
    ),
    "weights tied": Trap(tied, convs=2, norms=0),
    "a norm shared by two convs": Trap(tied_norms, convs=2, norms=0),
    "block called twice": Trap(block_called_twice, convs=2, norms=0),
    "branches called twice": Trap(repvgg_called_twice, convs=2, norms=0),
    "conv and norm called twice": Trap(conv_called_twice_alike, convs=2, norms=0),
    "stored under two names": Trap(two_names, convs=1, norms=0),
    "weight read by other code": Trap(
        lambda: Block(weight_read_elsewhere, body=seq(conv(4, 4, 3, padding=1), bn())), convs=1, norms=0
    ),
    # transposed
    "deconv": Trap(lambda: seq(deconv(), bn()), convs=1, norms=0),
    "deconv with groups": Trap(lambda: seq(deconv(groups=2, stride=2), bn()), convs=1, norms=0),
    # borders
    "norm before a padded conv": Trap(lambda: seq(bn(), conv(4, 4, 3, padding=1)), convs=1, norms=1, word="bias"),
    "norm before a conv": Trap(lambda: seq(bn(), conv(4, 4, 3)), convs=1, norms=0),
    "norm before a 1x1": Trap(lambda: seq(bn(), conv(4, 6, 1)), convs=1, norms=0),
    "bias before a padded 3x3": Trap(
        lambda: seq(conv(4, 1, 1, bias=True), conv(1, 4, 3, padding=1)), convs=2, norms=0, word="bias"
    ),
    "no bias before a padded 3x3": Trap(lambda: seq(conv(4, 4, 1), conv(4, 4, 3, padding=1)), convs=1, norms=0),
    "padded 3x3 before a padded 3x3": Trap(
        lambda: seq(conv(4, 1, 3, padding=1), conv(1, 4, 3, padding=1)), convs=2, norms=0, word="border"
    ),
    "reflect": Trap(lambda: seq(conv(4, 4, 3, padding=1, padding_mode="reflect"), bn()), convs=1, norms=0),
    "circular": Trap(lambda: seq(conv(4, 4, 3, padding=1, padding_mode="circular"), bn()), convs=1, norms=0),
    "replicate": Trap(lambda: seq(conv(4, 4, 3, padding=1, padding_mode="replicate"), bn()), convs=1, norms=0),
    "reflect beside no padding": Trap(
        lambda: summed(seq(conv(4, 4, 3, padding=1, padding_mode="reflect"), bn()), seq(conv(4, 4, 1), bn())),
        convs=1,
        norms=0,
    ),
    "reflect beside zeros": Trap(
        lambda: summed(
            seq(conv(4, 4, 3, padding=1, padding_mode="reflect"), bn()), seq(conv(4, 4, 3, padding=1), bn())
        ),
        convs=2,
        norms=0,
        word="reflect",
    ),
    # pools
    "pool that counts fewer pixels": Trap(
        lambda: seq(nn.AvgPool2d(3, 1, 1, count_include_pad=False), bn()), convs=0, norms=1, word="count_include_pad"
    ),
    "pool that rounds up": Trap(lambda: seq(nn.AvgPool2d(2, ceil_mode=True), bn()), convs=0, norms=1, word="ceil_mode"),
    "pool as a branch": Trap(
        lambda: summed(seq(conv(4, 4, 3, padding=1), bn()), seq(nn.AvgPool2d(3, 1, 1), bn())), convs=1, norms=0
    ),
    "pool that counts fewer pixels as a branch": Trap(
        lambda: summed(seq(conv(4, 4, 3, padding=1), bn()), nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
        convs=1,
        norms=0,
        word="count_include_pad",
    ),
    # kernels
    "even kernel": Trap(lambda: seq(conv(4, 4, 4, padding=1), bn()), convs=1, norms=0),
    "even kernels summed": Trap(
        lambda: summed(seq(conv(4, 4, 4, padding=1), bn()), seq(conv(4, 4, 2), bn())), convs=1, norms=0
    ),
    "large kernels summed": Trap(
        lambda: summed(seq(conv(4, 4, 7, padding=3), bn()), seq(conv(4, 4, 5, padding=2), bn()), bn()), convs=1, norms=0
    ),
    "rows and columns": Trap(
        lambda: summed(
            seq(conv(4, 4, (1, 5), padding=(0, 2)), bn()),
            seq(conv(4, 4, (3, 1), padding=(1, 0)), bn()),
            seq(conv(4, 4, (3, 5), padding=(1, 2)), bn()),
        ),
        convs=1,
        norms=0,
    ),
    "parities under a stride": Trap(
        lambda: summed(seq(conv(4, 4, 2, stride=2), bn()), seq(conv(4, 4, 1, stride=2), bn())),
        convs=2,
        norms=0,
        word="stride",
        sizes=((8, 6), (12, 4), (6, 10)),
    ),
    "one parity under a stride": Trap(
        lambda: summed(seq(conv(4, 4, 3, stride=2, padding=1), bn()), seq(conv(4, 4, 1, stride=2), bn())),
        convs=1,
        norms=0,
    ),
    "same with an even kernel": Trap(lambda: seq(conv(4, 4, 4, padding="same"), bn()), convs=1, norms=0),
    "same with a kernel of two": Trap(lambda: seq(conv(4, 4, 2, padding="same"), bn()), convs=1, norms=0),
    "same and dilated": Trap(lambda: seq(conv(4, 4, (4, 3), padding="same", dilation=2), bn()), convs=1, norms=0),
    "dilated beside dense": Trap(
        lambda: summed(
            seq(conv(4, 4, 3, padding=2, dilation=2), bn()),
            seq(conv(4, 4, 3, padding=1), bn()),
            seq(conv(4, 4, 5, padding=2), bn()),
        ),
        convs=1,
        norms=0,
    ),
    # groups and identities
    "identity with groups": Trap(
        lambda: summed(seq(conv(4, 4, 3, padding=1, groups=2), bn()), nn.Identity()), convs=1, norms=0
    ),
    "norm as identity with groups": Trap(
        lambda: summed(seq(conv(4, 4, 3, padding=1, groups=2), bn()), seq(conv(4, 4, 1, groups=4), bn()), bn()),
        convs=1,
        norms=0,
    ),
    "no identity": Trap(
        lambda: summed(seq(conv(4, 4, 3, padding=1), bn()), seq(conv(4, 4, 1), bn())), convs=1, norms=0
    ),
    # norms
    "norm without affine": Trap(lambda: seq(conv(4, 4, 3), bn(affine=False)), convs=1, norms=0),
    "norm without statistics": Trap(
        lambda: seq(conv(4, 4, 3), bn(track_running_stats=False)), convs=1, norms=1, word="batch"
    ),
    "norm without momentum": Trap(lambda: seq(conv(4, 4, 3), bn(momentum=None, eps=0.1)), convs=1, norms=0),
    "norm across devices": Trap(lambda: seq(conv(4, 4, 3), nn.SyncBatchNorm(4)), convs=1, norms=0),
    "conv with bias and norm": Trap(lambda: seq(conv(4, 4, 3, bias=True), bn()), convs=1, norms=0),
    "norm with an activation": Trap(lambda: seq(conv(4, 4, 3), NormAct(4), conv(4, 4, 1)), convs=2, norms=0),
    "norm with an activation above": Trap(lambda: seq(conv(4, 4, 3), NormActSuper(4)), convs=1, norms=0),
    "stray norm": Trap(lambda: seq(conv(4, 4, 3, padding=1), nn.ReLU(), bn(), nn.ReLU()), convs=1, norms=1),
    "functional": Trap(functional_block, convs=1, norms=0),
    # between
    "clip between": Trap(lambda: seq(conv(4, 4, 3), bn(), nn.ReLU6(), conv(4, 4, 1), bn()), convs=2, norms=0),
    "squeeze-excite": Trap(
        lambda: Block(excited, conv=conv(4, 4, 3), bn=bn(), fc=conv(4, 4, 1, bias=True)), convs=2, norms=0
    ),
    "dropout": Trap(lambda: seq(conv(4, 4, 3), nn.Dropout2d(0.5), bn(), nn.Dropout(0.1)), convs=1, norms=0),
    "drop path": Trap(
        lambda: Block(
            lambda m, x: x + m.drop(m.body(x)),
            drop=DropPath(0.5),
            body=seq(conv(4, 4, 3, padding=1), bn(), nn.ReLU(), conv(4, 4, 3, padding=1), bn()),
        ),
        convs=2,
        norms=0,
    ),
    # in place
    "alias read later": Trap(lambda: Block(alias_read_later, conv=conv(4, 4, 3, padding=1), bn=bn()), 1, 0),
    "view read later": Trap(lambda: Block(view_read_later, conv=conv(4, 4, 3, padding=1), bn=bn()), 1, 0),
    "overwritten through a view": Trap(lambda: Block(overwritten_through_a_view, conv=conv(4, 4, 3), bn=bn()), 1, 1),
    "overwritten before it is read again": Trap(
        lambda: Block(overwritten_before_read, conv=conv(4, 4, 3), bn=bn()), 1, 1
    ),
    "input overwritten": Trap(lambda: Block(input_overwritten, conv=conv(4, 4, 3, padding=1), bn=bn()), 1, 0),
    # parametrized weights
    "weight norm": Trap(parametrized(parametrizations.weight_norm), convs=2, norms=0),
    "weight norm of old": Trap(parametrized(weight_norm), convs=2, norms=0),
    "spectral norm": Trap(parametrized(parametrizations.spectral_norm), convs=2, norms=0),
    "spectral norm of old": Trap(parametrized(spectral_norm), convs=2, norms=0),
    "own parametrization": Trap(parametrized(symmetric), convs=2, norms=0),
    # what Python sees
    "assertions": Trap(lambda: Block(asserted, conv=conv(4, 4, 3, padding=1), bn=bn()), convs=1, norms=0),
    "a number read from a tensor": Trap(lambda: Block(number_read, conv=conv(4, 4, 3), bn=bn()), convs=1, norms=1),
    "a size as a factor": Trap(
        lambda: Block(index_read, conv=conv(4, 4, 3), bn=bn()), convs=1, norms=0, word="depends on the size"
    ),
    "padding by size": Trap(lambda: seq(SameConv(4, 4, 3, stride=2, bias=False), bn(), nn.ReLU()), convs=1, norms=0),
    "another branch at large sizes": Trap(Branching, convs=2, norms=0, word="shape"),
    "another branch at small sizes": Trap(Branching, convs=2, norms=1, word="shape", sizes=((9, 12), (6, 5), (8, 9))),
    "a norm at large sizes": Trap(
        lambda: Block(norm_if_large, conv=conv(4, 4, 3), bn=bn()), 1, 1, "another run", sizes=((9, 12), (6, 5), (8, 9))
    ),
    "a norm for some values": Trap(lambda: Block(norm_if_bright, conv=conv(4, 4, 3), bn=bn()), 1, 1, "another run"),
    "stored on the way": Trap(Stores, convs=1, norms=1),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'", "ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("name", TRAPS)
def test_a_trap_folds_as_the_table_says(name: str) -> None:
    trap = TRAPS[name]
    x = image(2, 4, *trap.sizes[0])
    model = trained(trap.make())
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    folded = reparam.reparameterize(model, x)

    assert (convs_ran(folded, x.clone()), norms_ran(folded, x.clone())) == (trap.convs, trap.norms), (
        folded.reparam_report
    )
    for i, size in enumerate(trap.sizes):
        y = image(1 + i, 4, *size, seed=i)
        for brightness in (0, -3):
            assert distance(Cloning(model), Cloning(folded), y + brightness) < EXACT, size
    assert any(trap.word in refusal.reason for refusal in folded.reparam_report.refusals) or not trap.word
    assert not reparam.reparameterize(folded, x).reparam_report.folds
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


class Cloning(nn.Module):
    """Runs a model on a copy of its input, which some overwrite."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> object:
        return self.model(x.clone())


# --- what a table does not tell


def test_a_stored_tensor_is_the_same() -> None:
    model = trained(Stores())
    x = image(2, 4, 9, 7)
    folded = converted(model, x)
    assert model.feat is None  # the conversion itself leaves nothing behind
    folded(x), model(x)
    assert torch.equal(folded.feat, model.feat)


def test_a_module_under_two_names_stays_one() -> None:
    folded = converted(trained(two_names()), image(2, 4, 9, 7))
    assert folded.conv is folded.layers[0]


@pytest.mark.parametrize("convolution", [nn.Conv1d, nn.Conv3d])
def test_other_ranks(convolution: type[nn.Module]) -> None:
    spatial = 1 if convolution is nn.Conv1d else 3
    norm = nn.BatchNorm1d if spatial == 1 else nn.BatchNorm3d
    model = trained(seq(convolution(4, 6, 3, stride=2, padding=1), norm(6), nn.ReLU()))
    x = image(2, 4, *[9, 6, 5][:spatial])
    folded = converted(model, x)
    assert norms_ran(folded, x) == 0
    assert distance(model, folded, x) < EXACT


def test_a_leaky_slope_of_one_is_not_folded_before_it_is_one() -> None:
    model = trained(seq(conv(4, 4, 1), nn.LeakyReLU(0.99), conv(4, 4, 1)))
    x = image(2, 4, 9, 7)
    folded = converted(model, x)
    assert convs_ran(folded, x) == 2
    assert distance(model, folded, x) < EXACT


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute")
def test_modules_of_script_are_left_alone() -> None:
    model = trained(seq(conv(4, 4, 3), bn(), nn.ReLU()))
    scripted = seq(torch.jit.script(model), conv(4, 4, 3), bn()).eval().double()
    x = image(2, 4, 9, 7)
    folded = converted(scripted, x)
    assert distance(scripted, folded, x) < EXACT
    assert norms_ran(folded[1:], folded[0](x)) == 0
