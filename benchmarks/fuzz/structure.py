"""Operations of random networks: split channels, views, writes, sizes, shared modules, blocks."""

from __future__ import annotations

from benchmarks.fuzz.operations import (
    OPERATIONS,
    WEIGHTS,
    activation_text,
    conv_text,
    norm_text,
    operation,
    per_channel,
    rank_of,
)
from benchmarks.fuzz.writer import NotApplicable, Writer

# --- channels and pixels


@operation(4)
def split_channels(w: Writer) -> None:
    x = w.pick_map()
    channels = w.shape(x)[1]
    if channels < 2:
        raise NotApplicable
    a, b = w.name("t"), w.name("t")
    cut = w.rng.randint(1, channels - 1)
    form = w.rng.choice(
        [f"{x}.split([{cut}, {channels - cut}], 1)", f"{x}.chunk(2, 1)", f"({x}[:, :{cut}], {x}[:, {cut}:])"]
    )
    w.line(f"{a}, {b} = {form}")
    if w.chance(0.6):
        c = w.call("conv", conv_text(w, a, geometry=w.rng.choice(["1", "3, padding=1"])), a)
        w.let(f"torch.cat([{b}, {c}], 1)", f"torch.cat(({c}, {b}), dim=1)")


@operation(3)
def strided_slice(w: Writer) -> None:
    x = w.pick_map()
    last = len(w.shape(x)) - 1
    cuts = [":"] * last
    cuts[w.rng.randrange(last)] = w.rng.choice(["::2", "1:", ":-1", "1:-1", "1::2", ":2", "-2:", "::3"])
    cuts[0] = ":" if w.chance(0.9) else cuts[0]
    w.let(f"{x}[:, {', '.join(cuts)}]" if w.chance(0.7) else f"{x}[..., {cuts[-1]}]")


@operation(1)
def selected_channels(w: Writer) -> None:
    x = w.pick_map()
    order = list(range(w.shape(x)[1]))
    w.rng.shuffle(order)
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


@operation(1)
def channel_shuffle(w: Writer) -> None:
    x = w.pick(lambda value: value.dim() == 4 and value.shape[1] % 2 == 0)
    sizes = w.rng.choice(["{0}.shape[0], {1}, 2, {0}.shape[2], {0}.shape[3]", "len({0}), 2, {1}, *{0}.shape[2:]"])
    y = w.let(f"{x}.reshape({sizes.format(x, w.shape(x)[1] // 2)}).transpose(1, 2).flatten(1, 2)")
    if w.chance(0.6):
        w.call("conv", conv_text(w, y), y)


_REGROUPINGS = (
    "{x}.view({b}, 2, {c} // 2, {h}, {w}).transpose(1, 2).reshape({b}, {c}, {h}, {w})",
    "{x}.reshape({b}, -1, 2, {h} * {w}).permute(0, 2, 1, 3).reshape({b}, -1, {h}, {w})",
    "{x}.reshape({b} * {c} // 2, 2, {h}, {w})[:, 1].reshape({b}, {c} // 2, {h}, {w})",
    "{x}.view({b}, 2, {c} // 2, {h}, {w})[:, 1]",
    "torch.cat({x}.unflatten(1, (2, {c} // 2)).unbind(2), 1)",
    "{x}.view({b}, {c}, {h} // 2, 2, {w}).permute(0, 1, 3, 2, 4).reshape({b}, {c} * 2, {h} // 2, {w})",
    "{x}.reshape({b}, {c}, {h}, -1, 2).permute(0, 4, 1, 2, 3).reshape({b}, 2 * {c}, {h}, -1)",
    "{x}.view({b}, {c} // 2, 2, {h}, {w}).permute(0, 1, 3, 2, 4).reshape({b}, {c} // 2, {h} * 2, {w})",
    # Another function at other sizes, or pixels mixed with channels.
    "{x}.view({b}, 2, {c} // 2, {w}, {h}).transpose(1, 2).reshape({b}, {c}, {h}, {w})",
    "{x}.view({b}, 2, {c} // 2, {h}, {w}).transpose(2, 3).reshape({b}, {c}, {h}, {w})",
    "{x}.view({b}, {c}, 2, {h} // 2, {w}).transpose(1, 2).reshape({b}, 2 * {c}, {h} // 2, {w})",
    "{x}.reshape(-1, {c} * {h}, {w}).reshape({b}, {c}, {w}, {h})",
    "{x}.view(2, {c}, -1, {w}).transpose(0, 1).reshape({b}, {c}, {h}, {w})",
)


