"""Operations of random networks: layers, branches, arithmetic, norms, pools and pads, as users write them."""

from __future__ import annotations

from benchmarks.fuzz.operations import (
    activation_text,
    channels_of,
    conv_text,
    drawn_groups,
    norm_text,
    operation,
    per_channel,
    rank_of,
)
from benchmarks.fuzz.writer import NotApplicable, Writer

# --- convolutions and linear layers


@operation(14)
def conv(w: Writer) -> None:
    x = w.pick_map()
    w.call("conv", conv_text(w, x), x)


@operation(8)
def conv_norm(w: Writer) -> None:
    x = w.pick_map()
    y = w.call("conv", conv_text(w, x), x)
    w.call("bn", norm_text(w, y), y)


@operation(9)
def norm(w: Writer) -> None:
    x = w.pick()
    w.call("bn", norm_text(w, x), x)


@operation(1)
def functional_norm(w: Writer) -> None:
    x = w.pick_map()
    m = w.member("bn", f"nn.BatchNorm{rank_of(w, x)}d({w.shape(x)[1]})")
    eps = w.rng.choice(["1e-5", f"{m}.eps", "0.2"])
    w.let(f"F.batch_norm({x}, {m}.running_mean, {m}.running_var, {m}.weight, {m}.bias, False, 0.1, {eps})")


@operation(6)
def linear(w: Writer) -> None:
    x = w.pick()
    outputs = w.shape(x)[-1] if w.chance(0.5) else w.rng.choice([1, 2, 3, 4])
    w.call("fc", f"nn.Linear({w.shape(x)[-1]}, {outputs}{', bias=False' if w.chance(0.4) else ''})", x)


@operation(3)
def computed_kernel(w: Writer) -> None:
    x = w.pick_map()
    rank, channels = rank_of(w, x), w.shape(x)[1]
    outputs, size = channels_of(w, x), w.rng.choice([1, 2, 3])
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
    padding = f", padding={w.rng.choice([size // 2, 1, 0])}" if w.chance(0.6) else ""
    w.let(f"F.conv{rank}d({x}, {w.rng.choice(forms)}{bias}{padding})")


@operation(1.5)
def shared_kernel(w: Writer) -> None:
    """A convolution in the forward that uses the weights of a module."""
    convs = [member for member, _ in w.callables if ".conv" in member]
    if not convs:
        raise NotApplicable
    x, member = w.pick_map(), w.rng.choice(convs)
    w.let(f"F.conv{rank_of(w, x)}d({x}, {member}.weight{w.rng.choice(['', ' * 0.5', f', {member}.bias', '.abs()'])})")


@operation(1.5)
def matrix_product(w: Writer) -> None:
    x = w.pick()
    shape = w.shape(x)
    outputs = w.rng.choice([shape[-1], 2])
    c = w.constant([shape[-1], outputs])
    forms = [f"{x} @ {c}", f"torch.matmul({x}, {c})", f"F.linear({x}, {c}.t())", f"F.linear({x}, {c}.t() * 0.5)"]
    forms.append(f'torch.einsum("...i,io->...o", {x}, {c})')
    if len(shape) == 2:
        forms.append(f"torch.addmm({w.constant([outputs])}, {x}, {c})")
    if len(shape) == 3:
        d = w.constant([w.rng.choice([2, shape[1]]), shape[1]])
        forms += [f"{d} @ {x}", f'torch.einsum("oi,bin->bon", {d}, {x})', f'torch.einsum("bin,oi->bno", {x}, {d})']
    if len(shape) == 4:
        d = w.constant([w.rng.choice([2, shape[1]]), shape[1]])
        forms.append(f'torch.einsum("bihw,oi->bohw", {x}, {d})')
    w.let(*forms)


@operation(1)
def low_rank_branch(w: Writer) -> None:
    """A linear layer and a branch of low rank."""
    x = w.pick()
    size = w.shape(x)[-1]
    y = w.call("fc", f"nn.Linear({size}, {size})", x)
    z = w.call("down", f"nn.Linear({size}, 1, bias=False)", x)
    z = w.call("up", f"nn.Linear(1, {size}, bias=False)", z)
    w.let(f"{y} + 0.5 * {z}", f"{y} + {z} * 2", f"({y} + {z}) / 2")


