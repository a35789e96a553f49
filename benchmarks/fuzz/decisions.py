"""Operations of random networks: code that decides by sizes, and the ways in which the news travels.

A decision is an expression of sizes, a carrier takes it from where it was made to where code goes by it. The helpers
that they use stand in `networks.HEADER`.
"""

from __future__ import annotations

from benchmarks.fuzz.operations import activation_text, conv_text, norm_text, operation
from benchmarks.fuzz.writer import Writer

# {s} is a size, {x} a tensor, {k} a number.
_DECISIONS = (
    "{s} > {k}",
    "not {s} < {k}",
    "{s} == {k}",
    "{s} in (1, 2, {k})",
    "divmod({s}, 2)[1] == 1",
    "math.isqrt({x}.numel()) > {k}",
    "bool({s} // {k})",
    "any(size > {k} for size in {x}.shape[2:])",
    "all(size > {k} for size in {x}.shape[2:])",
    "min({x}.shape[2:], key=lambda size: -size) > {k}",
    "sorted({x}.shape)[-1] > {k}",
    "max({x}.shape) > {k}",
    'int(f"{{{s}}}") > {k}',
    "torch.tensor({s}).item() > {k}",
    "torch.tensor({x}.shape).amax() > {k}",
    "numpy.int64({s}) > {k}",
    "numpy.prod({x}.shape[2:]) > {k}",
    "({x}.shape + (1,))[-2] > {k}",
    "{x}.shape[2:].numel() > {k}",
    "larger({s}, {k})",
    "Sizes({s}).last > {k}",
    "next(pixels({x})) > {k}",
    "at_most({s}, {k})",
    "matched({s})",
    "remembered({s}) > {k}",
    "len(range({s})) > {k}",
    "{x}.shape == {x}.clone().shape",  # these decide nothing
    "{x}.shape[1] == {c}",
    "{x}.ndim > 2 and {x}.shape[1] >= {c}",
)

# A line that is written before the layer, and what is read behind it: {d} is the decision.
_CARRIERS = (
    ("", "{d}"),
    ("", "exists({x} if {d} else None)"),
    ("", "bool(default({x} if {d} else None, {x} * 0).any())"),
    ("", "(({x} if {d} else None) is not None or False)"),
    ("NOTE.said = {d}", "NOTE.said"),
    ("Note.said = {d}", "Note().said"),
    ("NOTES[0] = {d}", "NOTES[0]"),
    ("NOTES.update(said={d})", "NOTES.pop('said')"),
    ("STACK.append({d})", "STACK.pop()"),
    ("TOLD.set({d})", "TOLD.get()"),
    ("KEPT[self] = {d}", "KEPT[self]"),
    ("self.said = {d}", "self.said"),
)


@operation(3)
def carried_decision(w: Writer) -> None:
    """A norm that is applied at some sizes, or a factor behind one that is not 1 at some sizes."""
    x = w.pick_map()
    size = w.rng.choice([f"{x}.shape[-1]", f"{x}.size(2)", f"{x}.shape[0]", f"len({x}[0, 0])"])
    fields = {"x": x, "s": size, "k": w.rng.randint(1, 7), "c": w.shape(x)[1]}
    decision = w.rng.choice(_DECISIONS).format(**fields)
    write, read = (text.format(d=decision, **fields) for text in w.rng.choice(_CARRIERS))
    if write:
        w.line(write)
    y = w.call("conv", conv_text(w, x), x)
    form = w.rng.randint(0, 3)
    if form == 0:
        w.let(f"{w.member('bn', norm_text(w, y))}({y}) if {read} else {y}")
    elif form == 1:
        w.let(f"{w.member('bn', f'Optional({norm_text(w, y)})')}({y}, {x} if {read} else None)")
    else:
        z = w.call("bn", norm_text(w, y), y)
        w.let(f"{z} * (1 if {read} else 2)", activation_text(w).format(f"({z} if {read} else -{z})"))


@operation(1)
def counter(w: Writer) -> None:
    """A module that counts its calls, and perhaps goes by the number."""
    x = w.pick_map()
    name = w.name("calls")
    w.setup(f"self.{name} = 0")
    y = w.call("conv", conv_text(w, x), x)
    w.line(f"self.{name} += 1")
    z = w.call("bn", norm_text(w, y), y)
    w.let(f"{z} * (1 if self.{name} < 2 else 2)", f"{z} * (1 if self.{name} > 0 else 2)", f"{z} + 1")


@operation(2)
def handed_on(w: Writer) -> None:
    """A module that hands arguments on to another one: `*args` and `**kwargs`, most often without anything in them."""
    x = w.pick_map()
    y = w.let(f"{x} * 1")
    norm = norm_text(w, y)
    m = w.member("handing", f"HandingOn(Optional({norm}))")
    w.let(f"{m}({y}, {x})", f"{m}({y}, mask={x})", f"{m}({y}, mask={x}, flag=False)", f"{m}({y})")
