"""What real networks have brought to light, each as small as it gets."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import reparam
from reparam.compare.error import relative_error
from reparam.nn import draw_constants, draw_statistics
from tests.helpers import EXACT, Block, convs_ran, distance, image, norms_ran, trained


def converted(model: nn.Module, *inputs: Tensor) -> nn.Module:
    """The model with drawn numbers, converted and verified."""
    return reparam.reparameterize(draw_statistics(draw_constants(model)).eval(), inputs)


class _Cached(nn.Module):
    """Attention of old keeps the constants of its forward in a dict, by device."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.offset = nn.Parameter(torch.randn(8, 1, 1))
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        key = str(x.device)
        if key not in self.cache:
            self.cache[key] = self.offset[:4]
        y = self.bn(self.conv(x)) + x
        return y.relu() + self.cache[key]


def test_a_cache_in_a_dict_is_left_as_it_was() -> None:
    # timm efficientvit_m0, levit_128s: proxies of the trace stayed in it, and the model could not be copied.
    model = _Cached()
    folded = converted(model, torch.randn(2, 4, 8, 8))
    assert norms_ran(folded, torch.randn(2, 4, 8, 8)) == 0
    assert all(isinstance(kept, Tensor) for kept in (*model.cache.values(), *folded.cache.values()))
    copy.deepcopy(folded)


class _Keeps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.seen: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.seen["y"] = y
        return self.bn(y)


def test_what_a_forward_keeps_in_a_dict_stays_what_it_was() -> None:
    model = _Keeps()
    folded = converted(model, torch.randn(2, 4, 8, 8))
    x = torch.randn(2, 4, 8, 8)
    model(x), folded(x)
    torch.testing.assert_close(folded.seen["y"], model.seen["y"])


class _Defaulted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor, scale: float | None = None, mask: Tensor | None = None) -> Tensor:
        return self.bn(self.conv(x)) + x


def test_a_rewritten_forward_keeps_its_defaults() -> None:
    # timm vit_tiny_patch16_dinov3_qkvb
    x = torch.randn(2, 4, 8, 8)
    folded = converted(_Defaulted(), x)
    assert norms_ran(folded, x) == 0
    torch.testing.assert_close(pickle.loads(pickle.dumps(folded))(x, mask=None), folded(x))


class _Windows(nn.Module):
    """Attention in windows: the copy in the middle is what makes the last view possible."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x)).permute(0, 2, 3, 1)
        windows = y.view(-1, 2, 4, 2, 4, 4).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 16, 4)
        return (windows * self.scale).softmax(1)


class _Strided(nn.Module):
    """A copy before a convolution decides in which order of memory its output is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 4, 1)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x.relu().permute(0, 3, 1, 2).contiguous()))
        return y.view(-1, 4, 64).softmax(1)


class _Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(4, 5)
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).flatten(2).transpose(1, 2).contiguous().view(-1, 4)  # a 4 that is 3 before the conv
        return self.norm(self.head(y)).relu()


class _Flattened(nn.Module):
    """A view of what nothing has been folded into yet."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 5)
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.head(x.relu().view(-1, 4))).relu()


@pytest.mark.parametrize(
    ("model", "shape"),
    [(_Flattened(), (2, 8, 4)), (_Windows(), (2, 3, 8, 8)), (_Strided(), (2, 8, 8, 8)), (_Pooled(), (2, 3, 8, 8))],
)
def test_a_copy_that_a_view_needs_stays(model: nn.Module, shape: tuple[int, ...]) -> None:
    # timm maxvit_pico_rw_256
    x = torch.randn(shape)
    assert norms_ran(converted(model, x), x) == 0


class _Dense(nn.Module):
    """A layer of a DenseNet takes all tensors so far in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 4, 1)
        self.after = nn.BatchNorm2d(4)

    def forward(self, tensors: list[Tensor]) -> Tensor:
        return self.after(self.conv(self.norm(torch.cat(tensors, 1)).relu()))


class _DenseBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = _Dense()

    def forward(self, x: Tensor) -> Tensor:
        tensors = [F.max_pool2d(x, 2)]
        tensors.append(self.layer(tensors))
        return torch.cat(tensors, 1)


def test_a_list_of_one_tensor_is_not_that_tensor() -> None:
    # timm densenet121
    x = torch.randn(2, 3, 8, 8)
    assert norms_ran(converted(_DenseBlock(), x), x) == 1  # the one before the activation


