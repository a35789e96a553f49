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
from reparam.capture.float64 import double
from reparam.nn import RepVGGBlock
from tests.helpers import EXACT, Block, convs_ran, distance, image, norms_ran, plain_convs, trained


@dataclass(frozen=True)
class Trap:
    """A network, the convolutions and batch norms that are left in it, and a word of what the report says of them."""

    make: Callable[[], nn.Module]
    convs: int
    norms: int
    word: str = ""
    sizes: tuple[tuple[int, int], ...] = ((9, 7), (12, 5), (6, 10))


def conv(*args: int, bias: bool = False, **kwargs: object) -> nn.Conv2d:
    return nn.Conv2d(*args, bias=bias, **kwargs)  # type: ignore[arg-type]


def seq(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(*modules)


def bn(channels: int = 4, **kwargs: object) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, **kwargs)  # type: ignore[arg-type]


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
    """Stochastic depth, as it is written everywhere."""

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
    """Keeps what it computes on the way."""

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


def added(*branches: nn.Module) -> nn.Module:
    return Block(lambda m, x: F.relu(sum(branch(x) for branch in m.branches)), branches=nn.ModuleList(branches))


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
        lambda: added(seq(conv(4, 4, 3, padding=1, padding_mode="reflect"), bn()), seq(conv(4, 4, 1), bn())),
        convs=1,
        norms=0,
    ),
    "reflect beside zeros": Trap(
        lambda: added(seq(conv(4, 4, 3, padding=1, padding_mode="reflect"), bn()), seq(conv(4, 4, 3, padding=1), bn())),
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
        lambda: added(seq(conv(4, 4, 3, padding=1), bn()), seq(nn.AvgPool2d(3, 1, 1), bn())), convs=1, norms=0
    ),
    "pool that counts fewer pixels as a branch": Trap(
        lambda: added(seq(conv(4, 4, 3, padding=1), bn()), nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
        convs=1,
        norms=0,
        word="count_include_pad",
    ),
    # kernels
    "even kernel": Trap(lambda: seq(conv(4, 4, 4, padding=1), bn()), convs=1, norms=0),
    "even kernels summed": Trap(
        lambda: added(seq(conv(4, 4, 4, padding=1), bn()), seq(conv(4, 4, 2), bn())), convs=1, norms=0
    ),
    "large kernels summed": Trap(
        lambda: added(seq(conv(4, 4, 7, padding=3), bn()), seq(conv(4, 4, 5, padding=2), bn()), bn()), convs=1, norms=0
    ),
    "rows and columns": Trap(
        lambda: added(seq(conv(4, 4, (1, 5), padding=(0, 2)), bn()), seq(conv(4, 4, (3, 1), padding=(1, 0)), bn())),
        convs=1,
        norms=0,
    ),
    "parities under a stride": Trap(
        lambda: added(seq(conv(4, 4, 2, stride=2), bn()), seq(conv(4, 4, 1, stride=2), bn())),
        convs=2,
        norms=0,
        word="stride",
        sizes=((8, 6), (12, 4), (6, 10)),
    ),
    "one parity under a stride": Trap(
        lambda: added(seq(conv(4, 4, 3, stride=2, padding=1), bn()), seq(conv(4, 4, 1, stride=2), bn())),
        convs=1,
        norms=0,
    ),
    "same with an even kernel": Trap(lambda: seq(conv(4, 4, 4, padding="same"), bn()), convs=1, norms=0),
    "same with a kernel of two": Trap(lambda: seq(conv(4, 4, 2, padding="same"), bn()), convs=1, norms=0),
    "same and dilated": Trap(lambda: seq(conv(4, 4, (4, 3), padding="same", dilation=2), bn()), convs=1, norms=0),
    "dilated beside dense": Trap(
        lambda: added(seq(conv(4, 4, 3, padding=2, dilation=2), bn()), seq(conv(4, 4, 3, padding=1), bn())),
        convs=1,
        norms=0,
    ),
    # groups and identities
    "identity with groups": Trap(
        lambda: added(seq(conv(4, 4, 3, padding=1, groups=2), bn()), nn.Identity()), convs=1, norms=0
    ),
    "norm as identity with groups": Trap(
        lambda: added(seq(conv(4, 4, 3, padding=1, groups=2), bn()), seq(conv(4, 4, 1, groups=4), bn()), bn()),
        convs=1,
        norms=0,
    ),
    "no identity": Trap(lambda: added(seq(conv(4, 4, 3, padding=1), bn()), seq(conv(4, 4, 1), bn())), convs=1, norms=0),
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
        lambda: Block(norm_if_large, conv=conv(4, 4, 3), bn=bn()), 1, 1, "control flow", sizes=((9, 12), (6, 5), (8, 9))
    ),
    "a norm for some values": Trap(lambda: Block(norm_if_bright, conv=conv(4, 4, 3), bn=bn()), 1, 1, "control flow"),
    "stored on the way": Trap(Stores, convs=1, norms=1),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'", "ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("name", TRAPS)