def _transposed_conv(w: Writer, x: str, geometry: str) -> str:
    channels = w.shape(x)[1]
    outputs = w.rng.choice([channels, channels, 2, 4])
    groups = drawn_groups(w, channels, outputs)
    bias = ", bias=False" if w.chance(0.4) else ""
    return w.call(
        "up", f"nn.ConvTranspose{rank_of(w, x)}d({channels}, {outputs}, {geometry}, groups={groups}{bias})", x
    )


@operation(2.5)
def transposed_conv(w: Writer) -> None:
    x = w.pick_map()
    stride = w.rng.choice([1, 2, 2, 3])
    geometry = f"{w.rng.choice([1, 2, 3, 4])}, stride={stride}"
    geometry += f", padding={w.rng.choice([0, 1])}" if w.chance(0.4) else ""
    geometry += f", output_padding={stride - 1}" if w.chance(0.3) else ""
    geometry += ", dilation=2" if w.chance(0.15) else ""
    y = _transposed_conv(w, x, geometry)
    if w.chance(0.6):
        y = w.call("bn", norm_text(w, y), y)
    if w.chance(0.3):
        w.call("conv", conv_text(w, y, geometry=w.rng.choice(["1", "1", "3, padding=1"])), y)


@operation(0.7)
def transposed_branches(w: Writer) -> None:
    x = w.pick_map()
    kernels = w.rng.choice([("2, stride=2", "2, stride=2"), ("4, stride=2, padding=1", "2, stride=2")])
    channels = w.shape(x)[1]
    names = []
    for geometry in kernels:
        y = w.call("up", f"nn.ConvTranspose{rank_of(w, x)}d({channels}, {channels}, {geometry})", x)
        names.append(w.call("bn", norm_text(w, y), y) if w.chance(0.5) else y)
    w.let(" + ".join(names))


# --- branches


def _branch(w: Writer, x: str, outputs: int, stride: int) -> str:
    """A branch of a training-time block; all branches return the same size."""
    step = f", stride={stride}" if stride > 1 else ""
    channels = w.shape(x)[1]
    form = w.rng.randint(0, 7)
    if form == 0 and stride == 1 and outputs == channels:
        return w.call("bn", norm_text(w, x), x) if w.chance(0.7) else x
    if form == 1:
        y = w.call("conv", conv_text(w, x, outputs, f"1{step}"), x)
    elif form == 2:
        y = w.call("conv", conv_text(w, x, outputs, "1"), x)
        y = w.call("pool", f"nn.AvgPool{rank_of(w, y)}d(3, {stride}, 1)", y)
    elif form == 3:
        y = w.call("conv", conv_text(w, x, outputs, "1"), x)
        y = w.call("conv", conv_text(w, y, outputs, f"3, padding=1{step}"), y)
    elif form == 4:
        y = w.call("conv", conv_text(w, x, outputs, f"3, padding=2, dilation=2{step}"), x)
    elif form == 5 and rank_of(w, x) == 2:
        y = w.call(
            "conv",
            conv_text(w, x, outputs, w.rng.choice([f"(1, 3), padding=(0, 1){step}", f"(3, 1), padding=(1, 0){step}"])),
            x,
        )
    else:
        y = w.call("conv", conv_text(w, x, outputs, f"3, padding=1{step}"), x)
    return w.call("bn", norm_text(w, y), y) if w.chance(0.7) else y


@operation(7)
def branches(w: Writer) -> None:
    x = w.pick_map()
    outputs, stride = channels_of(w, x), w.rng.choice([1, 1, 1, 2])
    names = [_branch(w, x, outputs, stride) for _ in range(w.rng.randint(2, 4))]
    joined = ", ".join(names)
    forms = [
        " + ".join(names),
        f"sum([{joined}])",
        f"torch.stack([{joined}]).sum(0)",
        f"torch.stack([{joined}], dim=1).mean(1)",
    ]
    y = w.let(*forms[:1] * 3, *forms, f"torch.cat([{joined}], 1)")
    if w.chance(0.5):
        w.let(activation_text(w).format(y))


@operation(1.5)
def copied_padding_branches(w: Writer) -> None:
    """Branches that pad by copying pixels, mostly in the same mode."""
    x = w.pick_map()
    channels = w.shape(x)[1]
    mode = w.rng.choice(["reflect", "circular", "replicate"])
    names = [x] if w.chance(0.5) else []
    for _ in range(w.rng.randint(1, 3)):
        other = "zeros" if w.chance(0.05) else mode
        size = w.rng.choice(["1", f'3, padding=1, padding_mode="{other}"', f'3, padding="same", padding_mode="{mode}"'])
        y = w.call("conv", f"nn.Conv{rank_of(w, x)}d({channels}, {channels}, {size})", x)
        names.append(w.call("bn", norm_text(w, y), y) if w.chance(0.5) else y)
    w.let(" + ".join(names))