class _Bordered(nn.Module):
    """The padding stays, as what it pads has a bias; what follows it still folds."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, 2)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(self.before(x.relu()), (0, 1, 0, 1))
        return torch.cat([self.bn(self.conv(x)).relu(), F.max_pool2d(x, 2, 1)], 1)


class _Split(nn.Module):
    """One convolution for all three, as in attention."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(8, 12, 1, bias=False)
        self.bn = nn.BatchNorm2d(12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.bn(self.qkv(x.relu())).split([4, 4, 4], 1)
        return q.sigmoid() * k.tanh() + v.relu()


class _Mixed(nn.Module):
    """A batch norm after a cat has nothing before it to go into, but a 1x1 convolution behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.tall, self.wide = (nn.Conv2d(2, 2, (11, 1), padding=(5, 0)), nn.Conv2d(2, 2, (1, 11), padding=(0, 5)))
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Conv2d(8, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept, a, b = x.relu().split([4, 2, 2], 1)
        return self.fc(self.norm(torch.cat([kept, self.tall(a), self.wide(b)], 1))).relu()


@pytest.mark.parametrize(("model", "channels", "norms"), [(_Bordered(), 4, 1), (_Split(), 8, 0), (_Mixed(), 8, 0)])
def test_no_batch_norm_is_left_without_reason(model: nn.Module, channels: int, norms: int) -> None:
    # timm hgnetv2_b0, shvit_s1, inception_next_atto
    x = torch.randn(2, channels, 16, 16)
    assert norms_ran(converted(model, x), x) == norms


def test_a_map_behind_a_mean_is_counted_where_it_stands() -> None:
    # timm swiftformer_xs: the report said twice as many multiply-adds as before
    model = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    folded = converted(model, torch.randn(2, 4, 8, 8))
    assert folded.reparam_report.after.macs == folded.reparam_report.before.macs == 2 * 4 * 10


class _SizeAsChannels(nn.Module):
    """The channels that are read are a part of what is a size of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(x.transpose(1, -1)[:, :1])
        return result


def test_a_size_is_no_number_of_channels() -> None:
    model = draw_constants(_SizeAsChannels()).double().eval()
    folded = reparam.reparameterize(model, torch.randn(1, 3, 3, 3, 1, dtype=torch.float64))
    x = torch.randn(2, 3, 3, 3, 4, dtype=torch.float64)
    assert torch.allclose(folded(x), model(x), rtol=0, atol=1e-12)


class _ReadFromOutside(nn.Module):
    """A convolution whose weight, which is computed anew at every look, the code around it uses a second time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = weight_norm(nn.Conv2d(4, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(self.conv(x), self.conv.weight, self.conv.bias)
        return y.relu() if y.shape[2] > 2 else y


def test_a_weight_that_others_ask_for_stays() -> None:
    # A random network: what came in the place of the convolution had no weight.
    x = torch.randn(2, 4, 8, 8)
    folded = converted(_ReadFromOutside(), x)
    assert folded(x[..., :2, :]).shape == (2, 4, 2, 8)
    assert any("reads the parameters" in line.reason for line in folded.reparam_report.refusals)


class _ReturnsMore(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.first(x)
        z = F.conv2d(y, self.second.weight - 0.5)
        return 2 * z, z


class _TakesOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = _ReturnsMore()

    def forward(self, x: Tensor) -> Tensor:
        doubled, _ = self.block(x)
        return doubled.relu()


def test_what_a_block_returns_besides_is_not_computed_twice() -> None:
    # A random network: the convolution was folded with what follows it, and ran a second time for the other result.
    x = torch.randn(2, 4, 8, 8)
    model = _TakesOne()
    folded = converted(model, x)
    assert convs_ran(folded, x) <= convs_ran(model, x)
    assert any("also returns it" in line.reason for line in folded.reparam_report.refusals)


def _multiplied(x: Tensor) -> Tensor:
    x.mul_(2)
    return x


def _clamped(x: Tensor) -> Tensor:
    F.relu(x, inplace=True)
    return x


def _added(x: Tensor) -> Tensor:
    x.add_(x)
    torch.sigmoid_(x)
    return x


def _known_twice(x: Tensor) -> Tensor:
    other = x
    x += 1
    return other


def _assigned(x: Tensor) -> Tensor:
    x[:, :1] = 1.0
    x.mul_(2).sub_(1)
    return x


class _Writes(nn.Module):
    """In-place operations as statements."""

    def __init__(self, write: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.write = write
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.first(x) + self.second(x))
        return self.write(y).sin()


@pytest.mark.parametrize("write", [_multiplied, _clamped, _added, _known_twice, _assigned])
def test_a_write_whose_result_is_dropped(write: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(2, 4, 8, 8)
    model = _Writes(write)
    folded = converted(model, x)
    assert (convs_ran(folded, x), norms_ran(folded, x)) == (1, 0)
    other = torch.randn(1, 4, 5, 7)
    torch.testing.assert_close(folded(other), model(other))


def _through_a_view(x: Tensor) -> Tensor:
    view = x.flatten(2)
    x.mul_(2)
    return x + view.mean(2)[..., None, None]


def _through_itself(x: Tensor) -> Tensor:
    same = x.contiguous()
    same.mul_(2)
    return x + same


def _into_another(x: Tensor) -> Tensor:
    whole = torch.zeros_like(x)
    torch.add(x, 1, out=whole)
    return x + whole


@pytest.mark.parametrize("write", [_through_a_view, _through_itself, _into_another])
def test_a_write_that_is_seen_elsewhere(write: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(2, 4, 8, 8)
    model = _Writes(write)
    folded = converted(model, x)
    other = torch.randn(1, 4, 5, 7)
    with torch.no_grad():
        torch.testing.assert_close(folded(other), model(other))


class _WrittenConstant(nn.Module):
    """A kernel that is made by writing into it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.scale = nn.Parameter(torch.randn(4, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.conv.weight * 1
        kernel.mul_(self.scale)
        for i in range(kernel.shape[0]):
            kernel[i, i, 1, 1].add_(1)
        return F.conv2d(x, kernel, self.conv.bias, padding=1).relu() + x.mean((2, 3), True) * kernel.sum()


def test_a_constant_that_is_written_to() -> None:
    x = torch.randn(2, 4, 8, 8)
    model = _WrittenConstant()
    folded = converted(model, x)
    torch.testing.assert_close(folded(x), model(x))


class _AsksInBetween(nn.Module):
    """It asks a tensor for its size that a fold makes superfluous, but which is as large as what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x) - self.second(x)
        height, width = y.shape[2:]
        return self.bn(y).relu().mean((2, 3)) * (height / width)


def test_a_size_is_asked_of_what_is_as_large() -> None:
    x = torch.randn(2, 4, 8, 8)
    model = _AsksInBetween()
    folded = converted(model, x)
    assert (convs_ran(folded, x), norms_ran(folded, x)) == (1, 0)
    other = torch.randn(1, 4, 5, 7)
    torch.testing.assert_close(folded(other), model(other))


class _ReturnsBetween(nn.Module):
    """What is returned besides the result is wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.bn, self.last = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.bn(self.first(x) - self.second(x))
        return self.last(y).relu(), y


def test_what_is_returned_may_be_what_a_fold_computes() -> None:
    x = torch.randn(2, 4, 8, 8)
    folded = converted(_ReturnsBetween(), x)
    assert (convs_ran(folded, x), norms_ran(folded, x)) == (2, 0)


class _AddsToAConstant(nn.Module):
    """What it is handed, if anything, is added to a table: a constant otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.table = nn.Parameter(torch.randn(1, 1, 8, 8))

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        table = self.table.sigmoid()
        if more is not None:
            table = table + more
        return (self.first(x) + self.second(x)).relu() * table


def test_an_argument_that_was_none_is_no_tensor() -> None:
    """To a symbolic trace every argument is something; the code that is written out must not compute with None."""
    x = torch.randn(2, 4, 8, 8)
    folded = converted(nn.Sequential(_AddsToAConstant()), x)
    assert convs_ran(folded, x) == 1


class _Undecided(nn.Module):
    """Hands a tensor from one part to the next in code that no trace can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.second = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) if bool(x.isfinite().all()) else x


def test_where_code_cannot_be_led_through_the_parts_fold_each_by_itself() -> None:
    # transformers mobilevitv2: a projection of one stage and the expansion of the next were refused together, and the
    # batch norm of the expansion was left.
    x = torch.randn(2, 4, 7, 9)
    folded = converted(_Undecided(), x)
    assert norms_ran(folded, x) == 0
    assert convs_ran(folded, x) == 2


def test_what_a_hook_looks_at_folds_up_to_there() -> None:
    # transformers pp_lcnet_v3: hooks that collect feature maps looked at the stem, and its batch norm was left.
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4)),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 1),
    )
    x = torch.randn(2, 3, 9, 7)
    seen: list[Tensor] = []
    model[0].register_forward_hook(lambda module, args, result: seen.append(result))
    folded = converted(model, x)
    assert norms_ran(folded, x) == 0
    assert convs_ran(folded, x) == 2  # what is looked at exists
    seen.clear()
    model(x), folded(x)
    torch.testing.assert_close(seen[1], seen[0])