def test_trap(name: str) -> None:
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


def converted(model: nn.Module, *inputs: Tensor, **options: object) -> nn.Module:
    return reparam.reparameterize(model, inputs, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("register", ["forward", "pre"])
def test_a_hook_sees_the_same_tensors(register: str) -> None:
    """A hook is behaviour: what it looks at stays, and what it does not look at folds."""
    model = trained(seq(conv(4, 4, 3, padding=1), bn(), nn.ReLU(), conv(4, 4, 3), bn()))
    seen: list[Tensor] = []
    if register == "forward":
        model[0].register_forward_hook(lambda module, args, result: seen.append(result.clone()))
    else:
        model[1].register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    x = image(2, 4, 9, 7)
    folded = converted(model, x)
    seen.clear()
    assert distance(model, folded, x) < EXACT
    assert len(seen) == 2
    assert torch.equal(*seen)
    assert norms_ran(folded, x) == 1


def test_a_hook_that_changes_the_result_still_does() -> None:
    model = trained(seq(conv(4, 4, 3, padding=1), bn(), nn.ReLU()))
    model[0].register_forward_hook(lambda module, args, result: result * 2)
    x = image(2, 4, 9, 7)
    assert distance(model, converted(model, x), x) < EXACT


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_stays_and_nothing_is_lost(dtype: torch.dtype) -> None:
    """Composed in float64 and rounded once, the fold is at least about as near to the truth as the original."""
    model = trained(seq(RepVGGBlock(8, 8), RepVGGBlock(8, 8), conv(8, 8, 3), bn(8)))
    model = model.to(dtype)
    x = image(2, 8, 15, 12, dtype=dtype)
    folded = converted(model, x)
    assert {parameter.dtype for parameter in folded.parameters()} == {dtype}
    with torch.no_grad():
        truth = double(model)(x.double())
        errors = [(m(x).double() - truth).abs().max().item() for m in (model, folded)]
    assert errors[1] <= (1.5 * errors[0] if dtype.itemsize == 2 else 3 * errors[0] + 1e-5)
    assert convs_ran(folded, x) == 3


def test_float32_constants_do_not_leak_into_float64() -> None:
    """1 / 9 in float32 is off by 1e-9: more than a float64 fold may be."""
    model = trained(
        Block(lambda m, x: m.bn(m.pool(x)) + m.conv(x), pool=nn.AvgPool2d(3, 1, 1), conv=conv(4, 4, 1), bn=bn())
    )
    x = image(2, 4, 9, 7)
    assert distance(model, converted(model, x), x) < 1e-14


def test_the_root_is_one_batch_norm() -> None:
    model = trained(bn())
    x = image(2, 4, 9, 7)
    folded = converted(model, x)
    assert distance(model, folded, x) < EXACT
    assert type(folded) is nn.BatchNorm2d


def test_tied_weights_stay_tied_where_nothing_folds() -> None:
    first, second = conv(4, 4, 3, padding=1), conv(4, 4, 3, padding=1)
    second.weight = first.weight
    model = trained(seq(first, nn.ReLU(), second, nn.ReLU(), conv(4, 4, 1), bn()))
    folded = converted(model, image(2, 4, 9, 7))
    assert folded[0].weight is folded[2].weight
    assert folded[0].weight is not model[0].weight


@pytest.mark.parametrize("dilation", [2, 24])
def test_dilation_stays_on_its_lattice(dilation: int) -> None:
    """Folding a norm into a dilated convolution never makes its kernel dense."""
    model = trained(seq(conv(4, 4, 3, padding=dilation, dilation=dilation), bn()))
    folded = converted(model, image(1, 4, 30, 27))
    assert [tuple(layer.weight.shape[2:]) for layer in plain_convs(folded)] == [(3, 3)]
    assert folded[0].dilation == (dilation, dilation)


def test_dilated_branches_share_their_lattice() -> None:
    branches = [seq(conv(4, 4, 3, padding=d, dilation=d), bn()) for d in (2, 4)]
    folded = converted(trained(added(*branches, seq(conv(4, 4, 1), bn()))), image(1, 4, 15, 12))
    assert [(tuple(layer.weight.shape[2:]), layer.dilation) for layer in plain_convs(folded)] == [((5, 5), (2, 2))]


def test_norms_of_a_large_network_are_not_counted() -> None:
    """Some tools skip models of fewer than ten norms without a word."""
    model = trained(seq(conv(4, 4, 3), bn()))
    assert len(converted(model, image(1, 4, 5, 5)).reparam_report.folds) == 1


def _attention_scores(m: nn.Module, x: Tensor) -> Tensor:
    return (x.amax(1, keepdim=True).expand(-1, 4, -1, -1).relu() / 8 + m.shift).sigmoid()


def _norms_in_a_row(m: nn.Module, x: Tensor) -> Tensor:
    return torch.relu(m.second(m.first(x.relu())))


@pytest.mark.parametrize("forward", [_attention_scores, _norms_in_a_row], ids=["scores", "norms"])
def test_scales_and_shifts_alone_become_no_convolution(forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
    """A depthwise 1x1 convolution takes several times as long as two of them."""
    shift, norms = nn.Parameter(torch.ones(1, 4, 1, 1)), [nn.BatchNorm2d(4), nn.BatchNorm2d(4)]
    model = trained(Block(forward, shift=shift, first=norms[0], second=norms[1]))
    folded = reparam.reparameterize(model, image(2, 4, 5, 7))
    assert convs_ran(folded, image(2, 4, 5, 7)) == 0
    assert distance(model, folded, image(2, 4, 3, 1)) == 0


def test_a_convolution_without_a_norm_keeps_its_bias() -> None:
    model = trained(seq(conv(4, 4, 3, bias=True), nn.ReLU(), conv(4, 4, 3), bn(), nn.ReLU()))
    folded = converted(model, image(1, 4, 9, 7))
    assert torch.equal(folded[0].bias, model[0].bias)
    assert torch.equal(folded[0].weight, model[0].weight)


def test_an_intermediate_that_is_returned_stays() -> None:
    def forward(m: nn.Module, x: Tensor) -> dict[str, object]:
        y = m.conv(x)
        z = m.bn(y)
        return {"features": [y, z], "size": tuple(z.shape), "last": (F.relu(z),)}

    model = trained(Block(forward, conv=conv(4, 4, 3), bn=bn()))
    x = image(2, 4, 9, 7)
    assert distance(model, converted(model, x), x) < EXACT


def test_features_of_every_stage() -> None:
    def forward(m: nn.Module, x: Tensor) -> list[Tensor]:
        outputs = []
        for stage in m.stages:
            x = stage(x)
            outputs.append(x)
        return outputs

    stages = nn.ModuleList(seq(RepVGGBlock(4, 4), conv(4, 4, 3, stride=2, padding=1), bn()) for _ in range(3))
    model = trained(Block(forward, stages=stages))
    x = image(2, 4, 17, 23)
    folded = converted(model, x)
    assert distance(model, folded, x) < EXACT
    assert (convs_ran(folded, x), norms_ran(folded, x)) == (6, 0)


def test_what_a_forward_stores_is_the_same() -> None:
    model = trained(Stores())
    x = image(2, 4, 9, 7)
    folded = converted(model, x)
    assert model.feat is None  # the conversion itself leaves nothing behind
    folded(x), model(x)
    assert torch.equal(folded.feat, model.feat)


def test_a_module_under_two_names_stays_one() -> None:
    folded = converted(trained(two_names()), image(2, 4, 9, 7))
    assert folded.conv is folded.layers[0]


def test_random_numbers_are_left_alone() -> None:
    model = trained(seq(conv(4, 4, 3), bn(), nn.Dropout(0.5)))
    x = image(2, 4, 9, 7)
    before = torch.get_rng_state()
    converted(model, x)
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_stays_noise() -> None:
    """What is drawn in the forward is no constant."""
    model = trained(
        Block(lambda m, x: m.bn(m.conv(x)) + torch.randn(4, 1, 1, dtype=x.dtype), conv=conv(4, 4, 3), bn=bn())
    )
    x = image(2, 4, 9, 7)
    folded = converted(model, x)
    assert not torch.equal(folded(x), folded(x))
    torch.manual_seed(1)
    truth = model(x)
    torch.manual_seed(1)
    assert (folded(x) - truth).abs().max() < EXACT * truth.abs().max()


def test_a_buffer_that_the_forward_changes_is_no_constant() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        m.count += 1
        return m.bn(m.conv(x)) * m.count

    model = trained(Block(forward, conv=conv(4, 4, 3), bn=bn(), count=torch.zeros(1)))
    x = image(2, 4, 9, 7)
    folded = converted(model, x, verify=False)
    assert model.count == 0
    for _ in range(3):
        assert distance(model, folded, x) < EXACT


def test_a_replaced_attribute_is_no_constant() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        m.running = m.running * 0.5 + 1
        return m.bn(m.conv(x)) * m.running

    model = trained(Block(forward, conv=conv(4, 4, 3), bn=bn(), running=torch.zeros(1)))
    x = image(2, 4, 9, 7)
    folded = converted(model, x, verify=False)
    for _ in range(3):
        assert distance(model, folded, x) < EXACT


def test_a_cache_of_the_first_call_is_not_baked_in() -> None:
    """A constant that depends on the input's size and is kept from the first call on."""

    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.cache = conv(4, 4, 3, padding=1), bn(), {}

        def forward(self, x: Tensor) -> Tensor:
            key = tuple(x.shape[2:])
            if key not in self.cache:
                self.cache[key] = torch.arange(key[0] * key[1], dtype=x.dtype).view(1, 1, *key)
            return F.relu(self.bn(self.conv(x))) + self.cache[key]

    model = trained(Cached())
    folded = converted(model, image(2, 4, 9, 7))
    for size in ((9, 7), (5, 6)):
        assert distance(model, folded, image(1, 4, *size)) < EXACT


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