@operation(2)
def norm_after_join(w: Writer) -> None:
    """Convolutions of different tensors, joined, and a norm after the join."""
    x = w.pick_map()
    channels = w.shape(x)[1]
    sides = []
    for _ in range(w.rng.randint(2, 3)):
        y = w.let(activation_text(w).format(x))
        y = w.call("conv", conv_text(w, y, channels, w.rng.choice(["1", "3, padding=1"])), y)
        sides.append(w.call("bn", norm_text(w, y), y) if w.chance(0.3) else y)
    joined = ", ".join(sides)
    y = w.let(" + ".join(sides), " - ".join(sides), f"torch.cat([{joined}], 1)")
    y = w.call("bn", norm_text(w, y), y)
    if w.chance(0.5):
        w.let(activation_text(w).format(y))


@operation(2)
def module_list(w: Writer) -> None:
    x = w.pick_map()
    channels = w.shape(x)[1]
    items = [conv_text(w, x, channels, f"{k}, padding={k // 2}") for k in w.rng.choices([1, 3], k=w.rng.randint(1, 3))]
    m = w.member("branches", f"nn.ModuleList([{', '.join([*items, 'nn.Identity()'])}])")
    w.let(f"sum(branch({x}) for branch in {m})", f"torch.stack([branch({x}) for branch in {m}]).sum(0)")


@operation(5)
def residual(w: Writer) -> None:
    x = w.pick_map()
    y = w.call("conv", conv_text(w, x, w.shape(x)[1], w.rng.choice(["1", "3, padding=1"])), x)
    w.let(f"{x} + {y}", f"{y} + {x}", f"{x} - {y}", f"{y}.add({x})", f"torch.add({y}, {x}, alpha=0.5)")


@operation(4)
def addition(w: Writer) -> None:
    x = w.pick()
    y = w.pick_like(x)
    w.let(
        f"{x} + {y}",
        f"{x} + {y}",
        f"{x} - {y} * 0.7",
        f"torch.sub({x}, {y}, alpha=2)",
        f"{x} * {y}",
        f"torch.rsub({x}, {y})",
    )


@operation(2)
def concatenation(w: Writer) -> None:
    x = w.pick()
    y = w.pick_like(x)
    dim = w.rng.choice([1, 1, 1, -1, 0])
    w.let(
        f"torch.cat([{x}, {y}], {dim})",
        f"torch.cat(({y}, {x}, {y}), dim={dim})",
        f"torch.stack([{x}, {y}]).mean(0)",
    )


# --- arithmetic


@operation(5)
def scalar_arithmetic(w: Writer) -> None:
    x = w.pick()
    number = w.rng.choice(["2", "0.5", "-1.5", "1", "3.0"])
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
    w.let(*forms)


@operation(5)
def channel_arithmetic(w: Writer) -> None:
    x = w.pick()
    c = w.constant(per_channel(w, x), positive=True)
    w.let(f"{x} * {c}", f"{c} * {x}", f"{x} + {c}", f"{x} / {c}", f"{c} - {x}", f"{x} - {c}", f"{x} * ({c} * 2 + 1)")


@operation(1)
def pixel_arithmetic(w: Writer) -> None:
    x = w.pick()
    c = w.constant(w.shape(x)[1:], positive=True)
    w.let(f"{x} * {c}", f"{x} + {c}")


@operation(1)
def gate(w: Writer) -> None:
    x = w.pick_map()
    dims = tuple(range(2, len(w.shape(x))))
    w.let(f"{x} * {x}.mean({dims}, keepdim=True).sigmoid()")


# --- activations, norms, operations without effect


@operation(10)
def activation(w: Writer) -> None:
    w.let(activation_text(w).format(w.pick()))


@operation(2)
def activation_module(w: Writer) -> None:
    w.call(
        "act",
        w.rng.choice(
            ["nn.ReLU()", "nn.ReLU(inplace=True)", "nn.GELU()", "nn.PReLU()", "nn.Softmax(1)", "nn.Hardtanh()"]
        ),
        w.pick(),
    )


