"""Operations of random networks: channels and pixels taken apart, views, writes, sizes, shared modules, blocks."""

from __future__ import annotations

from benchmarks.fuzz.drawing import (
    OPERATIONS,
    WEIGHTS,
    activation_text,
    conv_text,
    drawn,
    norm_text,
    per_channel,
    rank_of,
)
from benchmarks.fuzz.networks import Unfit, Writer, block_result

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
        c = w.call("conv", conv_text(w, a, geometry=w.draw.choice(["1", "3, padding=1"])), a)
        w.let(f"torch.cat([{b}, {c}], 1)", f"torch.cat(({c}, {b}), dim=1)")


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
        f"{x}[:, {order}]",
        f"{x}.flip(1)",
        f"{x}.narrow(1, 0, 1)",
        f"{x}.roll(1, 1)",
        f"{x}.unflatten(1, (-1, 1)).flatten(1, 2)",
        f"torch.cat(({x}.tensor_split(2, 1)[0], {x}), 1)",
        f"{x}.repeat_interleave(2, 1)",
        f"{x}.select(1, 0).unsqueeze(1)",
        f"{x}.flip(-1)",
        f"torch.cat([{x}, {x}], 1)[:, 1:-1]",
        f"torch.index_select({x}, 1, torch.tensor({order}))",
    )


@drawn(1)
def shuffled(w: Writer) -> None:
    x = w.any(lambda value: value.dim() == 4 and value.shape[1] % 2 == 0)
    sizes = w.draw.choice(["{0}.shape[0], {1}, 2, {0}.shape[2], {0}.shape[3]", "len({0}), 2, {1}, *{0}.shape[2:]"])
    y = w.let(f"{x}.reshape({sizes.format(x, w.shape(x)[1] // 2)}).transpose(1, 2).flatten(1, 2)")
    if w.chance(0.6):
        w.call("conv", conv_text(w, y), y)


_FACTORED = (
    "{x}.view({b}, 2, {c} // 2, {h}, {w}).transpose(1, 2).reshape({b}, {c}, {h}, {w})",
    "{x}.reshape({b}, -1, 2, {h} * {w}).permute(0, 2, 1, 3).reshape({b}, -1, {h}, {w})",
    "{x}.reshape({b} * {c} // 2, 2, {h}, {w})[:, 1].reshape({b}, {c} // 2, {h}, {w})",
    "{x}.view({b}, 2, {c} // 2, {h}, {w})[:, 1]",
    "torch.cat({x}.unflatten(1, (2, {c} // 2)).unbind(2), 1)",
    "{x}.view({b}, {c}, {h} // 2, 2, {w}).permute(0, 1, 3, 2, 4).reshape({b}, {c} * 2, {h} // 2, {w})",
    "{x}.reshape({b}, {c}, {h}, -1, 2).permute(0, 4, 1, 2, 3).reshape({b}, 2 * {c}, {h}, -1)",
    "{x}.view({b}, {c} // 2, 2, {h}, {w}).permute(0, 1, 3, 2, 4).reshape({b}, {c} // 2, {h} * 2, {w})",
    # of another shape at other sizes, or pixels among channels
    "{x}.view({b}, 2, {c} // 2, {w}, {h}).transpose(1, 2).reshape({b}, {c}, {h}, {w})",
    "{x}.view({b}, 2, {c} // 2, {h}, {w}).transpose(2, 3).reshape({b}, {c}, {h}, {w})",
    "{x}.view({b}, {c}, 2, {h} // 2, {w}).transpose(1, 2).reshape({b}, 2 * {c}, {h} // 2, {w})",
    "{x}.reshape(-1, {c} * {h}, {w}).reshape({b}, {c}, {w}, {h})",
    "{x}.view(2, {c}, -1, {w}).transpose(0, 1).reshape({b}, {c}, {h}, {w})",
)


