"""The table of operations that networks are drawn from, and the constructors and geometries that operations draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd
from typing import Any

from benchmarks.fuzz.writer import NotApplicable, Writer

Operation = Callable[[Writer], Any]
OPERATIONS: list[Operation] = []
WEIGHTS: list[float] = []


def operation(weight: float) -> Callable[[Operation], Operation]:
    """Adds an operation to the table; `weight` says how often it is drawn, relative to the others."""

    def register(write: Operation) -> Operation:
        OPERATIONS.append(write)
        WEIGHTS.append(weight)
        return write

    return register


def rank_of(w: Writer, x: str) -> int:
    """The number of spatial axes."""
    rank = len(w.shape(x)) - 2
    if not 1 <= rank <= 3:
        raise NotApplicable
    return rank


def channels_of(w: Writer, x: str) -> int:
    """A number of output channels, mostly that of the input: others cannot be added to it."""
    own = w.shape(x)[1]
    return own if w.chance(0.6) else w.rng.choice([1, 2, 3, 4, 6, 8])


def per_axis(w: Writer, rank: int, choices: Sequence[int]) -> str:
    """One number for all axes, or a number for each axis."""
    if w.chance(0.7):
        return str(w.rng.choice(choices))
    return f"({', '.join(str(w.rng.choice(choices)) for _ in range(rank))},)"


def drawn_groups(w: Writer, inputs: int, outputs: int) -> int:
    common = gcd(inputs, outputs)
    return w.rng.choice([d for d in range(1, common + 1) if common % d == 0]) if w.chance(0.35) else 1


def drawn_geometry(w: Writer, rank: int) -> str:
    """Kernel, stride, padding and dilation; half of the geometries keep the size."""
    if w.chance(0.5):
        kernel, dilation = w.rng.choice([1, 1, 3, 3, 5]), w.rng.choice([1, 1, 1, 2])
        text = f"{kernel}, padding={dilation * (kernel // 2)}"
        return text + (f", dilation={dilation}" if dilation > 1 else "")
    text = per_axis(w, rank, [1, 1, 2, 3, 3, 4])
    stride = per_axis(w, rank, [1, 1, 1, 2, 3]) if w.chance(0.5) else "1"
    text += f", stride={stride}" if stride != "1" else ""
    if w.chance(0.25) and stride == "1":
        text += w.rng.choice([', padding="same"', ', padding="valid"'])
    elif w.chance(0.6):
        text += f", padding={per_axis(w, rank, [0, 1, 1, 2, 3])}"
    return text + (f", dilation={per_axis(w, rank, [1, 2, 3])}" if w.chance(0.2) else "")


def conv_text(w: Writer, x: str, outputs: int | None = None, geometry: str | None = None) -> str:
    """The constructor of a convolution of x."""
    rank, inputs = rank_of(w, x), w.shape(x)[1]
    outputs = outputs or channels_of(w, x)
    groups = drawn_groups(w, inputs, outputs)
    text = f"nn.Conv{rank}d({inputs}, {outputs}, {geometry or drawn_geometry(w, rank)}"
    text += f", groups={groups}" if groups > 1 else ""
    text += ", bias=False" if w.chance(0.5) else ""
    if w.chance(0.06):
        text += f', padding_mode="{w.rng.choice(["reflect", "circular", "replicate"])}"'
    return text + ")"


def norm_text(w: Writer, x: str) -> str:
    rank = len(w.shape(x)) - 2
    if rank < 0:
        raise NotApplicable
    kind = "nn.SyncBatchNorm" if w.chance(0.03) else f"nn.BatchNorm{max(rank, 1)}d"
    text = f"{kind}({w.shape(x)[1]}"
    text += ", affine=False" if w.chance(0.15) else ""
    text += ", eps=0.3" if w.chance(0.2) else ""
    text += ", track_running_stats=False" if w.chance(0.03) else ""
    return text + ")"


def per_channel(w: Writer, x: str) -> Sequence[int]:
    """The shape of a constant with one number per channel of a feature map, or per entry of the last axis."""
    shape = w.shape(x)
    if len(shape) < 3 or w.chance(0.1):
        return shape[-1:]
    ones = [1] * (len(shape) - 2)
    return [shape[1], *ones] if w.chance(0.5) else [1, shape[1], *ones]


def activation_text(w: Writer) -> str:
    return w.rng.choice(
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
