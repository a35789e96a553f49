"""Operations of random networks: rare spellings, matrix products, memory formats, writes through views, loops."""

from __future__ import annotations

from benchmarks.fuzz.operations import conv_text, drawn_groups, norm_text, operation, per_channel, rank_of
from benchmarks.fuzz.writer import Writer

# --- layers


@operation(1)
def uneven_transposed_conv(w: Writer) -> None:
    """A transposed convolution with other numbers along each axis, or with an output size as an argument."""
    x = w.pick_map()
    rank, channels = rank_of(w, x), w.shape(x)[1]
    stride = [w.rng.choice([1, 2, 3]) for _ in range(rank)]
    dilation = [w.rng.choice([1, 1, 2]) for _ in range(rank)]
    added = [w.rng.randrange(max(s, d)) for s, d in zip(stride, dilation, strict=True)]
    kernel = [w.rng.choice([1, 2, 3]) for _ in range(rank)]
    padding = [w.rng.choice([0, 0, 1]) for _ in range(rank)]
    outputs = w.rng.choice([channels, 2, 3])
    text = f"nn.ConvTranspose{rank}d({channels}, {outputs}, {kernel}, stride={stride}, padding={padding}"
    text += f", output_padding={added}, dilation={dilation}, groups={drawn_groups(w, channels, outputs)})"
    if w.chance(0.25):
        m = w.member("up", text)
        y = w.let(f"{m}({x}, output_size=[size * 2 for size in {x}.shape[2:]])")
    else:
        y = w.call("up", text, x)
    if w.chance(0.6):
        w.call("bn", norm_text(w, y), y)