@drawn(3)
def factored(w: Writer) -> None:
    """Channels and pixels cut apart by sizes of the code's own, and what stands behind that."""
    x = w.any(lambda value: value.dim() == 4)
    size = w.draw.choice(["{}.shape[{}]", "{}.size({})"])
    y = w.let(w.draw.choice(_FACTORED).format(x=x, **{name: size.format(x, i) for i, name in enumerate("bchw")}))
    if w.chance(0.5):
        w.call("bn", norm_text(w, y), y)
    elif w.chance(0.7):
        w.call("conv", conv_text(w, y, geometry=w.draw.choice(["1", "1", "3", "3, padding=1"])), y)


@drawn(1)
def rearranged(w: Writer) -> None:
    """Pixels to channels or back, and what stands behind that."""
    x = w.any(lambda value: value.dim() == 4)
    if w.shape(x)[1] % 4 == 0 and w.chance(0.6):
        y = w.let(f"F.pixel_shuffle({x}, 2)", f"F.channel_shuffle({x}, 2)")
    else:
        y = w.let(f"F.pixel_unshuffle({x}, 2)")
    if w.chance(0.5):
        w.call("bn", norm_text(w, y), y)
    elif w.chance(0.5):
        w.call("conv", conv_text(w, y), y)


@drawn(1)
def padded_channels(w: Writer) -> None:
    x = w.map()
    rank = rank_of(w, x)
    w.let(f"F.pad({x}, {[*[0] * (2 * rank), w.draw.choice([0, 1]), 2]}{w.draw.choice(['', ', value=0.5'])})")


@drawn(1)
def space_to_depth(w: Writer) -> None:
    x = w.any(lambda value: value.dim() == 4)
    w.let(f"torch.cat([{x}[..., ::2, ::2], {x}[..., 1::2, ::2], {x}[..., ::2, 1::2], {x}[..., 1::2, 1::2]], 1)")


# --- views


