"""Channels and pixels in other places, written out as reshapes and transposes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.helpers import EXACT, Block, convs_ran, distance, fold_exactly, image, norms_ran, plain_convs, ran, trained

Function = Callable[[Tensor], Tensor]
SIZES = [(2, 4, 9, 7), (1, 4, 1, 1), (3, 4, 6, 11), (5, 4, 7, 7)]
MOVING = ("clone", "permute", "transpose", "view", "_unsafe_view", "cat", "select", "unbind", "split")


def moves_ran(model: nn.Module, x: Tensor) -> int:
    counted = ran(model, x)
    return sum(counted[name] for name in MOVING)


def in_code(function: Function, first: nn.Module, second: nn.Module) -> nn.Module:
    """A function in a forward of user code, between two layers."""
    return Block(lambda m, x: m.second(function(m.first(x))), first=first, second=second)


# --- channel shuffles


def torchvision(x: Tensor, groups: int = 2) -> Tensor:
    batchsize, num_channels, height, width = x.size()
    channels_per_group = num_channels // groups
    x = x.view(batchsize, groups, channels_per_group, height, width)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(batchsize, num_channels, height, width)


def shape(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, 3, c // 3, h, w).transpose(1, 2).reshape(b, c, h, w)


def rest(x: Tensor) -> Tensor:
    b, _, h, w = x.shape
    return x.reshape(b, 3, -1, h, w).permute(0, 2, 1, 3, 4).contiguous().view(b, -1, h, w)


def parts(x: Tensor) -> Tensor:
    return x.unflatten(1, (2, x.shape[1] // 2)).transpose(1, 2).flatten(1, 2)


def starred(x: Tensor) -> Tensor:
    return x.reshape(*x.shape[:1], -1, 3, *x.shape[2:]).transpose(2, 1).reshape(x.shape)


def whole_rows(x: Tensor) -> Tensor:
    """Written with the pixels of a channel in a row (ShuffleNet of Megvii)."""
    b, c, h, w = x.size()
    return x.reshape(b, 2, c // 2, h * w).permute(0, 2, 1, 3).reshape(b, c, h, w)


def halves(x: Tensor) -> Tensor:
    """Every other channel, then the others, by way of the batch (Megvii, GSConv)."""
    b, n, h, w = x.size()
    y = x.reshape(b * n // 2, 2, h * w).permute(1, 0, 2).reshape(2, -1, n // 2, h, w)
    return torch.cat((y[0], y[1]), 1)


SHUFFLES: dict[str, tuple[Function, Function]] = {
    "torchvision": (torchvision, lambda x: F.channel_shuffle(x, 2)),
    "shape": (shape, lambda x: F.channel_shuffle(x, 3)),
    "rest": (rest, lambda x: F.channel_shuffle(x, 3)),
    "parts": (parts, lambda x: F.channel_shuffle(x, 2)),
    "starred": (starred, lambda x: F.channel_shuffle(x, x.shape[1] // 3)),
    "rows": (whole_rows, lambda x: F.channel_shuffle(x, 2)),
    "halves": (halves, lambda x: torch.cat([x[:, ::2], x[:, 1::2]], 1)),
}


@pytest.mark.parametrize("name", SHUFFLES)
@pytest.mark.parametrize("behind", ["norm", "conv"])
def test_a_written_out_shuffle_goes_into_the_convolutions(name: str, behind: str) -> None:
    function, meaning = SHUFFLES[name]
    second = nn.BatchNorm2d(6) if behind == "norm" else nn.Conv2d(6, 3, 1)
    model = trained(in_code(function, nn.Conv2d(4, 6, 3, padding=1), second))
    result = reparam.reparameterize(model, image(*SIZES[0]))
    assert len(plain_convs(result)) == convs_ran(result, image(*SIZES[0])) == 1, result.reparam_report
    assert norms_ran(result, image(*SIZES[0])) == moves_ran(result, image(*SIZES[0])) == 0
    for size in SIZES:
        x = image(*size, seed=1)
        assert torch.equal(function(x.repeat(1, 3, 1, 1)), meaning(x.repeat(1, 3, 1, 1)))
        assert distance(model, result, x) < EXACT


class Shuffle(nn.Module):
    """In a module of its own, for a fixed number of channels."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, 6, h, w)