@operation(3)
def regrouped_channels(w: Writer) -> None:
    """Channels or pixels regrouped by reshapes that read sizes, then a norm or a convolution."""
    x = w.pick(lambda value: value.dim() == 4)
    size = w.rng.choice(["{}.shape[{}]", "{}.size({})"])
    y = w.let(w.rng.choice(_REGROUPINGS).format(x=x, **{name: size.format(x, i) for i, name in enumerate("bchw")}))
    if w.chance(0.5):
        w.call("bn", norm_text(w, y), y)
    elif w.chance(0.7):
        w.call("conv", conv_text(w, y, geometry=w.rng.choice(["1", "1", "3", "3, padding=1"])), y)


@operation(1)
def pixel_shuffle(w: Writer) -> None:
    """Pixels moved to channels or back, then a norm or a convolution."""
    x = w.pick(lambda value: value.dim() == 4)
    if w.shape(x)[1] % 4 == 0 and w.chance(0.6):
        y = w.let(f"F.pixel_shuffle({x}, 2)", f"F.channel_shuffle({x}, 2)")
    else:
        y = w.let(f"F.pixel_unshuffle({x}, 2)")
    if w.chance(0.5):
        w.call("bn", norm_text(w, y), y)
    elif w.chance(0.5):
        w.call("conv", conv_text(w, y), y)


@operation(1)
def channel_padding(w: Writer) -> None:
    x = w.pick_map()
    rank = rank_of(w, x)
    w.let(f"F.pad({x}, {[*[0] * (2 * rank), w.rng.choice([0, 1]), 2]}{w.rng.choice(['', ', value=0.5'])})")


@operation(1)
def space_to_depth(w: Writer) -> None:
    x = w.pick(lambda value: value.dim() == 4)
    w.let(f"torch.cat([{x}[..., ::2, ::2], {x}[..., 1::2, ::2], {x}[..., ::2, 1::2], {x}[..., 1::2, 1::2]], 1)")


# --- views


@operation(3)
def tokens(w: Writer) -> None:
    """Pixels as a sequence, and a linear layer over channels."""
    x = w.pick_map()
    rank, channels = rank_of(w, x), w.shape(x)[1]
    order = [0, *range(2, rank + 2), 1]
    y = w.let(
        f"{x}.flatten(2).transpose(1, 2)",
        f"{x}.permute({', '.join(map(str, order))})",
        f"{x}.view({x}.shape[0], {channels}, -1).transpose(1, 2)",
    )
    if w.chance(0.7):
        z = w.call("fc", f"nn.Linear({channels}, {w.rng.choice([channels, 3])})", y)
        if w.chance(0.3):
            w.let(f"{z}.transpose(1, -1)")


@operation(2)
def pooled_head(w: Writer) -> None:
    x = w.pick_map()
    dims = tuple(range(2, len(w.shape(x))))
    y = w.let(
        f"{x}.mean({dims})",
        f"F.adaptive_avg_pool{rank_of(w, x)}d({x}, 1).flatten(1)",
        f"torch.flatten({x}, 1)",
        f"{x}.mean({dims}, keepdim=True)",
    )
    if w.chance(0.7) and len(w.shape(y)) == 2:
        w.call("fc", f"nn.Linear({w.shape(y)[1]}, 3)", y)


@operation(2)
def view(w: Writer) -> None:
    x = w.pick()
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


@operation(1)
def resize(w: Writer) -> None:
    x = w.pick(lambda value: value.dim() == 4)
    w.let(
        f'F.interpolate({x}, scale_factor=2, mode="nearest")',
        f'F.interpolate({x}, size=(4, 5), mode="bilinear")',
        f"F.pixel_unshuffle({x}, 2)",
    )