@operation(3)
def identity(w: Writer) -> None:
    x = w.pick()
    if w.chance(0.5):
        w.call(
            "same",
            w.rng.choice(["nn.Identity()", "nn.Dropout(0.3)", "nn.Dropout2d(0.2)", "nn.Dropout(0.1, inplace=True)"]),
            x,
        )
    else:
        w.let(
            f"{x}.clone()",
            f"{x}.contiguous()",
            f"{x}.detach()",
            f"F.dropout({x}, 0.5, self.training)",
            f"{x}.to({x}.dtype)",
        )


@operation(2)
def instance_statistics_norm(w: Writer) -> None:
    x = w.pick_map()
    channels = w.shape(x)[1]
    y = w.call(
        "norm",
        w.rng.choice(
            [
                f"nn.LayerNorm({w.shape(x)[-1]})",
                f"nn.RMSNorm({w.shape(x)[-1]})",
                f"nn.GroupNorm(1, {channels})",
                f"nn.InstanceNorm{rank_of(w, x)}d({channels}, affine=True)",
            ]
        ),
        x,
    )
    if w.chance(0.4):
        w.call("conv", conv_text(w, y), y)


@operation(2)
def norm_linear(w: Writer) -> None:
    x = w.pick()
    size = w.shape(x)[-1]
    y = w.call("norm", w.rng.choice([f"nn.LayerNorm({size})", f"nn.RMSNorm({size})"]), x)
    z = w.call("fc", f"nn.Linear({size}, {size}{', bias=False' if w.chance(0.3) else ''})", y)
    if w.chance(0.5):
        z = w.let(f"{z} + {w.call('fc', f'nn.Linear({size}, {size})', y)}.sigmoid()")
    if w.chance(0.2):
        w.let(f"{z} + {y}")


# --- pools and pads


@operation(4)
def average_pool(w: Writer) -> None:
    x = w.pick_map()
    rank = rank_of(w, x)
    kernel, stride = w.rng.choice([1, 2, 2, 3]), w.rng.choice([1, 1, 2, 3])
    text = f"nn.AvgPool{rank}d({kernel}, {stride}"
    text += f", padding={w.rng.choice([0, 1])}" if w.chance(0.4) else ""
    text += ", ceil_mode=True" if w.chance(0.15) else ""
    text += ", count_include_pad=False" if w.chance(0.2) else ""
    text += f", divisor_override={w.rng.choice([2, 3])}" if rank > 1 and w.chance(0.1) else ""
    w.call("pool", text + ")", x)


@operation(1.5)
def other_pool(w: Writer) -> None:
    x = w.pick_map()
    rank = rank_of(w, x)
    w.call(
        "pool",
        w.rng.choice(
            [
                f"nn.MaxPool{rank}d(2, 1)",
                f"nn.MaxPool{rank}d(3, 1, 1)",
                f"nn.AdaptiveAvgPool{rank}d(1)",
                f"nn.AdaptiveAvgPool{rank}d(2)",
            ]
        ),
        x,
    )


@operation(4)
def padding(w: Writer) -> None:
    x = w.pick_map()
    rank = rank_of(w, x)
    amounts = [w.rng.choice([1, 1, 0, 2, -1] if w.chance(0.3) else [1]) for _ in range(2 * rank)]
    value = w.rng.choice(["", "", "", ", value=0.5", ", value=-1.0"])
    if w.chance(0.2):
        w.let(f'F.pad({x}, {[abs(a) for a in amounts]}, mode="{w.rng.choice(["reflect", "replicate", "circular"])}")')
    elif w.chance(0.3):
        w.call("pad", f"nn.ConstantPad{rank}d({tuple(amounts)}, {w.rng.choice(['0.0', '0.0', '1.5'])})", x)
    else:
        w.let(f"F.pad({x}, {amounts}{value})")


@operation(4)
def written_border(w: Writer) -> None:
    """A batch norm whose output is padded with its value for zero, sometimes a wrong one, and a convolution."""
    x = w.pick_map()
    rank, channels = rank_of(w, x), w.shape(x)[1]
    if w.chance(0.3):
        x = w.call("conv", conv_text(w, x, channels, "1"), x)
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
        faces.remove(w.rng.choice(faces))
    wrong = w.rng.choice(faces) if w.chance(0.2) else None
    for face in faces:
        w.line(f"{y}[{face}] = {value}{' + 0.5' if face == wrong else ''}")
    if w.chance(0.8):
        w.call("conv", conv_text(w, y, geometry="3"), y)
