"""The operations of random networks: each writes a few lines, as they stand in people's code, with drawn geometry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd
from typing import Any

from fuzz_networks import Unfit, Writer, block_result

Operation = Callable[[Writer], Any]
OPERATIONS: list[Operation] = []
WEIGHTS: list[float] = []


def drawn(weight: float) -> Callable[[Operation], Operation]:
    """An operation that networks are made of, with how often it is drawn."""

    def register(operation: Operation) -> Operation:
        OPERATIONS.append(operation)
        WEIGHTS.append(weight)
        return operation

    return register


# --- what is drawn


def _rank(w: Writer, x: str) -> int:
    """The number of spatial axes."""
    rank = len(w.shape(x)) - 2
    if not 1 <= rank <= 3:
        raise Unfit
    return rank


def _channels(w: Writer, x: str) -> int:
    """Mostly as many as there are: only those can be added."""
    own = w.shape(x)[1]
    return own if w.chance(0.6) else w.draw.choice([1, 2, 3, 4, 6, 8])


def _each(w: Writer, rank: int, choices: Sequence[int]) -> str:
    """A number for all axes, or one for each."""
    if w.chance(0.7):
        return str(w.draw.choice(choices))
    return f"({', '.join(str(w.draw.choice(choices)) for _ in range(rank))},)"


def _groups(w: Writer, inputs: int, outputs: int) -> int:
    common = gcd(inputs, outputs)
    return w.draw.choice([d for d in range(1, common + 1) if common % d == 0]) if w.chance(0.35) else 1


def _geometry(w: Writer, rank: int) -> str:
    """Kernel, stride, padding and dilation; half of them keep the size."""
    if w.chance(0.5):
        kernel, dilation = w.draw.choice([1, 1, 3, 3, 5]), w.draw.choice([1, 1, 1, 2])
        text = f"{kernel}, padding={dilation * (kernel // 2)}"
        return text + (f", dilation={dilation}" if dilation > 1 else "")
    text = _each(w, rank, [1, 1, 2, 3, 3, 4])
    stride = _each(w, rank, [1, 1, 1, 2, 3]) if w.chance(0.5) else "1"
    text += f", stride={stride}" if stride != "1" else ""
    if w.chance(0.25) and stride == "1":
        text += w.draw.choice([', padding="same"', ', padding="valid"'])
    elif w.chance(0.6):
        text += f", padding={_each(w, rank, [0, 1, 1, 2, 3])}"
    return text + (f", dilation={_each(w, rank, [1, 2, 3])}" if w.chance(0.2) else "")


def _conv(w: Writer, x: str, outputs: int | None = None, geometry: str | None = None) -> str:
    """The constructor of a convolution that reads x."""
    rank, inputs = _rank(w, x), w.shape(x)[1]
    outputs = outputs or _channels(w, x)
    groups = _groups(w, inputs, outputs)
    text = f"nn.Conv{rank}d({inputs}, {outputs}, {geometry or _geometry(w, rank)}"
    text += f", groups={groups}" if groups > 1 else ""
    text += ", bias=False" if w.chance(0.5) else ""
    if w.chance(0.06):
        text += f', padding_mode="{w.draw.choice(["reflect", "circular", "replicate"])}"'
    return text + ")"


def _norm(w: Writer, x: str) -> str:
    rank = len(w.shape(x)) - 2
    if rank < 0:
        raise Unfit
    kind = "nn.SyncBatchNorm" if w.chance(0.03) else f"nn.BatchNorm{max(rank, 1)}d"
    text = f"{kind}({w.shape(x)[1]}"
    text += ", affine=False" if w.chance(0.15) else ""
    text += ", eps=0.3" if w.chance(0.2) else ""
    text += ", track_running_stats=False" if w.chance(0.03) else ""
    return text + ")"


def _per_channel(w: Writer, x: str) -> Sequence[int]:
    """The shape of a constant with a number per channel of a feature map, or of the last axis of anything else."""
    shape = w.shape(x)
    if len(shape) < 3 or w.chance(0.1):
        return shape[-1:]
    ones = [1] * (len(shape) - 2)
    return [shape[1], *ones] if w.chance(0.5) else [1, shape[1], *ones]


def _activation(w: Writer) -> str:
    return w.draw.choice(
        [
            "F.relu({})",
            "F.relu({})",
            "F.gelu({})",
            "torch.sigmoid({})",
            "F.hardswish({})",
            "{}.tanh()",
            "{}.abs()",
            "F.silu({})",
        ]
    )


# --- convolutions and linear layers


@drawn(14)
def conv(w: Writer) -> None:
    x = w.map()
    w.call("conv", _conv(w, x), x)


@drawn(8)
def conv_norm(w: Writer) -> None:
    x = w.map()
    y = w.call("conv", _conv(w, x), x)
    w.call("bn", _norm(w, y), y)


@drawn(9)
def norm(w: Writer) -> None:
    x = w.any()
    w.call("bn", _norm(w, x), x)


@drawn(1)
def functional_norm(w: Writer) -> None:
    x = w.map()
    m = w.member("bn", f"nn.BatchNorm{_rank(w, x)}d({w.shape(x)[1]})")
    eps = w.draw.choice(["1e-5", f"{m}.eps", "0.2"])
    w.let(f"F.batch_norm({x}, {m}.running_mean, {m}.running_var, {m}.weight, {m}.bias, False, 0.1, {eps})")


@drawn(6)
def linear(w: Writer) -> None:
    x = w.any()
    outputs = w.shape(x)[-1] if w.chance(0.5) else w.draw.choice([1, 2, 3, 4])
    w.call("fc", f"nn.Linear({w.shape(x)[-1]}, {outputs}{', bias=False' if w.chance(0.4) else ''})", x)


@drawn(3)
def computed_kernel(w: Writer) -> None:
    x = w.map()
    rank, channels = _rank(w, x), w.shape(x)[1]
    outputs, size = _channels(w, x), w.draw.choice([1, 2, 3])
    shape = [outputs, channels, *[size] * rank]
    k = w.constant(shape)
    ones = ", ".join("1" for _ in range(rank))
    forms = [
        f"{k} + {w.constant(shape)}",
        f"{k} * {w.constant([outputs])}.view(-1, 1, {ones})",
        f"{k} / {k}.flatten(1).norm(dim=1).view(-1, 1, {ones})",
        f"F.pad({k}, {[1] * (2 * rank)})",
        f"{k} - {k}.mean()",
        f"{k}.flip(-1)",
        f"{k}.transpose(0, 1)" if outputs == channels else f"{k} * 2",
    ]
    bias = f", {w.constant([outputs])}" if w.chance(0.5) else ""
    padding = f", padding={w.draw.choice([size // 2, 1, 0])}" if w.chance(0.6) else ""
    w.let(f"F.conv{rank}d({x}, {w.draw.choice(forms)}{bias}{padding})")


@drawn(1.5)
def other_kernel(w: Writer) -> None:
    """The weights of a module, used by other code."""
    convs = [member for member, _ in w.callables if ".conv" in member]
    if not convs:
        raise Unfit
    x, member = w.map(), w.draw.choice(convs)
    w.let(f"F.conv{_rank(w, x)}d({x}, {member}.weight{w.draw.choice(['', ' * 0.5', f', {member}.bias', '.abs()'])})")


@drawn(1)
def matrix_product(w: Writer) -> None:
    x = w.any()
    size = w.shape(x)[-1]
    c = w.constant([size, w.draw.choice([size, 2])])
    w.let(
        w.draw.choice(
            [f"{x} @ {c}", f"torch.matmul({x}, {c})", f"F.linear({x}, {c}.t())", f"F.linear({x}, {c}.t() * 0.5)"]
        )
    )


@drawn(1.5)
def transposed(w: Writer) -> None:
    x = w.map()
    rank, channels = _rank(w, x), w.shape(x)[1]
    groups = _groups(w, channels, channels)
    y = w.call(
        "up", f"nn.ConvTranspose{rank}d({channels}, {channels}, 2, stride={w.draw.choice([1, 2])}, groups={groups})", x
    )
    if w.chance(0.6):
        w.call("bn", _norm(w, y), y)


# --- branches


def _branch(w: Writer, x: str, outputs: int, stride: int) -> str:
    """One of the branches that training-time blocks are made of; all give the same size."""
    step = f", stride={stride}" if stride > 1 else ""
    channels = w.shape(x)[1]
    form = w.draw.randint(0, 7)
    if form == 0 and stride == 1 and outputs == channels:
        return w.call("bn", _norm(w, x), x) if w.chance(0.7) else x
    if form == 1:
        y = w.call("conv", _conv(w, x, outputs, f"1{step}"), x)
    elif form == 2:
        y = w.call("conv", _conv(w, x, outputs, "1"), x)
        y = w.call("pool", f"nn.AvgPool{_rank(w, y)}d(3, {stride}, 1)", y)
    elif form == 3:
        y = w.call("conv", _conv(w, x, outputs, "1"), x)
        y = w.call("conv", _conv(w, y, outputs, f"3, padding=1{step}"), y)
    elif form == 4:
        y = w.call("conv", _conv(w, x, outputs, f"3, padding=2, dilation=2{step}"), x)
    elif form == 5 and _rank(w, x) == 2:
        y = w.call(
            "conv",
            _conv(w, x, outputs, w.draw.choice([f"(1, 3), padding=(0, 1){step}", f"(3, 1), padding=(1, 0){step}"])),
            x,
        )
    else:
        y = w.call("conv", _conv(w, x, outputs, f"3, padding=1{step}"), x)
    return w.call("bn", _norm(w, y), y) if w.chance(0.7) else y


@drawn(7)
def branches(w: Writer) -> None:
    x = w.map()
    outputs, stride = _channels(w, x), w.draw.choice([1, 1, 1, 2])
    names = [_branch(w, x, outputs, stride) for _ in range(w.draw.randint(2, 4))]
    joined = ", ".join(names)
    forms = [
        " + ".join(names),
        f"sum([{joined}])",
        f"torch.stack([{joined}]).sum(0)",
        f"torch.stack([{joined}], dim=1).mean(1)",
    ]
    y = w.let(w.draw.choice([*forms[:1] * 3, *forms, f"torch.cat([{joined}], 1)"]))
    if w.chance(0.5):
        w.let(_activation(w).format(y))


@drawn(2)
def listed_branches(w: Writer) -> None:
    x = w.map()
    channels = w.shape(x)[1]
    items = [_conv(w, x, channels, f"{k}, padding={k // 2}") for k in w.draw.choices([1, 3], k=w.draw.randint(1, 3))]
    m = w.member("branches", f"nn.ModuleList([{', '.join([*items, 'nn.Identity()'])}])")
    w.let(
        w.draw.choice([f"sum(branch({x}) for branch in {m})", f"torch.stack([branch({x}) for branch in {m}]).sum(0)"])
    )


@drawn(5)
def residual(w: Writer) -> None:
    x = w.map()
    y = w.call("conv", _conv(w, x, w.shape(x)[1], w.draw.choice(["1", "3, padding=1"])), x)
    w.let(w.draw.choice([f"{x} + {y}", f"{y} + {x}", f"{x} - {y}", f"{y}.add({x})", f"torch.add({y}, {x}, alpha=0.5)"]))


@drawn(4)
def addition(w: Writer) -> None:
    x = w.any()
    y = w.like(x)
    w.let(
        w.draw.choice(
            [
                f"{x} + {y}",
                f"{x} + {y}",
                f"{x} - {y} * 0.7",
                f"torch.sub({x}, {y}, alpha=2)",
                f"{x} * {y}",
                f"torch.rsub({x}, {y})",
            ]
        )
    )


@drawn(2)
def joined(w: Writer) -> None:
    x = w.any()
    y = w.like(x)
    dim = w.draw.choice([1, 1, 1, -1, 0])
    w.let(
        w.draw.choice(
            [
                f"torch.cat([{x}, {y}], {dim})",
                f"torch.cat(({y}, {x}, {y}), dim={dim})",
                f"torch.stack([{x}, {y}]).mean(0)",
            ]
        )
    )


# --- scalings


@drawn(5)
def scaled(w: Writer) -> None:
    x = w.any()
    number = w.draw.choice(["2", "0.5", "-1.5", "1", "3.0"])
    forms = [
        f"{x} * {number}",
        f"{x} / {number}",
        f"{x} + {number}",
        f"{number} - {x}",
        f"{number} * {x}",
        f"-{x}",
        f"{x} - {number}",
        f"0 + {x}",
        f"{x} + 0",
        f"{x}.neg()",
        f"torch.mul({x}, {number})",
    ]
    w.let(w.draw.choice(forms))


@drawn(5)
def scaled_per_channel(w: Writer) -> None:
    x = w.any()
    c = w.constant(_per_channel(w, x), positive=True)
    w.let(
        w.draw.choice(
            [f"{x} * {c}", f"{c} * {x}", f"{x} + {c}", f"{x} / {c}", f"{c} - {x}", f"{x} - {c}", f"{x} * ({c} * 2 + 1)"]
        )
    )


@drawn(1)
def scaled_per_pixel(w: Writer) -> None:
    x = w.any()
    c = w.constant(w.shape(x)[1:], positive=True)
    w.let(w.draw.choice([f"{x} * {c}", f"{x} + {c}"]))


@drawn(1)
def gated(w: Writer) -> None:
    x = w.map()
    dims = tuple(range(2, len(w.shape(x))))
    w.let(f"{x} * {x}.mean({dims}, keepdim=True).sigmoid()")


# --- what changes nothing, and activations


@drawn(10)
def activation(w: Writer) -> None:
    w.let(_activation(w).format(w.any()))


@drawn(2)
def activation_module(w: Writer) -> None:
    w.call(
        "act",
        w.draw.choice(
            ["nn.ReLU()", "nn.ReLU(inplace=True)", "nn.GELU()", "nn.PReLU()", "nn.Softmax(1)", "nn.Hardtanh()"]
        ),
        w.any(),
    )


@drawn(3)
def nothing(w: Writer) -> None:
    x = w.any()
    if w.chance(0.5):
        w.call(
            "same",
            w.draw.choice(["nn.Identity()", "nn.Dropout(0.3)", "nn.Dropout2d(0.2)", "nn.Dropout(0.1, inplace=True)"]),
            x,
        )
    else:
        w.let(
            w.draw.choice(
                [
                    f"{x}.clone()",
                    f"{x}.contiguous()",
                    f"{x}.detach()",
                    f"F.dropout({x}, 0.5, self.training)",
                    f"{x}.to({x}.dtype)",
                ]
            )
        )


@drawn(1)
def other_norm(w: Writer) -> None:
    x = w.map()
    channels = w.shape(x)[1]
    w.call(
        "norm",
        w.draw.choice(
            [
                f"nn.LayerNorm({w.shape(x)[-1]})",
                f"nn.GroupNorm(1, {channels})",
                f"nn.InstanceNorm{_rank(w, x)}d({channels}, affine=True)",
            ]
        ),
        x,
    )


# --- pools and pads


@drawn(4)
def pooled(w: Writer) -> None:
    x = w.map()
    rank = _rank(w, x)
    kernel, stride = w.draw.choice([1, 2, 2, 3]), w.draw.choice([1, 1, 2, 3])
    text = f"nn.AvgPool{rank}d({kernel}, {stride}"
    text += f", padding={w.draw.choice([0, 1])}" if w.chance(0.4) else ""
    text += ", ceil_mode=True" if w.chance(0.15) else ""
    text += ", count_include_pad=False" if w.chance(0.2) else ""
    text += f", divisor_override={w.draw.choice([2, 3])}" if rank > 1 and w.chance(0.1) else ""
    w.call("pool", text + ")", x)


@drawn(1.5)
def other_pool(w: Writer) -> None:
    x = w.map()
    rank = _rank(w, x)
    w.call(
        "pool",
        w.draw.choice(
            [
                f"nn.MaxPool{rank}d(2, 1)",
                f"nn.MaxPool{rank}d(3, 1, 1)",
                f"nn.AdaptiveAvgPool{rank}d(1)",
                f"nn.AdaptiveAvgPool{rank}d(2)",
            ]
        ),
        x,
    )


@drawn(4)
def padded(w: Writer) -> None:
    x = w.map()
    rank = _rank(w, x)
    amounts = [w.draw.choice([1, 1, 0, 2, -1] if w.chance(0.3) else [1]) for _ in range(2 * rank)]
    value = w.draw.choice(["", "", "", ", value=0.5", ", value=-1.0"])
    if w.chance(0.2):
        w.let(f'F.pad({x}, {[abs(a) for a in amounts]}, mode="{w.draw.choice(["reflect", "replicate", "circular"])}")')
    elif w.chance(0.3):
        w.call("pad", f"nn.ConstantPad{rank}d({tuple(amounts)}, {w.draw.choice(['0.0', '0.0', '1.5'])})", x)
    else:
        w.let(f"F.pad({x}, {amounts}{value})")


@drawn(4)
def border(w: Writer) -> None:
    """Batch norm that pads with what it makes of zero, or nearly so, and a convolution behind it."""
    x = w.map()
    rank, channels = _rank(w, x), w.shape(x)[1]
    if w.chance(0.3):
        x = w.call("conv", _conv(w, x, channels, "1"), x)
    y = w.call("bn", f"nn.BatchNorm{rank}d({channels})", x)
    norm = f"self.bn{w.counter - 1}"
    ones = ", ".join("1" for _ in range(rank))
    value = w.let(
        f"({norm}.bias - {norm}.running_mean * {norm}.weight / torch.sqrt({norm}.running_var + {norm}.eps))"
        f".view(1, -1, {ones})"
    )
    y = w.let(f"F.pad({y}, {[1] * (2 * rank)})")
    faces = [f"{', '.join([':'] * (2 + axis))}, {side}" for axis in range(rank) for side in ("0:1", "-1:")]
    if w.chance(0.2):
        faces.remove(w.draw.choice(faces))
    wrong = w.draw.choice(faces) if w.chance(0.2) else None
    for face in faces:
        w.line(f"{y}[{face}] = {value}{' + 0.5' if face == wrong else ''}")
    if w.chance(0.8):
        w.call("conv", _conv(w, y, geometry="3"), y)


# --- channels and pixels taken apart


@drawn(4)
def parts(w: Writer) -> None:
    x = w.map()
    channels = w.shape(x)[1]
    if channels < 2:
        raise Unfit
    a, b = w.name("t"), w.name("t")
    cut = w.draw.randint(1, channels - 1)
    form = w.draw.choice(
        [f"{x}.split([{cut}, {channels - cut}], 1)", f"{x}.chunk(2, 1)", f"({x}[:, :{cut}], {x}[:, {cut}:])"]
    )
    w.line(f"{a}, {b} = {form}")
    if w.chance(0.6):
        c = w.call("conv", _conv(w, a, geometry=w.draw.choice(["1", "3, padding=1"])), a)
        w.let(w.draw.choice([f"torch.cat([{b}, {c}], 1)", f"torch.cat(({c}, {b}), dim=1)"]))


@drawn(3)
def sliced(w: Writer) -> None:
    x = w.map()
    last = len(w.shape(x)) - 1
    cuts = [":"] * last
    cuts[w.draw.randrange(last)] = w.draw.choice(["::2", "1:", ":-1", "1:-1", "1::2", ":2", "-2:", "::3"])
    cuts[0] = ":" if w.chance(0.9) else cuts[0]
    w.let(f"{x}[:, {', '.join(cuts)}]" if w.chance(0.7) else f"{x}[..., {cuts[-1]}]")


@drawn(1)
def picked(w: Writer) -> None:
    x = w.map()
    order = list(range(w.shape(x)[1]))
    w.draw.shuffle(order)
    w.let(
        w.draw.choice(
            [
                f"{x}[:, {order}]",
                f"{x}.flip(1)",
                f"{x}.narrow(1, 0, 1)",
                f"{x}.roll(1, 1)",
                f"torch.index_select({x}, 1, torch.tensor({order}))",
            ]
        )
    )


@drawn(1)
def shuffled(w: Writer) -> None:
    x = w.any(lambda value: value.dim() == 4 and value.shape[1] % 2 == 0)
    sizes = w.draw.choice(["{0}.shape[0], {1}, 2, {0}.shape[2], {0}.shape[3]", "len({0}), 2, {1}, *{0}.shape[2:]"])
    y = w.let(f"{x}.reshape({sizes.format(x, w.shape(x)[1] // 2)}).transpose(1, 2).flatten(1, 2)")
    if w.chance(0.6):
        w.call("conv", _conv(w, y), y)


@drawn(1)
def space_to_depth(w: Writer) -> None:
    x = w.any(lambda value: value.dim() == 4)
    w.let(f"torch.cat([{x}[..., ::2, ::2], {x}[..., 1::2, ::2], {x}[..., ::2, 1::2], {x}[..., 1::2, 1::2]], 1)")


# --- views


@drawn(3)
def tokens(w: Writer) -> None:
    """Pixels in a row and a linear layer over channels, or the other way."""
    x = w.map()
    rank, channels = _rank(w, x), w.shape(x)[1]
    order = [0, *range(2, rank + 2), 1]
    y = w.let(
        w.draw.choice(
            [
                f"{x}.flatten(2).transpose(1, 2)",
                f"{x}.permute({', '.join(map(str, order))})",
                f"{x}.view({x}.shape[0], {channels}, -1).transpose(1, 2)",
            ]
        )
    )
    if w.chance(0.7):
        z = w.call("fc", f"nn.Linear({channels}, {w.draw.choice([channels, 3])})", y)
        if w.chance(0.3):
            w.let(f"{z}.transpose(1, -1)")


@drawn(2)
def head(w: Writer) -> None:
    x = w.map()
    dims = tuple(range(2, len(w.shape(x))))
    y = w.let(
        w.draw.choice(
            [
                f"{x}.mean({dims})",
                f"F.adaptive_avg_pool{_rank(w, x)}d({x}, 1).flatten(1)",
                f"torch.flatten({x}, 1)",
                f"{x}.mean({dims}, keepdim=True)",
            ]
        )
    )
    if w.chance(0.7) and len(w.shape(y)) == 2:
        w.call("fc", f"nn.Linear({w.shape(y)[1]}, 3)", y)


@drawn(2)
def viewed(w: Writer) -> None:
    x = w.any()
    shape = w.shape(x)
    forms = [
        f"{x}.unsqueeze(-1)",
        f"{x}.squeeze(-1)",
        f"{x}.transpose(1, -1)",
        f"{x}.flatten(1)",
        f"{x}.reshape(-1, {shape[-1]})",
        f"{x}.unsqueeze(2)",
        f"{x}.transpose(-1, -2)",
        f"{x}.view({', '.join(map(str, shape))})",
        f"{x}.view({x}.size(0), -1)",
    ]
    w.let(w.draw.choice(forms))


@drawn(1)
def resized(w: Writer) -> None:
    x = w.any(lambda value: value.dim() == 4)
    w.let(
        w.draw.choice(
            [
                f'F.interpolate({x}, scale_factor=2, mode="nearest")',
                f'F.interpolate({x}, size=(4, 5), mode="bilinear")',
                f"F.pixel_unshuffle({x}, 2)",
            ]
        )
    )


@drawn(1)
def mixed(w: Writer) -> None:
    """Operations that no rule will ever know."""
    x = w.any()
    w.let(
        w.draw.choice(
            [
                f"{x}.softmax(1)",
                f"{x}.cumsum(1)",
                f"{x}.sum(1, keepdim=True)",
                f"{x}.amax(-1, keepdim=True)",
                f"torch.where({x} > 0, {x}, -{x})",
                f"{x} ** 2",
            ]
        )
    )


# --- writes


@drawn(3)
def added_in_place(w: Writer) -> None:
    x = w.any()
    form = w.draw.randint(0, 4)
    if form == 0:
        w.line(f"{x} += {w.like(x)}")
    elif form == 1:
        w.line(
            w.draw.choice(
                [
                    f"{x} *= 0.5",
                    f"{x}.add_(1.5)",
                    f"{x}.mul_(2)",
                    f"{x} -= 1",
                    f"F.relu({x}, inplace=True)",
                    f"{x}.neg_()",
                ]
            )
        )
    elif form == 2:
        w.line(f"{x} += {w.constant(_per_channel(w, x))}")
    else:
        y = w.let(f"{x}.clone()")
        w.line(f"{y} += {x}")


@drawn(1.5)
def view_written(w: Writer) -> None:
    """A write through a view: the whole changes as well."""
    x = w.map()
    w.line(
        w.draw.choice(
            [
                f"{x}[:, :1] *= 2",
                f"{x}[:, 0] = 1",
                f"{x}.view(-1).add_(1)",
                f"{x}[:, :1].zero_()",
                f"{x}.flatten(2).mul_(0.5)",
                f"{x}[..., 0] = {x}[..., -1]",
            ]
        )
    )


@drawn(0.5)
def counted(w: Writer) -> None:
    """A buffer that every call changes."""
    x, name = w.any(), w.name("c")
    w.setup(f'self.register_buffer("{name}", torch.ones(1))')
    w.line(f"self.{name}.mul_(1.5)")
    w.let(f"{x} * self.{name}")


@drawn(0.5)
def remembered(w: Writer) -> None:
    """A tensor kept on the module."""
    x, name = w.any(), w.name("kept")
    w.line(f"self.{name} = {x}")
    w.let(f"self.{name} * 2")


# --- code that looks


@drawn(1)
def depends_on_size(w: Writer) -> None:
    x = w.map()
    forms = [
        f"{x} * {x}.shape[-1]",
        f"{x}[:, :, : {x}.shape[2] // 2]",
        f"{x} if {x}.shape[-1] > 6 else {x} * 2",
        f"{x} / {x}.shape[1]",
        f"{x}.view({x}.shape)",
        f"F.pad({x}, [0, {x}.shape[-1] % 2])",
    ]
    w.let(w.draw.choice(forms))


@drawn(1.5)
def depends_on_other_size(w: Writer) -> None:
    """A size that was read from another tensor, perhaps one that is folded away."""
    x, y = w.map(), w.any()
    size = f"{y}.{w.draw.choice(['shape[1]', 'shape[-1]', 'size(1)', 'size(0)'])}"
    w.let(
        w.draw.choice(
            [f"{x} * {size}", f"{x} / {size}", f"{x}.view({y}.shape[0], {w.shape(x)[1]}, -1)", f"{x} + {size}"]
        )
    )


@drawn(2)
def size_on_the_way(w: Writer) -> None:
    """Code that looks at the size of what a fold would not compute any more."""
    x = w.map()
    y = w.call("conv", _conv(w, x), x)
    if w.chance(0.3):
        w.line(f"assert {y}.shape[1] == {w.shape(y)[1]}")
    z = w.call("conv", _conv(w, y), y) if w.chance(0.6) else w.call("bn", _norm(w, y), y)
    z = w.let(_activation(w).format(z)) if w.chance(0.7) else z
    w.let(f"{z} * {y}.{w.draw.choice(['shape[1]', 'shape[-1]', 'size(1)', 'size(2)'])}")


@drawn(0.7)
def norm_by_size(w: Writer) -> None:
    x = w.map()
    m = w.member("bn", _norm(w, x))
    w.let(f"{m}({x}) if {x}.shape[-1] > {w.draw.choice([3, 5])} else {x}")


@drawn(0.7)
def number_read(w: Writer) -> None:
    x = w.any()
    w.let(
        w.draw.choice(
            [
                f"{x} * (2.0 if {x}.mean().item() > 1e9 else 1.0)",
                f"{x} + float({x}.abs().max() > 1e9)",
                f"{x} if {x}.sum() < 1e9 else -{x}",
            ]
        )
    )


@drawn(0.7)
def asserted(w: Writer) -> None:
    x = w.any()
    w.line(
        w.draw.choice(
            [
                f"assert {x}.dim() == {len(w.shape(x))}",
                f'torch._assert({x}.ndim == {len(w.shape(x))}, "rank")',
                f"assert {x}.shape[1] == {w.shape(x)[1]}",
            ]
        )
    )


# --- modules that are shared, watched, computed


@drawn(5)
def called_again(w: Writer) -> None:
    if not w.callables:
        raise Unfit
    member, shape = w.draw.choice(w.callables)
    w.let(f"{member}({w.any(lambda value: len(value.shape) == len(shape) and value.shape[1] == shape[1])})")


@drawn(1.5)
def second_name(w: Writer) -> None:
    if not w.callables:
        raise Unfit
    member, shape = w.draw.choice(w.callables)
    x = w.any(lambda value: tuple(value.shape) == shape)
    w.call("twin", member, x)


@drawn(1.5)
def tied(w: Writer) -> None:
    """A module whose weight belongs to another as well."""
    convs = [(member, shape) for member, shape in w.callables if ".conv" in member]
    if not convs:
        raise Unfit
    member, shape = w.draw.choice(convs)
    constructor = next(line.partition(" = ")[2] for line in w.init if line.startswith(f"{member} = "))
    twin = w.member("conv", constructor)
    w.setup(f"{twin}.weight = {member}.weight")
    w.callables.append((twin, shape))
    w.let(f"{twin}({w.any(lambda value: len(value.shape) == len(shape) and value.shape[1] == shape[1])})")


@drawn(1.5)
def hooked(w: Writer) -> None:
    x = w.map()
    m = w.member("conv", _conv(w, x))
    w.setup(
        w.draw.choice(
            [
                f"{m}.register_forward_hook(halved)",
                f"{m}.register_forward_pre_hook(shifted)",
                f"{m}.register_forward_hook(looked_at)",
            ]
        )
    )
    w.callables.append((m, w.shape(x)))
    y = w.let(f"{m}({x})")
    if w.chance(0.7):
        w.call("bn", _norm(w, y), y)


@drawn(2)
def computed_weight(w: Writer) -> None:
    x = w.map()
    m = w.member("conv", _conv(w, x))
    w.setup(
        w.draw.choice(
            [
                f"parametrizations.weight_norm({m})",
                f"weight_norm({m})",
                f"parametrizations.spectral_norm({m})",
                f"spectral_norm({m})",
                f'parametrize.register_parametrization({m}, "weight", Doubled())',
            ]
        )
    )
    w.callables.append((m, w.shape(x)))
    y = w.let(f"{m}({x})")
    if w.chance(0.7):
        w.call("bn", _norm(w, y), y)


# --- containers


@drawn(5)
def sequence(w: Writer) -> None:
    x = y = w.map()
    inner = Writer(w.session, {x: w.values[x]})
    steps = []
    for _ in range(w.draw.randint(1, 4)):
        step = w.draw.choice(
            [_conv(inner, y), _conv(inner, y), _norm(inner, y), "nn.ReLU()", "nn.Identity()", "nn.Dropout(0.1)"]
        )
        y = inner.call("step", step, y)
        steps.append(step)
    w.call("seq", f"nn.Sequential({', '.join(steps)})", x)


@drawn(10)
def block(w: Writer) -> None:
    """A class of its own."""
    if w.depth >= 2:
        raise Unfit
    arguments = [w.map()]
    if w.chance(0.2):
        arguments.append(w.any())
    inner = Writer(w.session, dict(zip("xy", (w.values[a].clone() for a in arguments), strict=False)), w.depth + 1)
    inner.write(OPERATIONS, WEIGHTS, w.draw.randint(1, 5))
    result, count = block_result(inner)
    made = inner.block(f"Block{len(w.session.blocks)}", result)
    w.session.blocks.append(made)
    exec(made.text(), vars(w.session.module))
    m = w.member("block", f"{made.name}()")
    targets = [w.name("t") for _ in range(count)]
    w.line(f"{', '.join(targets)} = {m}({', '.join(arguments)})")
    if len(arguments) == count == 1:
        w.callables.append((m, w.shape(arguments[0])))


@drawn(1.5)
def block_again(w: Writer) -> None:
    """A second instance of a class, perhaps with a module of the first."""
    blocks = [(member, shape) for member, shape in w.callables if ".block" in member]
    if not blocks:
        raise Unfit
    member, shape = w.draw.choice(blocks)
    constructor = next(line.partition(" = ")[2] for line in w.init if line.startswith(f"{member} = "))
    twin = w.member("block", constructor)
    inner = [name for name, _ in w.holder.get_submodule(twin.removeprefix("self.")).named_children()]
    if inner and w.chance(0.5):
        name = w.draw.choice(inner)
        w.setup(f"{twin}.{name} = {member}.{name}")
    w.callables.append((twin, shape))
    w.let(f"{twin}({w.any(lambda value: tuple(value.shape) == shape)})")