@operation(1)
def unsupported(w: Writer) -> None:
    """Operations without a rule."""
    x = w.pick()
    w.let(
        f"{x}.softmax(1)",
        f"{x}.cumsum(1)",
        f"{x}.sum(1, keepdim=True)",
        f"{x}.amax(-1, keepdim=True)",
        f"torch.where({x} > 0, {x}, -{x})",
        f"{x} ** 2",
    )


# --- writes


@operation(3)
def in_place_arithmetic(w: Writer) -> None:
    x = w.pick()
    form = w.rng.randint(0, 4)
    if form == 0:
        w.line(f"{x} += {w.pick_like(x)}")
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


@operation(1.5)
def in_place_statement(w: Writer) -> None:
    """A write whose result is not assigned."""
    x = w.pick_map()
    y = w.call("conv", conv_text(w, x), x)
    w.line(f"{y}.mul_(0.5)", f"{y}.add_({w.pick_like(y)})", f"F.relu({y}, inplace=True)", f"{y}.neg_()")
    if w.chance(0.6):
        w.call("bn", norm_text(w, y), y)


@operation(0.7)
def unused_result(w: Writer) -> None:
    """A result that is not used."""
    x = w.pick_map()
    w.line(f"{w.member('conv', conv_text(w, x))}({x})")


@operation(1.5)
def write_through_view(w: Writer) -> None:
    """A write through a view, which also changes the base."""
    x = w.pick_map()
    w.line(
        f"{x}[:, :1] *= 2",
        f"{x}[:, 0] = 1",
        f"{x}.view(-1).add_(1)",
        f"{x}[:, :1].zero_()",
        f"{x}.flatten(2).mul_(0.5)",
        f"{x}[..., 0] = {x}[..., -1]",
    )


@operation(0.5)
def updated_buffer(w: Writer) -> None:
    """A buffer that every call changes."""
    x, name = w.pick(), w.name("c")
    w.setup(f'self.register_buffer("{name}", torch.ones(1))')
    w.line(f"self.{name}.mul_(1.5)")
    w.let(f"{x} * self.{name}")


@operation(0.5)
def stored_tensor(w: Writer) -> None:
    """A tensor stored on the module."""
    x, name = w.pick(), w.name("kept")
    w.line(f"self.{name} = {x}")
    w.let(f"self.{name} * 2")


# --- code that reads sizes and values


@operation(1)
def size_dependent(w: Writer) -> None:
    x = w.pick_map()
    forms = [
        f"{x} * {x}.shape[-1]",
        f"{x}[:, :, : {x}.shape[2] // 2]",
        f"{x} if {x}.shape[-1] > 6 else {x} * 2",
        f"{x} / {x}.shape[1]",
        f"{x}.view({x}.shape)",
        f"F.pad({x}, [0, {x}.shape[-1] % 2])",
    ]
    w.let(*forms)


@operation(1.5)
def other_tensor_size(w: Writer) -> None:
    """The size of another tensor, perhaps of one that folding removes."""
    x, y = w.pick_map(), w.pick()
    size = f"{y}.{w.rng.choice(['shape[1]', 'shape[-1]', 'size(1)', 'size(0)'])}"
    w.let(f"{x} * {size}", f"{x} / {size}", f"{x}.view({y}.shape[0], {w.shape(x)[1]}, -1)", f"{x} + {size}")


@operation(2)
def size_of_intermediate(w: Writer) -> None:
    """The size of a tensor that folding would remove."""
    x = w.pick_map()
    y = w.call("conv", conv_text(w, x), x)
    if w.chance(0.3):
        w.line(f"assert {y}.shape[1] == {w.shape(y)[1]}")
    z = w.call("conv", conv_text(w, y), y) if w.chance(0.6) else w.call("bn", norm_text(w, y), y)
    z = w.let(activation_text(w).format(z)) if w.chance(0.7) else z
    w.let(f"{z} * {y}.{w.rng.choice(['shape[1]', 'shape[-1]', 'size(1)', 'size(2)'])}")


@operation(0.7)
def norm_if_large(w: Writer) -> None:
    x = w.pick_map()
    m = w.member("bn", norm_text(w, x))
    w.let(f"{m}({x}) if {x}.shape[-1] > {w.rng.choice([3, 5])} else {x}")