def test_a_shuffling_module_becomes_an_identity() -> None:
    model = trained(nn.Sequential(nn.Conv2d(4, 6, 3), Shuffle(), nn.BatchNorm2d(6), nn.ReLU()))
    result = reparam.reparameterize(model, image(*SIZES[0]))
    assert [type(layer) for layer in result] == [nn.Conv2d, nn.Identity, nn.Identity, nn.ReLU]
    assert distance(model, result, image(3, 4, 6, 11)) < EXACT


def test_a_shuffle_behind_an_activation_goes_into_the_convolution_behind_it() -> None:
    """Sizes are read from the tensor in front of the activation, which has the same."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.first(x)
        b, c, h, w = y.shape
        return m.second(y.relu().view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w))

    model = trained(Block(forward, first=nn.Conv2d(4, 6, 3), second=nn.Conv2d(6, 8, 1)))
    result = reparam.reparameterize(model, image(*SIZES[0]))
    assert moves_ran(result, image(*SIZES[0])) == 0, result.reparam_report
    for size in SIZES[::2]:
        assert distance(model, result, image(*size, seed=1)) < EXACT


def test_a_shuffle_in_one_dimension() -> None:
    def forward(x: Tensor) -> Tensor:
        b, c, t = x.shape
        return x.view(b, 2, c // 2, t).transpose(1, 2).reshape(b, c, t)

    model = trained(in_code(forward, nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)))
    result = reparam.reparameterize(model, image(2, 4, 9))
    assert norms_ran(result, image(2, 4, 9)) == moves_ran(result, image(2, 4, 9)) == 0
    assert distance(model, result, image(3, 4, 5)) < EXACT


def test_channels_of_a_group_are_a_part_of_the_convolution() -> None:
    """One of the two dimensions that the channels were cut into, or both of them one after another."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = m.conv(x)
        b, c, h, w = y.shape
        y = y.view(b, 2, c // 2, h, w)
        first, second = y.unbind(1)
        return m.norm(first - 2 * y[:, 1] + second + y.select(1, 0))

    model = trained(Block(forward, conv=nn.Conv2d(4, 6, 3, padding=1), norm=nn.BatchNorm2d(3)))
    result = reparam.reparameterize(model, image(*SIZES[0]))
    assert [layer.out_channels for layer in plain_convs(result)] == [3], result.reparam_report
    assert set(ran(result, image(*SIZES[0]))) <= {"convolution", "detach", "linear"}
    for size in SIZES:
        assert distance(model, result, image(*size, seed=1)) < EXACT


def test_a_dimension_of_one_entry_that_is_split() -> None:
    def function(x: Tensor) -> Tensor:
        return torch.cat(x.unflatten(1, (6, x.shape[1] // 6)).unbind(2), 1)

    def row(x: Tensor) -> Tensor:
        return x.view(x.shape[2]).relu()

    model = trained(in_code(function, nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)))
    result = reparam.reparameterize(model, image(*SIZES[0]))
    assert distance(model, result, image(*SIZES[2])) < EXACT
    model = trained(in_code(row, nn.BatchNorm1d(1), nn.ReLU()))
    assert distance(model, reparam.reparameterize(model, image(1, 1, 5)), image(1, 1, 7)) < EXACT


# --- what is another function for another input


def swapped(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, w, h)


def swapped_first(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, w, h).transpose(1, 2).reshape(b, c, h, w)


def batch_for_groups(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, b, c // b, h, w).transpose(1, 2).reshape(b, c, h, w)


def literal(x: Tensor) -> Tensor:
    return x.view(2, 2, 3, 6, 6).transpose(1, 2).reshape(2, 6, 6, 6)


def literal_batch(x: Tensor) -> Tensor:
    return x.view(2, 2, 3, *x.shape[2:]).transpose(1, 2).reshape(x.shape)


def rest_of_space(x: Tensor) -> Tensor:
    """Groups are as many as fit: another number where the image is larger."""
    b, c, h, w = x.shape
    return x.view(b, -1, 3, 6, 6).transpose(1, 2).reshape(b, c, h, w)


def rows_and_channels(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, 2, c // 2, h, w).transpose(2, 3).reshape(b, c, h, w)


def of_another(x: Tensor) -> Tensor:
    """Reads the size of a cropped tensor, which is as large as the feature map."""
    b, c, h, w = x.shape
    w = torch.cat([x, x], 3)[..., :6].shape[3]
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


ANOTHER: dict[str, Function] = {
    function.__name__: function
    for function in (
        swapped, swapped_first, batch_for_groups, literal, literal_batch, rest_of_space, rows_and_channels, of_another
    )
}  # fmt: skip


@pytest.mark.parametrize("name", ANOTHER)
def test_a_reshape_that_means_something_else_at_other_sizes_is_kept(name: str) -> None:
    """Each is a shuffle of channels for this example only."""
    model = trained(in_code(ANOTHER[name], nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)))
    x = image(2, 4, 6, 6)
    result = reparam.reparameterize(model, x)
    assert norms_ran(result, x) == 1
    for size in [(2, 4, 6, 6), (2, 4, 6, 8), (2, 4, 12, 12), (3, 4, 6, 6), (6, 4, 5, 7)]:
        try:
            model(image(*size))
        except RuntimeError:
            continue
        assert distance(model, result, image(*size)) < EXACT


def test_literal_sizes_fold_at_a_fixed_size() -> None:
    def function(x: Tensor) -> Tensor:
        return x.view(len(x), 2, 3, 6, 5).transpose(1, 2).reshape(len(x), 6, 6, 5)

    def sized(x: Tensor) -> Tensor:
        return x.view(x.shape[0], 2, 3, 6, 5).transpose(1, 2).reshape(x.shape[0], 6, 6, 5)

    x = image(2, 4, 6, 5)
    for given, fixed, norms in ((sized, True, 0), (sized, False, 1), (literal, True, 1)):
        y = x if given is sized else image(2, 4, 6, 6)
        model = trained(in_code(given, nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6)))
        result = reparam.reparameterize(model, y, fixed_size=fixed)
        assert norms_ran(result, y) == norms
        assert distance(model, result, y) < EXACT


# --- blocks of pixels


def to_depth(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, c * 4, h // 2, w // 2)


def to_depth_first(x: Tensor) -> Tensor:
    """Blocks before channels, as TensorFlow has it."""
    b, c, h, w = x.size()
    x = x.view(b, c, h // 2, 2, w // 2, 2)
    return x.permute(0, 3, 5, 1, 2, 4).contiguous().view(b, 4 * c, h // 2, w // 2)


def to_depth_by_rows(x: Tensor) -> Tensor:
    b, c, h, w = x.size()
    x = x.reshape(b, c, h, w // 3, 3).permute(0, 1, 4, 2, 3)
    return x.reshape(b, c * 3, h, w // 3)


DEPTH: dict[str, tuple[Function, int, tuple[int, int]]] = {
    "channels first": (to_depth, 4, (2, 2)),
    "blocks first": (to_depth_first, 4, (2, 2)),
    "one axis": (to_depth_by_rows, 3, (1, 3)),
}
EVEN = [(2, 4, 8, 6), (1, 4, 2, 6), (3, 4, 10, 12)]


@pytest.mark.parametrize("name", DEPTH)
@pytest.mark.parametrize("norm", [False, True])
def test_space_to_depth_and_a_convolution_become_a_strided_one(name: str, norm: bool) -> None:
    function, times, stride = DEPTH[name]
    first = nn.BatchNorm2d(4) if norm else nn.Identity()
    model = trained(nn.Sequential(in_code(function, first, nn.Conv2d(4 * times, 5, 1)), nn.ReLU()))
    result = reparam.reparameterize(model, image(*EVEN[0]))
    assert [(layer.kernel_size, layer.stride) for layer in plain_convs(result)] == [(stride, stride)]
    assert norms_ran(result, image(*EVEN[0])) == moves_ran(result, image(*EVEN[0])) == 0
    for size in EVEN:
        assert distance(model, result, image(*size, seed=1)) < EXACT


def test_space_to_depth_and_a_padded_convolution_become_a_strided_one() -> None:
    model = trained(in_code(to_depth, nn.Identity(), nn.Conv2d(16, 5, 3, padding=1)))
    result = reparam.reparameterize(model, image(*EVEN[0]))
    assert [(layer.kernel_size, layer.padding) for layer in plain_convs(result)] == [((6, 6), (2, 2))]
    for size in EVEN:
        assert distance(model, result, image(*size, seed=1)) < EXACT


def to_space(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // 4, h * 2, w * 2)


def to_space_first(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    x = x.view(b, 2, 2, c // 4, h, w)
    return x.permute(0, 3, 4, 1, 5, 2).contiguous().view(b, -1, 2 * h, 2 * w)


@pytest.mark.parametrize("function", [to_space, to_space_first])
@pytest.mark.parametrize("taps", [1, 3])
def test_a_norm_behind_depth_to_space_goes_into_the_convolution_in_front(function: Function, taps: int) -> None:
    model = trained(in_code(function, nn.Conv2d(4, 12, taps, padding=taps // 2), nn.BatchNorm2d(3)))
    result = reparam.reparameterize(model, image(*SIZES[0]))
    assert norms_ran(result, image(*SIZES[0])) == 0
    assert [layer.out_channels for layer in plain_convs(result)] == [12]
    for size in SIZES:
        assert distance(model, result, image(*size, seed=1)) < EXACT


def halved_up(x: Tensor) -> Tensor:
    """torch infers the height from the rest: it differs where the width is odd."""
    b, c, h, w = x.shape
    return x.view(b, c, -1, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, c * 4, h // 2, -1)


def outer_blocks(x: Tensor) -> Tensor:
    """Two halves of the image, not every other pixel."""
    b, c, h, w = x.shape
    return x.view(b, c, 2, h // 2, w).transpose(1, 2).reshape(b, 2 * c, h // 2, w)


def swapped_blocks(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, c, w // 2, 2, h // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, c * 4, h // 2, w // 2)


@pytest.mark.parametrize("function", [halved_up, outer_blocks, swapped_blocks])
def test_blocks_of_pixels_whose_shape_depends_on_the_size_are_kept(function: Function) -> None:
    times = 2 if function is outer_blocks else 4
    model = trained(in_code(function, nn.BatchNorm2d(4), nn.Conv2d(4 * times, 3, 1)))
    for example in [(2, 4, 4, 4), (2, 4, 6, 6)]:
        result = reparam.reparameterize(model, image(*example))
        for size in [(2, 4, 4, 4), (2, 4, 4, 3), (2, 4, 3, 4), (1, 4, 8, 6), (2, 4, 6, 5)]:
            try:
                model(image(*size))
            except RuntimeError:
                continue
            assert distance(model, result, image(*size)) < EXACT


@pytest.mark.parametrize("fixed_size", [False, True])
@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.conv(m.inner(x).flatten(1).unsqueeze(1)),
        lambda m, x: m.conv(m.inner(x).permute(0, 2, 3, 1).flatten(1).unsqueeze(1)),
        lambda m, x: m.linear(m.inner(x).flatten(1).unsqueeze(2)),
        lambda m, x: m.linear(m.inner(x).permute(0, 2, 3, 1).flatten(2).transpose(1, 2)),
    ],
)
def test_a_dimension_of_one_entry_is_not_taken_for_channels(
    forward: Callable[[nn.Module, Tensor], Tensor], fixed_size: bool
) -> None:
    """A dimension of one entry stays one whatever the number of channels is."""
    layers = {"inner": nn.Conv2d(4, 4, 1), "conv": nn.Conv1d(1, 3, 1), "linear": nn.Linear(1, 3)}
    model = trained(Block(forward, **layers))
    folded = reparam.reparameterize(model, image(3, 4, 1, 2), verify=False, fixed_size=fixed_size)
    assert distance(model, folded, image(2, 4, 1, 2)) < EXACT


# --- code that asks how large a tensor inside a fold is, and hands that to a step that stays


def _weighted(m: nn.Module, x: Tensor) -> Tensor:
    """The operation stands in code and not in a module of its own."""
    return F.conv2d(x, m.conv.weight * 2)


def _normed(m: nn.Module, y: Tensor) -> Tensor:
    return F.batch_norm(y, m.norm.running_mean, m.norm.running_var, m.norm.weight, m.norm.bias)


def _of_the_layer(m: nn.Module, x: Tensor) -> Tensor:
    y = _weighted(m, x)
    b, c, h, w = y.shape
    return F.linear(_normed(m, y).reshape(b, c, h * w).transpose(1, 2), m.matrix)


def _of_the_sum(m: nn.Module, x: Tensor) -> Tensor:
    y = _weighted(m, x) * 2
    return F.linear(_normed(m, y).reshape(y.shape[0], y.shape[1], -1).transpose(1, 2), m.matrix)


def _its_dtype(m: nn.Module, x: Tensor) -> Tensor:
    y = _weighted(m, x)
    return F.linear(_normed(m, y.to(y.dtype)).flatten(2).to(y.dtype).transpose(1, 2), m.matrix)


def _of_the_input(m: nn.Module, x: Tensor) -> Tensor:
    y = x * 2
    return F.linear(_weighted(m, y).flatten(2).reshape(y.shape[0], 4, -1).transpose(1, 2), m.matrix)


def _with_a_dimension_more(m: nn.Module, x: Tensor) -> Tensor:
    y = F.conv1d(x.flatten(2), m.conv.weight.flatten(2) * 2).unsqueeze(2)
    z = y.reshape(-1, y.shape[1] * y.shape[2], y.shape[3])
    return _normed(m, z.reshape(y.shape[0], y.shape[1], y.shape[3], y.shape[2]))


@pytest.mark.parametrize(
    ("forward", "norms"),
    [(_of_the_layer, 0), (_of_the_sum, 0), (_its_dtype, 0), (_of_the_input, 0), (_with_a_dimension_more, 1)],
)
def test_nothing_is_computed_for_its_size_alone(forward: Function, norms: int) -> None:
    layers = {"conv": nn.Conv2d(4, 4, 1), "norm": nn.BatchNorm2d(4), "matrix": nn.Parameter(torch.randn(4, 4))}
    model = trained(Block(forward, **layers))
    result = reparam.reparameterize(model, image(2, 4, 5, 6), verify=False)
    x = image(1, 4, 7, 3)
    assert (convs_ran(result, x), norms_ran(result, x)) == (1, norms)
    for size in SIZES:
        assert distance(model, result, image(*size)) < EXACT


def strided_blocks(*more: nn.Module) -> nn.Module:
    """Blocks of pixels of a strided convolution, beside other layers of the same input."""

    def forward(m: Block, x: Tensor) -> Tensor:
        return torch.relu(sum([m.mix(to_depth(m.first(x))), *[layer(x) for layer in m.more]]))

    first, mix = nn.Conv2d(4, 4, 1, 2, bias=False), nn.Conv2d(16, 5, 1)
    return trained(Block(forward, first=first, mix=mix, more=nn.ModuleList(more)))


# The lengths of which every other pixel is an even number of pixels.
FOURS = [(2, 4, 12, 7), (1, 4, 3, 4), (3, 4, 8, 11)]


@pytest.mark.parametrize("taps", [1, 2, 3])
def test_blocks_of_a_strided_map_fold_with_branches_of_every_window(taps: int) -> None:
    """At the sizes at which the numbers of outputs would differ, the model itself fails."""
    model = strided_blocks(nn.Conv2d(4, 5, taps, 4))
    fold_exactly(model, *[image(*size) for size in FOURS], convs=1)


def test_joined_windows_keep_what_they_may_leave_out_at_the_end() -> None:
    """The second branch ends with the first, the third before it."""
    model = strided_blocks(nn.Conv2d(4, 5, 1, 4), nn.Conv2d(4, 5, 3, 4))
    fold_exactly(model, *[image(*size) for size in FOURS], convs=1)


@pytest.mark.parametrize("divisor", [None, 3])
def test_a_pool_is_a_mean_if_it_divides_by_its_pixels(divisor: int | None) -> None:
    """A mean commutes with the shift of a norm; a sum that is divided by another number does not."""

    def forward(m: Block, x: Tensor) -> Tensor:
        return m.norm(F.avg_pool2d(F.pixel_shuffle(m.first(x), 2), 2, divisor_override=divisor)).relu()

    model = trained(Block(forward, first=nn.Conv2d(4, 8, 1), norm=nn.BatchNorm2d(2)))
    fold_exactly(model, *[image(*size) for size in SIZES], norms=0 if divisor is None else 1)