def test_a_module_that_a_hook_looks_at_is_not_hollowed_out() -> None:
    # `weight` of a block that computes its kernel would be gone.
    model = nn.Sequential(reparam.nn.IdentityBasedConv1x1(4), nn.ReLU())
    model[0].register_forward_hook(lambda module, args, result: None)
    folded = converted(model, torch.randn(2, 4, 5, 5))
    assert folded[0].weight.shape == (4, 4, 1, 1)


class _PadsBySize(nn.Module):
    """As TensorFlow pads: by more on one side, depending on whether the stride divides the size."""

    def __init__(self, strays: bool = False) -> None:
        super().__init__()
        self.strays = strays
        self.conv = nn.Conv2d(4, 4, 3, stride=2)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        down = 1 if height % 2 == 0 else 2
        right = 1 if width % 2 == 0 else 2
        y = self.conv(F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2)))
        if self.strays and width > 100:
            return y
        return self.bn(y)


def test_branches_on_sizes_that_come_to_the_same_are_followed() -> None:
    # transformers mobilenet_v1, mobilenet_v2: all batch norms were left.
    x = torch.randn(2, 4, 9, 8)
    model = nn.Sequential(_PadsBySize(), nn.ReLU())
    folded = converted(model, x)
    assert (convs_ran(folded, x), norms_ran(folded, x)) == (1, 0)
    for size in ((9, 9), (8, 9), (8, 8), (3, 10)):
        other = torch.randn(1, 4, *size)
        torch.testing.assert_close(folded(other), model(other), atol=1e-5, rtol=1e-5)