@operation(0.7)
def value_dependent(w: Writer) -> None:
    x = w.pick()
    w.let(
        f"{x} * (2.0 if {x}.mean().item() > 1e9 else 1.0)",
        f"{x} + float({x}.abs().max() > 1e9)",
        f"{x} if {x}.sum() < 1e9 else -{x}",
    )


@operation(0.7)
def assertion(w: Writer) -> None:
    x = w.pick()
    w.line(
        f"assert {x}.dim() == {len(w.shape(x))}",
        f'torch._assert({x}.ndim == {len(w.shape(x))}, "rank")',
        f"assert {x}.shape[1] == {w.shape(x)[1]}",
    )


# --- modules that are shared, hooked, parametrized


@operation(5)
def repeated_call(w: Writer) -> None:
    if not w.callables:
        raise NotApplicable
    member, shape = w.rng.choice(w.callables)
    w.let(f"{member}({w.pick(lambda value: len(value.shape) == len(shape) and value.shape[1] == shape[1])})")


@operation(1.5)
def second_name(w: Writer) -> None:
    if not w.callables:
        raise NotApplicable
    member, shape = w.rng.choice(w.callables)
    x = w.pick(lambda value: tuple(value.shape) == shape)
    w.call("twin", member, x)


@operation(1.5)
def tied_weight(w: Writer) -> None:
    """Two modules with the same weight."""
    convs = [(member, shape) for member, shape in w.callables if ".conv" in member]
    if not convs:
        raise NotApplicable
    member, shape = w.rng.choice(convs)
    constructor = next(line.partition(" = ")[2] for line in w.init if line.startswith(f"{member} = "))
    second = w.member("conv", constructor)
    w.setup(f"{second}.weight = {member}.weight")
    w.callables.append((second, shape))
    w.let(f"{second}({w.pick(lambda value: len(value.shape) == len(shape) and value.shape[1] == shape[1])})")


@operation(1.5)
def hooked_conv(w: Writer) -> None:
    x = w.pick_map()
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


@operation(2)
def parametrized_weight(w: Writer) -> None:
    x = w.pick_map()
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


@operation(5)
def sequence(w: Writer) -> None:
    x = y = w.pick_map()
    inner = Writer(w.draft, {x: w.values[x]})
    steps = []
    for _ in range(w.rng.randint(1, 4)):
        step = w.rng.choice(
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


@operation(10)
def block(w: Writer) -> None:
    """A class of its own."""
    if w.depth >= 2:
        raise NotApplicable
    arguments = [w.pick_map()]
    if w.chance(0.2):
        arguments.append(w.pick())
    inner = Writer(w.draft, dict(zip("xy", (w.values[a].clone() for a in arguments), strict=False)), w.depth + 1)
    inner.write(OPERATIONS, WEIGHTS, w.rng.randint(1, 5))
    result, count = inner.result()
    written = inner.block(f"Block{len(w.draft.blocks)}", result)
    w.draft.blocks.append(written)
    exec(written.source(), vars(w.draft.module))
    m = w.member("block", f"{written.name}()")
    targets = [w.name("t") for _ in range(count)]
    w.line(f"{', '.join(targets)} = {m}({', '.join(arguments)})")
    if len(arguments) == count == 1:
        w.callables.append((m, w.shape(arguments[0])))


@operation(1.5)
def second_instance(w: Writer) -> None:
    """A second instance of a class, perhaps with one module of the first instance."""
    blocks = [(member, shape) for member, shape in w.callables if ".block" in member]
    if not blocks:
        raise NotApplicable
    member, shape = w.rng.choice(blocks)
    constructor = next(line.partition(" = ")[2] for line in w.init if line.startswith(f"{member} = "))
    second = w.member("block", constructor)
    inner = [name for name, _ in w.instance.get_submodule(second.removeprefix("self.")).named_children()]
    if inner and w.chance(0.5):
        name = w.rng.choice(inner)
        w.setup(f"{second}.{name} = {member}.{name}")
    w.callables.append((second, shape))
    w.let(f"{second}({w.pick(lambda value: tuple(value.shape) == shape)})")