@drawn(3)
def tokens(w: Writer) -> None:
    """Pixels in a row and a linear layer over channels, or the other way."""
    x = w.map()
    rank, channels = rank_of(w, x), w.shape(x)[1]
    order = [0, *range(2, rank + 2), 1]
    y = w.let(
        f"{x}.flatten(2).transpose(1, 2)",
        f"{x}.permute({', '.join(map(str, order))})",
        f"{x}.view({x}.shape[0], {channels}, -1).transpose(1, 2)",
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
        f"{x}.mean({dims})",
        f"F.adaptive_avg_pool{rank_of(w, x)}d({x}, 1).flatten(1)",
        f"torch.flatten({x}, 1)",
        f"{x}.mean({dims}, keepdim=True)",
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
    w.let(*forms)


@drawn(1)
def resized(w: Writer) -> None:
    x = w.any(lambda value: value.dim() == 4)
    w.let(
        f'F.interpolate({x}, scale_factor=2, mode="nearest")',
        f'F.interpolate({x}, size=(4, 5), mode="bilinear")',
        f"F.pixel_unshuffle({x}, 2)",
    )


@drawn(1)
def mixed(w: Writer) -> None:
    """Operations that no rule will ever know."""
    x = w.any()
    w.let(
        f"{x}.softmax(1)",
        f"{x}.cumsum(1)",
        f"{x}.sum(1, keepdim=True)",
        f"{x}.amax(-1, keepdim=True)",
        f"torch.where({x} > 0, {x}, -{x})",
        f"{x} ** 2",
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
            f"{x} *= 0.5",
            f"{x}.add_(1.5)",
            f"{x}.mul_(2)",
            f"{x} -= 1",
            f"F.relu({x}, inplace=True)",
            f"{x}.neg_()",
        )
    elif form == 2:
        w.line(f"{x} += {w.constant(per_channel(w, x))}")
    else:
        y = w.let(f"{x}.clone()")
        w.line(f"{y} += {x}")


@drawn(1.5)
def written_and_dropped(w: Writer) -> None:
    """Writes as statements."""
    x = w.map()
    y = w.call("conv", conv_text(w, x), x)
    w.line(f"{y}.mul_(0.5)", f"{y}.add_({w.like(y)})", f"F.relu({y}, inplace=True)", f"{y}.neg_()")
    if w.chance(0.6):
        w.call("bn", norm_text(w, y), y)


@drawn(0.7)
def computed_in_vain(w: Writer) -> None:
    """A result that nobody reads."""
    x = w.map()
    w.line(f"{w.member('conv', conv_text(w, x))}({x})")


@drawn(1.5)
def view_written(w: Writer) -> None:
    """A write through a view: the whole changes as well."""
    x = w.map()
    w.line(
        f"{x}[:, :1] *= 2",
        f"{x}[:, 0] = 1",
        f"{x}.view(-1).add_(1)",
        f"{x}[:, :1].zero_()",
        f"{x}.flatten(2).mul_(0.5)",
        f"{x}[..., 0] = {x}[..., -1]",
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
    w.let(*forms)


@drawn(1.5)
def depends_on_other_size(w: Writer) -> None:
    """A size that was read from another tensor, perhaps one that is folded away."""
    x, y = w.map(), w.any()
    size = f"{y}.{w.draw.choice(['shape[1]', 'shape[-1]', 'size(1)', 'size(0)'])}"
    w.let(f"{x} * {size}", f"{x} / {size}", f"{x}.view({y}.shape[0], {w.shape(x)[1]}, -1)", f"{x} + {size}")


@drawn(2)
def size_on_the_way(w: Writer) -> None:
    """Code that looks at the size of what a fold would not compute any more."""
    x = w.map()
    y = w.call("conv", conv_text(w, x), x)
    if w.chance(0.3):
        w.line(f"assert {y}.shape[1] == {w.shape(y)[1]}")
    z = w.call("conv", conv_text(w, y), y) if w.chance(0.6) else w.call("bn", norm_text(w, y), y)
    z = w.let(activation_text(w).format(z)) if w.chance(0.7) else z
    w.let(f"{z} * {y}.{w.draw.choice(['shape[1]', 'shape[-1]', 'size(1)', 'size(2)'])}")


@drawn(0.7)
def norm_by_size(w: Writer) -> None:
    x = w.map()
    m = w.member("bn", norm_text(w, x))
    w.let(f"{m}({x}) if {x}.shape[-1] > {w.draw.choice([3, 5])} else {x}")


@drawn(0.7)
def number_read(w: Writer) -> None:
    x = w.any()
    w.let(
        f"{x} * (2.0 if {x}.mean().item() > 1e9 else 1.0)",
        f"{x} + float({x}.abs().max() > 1e9)",
        f"{x} if {x}.sum() < 1e9 else -{x}",
    )


@drawn(0.7)
def asserted(w: Writer) -> None:
    x = w.any()
    w.line(
        f"assert {x}.dim() == {len(w.shape(x))}",
        f'torch._assert({x}.ndim == {len(w.shape(x))}, "rank")',
        f"assert {x}.shape[1] == {w.shape(x)[1]}",
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
    m = w.member("conv", conv_text(w, x))
    w.setup(
        f"{m}.register_forward_hook(halved)",
        f"{m}.register_forward_pre_hook(shifted)",
        f"{m}.register_forward_hook(looked_at)",
    )
    w.callables.append((m, w.shape(x)))
    y = w.let(f"{m}({x})")
    if w.chance(0.7):
        w.call("bn", norm_text(w, y), y)


@drawn(2)
def computed_weight(w: Writer) -> None:
    x = w.map()
    m = w.member("conv", conv_text(w, x))
    w.setup(
        f"parametrizations.weight_norm({m})",
        f"weight_norm({m})",
        f"parametrizations.spectral_norm({m})",
        f"spectral_norm({m})",
        f'parametrize.register_parametrization({m}, "weight", Doubled())',
    )
    w.callables.append((m, w.shape(x)))
    y = w.let(f"{m}({x})")
    if w.chance(0.7):
        w.call("bn", norm_text(w, y), y)


# --- containers


@drawn(5)
def sequence(w: Writer) -> None:
    x = y = w.map()
    inner = Writer(w.session, {x: w.values[x]})
    steps = []
    for _ in range(w.draw.randint(1, 4)):
        step = w.draw.choice(
            [
                conv_text(inner, y),
                conv_text(inner, y),
                norm_text(inner, y),
                "nn.ReLU()",
                "nn.Identity()",
                "nn.Dropout(0.1)",
            ]
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