def test_a_branch_on_sizes_that_leads_elsewhere_is_no_proof() -> None:
    x = torch.randn(2, 4, 9, 8)
    model = nn.Sequential(_PadsBySize(strays=True), nn.ReLU())
    folded = converted(model, x)
    assert norms_ran(folded, x) == 1
    wide = torch.randn(1, 4, 9, 120)
    torch.testing.assert_close(folded(wide), model(wide))


class _AsksInFront(nn.Module):
    """Asks for the size of what two folds start from, and one of them has nothing left to do there."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.narrow = nn.Conv1d(4, 2, 1), nn.Conv1d(2, 2, 1)
        self.wide = nn.Conv1d(2, 2, 3, padding=2, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        torch._assert(first.shape[1] == 2, "pytest rewrites a plain assertion")
        wide = self.wide(first)
        narrow = self.narrow(first)
        return torch.sigmoid(wide + first + narrow) - narrow * 0.7


def test_a_size_is_not_asked_of_what_comes_later() -> None:
    x = torch.randn(1, 4, 5)
    model = _AsksInFront()
    folded = converted(model, x)
    assert convs_ran(folded, x) == 3
    torch.testing.assert_close(folded(x), model(x))


class _AskedAlone(nn.Module):
    """Asks for the size of what nobody reads, behind a write to what a convolution has made."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 1)
        self.bn = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.first(x)
        y.neg_()
        part = y[:, :, 1::2]
        nothing = y - y
        rows = nothing.mean((2,)).size(0)
        return self.second(nothing) / rows, self.bn(nothing), part