@operation(1)
def functional_conv(w: Writer) -> None:
    """A functional convolution with stride, dilation and groups, as positional or named arguments."""
    x = w.pick_map()
    rank, channels = rank_of(w, x), w.shape(x)[1]
    outputs = w.rng.choice([channels, 2 * channels])
    groups = drawn_groups(w, channels, outputs)
    k = w.constant([outputs, channels // groups, *[w.rng.choice([1, 2, 3]) for _ in range(rank)]])
    b = w.constant([outputs]) if w.chance(0.5) else "None"
    stride, padding, dilation = w.rng.choice([1, 2]), w.rng.choice([0, 1, 2]), w.rng.choice([1, 1, 2])
    named = f"bias={b}, stride={stride}, padding={padding}, dilation={dilation}, groups={groups}"
    y = w.let(
        f"F.conv{rank}d({x}, {k}, {b}, {stride}, {padding}, {dilation}, {groups})",
        f"torch.conv{rank}d({x}, weight={k}, {named})",
    )
    if w.chance(0.5):
        w.call("bn", norm_text(w, y), y)


@operation(1)
def product(w: Writer) -> None:
    """Products with a constant on either side, perhaps followed by a linear layer."""
    x = w.pick(lambda value: value.dim() == 3)
    batch, rows, size = w.shape(x)
    c, d = w.constant([size, w.rng.choice([2, size])]), w.constant([rows, rows])
    y = w.let(
        f"torch.tensordot({x}, {c}, 1)",
        f"torch.tensordot({x}, {c}, dims=([2], [0]))",
        f"torch.inner({x}, {c}.t())",
        f"torch.bmm({x}, {c}.expand({batch}, -1, -1))",
        f"torch.baddbmm({x} @ {c}, {x}, {c}.expand({batch}, -1, -1), beta=0.5)",
        f'torch.einsum("bnc,cd->bnd", {x}, {c})',
        f'torch.einsum("bnc,nm->bmc", {x}, {d})',
        f'torch.einsum("mn,bnc->bmc", {d}, {x})',
        f"{d} @ {x}",
        f"({x}.transpose(1, 2) @ {d}).transpose(1, 2)",
        f"{x} @ {c} + {x} @ ({c} * 0.5)",
    )
    if w.chance(0.5):
        w.call("fc", f"nn.Linear({w.shape(y)[-1]}, 3)", y)


# --- channels


@operation(1)
def channel_range(w: Writer) -> None:
    """A range of channels or pixels, perhaps followed by a convolution."""
    x = w.pick_map()
    channels, last = w.shape(x)[1], w.shape(x)[-1]
    start, long = w.rng.randrange(channels), w.rng.randrange(last)
    index = w.rng.sample(range(channels), w.rng.randint(1, channels))
    name = w.name("i")
    w.setup(f'self.register_buffer("{name}", torch.tensor({index}))')
    y = w.let(
        f"{x}.narrow(1, {start}, {channels - start})",
        f"torch.narrow({x}, -1, {long}, {last - long})",
        f"torch.index_select({x}, 1, self.{name})",
        f"{x}[:, self.{name}]",
        f"{x}.unbind(1)[{start}].unsqueeze(1)",
        f"{x}.split(1, 1)[{start}]",
        f"torch.chunk({x}, {channels}, dim=1)[{start}]",
        f"{x}.repeat(1, 2{', 1' * (len(w.shape(x)) - 2)})",
        f"{x}[:, {start}:{start + 1}].expand(-1, 3{', -1' * (len(w.shape(x)) - 2)})",
        f"{x}.fliplr()",
    )
    if w.chance(0.6):
        w.call("conv", conv_text(w, y), y)


# --- memory formats and writes


@operation(2)
def memory_order(w: Writer) -> None:
    """Dimensions in another order, arithmetic or a layer, and a view that requires a memory format."""
    x = w.pick_map()
    rank = len(w.shape(x))
    order = w.rng.sample(range(rank), rank)
    y = w.let(f"{x}.permute({order})", f"{x}.transpose(1, -1)", f"{x}.movedim(1, -1)", f"{x}.swapaxes(-1, -2)", x)
    for _ in range(w.rng.randint(0, 2)):
        c = w.constant(per_channel(w, y), positive=True)
        y = w.let(f"{y} * {c}", f"{y} + {c}", f"{y}.relu()", f"{y} * 0.5 + {y}")
    if w.chance(0.4):
        y = w.call("conv", conv_text(w, y, geometry="1"), y)
    elif w.chance(0.4):
        y = w.call("fc", f"nn.Linear({w.shape(y)[-1]}, {w.shape(y)[-1]})", y)
    if w.chance(0.3):
        y = w.let(f"{y}.permute({[order.index(dim) for dim in range(rank)]})")
    forms = [f"{y}.view(-1)", f"{y}.view(len({y}), -1)", f"{y}.view(-1, {w.shape(y)[-1]})", f"{y}.flatten(1)"]
    forms += [f"{y}.contiguous().view(-1)", f"{y}.contiguous()"]
    forms += [f"{y}.contiguous(memory_format=torch.channels_last)"] if rank == 4 else []
    w.let(*forms)


@operation(1.5)
def written_layer_output(w: Writer) -> None:
    """The output of a layer, written to through a view and read again."""
    x = w.pick_map()
    y = w.call("conv", conv_text(w, x), x)
    z = w.let(
        f"{y}.view(len({y}), -1)",
        f"{y}.transpose(1, -1)",
        f"{y}.flatten(2)",
        f"{y}[:, ::2]",
        f"{y}.select(1, 0)",
        f"{y}.detach()",
        f"{y}.unsqueeze(0)",
        f"{y}.reshape({y}.shape[0], {y}.shape[1], -1)",
    )
    w.line(f"{z} *= 2", f"{z}.add_(1)", f"{z}.zero_()", f"{z} -= 0.5", f"F.relu_({z})")
    w.let(f"{y} * 1.5", f"{y} + {x}" if w.shape(x) == w.shape(y) else f"{y} - 1", f"-{y}")


# --- loops and branches


@operation(0.7)
def python_loop(w: Writer) -> None:
    """Loops over a size, and conditions that read the batch or the memory format."""
    x = w.pick_map()
    w.let(
        f"sum({x} * (i + 1) for i in range({x}.shape[1]))",
        f"{x} * 2 if {x}.shape[0] > 1 else {x} + 1",
        f"torch.stack([part * 2 for part in {x}.unbind(1)], 1)",
        f"torch.cat([{x}[:, i : i + 1] * i for i in range({x}.size(1))], 1)",
        f"{x} if {x}.numel() else {x} * 2",
        f"{x} * (1.5 if {x}.is_contiguous() else 2)",
    )


@operation(2)
def shared_module(w: Writer) -> None:
    """A module, called on two tensors or on its own result, perhaps with a norm after each call."""
    x = w.pick_map()
    channels = w.shape(x)[1]
    m = w.member("conv", conv_text(w, x, channels, w.rng.choice(["1", "3, padding=1"])))
    w.callables.append((m, w.shape(x)))
    y = w.let(f"{m}({x})")
    z = w.let(f"{m}({y})", f"{m}(F.relu({x}))", f"{m}(-{x})")
    if w.chance(0.5):
        b = w.member("bn", norm_text(w, y))
        y, z = w.let(f"{b}({y})"), w.let(f"{b}({z})", z)
    w.let(f"{y} + {z}", f"torch.cat([{y}, {z}], 1)", f"{z} * 2")