def test_what_is_only_asked_for_its_size_does_not_write_into_the_input() -> None:
    model = _AskedAlone()
    folded = converted(model, torch.randn(1, 4, 3))
    x = torch.randn(1, 4, 4)
    before = x.clone()
    for ours, theirs in zip(folded(x), model(x), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert torch.equal(x, before)


class _OthersWeight(nn.Module):
    """Uses the computed weight of a convolution for a second one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = weight_norm(nn.Conv1d(1, 1, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(self.conv(x), self.conv.weight * 0.5)


def test_two_edits_may_take_away_one_computed_weight() -> None:
    x = torch.randn(1, 1, 5)
    model = draw_statistics(draw_constants(_OthersWeight())).eval()
    folded = reparam.reparameterize(model, x, fixed_size=True)
    torch.testing.assert_close(folded(x), model(x))


class _DoublesAPart(nn.Module):
    """Writes to what it is given through a view of it."""

    def forward(self, x: Tensor) -> Tensor:
        x[:, :1] *= 2
        return x


class _HandsOnACopy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = _DoublesAPart()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(0 + x)


def test_a_copy_that_is_written_to_through_a_view_stays_one() -> None:
    x = torch.randn(1, 1, 3, 3)
    before = x.clone()
    model = _HandsOnACopy().eval()
    folded = reparam.reparameterize(model, x, verify=False)
    torch.testing.assert_close(folded(x), model(before.clone()))
    assert torch.equal(x, before)


def test_all_channels_but_a_padded_one_may_be_cropped() -> None:
    x = torch.randn(2, 3, 5)
    model = nn.Sequential(nn.Linear(5, 1), nn.ConstantPad1d((1, -1), 0.0), nn.Linear(1, 2))
    folded = converted(model, x)
    torch.testing.assert_close(folded(x), model(x))


class _PoolsAndMixes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(2, 2, 1), nn.AvgPool2d(2, 1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.pool(x), self.conv.weight)


class _TwiceAndDoubled(nn.Module):
    """Calls a block twice; what follows the second call would like to have its code written out."""

    def __init__(self) -> None:
        super().__init__()
        self.block = _PoolsAndMixes()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        once = self.block(x)
        twice = self.block(once)
        return twice + twice, twice, once


def test_code_that_is_called_twice_is_edited_for_both_calls() -> None:
    x = torch.randn(1, 2, 1, 1)
    model = _TwiceAndDoubled().eval()
    folded = reparam.reparameterize(model, x, verify=False)
    for ours, theirs in zip(folded(x), model(x), strict=True):
        torch.testing.assert_close(ours, theirs)


class _Shifts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


class _ShiftsTwice(nn.Module):
    """A shift that one fold takes away with its module, and another would write out."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.rand(4, 1, 1))
        self.inner = _Shifts()
        self.head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.inner(x - self.mean)
        return self.head(y), y


def test_a_module_is_not_taken_away_where_its_code_is_written_out() -> None:
    x = torch.randn(2, 4, 5, 3)
    model = draw_statistics(draw_constants(_ShiftsTwice())).eval()
    folded = reparam.reparameterize(model, x, verify=False)
    for ours, theirs in zip(folded(x), model(x), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


class _HandsOn(nn.Module):
    """A container that does nothing, and a slice that takes everything."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[..., :]


class _TwoThatHandOn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        shared = nn.Sequential(nn.Identity(), nn.Identity())
        self.first, self.second = _HandsOn(shared), _HandsOn(shared)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x), self.second(x)


def test_what_one_block_does_not_need_stays_in_a_container_of_two() -> None:
    x = torch.randn(1, 2, 3)
    model = _TwoThatHandOn().eval()
    folded = reparam.reparameterize(model, x, verify=False)
    for ours, theirs in zip(folded(x), model(x), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_sum_of_what_was_moved_to_the_channels_repeats_a_single_pixel() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = x.transpose(1, -1)
        return m.conv(y * 0.5 + y + m.shift)

    model = trained(Block(forward, shift=torch.randn(1, 2, 1, 1), conv=nn.Conv2d(2, 2, 1)))
    folded = reparam.reparameterize(model, image(1, 1, 2, 2))
    for size in [(2, 2), (1, 1), (5, 1), (3, 2)]:
        assert distance(model, folded, image(3, 1, *size)) < EXACT


def test_a_scale_behind_which_pixels_are_cut_off_repeats_a_single_pixel() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.conv(x.transpose(1, -1) * m.scale)[:, :, :, :2]

    model = trained(Block(forward, scale=torch.rand(2, 1, 1) + 0.5, conv=nn.Conv2d(2, 2, 1)))
    folded = reparam.reparameterize(model, image(1, 1, 2, 2))
    for size in [(2, 2), (1, 1), (5, 1), (3, 2)]:
        assert distance(model, folded, image(3, 1, *size)) < EXACT


def test_the_size_of_an_output_that_another_fold_leads_through_is_its_own() -> None:
    def forward(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.second(m.first(x))
        return m.norm(y) * y.shape[1], y

    layers = {"first": nn.Conv1d(3, 3, 1), "second": nn.Conv1d(3, 8, 1), "norm": nn.BatchNorm1d(8)}
    model = trained(Block(forward, **layers))
    folded = reparam.reparameterize(model, image(1, 3, 11))
    for length in (11, 1, 4):
        assert distance(model, folded, image(2, 3, length)) < EXACT


def test_a_dimension_of_the_example_that_is_dropped_is_refused() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        n, c, h, w = m.conv(x).shape
        return m.conv(x).reshape(n * c // 2, 2, h, w)[:, 1].reshape(n, c // 2, h, w).squeeze(-1)[:, :, :]

    model = trained(Block(forward, conv=nn.Conv2d(2, 4, 2)))
    folded = reparam.reparameterize(model, image(1, 2, 4, 2))
    for size in [(4, 2), (3, 2), (5, 6)]:
        assert distance(model, folded, image(3, 2, *size)) < EXACT


def test_a_scale_per_row_behind_a_linear_layer_repeats_a_single_row() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.conv(m.scale * m.linear(x.permute(0, 2, 3, 1).relu()))

    scale = nn.Parameter(torch.tensor([0.5, 2.0]).view(1, 2, 1, 1))
    model = trained(Block(forward, linear=nn.Linear(6, 6), scale=scale, conv=nn.Conv2d(2, 2, 3, padding=1)))
    folded = reparam.reparameterize(model, image(1, 6, 2, 2))
    for size in [(2, 2), (1, 1), (1, 5), (2, 7)]:
        assert distance(model, folded, image(1, 6, *size)) < EXACT


class _NormedIfLarge(nn.Module):
    """Hands its input on at some sizes; `how` says in what, the input first."""

    def __init__(self, how: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.how = how
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> object:
        return self.how(self.norm(x) if x.shape[-1] > 5 else x)


class _Within(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> object:
        return self.inner(x), x.sigmoid()


def _summed(m: nn.Module, x: Tensor) -> Tensor:
    return m.first(x) + m.second(m.between(x)[0])


def _one_behind_another(m: nn.Module, x: Tensor) -> Tensor:
    return m.second(m.between(m.first(x))[0])


@pytest.mark.parametrize("forward", [_summed, _one_behind_another])
@pytest.mark.parametrize(
    "between",
    [
        nn.Sequential(_NormedIfLarge(lambda y: y), nn.Unflatten(0, (1, -1))),
        _NormedIfLarge(lambda y: (y, y.relu())),
        _NormedIfLarge(lambda y: [y]),
        _Within(_NormedIfLarge(lambda y: y)),
    ],
    ids=["alone", "with another", "in a list", "by a module inside"],
)
def test_a_module_between_operations_hands_on_another_tensor_at_other_sizes(
    between: nn.Module, forward: Callable[[nn.Module, Tensor], Tensor]
) -> None:
    layers = {"first": nn.Conv2d(4, 4, 1), "between": copy.deepcopy(between), "second": nn.Conv2d(4, 4, 1)}
    model = trained(Block(forward, **layers))
    folded = reparam.reparameterize(model, image(1, 4, 4, 4), verify=False)
    for size in [(4, 4), (1, 1), (7, 7), (3, 6)]:
        assert distance(model, folded, image(2, 4, *size)) < EXACT


def test_a_module_that_always_hands_its_input_on_is_in_no_way() -> None:
    layers = {"first": nn.Conv2d(4, 4, 1), "between": _Within(nn.Identity()), "second": nn.Conv2d(4, 4, 1)}
    model = trained(Block(_one_behind_another, **layers))
    folded = reparam.reparameterize(model, image(1, 4, 4, 4))
    assert convs_ran(folded, image(1, 4, 4, 4)) == 1


@pytest.mark.parametrize("tap", [nn.Identity(), nn.Dropout(0.3)], ids=["identity", "dropout"])
def test_a_module_that_does_nothing_is_still_called_where_it_is_watched(tap: nn.Module) -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.first(m.tap(x)) + m.second(x)

    layers = {"first": nn.Conv2d(4, 4, 1), "tap": tap, "second": nn.Conv2d(4, 4, 3, padding=1)}
    model, x = trained(Block(forward, **layers)), image(1, 4, 5, 7)
    seen: list[Tensor] = []

    def watch(module: nn.Module, args: object, result: Tensor) -> None:
        seen.append(result)

    kept = reparam.reparameterize(model, x, keep=["tap"])
    kept.tap.register_forward_hook(watch)
    model.tap.register_forward_hook(watch)
    hooked = reparam.reparameterize(model, x)
    for folded in (kept, hooked):
        seen.clear()
        assert convs_ran(folded, x) == 1
        assert len(seen) == 1
        assert torch.equal(seen[0], x)


@pytest.mark.parametrize("written", ["index_select", "getitem"])
def test_an_index_that_picks_all_there_is_picks_a_part_elsewhere(written: str) -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        rows = x.transpose(1, 2)
        return m.conv(rows.index_select(1, m.index) if written == "index_select" else rows[:, m.index])

    model = trained(Block(forward, index=torch.tensor([0, 1]), conv=nn.Conv1d(2, 1, 3, padding=2)))
    folded = reparam.reparameterize(model, image(1, 4, 2), verify=False)
    for length in (2, 5, 3):
        assert distance(model, folded, image(2, 4, length)) < EXACT


@pytest.mark.parametrize("size", [(5, 6), (1, 5)])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.conv(x.contiguous() * 2).view(len(x), -1),
        lambda m, x: m.conv((x * 2).contiguous()).view(len(x), -1),
        lambda m, x: m.conv((x * 2).clone(memory_format=torch.contiguous_format)).view(len(x), -1),
        lambda m, x: m.conv(m.norm(x).contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1).view(-1, 4),
    ],
)
def test_a_view_is_taken_of_what_code_has_put_in_order_whatever_the_order_of_the_input(
    forward: Callable[[nn.Module, Tensor], Tensor], order: torch.memory_format, size: tuple[int, int]
) -> None:
    model = trained(Block(forward, conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)))
    folded = reparam.reparameterize(model, image(2, 4, *size).contiguous(memory_format=order), verify=False)
    for other in (torch.contiguous_format, torch.channels_last):
        assert distance(model, folded, image(2, 4, *size).contiguous(memory_format=other)) < EXACT


@pytest.mark.parametrize("size", [(5, 6), (1, 1), (5, 1)])
@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.conv(x.contiguous() + m.norm(x).contiguous()).view(len(x), -1),
        lambda m, x: m.norm(m.conv(x.relu().permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1))).view(len(x), -1),
        lambda m, x: m.last((m.wide(x) * m.norm.weight.view(-1, 1, 1)).flatten(2).transpose(1, 2)).view(len(x), -1),
        lambda m, x: (F.conv2d(x.relu(), m.conv.weight).contiguous() * m.norm.weight.view(-1, 1, 1)).view(len(x), -1),
    ],
)
def test_what_puts_in_order_is_not_forgotten_where_it_has_changed_nothing(
    forward: Callable[[nn.Module, Tensor], Tensor], size: tuple[int, int]
) -> None:
    layers = {"conv": nn.Conv2d(4, 4, 1), "wide": nn.Conv2d(4, 4, 3, padding=1), "last": nn.Linear(4, 4)}
    model = trained(Block(forward, norm=nn.BatchNorm2d(4), **layers))
    folded = reparam.reparameterize(model, image(2, 4, *size), verify=False)
    for order in (torch.contiguous_format, torch.channels_last):
        for other in (size, (3, 4), (4, 1), (1, 1)):
            x = image(2, 4, *other).contiguous(memory_format=order)
            assert distance(model, folded, x) < EXACT


class _Adds(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.add_(1)


@pytest.mark.parametrize(("same", "folds"), [(False, 0), (True, 1)])
def test_a_write_to_what_is_a_copy_for_other_inputs(same: bool, folds: int) -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.conv(x)
        z = m.adds(y.contiguous())
        return m.norm(z if same else y)

    model = trained(Block(forward, conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4), adds=_Adds()))
    folded = reparam.reparameterize(model, image(2, 4, 5, 6), verify=False)
    assert len(folded.reparam_report.folds) == folds
    for order in (torch.contiguous_format, torch.channels_last):
        assert distance(model, folded, image(2, 4, 3, 7).contiguous(memory_format=order)) < EXACT


def test_a_view_of_what_a_convolution_makes_of_a_single_channel() -> None:
    # Whether it lies with its channels last can only be guessed from its strides, and torch guesses.
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        moved = m.norm(m.first(x)).movedim(1, -1)
        return m.second(moved * 0.5 + moved).view(len(x), -1)

    layers = {"first": nn.Conv1d(4, 4, 1), "norm": nn.BatchNorm1d(4), "second": nn.Conv1d(1, 2, 1)}
    model = trained(Block(forward, **layers))
    x = torch.stack([image(3, 4, 1), image(3, 4, 1)], -1)[..., 0]
    assert distance(model, reparam.reparameterize(model, x, verify=False), x) < EXACT


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: (m.conv(x), x.clone()),
        lambda m, x: (lambda y: (y, y * 1))(m.norm(m.conv(x))),
        lambda m, x: (lambda y: (m.conv(y), y.clone()[:, :2], y + 0))(x.relu()),
    ],
)
def test_outputs_that_have_memory_of_their_own_keep_it(forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
    model = trained(Block(forward, conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)))
    x = image(2, 4, 5, 7)
    folded, truth = reparam.reparameterize(model, x), model(x.clone())
    results = folded(x)
    for i, result in enumerate(results):  # what the caller does to one of them, the others do not see
        torch.testing.assert_close(result, truth[i])
        result.fill_(torch.nan)
    assert x.isfinite().all()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kernel", [1, 2])
@pytest.mark.parametrize(
    "hand_on",
    [
        nn.Identity(),
        nn.Sequential(nn.Dropout()),
        nn.Flatten(3),
        Block(lambda m, x: x.contiguous()),
        Block(lambda m, x: x),
    ],
)
def test_what_hands_a_tensor_on_is_asked_for_its_size(hand_on: nn.Module, kernel: int, late: bool) -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.conv(x)
        z = m.hand_on(y)
        return (y if late else z).split([2, 2], 1)[1].reshape(z.shape[0], z.shape[-1], -1)

    model = trained(Block(forward, conv=nn.Conv2d(4, 4, kernel), hand_on=hand_on))
    x = image(1, 4, 3, 5)
    folded = reparam.reparameterize(model, x)
    assert distance(model, folded, image(2, 4, 6, 4)) < EXACT
    assert convs_ran(folded, x) == 1
    assert sum(p.numel() for p in folded.parameters()) <= sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "sized",
    [
        lambda y: y.permute(0, 1, 2).reshape(y.shape[0], -1),
        lambda y: y.permute(0, 1, 2).reshape_as(y),
        lambda y: y.permute(0, 1, 2).reshape(y.contiguous().shape[0], -1),
    ],
)
def test_a_write_that_is_asked_for_its_size_is_not_made_once_more(sized: Callable[[Tensor], Tensor]) -> None:
    model = trained(
        Block(lambda m, x: sized(m.second(m.first(x)).mul_(2)), first=nn.Linear(4, 2), second=nn.Linear(2, 4))
    )
    folded = reparam.reparameterize(model, image(3, 5, 4), verify=False)
    for x in (image(3, 5, 4), image(2, 3, 4)):
        assert distance(model, folded, x) < EXACT


class _ReadsOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 4, 5)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return self.conv(x)


def test_a_tensor_that_a_module_is_called_with_and_does_not_read_is_computed() -> None:
    # What stands on the way to it may not be another, larger tensor by then.
    def forward(m: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.first(x)
        both = torch.stack([y, m.second(x)]).sum(0)
        return m.norm(both), m.inner(y, both)

    layers = {
        "first": nn.Conv1d(6, 6, 3, padding=2, dilation=2, stride=2),
        "second": nn.Conv1d(6, 6, 3, padding=1, stride=2),
        "norm": nn.BatchNorm1d(6),
        "inner": _ReadsOne(),
    }
    model = trained(Block(forward, **layers))
    folded = reparam.reparameterize(model, image(1, 6, 9), verify=False)
    for x in (image(1, 6, 9), image(2, 6, 12)):
        for result, truth in zip(folded(x), model(x), strict=True):
            assert relative_error(truth, result) < EXACT


def test_a_single_channel_behind_a_transpose_lies_in_no_order_that_a_convolution_can_tell() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.second(m.linear(m.first(x)).transpose(1, 2))
        return y.view(len(y), -1)

    layers = {"first": nn.Conv1d(1, 3, 1), "linear": nn.Linear(1, 4), "second": nn.Conv1d(4, 3, 1)}
    model = trained(Block(forward, **layers))
    folded = reparam.reparameterize(model, image(1, 1, 1), verify=False)
    assert distance(model, folded, image(2, 1, 1)) < EXACT
    assert distance(model, folded, image(1, 1, 1)) < EXACT
